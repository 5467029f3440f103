import { MigrationError } from "../base/errors.ts";
import { NAME_BYTES_MAX, PIECE_BYTES_MAX } from "../channels/frame.ts";
import type { FrameStream } from "../channels/frame-stream.ts";
import {
  decodeDevices,
  decodeSection,
  encodeDevices,
  encodeSection,
} from "../channels/messages.ts";
import { checkAnswer } from "./given.ts";
import type { DeviceSection } from "./host.ts";

const SECTIONS_MAX = 4096;

export interface DeviceLimits {
  readonly deviceLimitBytes: number;
  /** For each frame. */
  readonly limitMs: number;
}

/** Throws DEVICES_TOO_LARGE before anything is sent, HOST_FAILED for sections that cannot travel. */
export async function sendDevices(
  stream: FrameStream,
  sections: readonly DeviceSection[],
  { deviceLimitBytes, limitMs }: DeviceLimits,
): Promise<void> {
  const bytes = sections.reduce((sum, section) => sum + section.bytes.length, 0);
  if (bytes > deviceLimitBytes) {
    throw new MigrationError("DEVICES_TOO_LARGE", { bytes, limitBytes: deviceLimitBytes });
  }
  await stream.send("devices", encodeDevices({ sections: sections.length, bytes }), limitMs);
  for (const section of sections) {
    const { name } = section;
    await stream.send("section", encodeSection({ name, bytes: section.bytes.length }), limitMs);
    for (let at = 0; at < section.bytes.length; at += PIECE_BYTES_MAX) {
      await stream.send("piece", section.bytes.subarray(at, at + PIECE_BYTES_MAX), limitMs);
    }
  }
}

/** Throws HOST_FAILED for what cannot be the state of devices. */
export function checkSections(sections: readonly DeviceSection[]): void {
  checkAnswer("save devices", sections);
  const fail = (reason: string) =>
    new MigrationError("HOST_FAILED", { action: "save devices", reason });
  if (sections.length > SECTIONS_MAX) throw fail(`more than ${SECTIONS_MAX} sections`);
  if (new Set(sections.map(({ name }) => name)).size !== sections.length) {
    throw fail("two sections have the same name");
  }
  for (const { name, bytes } of sections) {
    // Another view of bytes has another length than it takes on the wire.
    if (!(bytes instanceof Uint8Array)) throw fail(`section "${name}" needs a Uint8Array of bytes`);
    if (!String(name).isWellFormed()) throw fail("a section has a name that UTF-8 cannot carry");
    if (new TextEncoder().encode(name).length > NAME_BYTES_MAX) {
      throw fail(`a section's name is longer than ${NAME_BYTES_MAX} bytes`);
    }
  }
}

/** Receives what `sendDevices` sends, after its DEVICES frame. Nothing is allocated unchecked. */
export async function receiveDevices(
  stream: FrameStream,
  announcement: Uint8Array,
  { deviceLimitBytes, limitMs }: DeviceLimits,
  onBytes: (bytes: number) => void = () => {},
): Promise<DeviceSection[]> {
  const { channel } = stream;
  const announced = decodeDevices(announcement, channel);
  if (announced.bytes > deviceLimitBytes) {
    const facts = { bytes: announced.bytes, limitBytes: deviceLimitBytes };
    throw new MigrationError("DEVICES_TOO_LARGE", facts);
  }
  if (announced.sections > SECTIONS_MAX) {
    throw new MigrationError("FRAME_CORRUPT", {
      channel,
      field: "sections",
      found: announced.sections,
    });
  }
  const sections: DeviceSection[] = [];
  let left = announced.bytes;
  for (let index = 0; index < announced.sections; index += 1) {
    const section = await receiveSection(stream, left, limitMs);
    left -= section.bytes.length;
    onBytes(announced.bytes - left);
    sections.push(section);
  }
  if (left !== 0)
    throw new MigrationError("FRAME_CORRUPT", { channel, field: "device bytes", found: left });
  if (new Set(sections.map(({ name }) => name)).size !== sections.length) {
    throw new MigrationError("FRAME_CORRUPT", {
      channel,
      field: "section names",
      found: "not unique",
    });
  }
  return sections;
}

async function receiveSection(
  stream: FrameStream,
  left: number,
  limitMs: number,
): Promise<DeviceSection> {
  const { channel } = stream;
  const { name, bytes: size } = decodeSection(
    (await stream.receive(["section"], limitMs)).body,
    channel,
  );
  if (size > left)
    throw new MigrationError("FRAME_CORRUPT", { channel, field: "section bytes", found: size });
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; ) {
    const { body } = await stream.receive(["piece"], limitMs);
    if (body.length === 0 || body.length > size - at) {
      throw new MigrationError("FRAME_CORRUPT", {
        channel,
        field: "piece bytes",
        found: body.length,
      });
    }
    bytes.set(body, at);
    at += body.length;
  }
  return { name, bytes };
}

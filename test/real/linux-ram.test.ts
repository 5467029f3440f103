import { mkdtemp, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MIB } from "../../base/units.ts";
import { type CliExit, startCli } from "../run-cli.ts";
import { RANDOM_MIB } from "./initramfs.ts";
import { bootLinux } from "./linux-guest.ts";
import { missingPrograms } from "./programs.ts";
import { type RamSurvey, surveyRam } from "./ram-file.ts";
import { decideReadiness, MEMORY_FOLDER, missingRoom } from "./requirements.ts";

const GUEST_BYTES = 512 * MIB;
const BEATS = 3;

/** The source and one destination at a time, which may have no hole. */
const ROOM_BYTES = 2 * GUEST_BYTES;

/** Frames, handshake and per-page headers, beside what the pages themselves take. */
const OVERHEAD = 1.02;

/** A file system may round what it allocates; a transparent huge page is the largest step. */
const ALLOCATION_SLACK_BYTES = 2 * MIB;

const { missing, isSkipped, because } = decideReadiness("the RAM of a real Linux", [
  ...missingPrograms(),
  ...missingRoom(ROOM_BYTES),
]);

interface Move {
  readonly address: (folder: string) => string;
  readonly channels: number;
  readonly flags?: readonly string[];
  /** The destination takes an existing file with content instead of making one. */
  readonly isUsed?: boolean;
}

const TCP = () => "tcp:127.0.0.1:0";
const UNIX = (folder: string) => `unix:${join(folder, "socket")}`;

const MOVES: Readonly<Record<string, Move>> = {
  "tcp×1": { address: TCP, channels: 1 },
  "tcp×2": { address: TCP, channels: 2 },
  "tcp×4": { address: TCP, channels: 4 },
  "tcp×2/checksum": { address: TCP, channels: 2, flags: ["--checksum"] },
  "unix×2": { address: UNIX, channels: 2 },
  "tcp×2/used destination": { address: TCP, channels: 2, isUsed: true },
};

test.skipIf(isSkipped)(`this machine can boot Linux${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`the RAM of a real Linux${because}`, () => {
  let folder: string;
  let sourcePath: string;
  let source: RamSurvey;

  beforeAll(async () => {
    folder = await mkdtemp(join(MEMORY_FOLDER, "multifd-real-"));
    sourcePath = join(folder, "source.ram");
    await using guest = await bootLinux({ ramPath: sourcePath, sizeBytes: GUEST_BYTES, folder });
    await guest.waitForBeat(BEATS);
    await guest.stop();
    source = await surveyRam(sourcePath);
  });

  afterAll(async () => {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  });

  test("stands still once the guest is stopped", async () => {
    const { allocatedBytes, ...content } = await surveyRam(sourcePath);
    const { allocatedBytes: allocatedBefore, ...contentBefore } = source;
    expect(content).toEqual(contentBefore);
    // Reading fills no hole. The kernel may count a page or two less: it settles that count late.
    expect(allocatedBytes).toBeLessThanOrEqual(allocatedBefore);
  });

  test("is what a machine leaves that has worked", () => {
    expect(source.bytes).toBe(GUEST_BYTES);
    expect(source.nonzeroBytes).toBeGreaterThan(2 * RANDOM_MIB * MIB);
    expect(source.allocatedBytes).toBeLessThan(GUEST_BYTES);
    // Pages that were written and are zero: sending them must not cost memory over there.
    expect(source.allocatedBytes).toBeGreaterThan(source.nonzeroBytes + ALLOCATION_SLACK_BYTES);
  });

  test.for(Object.entries(MOVES))("arrives unchanged: %s", async ([, move]) => {
    const destinationPath = join(folder, "destination.ram");
    try {
      if (move.isUsed === true) await fillWithGarbage(destinationPath);
      const reports = await moveRam(folder, { sourcePath, destinationPath, move });
      expectPlausible(reports, { source, move });
      const destination = await surveyRam(destinationPath);
      expect(destination.sha256).toBe(source.sha256);
      if (move.isUsed !== true) expectHoles(destination);
    } finally {
      await rm(destinationPath, { force: true });
    }
  });

  test("is unharmed at the source", async () => {
    const { allocatedBytes, ...content } = await surveyRam(sourcePath);
    const { allocatedBytes: allocatedBefore, ...contentBefore } = source;
    expect(content).toEqual(contentBefore);
    // Reading fills no hole. The kernel may count a page or two less: it settles that count late.
    expect(allocatedBytes).toBeLessThanOrEqual(allocatedBefore);
  });
});

/** As much of a report as this test looks at. */
interface Report {
  readonly guestBytes: number;
  readonly sentBytes: number;
  readonly channels: readonly { readonly sentBytes: number }[];
}

interface Paths {
  readonly sourcePath: string;
  readonly destinationPath: string;
  readonly move: Move;
}

/** Runs both commands to their ends and returns the reports of source and destination. */
async function moveRam(
  folder: string,
  { sourcePath, destinationPath, move }: Paths,
): Promise<[Report, Report]> {
  const flags = move.flags ?? [];
  const memory = (path: string) => ["--memory", `ram=file:${path}`, "--json"];
  await using receive = startCli([
    ...["receive", move.address(folder), ...memory(destinationPath), ...flags],
  ]);
  const { address } = await receive.waitFor("listening");
  await using send = startCli([
    ...["send", String(address), ...memory(sourcePath)],
    ...["--channels", String(move.channels), ...flags],
  ]);
  return [reportOf(await send.exit), reportOf(await receive.exit)];
}

function reportOf({ status, events, stdout, stderr }: CliExit): Report {
  expect(status, `${stdout}${stderr}`).toBe(0);
  expect(events.map(({ event }) => event)).not.toContain("failed");
  const last = events.at(-1);
  expect(last?.event).toBe("completed");
  return last?.["report"] as Report;
}

function expectPlausible(
  [sent, received]: readonly [Report, Report],
  { source, move }: { source: RamSurvey; move: Move },
): void {
  expect(received.guestBytes).toBe(GUEST_BYTES);
  expect(sent.guestBytes).toBe(GUEST_BYTES);
  expect(sent.sentBytes).toBeGreaterThan(RANDOM_MIB * MIB);
  expect(sent.sentBytes).toBeLessThan(source.nonzeroBytes * OVERHEAD);
  const busy = sent.channels.filter((channel) => channel.sentBytes > MIB);
  expect(busy.length).toBe(move.channels);
}

/** Memory that was never written at the destination and is zero stays unwritten. */
function expectHoles({ allocatedBytes, nonzeroBytes }: RamSurvey): void {
  expect(allocatedBytes).toBeLessThanOrEqual(nonzeroBytes + ALLOCATION_SLACK_BYTES);
}

/** No page of it is zero, and none is what any guest has. */
async function fillWithGarbage(path: string): Promise<void> {
  const file = await open(path, "wx");
  try {
    const garbage = Buffer.alloc(MIB, "not what the guest had; ");
    for (let at = 0; at < GUEST_BYTES; at += MIB) await file.write(garbage, 0, MIB, at);
  } finally {
    await file.close();
  }
}

import { expect, test } from "vitest";
import { InvariantError } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { loadChecksum } from "../channels/checksum.ts";
import {
  CHECKSUMMED_HEADER_BYTES,
  corrupt,
  decodeHeader,
  encodeHeader,
  FRAMES,
  type FrameName,
  HEADER_BYTES,
  nextSequence,
  writeChecksum,
} from "../channels/frame.ts";
import { KIND } from "./wire-peer.ts";

const NAMES = Object.keys(FRAMES) as FrameName[];
const SAMPLE = { name: "pages", sequence: 7, length: 4096, hasChecksum: true } as const;
const CHECKSUM = 0x0123_4567_89ab_cdefn;

function encoded(header: Parameters<typeof encodeHeader>[2], checksum = 0n): DataView {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  encodeHeader(view, 0, header);
  writeChecksum(view, 0, checksum);
  return view;
}

function hexOf(view: DataView): string {
  return Buffer.from(view.buffer).toString("hex");
}

test("the header is pinned, byte for byte", () => {
  expect(hexOf(encoded(SAMPLE, CHECKSUM))).toBe(
    "6d666431" + "06" + "01" + "0000" + "07000000" + "00100000" + "efcdab8967452301",
  );
  expect(hexOf(encoded({ ...SAMPLE, hasChecksum: false }))).toBe(
    "6d666431" + "06" + "00" + "0000" + "07000000" + "00100000" + "0000000000000000",
  );
});

/** What a peer may make us allocate for a frame. */
const BODY_BYTES_MAX: { readonly [name in FrameName]: number } = {
  hello: 56,
  welcome: 36,
  agree: 341_138,
  accept: 0,
  failure: 16_384,
  pages: 1_054_728,
  fence: 4,
  fenced: 4,
  end: 0,
  round: 40,
  devices: 16,
  section: 265,
  piece: 262_144,
  ready: 0,
  commit: 0,
  running: 24,
  done: 80,
  ping: 0,
  lost: 4,
  gone: 4,
  lanes: 4,
  discard: 65_544,
  switch: 8,
  request: 12,
  complete: 0,
  faults: 2296,
  rejoin: 4,
  recover: 0,
  missing: 65_544,
  recovered: 8,
  resumed: 0,
};

for (const name of NAMES) {
  const lengthMax = BODY_BYTES_MAX[name];

  test(`a header of "${name}" has its number and survives the wire at its bounds`, () => {
    for (const length of new Set([0, Math.min(1, lengthMax), lengthMax])) {
      for (const sequence of [0, 1, 0x7fff_ffff, 0xffff_ffff]) {
        for (const checksum of [null, 0n, CHECKSUM, 2n ** 64n - 1n]) {
          const hasChecksum = checksum !== null;
          const view = encoded({ name, sequence, length, hasChecksum }, checksum ?? 0n);
          expect(view.getUint8(4)).toBe(KIND[name]);
          expect(decodeHeader(view, 0, { channel: 3, sequence })).toEqual({
            name,
            sequence,
            length,
            hasChecksum,
            checksum: checksum ?? 0n,
          });
        }
      }
    }
  });

  test(`a "${name}" that is longer than allowed is refused before its body is read`, () => {
    for (const length of [lengthMax + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
      const view = encoded({ ...SAMPLE, name, length: 0 });
      view.setUint32(12, length, true);
      expect(failureOf(view)).toEqual({ channel: 3, field: `length of "${name}"`, found: length });
    }
    expect(() => encoded({ ...SAMPLE, name, length: lengthMax + 1 })).toThrow(InvariantError);
  });
}

test("garbage in any checked field is FRAME_CORRUPT and names the field", () => {
  const cases = [
    ["magic", 0, 4, [0, 1, 0x3264_666d, 0x6d66_6431, 0xffff_ffff]],
    ["kind", 4, 1, [0, 21, 128, 255]],
    ["flags", 5, 1, [2, 3, 128, 255]],
    ["reserved", 6, 2, [1, 0x100, 0xffff]],
    ["sequence", 8, 4, [0, 6, 8, 0xffff_ffff]],
  ] as const;
  for (const [field, offset, size, values] of cases) {
    for (const found of values) {
      const view = encoded(SAMPLE, CHECKSUM);
      if (size === 1) view.setUint8(offset, found);
      else if (size === 2) view.setUint16(offset, found, true);
      else view.setUint32(offset, found, true);
      expect(failureOf(view)).toEqual({ channel: 3, field, found });
    }
  }
});

test("a checksum that no flag announces is FRAME_CORRUPT", () => {
  for (const checksum of [1n, 2n ** 63n]) {
    const facts = failureOf(encoded({ ...SAMPLE, hasChecksum: false }, checksum));
    expect(facts).toEqual({ channel: 3, field: "checksum without flag", found: 1 });
  }
});

test("a kind is known exactly if the table has it", () => {
  const known = new Set<number>(Object.values(KIND));
  for (let kind = 0; kind < 256; kind += 1) {
    const view = encoded({ ...SAMPLE, length: 0 });
    view.setUint8(4, kind);
    if (known.has(kind)) expect(FRAMES[headerOf(view).name].kind).toBe(kind);
    else expect(failureOf(view)).toMatchObject({ field: "kind", found: kind });
  }
});

test("a header is written and read wherever it lies, and nothing beside it is touched", () => {
  const bytes = new Uint8Array(64).fill(0xee);
  const view = new DataView(bytes.buffer);
  encodeHeader(view, 20, SAMPLE);
  expect(decodeHeader(view, 20, { channel: 1, sequence: 7 })).toMatchObject(SAMPLE);
  const outside = [...bytes.subarray(0, 20), ...bytes.subarray(20 + HEADER_BYTES)];
  expect(outside.every((byte) => byte === 0xee)).toBe(true);
});

test("sequence numbers follow each other and wrap", () => {
  expect(nextSequence(0)).toBe(1);
  expect(nextSequence(0x7fff_ffff)).toBe(0x8000_0000);
  expect(nextSequence(0xffff_ffff)).toBe(0);
});

test("a checksum is of the first 16 bytes of the header and the body, as if they were one", async () => {
  const checksum = await loadChecksum();
  const header = new Uint8Array(encoded(SAMPLE).buffer, 0, CHECKSUMMED_HEADER_BYTES);
  for (const size of [0, 1, 31, 32, 33, 4096, 100_003]) {
    const body = Uint8Array.from({ length: size }, (_, index) => index * 7);
    const whole = new Uint8Array([...header, ...body]);
    expect(checksum.ofPair(header, body)).toBe(checksum.of(whole));
  }
  // The reference implementation's value for no bytes at all.
  expect(checksum.of(new Uint8Array(0))).toBe(0xef46_db37_51d8_e999n);
});

test("what is corrupt says on which channel, in which field and what was found", () => {
  const failure = corrupt(5, "kind", 99);
  expect(failure).toBeInstanceOf(MigrationError);
  expect(failure.code).toBe("FRAME_CORRUPT");
  expect(failure.facts).toEqual({ channel: 5, field: "kind", found: 99 });
});

function headerOf(view: DataView): ReturnType<typeof decodeHeader> {
  return decodeHeader(view, 0, { channel: 3, sequence: SAMPLE.sequence });
}

function failureOf(view: DataView): object {
  try {
    headerOf(view);
  } catch (error) {
    if (error instanceof MigrationError && error.code === "FRAME_CORRUPT") {
      return error.facts as object;
    }
    throw error;
  }
  throw new Error("the header was accepted");
}

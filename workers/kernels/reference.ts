import { DELTA_ROOM_BYTES, DELTA_UNIT_BYTES, type Kernels, PAGE_FLAG } from "./kernels.ts";

/**
 * Every kernel again in the shortest TypeScript that is obviously right. Tests hold the kernels
 * against it; nothing that runs in a migration imports it.
 */
export function loadReference(memory: WebAssembly.Memory): Kernels {
  const bytesAt = (at: number, length: number) => new Uint8Array(memory.buffer, at, length);
  const u16At = (at: number) => new DataView(memory.buffer).getUint16(at, true);
  const baseOf = (basesAt: number, page: number) =>
    new DataView(memory.buffer).getUint32(basesAt + 4 * page, true);

  return {
    scanZero(at, pageBytes, pageCount, flagsAt) {
      const flags = bytesAt(flagsAt, pageCount);
      for (let page = 0; page < pageCount; page += 1) {
        flags[page] = bytesAt(at + page * pageBytes, pageBytes).every((byte) => byte === 0) ? 1 : 0;
      }
      return flags.filter((flag) => flag === 1).length;
    },

    moveRaw(at, pageBytes, pageCount, flagsAt) {
      let kept = 0;
      for (const [page, flag] of bytesAt(flagsAt, pageCount).entries()) {
        if (flag !== 0) continue;
        const moved = bytesAt(at + page * pageBytes, pageBytes).slice();
        bytesAt(at + kept * pageBytes, pageBytes).set(moved);
        kept += 1;
      }
      return kept;
    },

    classify(at, pageBytes, pageCount, basesAt, flagsAt) {
      const flags = bytesAt(flagsAt, pageCount);
      for (let page = 0; page < pageCount; page += 1) {
        const bytes = bytesAt(at + page * pageBytes, pageBytes);
        const baseAt = baseOf(basesAt, page);
        const base = bytesAt(baseAt, pageBytes);
        if (baseAt !== 0 && bytes.every((byte, index) => byte === base[index])) {
          flags[page] = PAGE_FLAG.unchanged;
        } else {
          flags[page] = bytes.every((byte) => byte === 0) ? PAGE_FLAG.zero : PAGE_FLAG.changed;
        }
      }
      return flags.filter((flag) => flag === PAGE_FLAG.changed).length;
    },

    encodeDelta(at, pageBytes, pageCount, basesAt, flagsAt, outAt, outBytesMax, lengthsAt) {
      const flags = bytesAt(flagsAt, pageCount);
      const output: number[] = [];
      const lengths: number[] = [];
      for (let page = 0; page < pageCount; page += 1) {
        const baseAt = baseOf(basesAt, page);
        if (flags[page] !== PAGE_FLAG.changed || baseAt === 0) continue;
        const units = encodePage(
          bytesAt(at + page * pageBytes, pageBytes),
          bytesAt(baseAt, pageBytes),
          outBytesMax - output.length,
        );
        flags[page] = units === null ? PAGE_FLAG.overflow : PAGE_FLAG.delta;
        output.push(...(units ?? []).flat());
        lengths.push(...(units ?? []).map((unit) => unit.length));
      }
      bytesAt(outAt, output.length).set(output);
      for (const [unit, length] of lengths.entries()) {
        new DataView(memory.buffer).setUint16(lengthsAt + 2 * unit, length, true);
      }
      return output.length;
    },

    decodeDelta: (sourceAt, sourceBytes, targetAt) =>
      decodeUnit(bytesAt(sourceAt, sourceBytes), bytesAt(targetAt, DELTA_UNIT_BYTES)),

    decodeDeltas(sourceAt, sourceBytes, lengthsAt, unitCount, targetAt) {
      let done = 0;
      for (let unit = 0; unit < unitCount; unit += 1) {
        const length = u16At(lengthsAt + 2 * unit);
        if (done + length > sourceBytes) return -1;
        const target = bytesAt(targetAt + unit * DELTA_UNIT_BYTES, DELTA_UNIT_BYTES);
        if (decodeUnit(bytesAt(sourceAt + done, length), target) < 0) return -1;
        done += length;
      }
      return done === sourceBytes ? 0 : -1;
    },

    hashPages(at, pageBytes, pageCount, hashesAt) {
      for (let page = 0; page < pageCount; page += 1) {
        const hash = hashOf(new DataView(memory.buffer, at + page * pageBytes, pageBytes));
        new DataView(memory.buffer).setBigUint64(hashesAt + 8 * page, hash, true);
      }
    },
  };
}

/** xxHash64 with seed 0, of whole stripes, as its specification words it. */
function hashOf(page: DataView): bigint {
  const primes = [
    0x9e3779b185ebca87n,
    0xc2b2ae3d27d4eb4fn,
    0x165667b19e3779f9n,
    0x85ebca77c2b2ae63n,
  ] as const;
  const wrap = (value: bigint) => BigInt.asUintN(64, value);
  const rotate = (value: bigint, by: bigint) => wrap(value << by) | (value >> (64n - by));
  const round = (lane: bigint, input: bigint) =>
    wrap(rotate(wrap(lane + input * primes[1]), 31n) * primes[0]);

  let lanes = [primes[0] + primes[1], primes[1], 0n, -primes[0]].map(wrap);
  for (let at = 0; at < page.byteLength; at += 32) {
    lanes = lanes.map((lane, index) => round(lane, page.getBigUint64(at + 8 * index, true)));
  }
  const turns = [1n, 7n, 12n, 18n];
  let hash = lanes.reduce((sum, lane, index) => wrap(sum + rotate(lane, turns[index] ?? 0n)), 0n);
  for (const lane of lanes) hash = wrap((hash ^ round(0n, lane)) * primes[0] + primes[3]);
  hash = wrap(hash + BigInt(page.byteLength));
  hash = wrap((hash ^ (hash >> 33n)) * primes[1]);
  hash = wrap((hash ^ (hash >> 29n)) * primes[2]);
  return hash ^ (hash >> 32n);
}

/** The encodings of a page's units, or null where the page overflows. */
function encodePage(page: Uint8Array, base: Uint8Array, roomBytes: number): number[][] | null {
  const units: number[][] = [];
  for (let at = 0; at < page.length; at += DELTA_UNIT_BYTES) {
    if (roomBytes - units.flat().length < DELTA_ROOM_BYTES) return null;
    const end = at + DELTA_UNIT_BYTES;
    const unit = encodeUnit(page.subarray(at, end), base.subarray(at, end));
    if (unit.length >= DELTA_UNIT_BYTES) return null;
    units.push(unit);
  }
  return units.flat().length + 2 * units.length < page.length ? units : null;
}

/** Runs of changed bytes, merged over gaps of one or two bytes. */
function encodeUnit(unit: Uint8Array, base: Uint8Array): number[] {
  const runs: { first: number; end: number }[] = [];
  for (const [position, byte] of unit.entries()) {
    if (byte === base[position]) continue;
    const run = runs.at(-1);
    if (run !== undefined && position - run.end <= 2) run.end = position + 1;
    else runs.push({ first: position, end: position + 1 });
  }
  return runs.flatMap(({ first, end }, index) => [
    ...encodeNumber(first - (runs[index - 1]?.end ?? 0)),
    ...encodeNumber(end - first),
    ...unit.subarray(first, end),
  ]);
}

/** ULEB128 of one or two bytes. */
function encodeNumber(number: number): number[] {
  return number < 0x80 ? [number] : [(number & 0x7f) | 0x80, number >> 7];
}

/** Applies an encoding and returns the position behind the last run, or -1 if it is not valid. */
function decodeUnit(source: Uint8Array, target: Uint8Array): number {
  let at = 0;
  let position = 0;
  const takeNumber = (): number => {
    const [low, high] = source.subarray(at, at + 2);
    if (low === undefined || high === undefined) return -1;
    at += low < 0x80 ? 1 : 2;
    if (low < 0x80) return low;
    return high < 0x80 ? (low & 0x7f) | (high << 7) : -1;
  };

  for (let run = 0; at < source.length; run += 1) {
    const skip = takeNumber();
    if (skip < 0 || (skip === 0 && run > 0)) return -1;
    position += skip;
    const count = takeNumber();
    if (count <= 0 || at + count > source.length || position + count > target.length) return -1;
    target.set(source.subarray(at, at + count), position);
    at += count;
    position += count;
  }
  return position;
}

// AssemblyScript: the kernels of the family "delta". Contracts: `DeltaKernels` in ../kernels.ts.

const UNIT_BYTES: usize = 4096;

/** Unchanged bytes that end a run: fewer cost no more than the two numbers of another run. */
const GAP_BYTES: u64 = 3;

const ZERO: u8 = 1;
const UNCHANGED: u8 = 2;
const OVERFLOW: u8 = 3;
const DELTA: u8 = 4;

/**
 * What the encoder keeps at the end of its output room while it works on a unit:
 *
 *   CHANGED   64 words, one bit per byte that changed, and a word of zeros on either side
 *   FIRSTS    u16 per run: its first byte. Runs are at least 4 bytes apart, so 1024 at most, and
 *   LASTS     u16 per run: its last byte; both with slack, as positions are written in groups
 */
const CHANGED: usize = 8;
const FIRSTS: usize = 576;
const LASTS: usize = FIRSTS + 2048 + 64;
const SCRATCH_BYTES: usize = LASTS + 2048 + 64;

/**
 * What must be left of the room before a unit is encoded. An encoding never exceeds the bytes that
 * it describes by more than 3, its last store overshoots by less than 16, and the scratch is
 * aligned to 64. `DELTA_ROOM_BYTES` in ../kernels.ts is the same number.
 */
const ROOM_BYTES: usize = 9216;

export function classify(
  at: usize,
  pageBytes: usize,
  pageCount: i32,
  basesAt: usize,
  flagsAt: usize,
): i32 {
  let changedCount = 0;
  for (let page = 0; page < pageCount; page += 1) {
    const base = <usize>load<u32>(basesAt + (page << 2));
    // The first difference ends the comparison and the first bit the search for zeros, so that a
    // page is hardly ever read twice: it would have to begin with zeros that were zeros before.
    let flag: u8 = 0;
    if (base != 0 && isEqual(at, base, pageBytes)) flag = UNCHANGED;
    else if (isZero(at, pageBytes)) flag = ZERO;
    store<u8>(flagsAt + page, flag);
    changedCount += <i32>(flag == 0);
    at += pageBytes;
  }
  return changedCount;
}

export function encodeDelta(
  at: usize,
  pageBytes: usize,
  pageCount: i32,
  basesAt: usize,
  flagsAt: usize,
  outAt: usize,
  outBytesMax: usize,
  lengthsAt: usize,
): i32 {
  const outEnd = outAt + outBytesMax;
  const scratch = (outEnd - SCRATCH_BYTES) & ~63;
  let out = outAt;
  for (let page = 0; page < pageCount; page += 1, at += pageBytes) {
    const base = <usize>load<u32>(basesAt + (page << 2));
    if (load<u8>(flagsAt + page) != 0 || base == 0) continue;
    const bytes = encodePage(at, base, pageBytes, out, outEnd, scratch, lengthsAt);
    if (bytes < 0) {
      store<u8>(flagsAt + page, OVERFLOW);
      continue;
    }
    store<u8>(flagsAt + page, DELTA);
    out += bytes;
    lengthsAt += lengthsOf(pageBytes);
  }
  return <i32>(out - outAt);
}

export function decodeDeltas(
  at: usize,
  sourceBytes: usize,
  lengthsAt: usize,
  unitCount: i32,
  target: usize,
): i32 {
  const end = at + sourceBytes;
  for (let unit = 0; unit < unitCount; unit += 1, target += UNIT_BYTES) {
    const bytes = <usize>load<u16>(lengthsAt + (unit << 1));
    if (bytes > end - at) return -1;
    if (decodeDelta(at, bytes, target) < 0) return -1;
    at += bytes;
  }
  return at == end ? 0 : -1;
}

/**
 * The steps of the quick loop have lengths of one byte, so that none takes more than 2 + 127 bytes
 * of the source and 127 + 127 of the target; both are read up to 16 bytes further.
 */
const SOURCE_STEP_BYTES: usize = 2 + 127 + 16;
const TARGET_STEP_BYTES: usize = 127 + 127 + 16;

export function decodeDelta(at: usize, sourceBytes: usize, target: usize): i32 {
  const end = at + sourceBytes;
  let position: usize = 0;
  while (at < end) {
    if (end - at >= SOURCE_STEP_BYTES && position <= UNIT_BYTES - TARGET_STEP_BYTES) {
      // A short run is stored when the bytes around the next one have been read: they may overlap,
      // and a read of bytes that were just stored in part has to wait. Measured with 1000 changes:
      // 4.3 GB/s, and 3.5 if stored at once.
      let lateAt = target + position;
      let late = load<u64>(lateAt);
      do {
        const lengths = <usize>load<u16>(at);
        // A length that is 0 or goes on in a second byte: the careful step below knows what to do.
        if (((lengths | (lengths - 0x0101)) & 0x8080) != 0) break;
        const count = lengths >> 8;
        position += lengths & 0xff;
        at += 2;
        const runAt = target + position;
        if (count <= 8) {
          const run = blend8(load<u64>(runAt), load<u64>(at), count);
          store<u64>(lateAt, late);
          lateAt = runAt;
          late = run;
        } else {
          store<u64>(lateAt, late);
          copy(runAt, at, count);
          lateAt = runAt + count - 8;
          late = load<u64>(at + count - 8);
        }
        position += count;
        at += count;
      } while (end - at >= SOURCE_STEP_BYTES && position <= UNIT_BYTES - TARGET_STEP_BYTES);
      store<u64>(lateAt, late);
    }

    if (end - at < 2) return -1;
    let skip = <usize>load<u8>(at);
    if (skip > 0x7f) {
      const high = <usize>load<u8>(at, 1);
      if (high > 0x7f) return -1;
      skip = (skip & 0x7f) | (high << 7);
      at += 1;
    }
    at += 1;
    // Only the first run may begin at once, and after it the position is no longer 0.
    if (skip == 0 && position != 0) return -1;
    position += skip;

    if (end - at < 2) return -1;
    let count = <usize>load<u8>(at);
    if (count > 0x7f) {
      const high = <usize>load<u8>(at, 1);
      if (high > 0x7f) return -1;
      count = (count & 0x7f) | (high << 7);
      at += 1;
    }
    at += 1;
    if (count == 0 || count > end - at || position + count > UNIT_BYTES) return -1;
    copy(target + position, at, count);
    position += count;
    at += count;
  }
  return <i32>position;
}

/** `before` with its first 1 to 8 bytes from `source`: no branch on what nobody can predict. */
// @ts-ignore: decorator
@inline
function blend8(before: u64, source: u64, count: usize): u64 {
  const others = <u64>(64 - (count << 3));
  return before ^ (((before ^ source) << others) >> others);
}

/** Copies `count` bytes, at least 1, and touches no other. */
// @ts-ignore: decorator
@inline
function copy(target: usize, source: usize, count: usize): void {
  if (count >= 16) {
    let done: usize = 0;
    do {
      v128.store(target + done, v128.load(source + done));
      done += 16;
    } while (done + 16 <= count);
    v128.store(target + count - 16, v128.load(source + count - 16));
  } else if (count >= 8) {
    store<u64>(target, load<u64>(source));
    store<u64>(target + count - 8, load<u64>(source + count - 8));
  } else if (count >= 4) {
    store<u32>(target, load<u32>(source));
    store<u32>(target + count - 4, load<u32>(source + count - 4));
  } else {
    const middle = count >> 1;
    store<u8>(target, load<u8>(source));
    store<u8>(target + middle, load<u8>(source + middle));
    store<u8>(target + count - 1, load<u8>(source + count - 1));
  }
}

/** Bytes in the table of lengths for the units of one page. */
// @ts-ignore: decorator
@inline
function lengthsOf(pageBytes: usize): usize {
  return (pageBytes / UNIT_BYTES) << 1;
}

/** Returns the bytes of all units together, or -1 where the page should rather be sent raw. */
function encodePage(
  at: usize,
  base: usize,
  pageBytes: usize,
  outAt: usize,
  outEnd: usize,
  scratch: usize,
  lengthsAt: usize,
): i32 {
  const bytesMax = pageBytes - lengthsOf(pageBytes);
  let out = outAt;
  for (let done: usize = 0; done < pageBytes; done += UNIT_BYTES, lengthsAt += 2) {
    if (outEnd - out < ROOM_BYTES) return -1;
    const bytes = encodeUnit(at + done, base + done, out, scratch);
    out += bytes;
    if (bytes >= UNIT_BYTES || out - outAt >= bytesMax) return -1;
    store<u16>(lengthsAt, <u16>bytes);
  }
  return <i32>(out - outAt);
}

/**
 * Returns the bytes of the encoding; `UNIT_BYTES` or more is an overflow. Three passes: bits of
 * what changed, runs, output. None branches on where the changes are, which nobody can predict
 * either: a walk from change to change in one pass makes 0.9 GB/s with 1000 changes, this one 3.2.
 */
function encodeUnit(at: usize, base: usize, outAt: usize, scratch: usize): usize {
  const words = markChanged(at, base, scratch + CHANGED);
  if (words == 0) return 0;
  if (words == u64.MAX_VALUE && isOneRun(scratch + CHANGED)) return UNIT_BYTES;
  const firstsEnd = findRuns(words, scratch);

  let out = outAt;
  let position: usize = 0;
  let lasts = scratch + LASTS;
  for (let firsts = scratch + FIRSTS; firsts < firstsEnd; firsts += 2, lasts += 2) {
    const first = <usize>load<u16>(firsts);
    const end = <usize>load<u16>(lasts) + 1;
    const skip = first - position;
    const count = end - first;
    position = end;
    if ((skip | count) < 0x80) {
      store<u16>(out, <u16>(skip | (count << 8)));
      out += 2;
    } else {
      out = writeLength(out, skip);
      out = writeLength(out, count);
    }
    // What overshoots is overwritten by the next run, but nothing behind the unit may be read.
    if (count > 16 || first > UNIT_BYTES - 16) copy(out, at + first, count);
    else v128.store(out, v128.load(at + first));
    out += count;
  }
  return out - outAt;
}

/** Marks the bytes that changed, and returns a word with a bit for each of 64 words with any. */
// @ts-ignore: decorator
@inline
function markChanged(at: usize, base: usize, changedAt: usize): u64 {
  let words: u64 = 0;
  store<u64>(changedAt - 8, 0);
  store<u64>(changedAt + 512, 0);
  // Two at a time: with unchanged pages in cache 31 GB/s with one, 37 with two, 38 with four.
  for (const end = at + UNIT_BYTES; at < end; at += 128, base += 128, changedAt += 16) {
    const low = changed64(at, base);
    const high = changed64(at + 64, base + 64);
    store<u64>(changedAt, low);
    store<u64>(changedAt, high, 8);
    words = (words >> 2) | (<u64>(low != 0) << 62) | (<u64>(high != 0) << 63);
  }
  return words;
}

// @ts-ignore: decorator
@inline
function changed64(at: usize, base: usize): u64 {
  return ~(<u64>equal32(at, base) | (<u64>equal32(at + 32, base + 32) << 32));
}

// @ts-ignore: decorator
@inline
function equal32(at: usize, base: usize): u32 {
  const low = i8x16.bitmask(i8x16.eq(v128.load(at), v128.load(base)));
  const high = i8x16.bitmask(i8x16.eq(v128.load(at, 16), v128.load(base, 16)));
  return <u32>(low | (high << 16));
}

/**
 * Whether the first byte changed and nowhere are `GAP_BYTES` unchanged: a single run, which leaves
 * out at most 2 bytes at the end and has 3 bytes of lengths. Found before any byte is moved, as
 * a guest that fills its pages anew has many of these.
 */
// @ts-ignore: decorator
@inline
function isOneRun(changedAt: usize): bool {
  let before: u64 = 0;
  for (const end = changedAt + 512; changedAt < end; changedAt += 8) {
    const changed = load<u64>(changedAt);
    if (~(changed | (changed << 1) | (changed << 2) | before | (before >> 1)) != 0) return false;
    before = changed >> 62;
  }
  return true;
}

/**
 * Lists the runs of the words that `words` names, and returns the end of the firsts. A run begins
 * with a changed byte that has none within `GAP_BYTES` before it, and ends with one that has none
 * within as many behind it.
 */
// @ts-ignore: decorator
@inline
function findRuns(words: u64, scratch: usize): usize {
  let firsts = scratch + FIRSTS;
  let lasts = scratch + LASTS;
  do {
    const word = ctz(words);
    const changedAt = scratch + CHANGED + (<usize>word << 3);
    const changed = load<u64>(changedAt);
    const before = load<u64>(changedAt - 8) >> (64 - GAP_BYTES);
    const behind = load<u64>(changedAt, 8) << (64 - GAP_BYTES);
    const left = before | (before >> 1) | (before >> 2);
    const right = behind | (behind << 1) | (behind << 2);
    const isNear = (changed << 1) | (changed << 2) | (changed << 3) | left;
    const isFollowed = (changed >> 1) | (changed >> 2) | (changed >> 3) | right;
    firsts = listBits(firsts, changed & ~isNear, word << 6);
    lasts = listBits(lasts, changed & ~isFollowed, word << 6);
    words &= words - 1;
  } while (words != 0);
  return firsts;
}

/**
 * Appends the positions of the bits in `word`, of which there are 16 at most, and returns the end
 * of the list. In groups, as a loop that ends after the last bit is mispredicted each time.
 */
// @ts-ignore: decorator
@inline
function listBits(list: usize, word: u64, position: u64): usize {
  const count = <usize>popcnt(word);
  store<u16>(list, <u16>(position + ctz(word)));
  if (count > 1) {
    word = listFour(list + 2, word & (word - 1), position);
    if (count > 5) {
      word = listFour(list + 10, word, position);
      if (count > 9) listFour(list + 26, listFour(list + 18, word, position), position);
    }
  }
  return list + (count << 1);
}

/** Writes four positions, nonsense where there are fewer bits, and returns the other bits. */
// @ts-ignore: decorator
@inline
function listFour(list: usize, word: u64, position: u64): u64 {
  store<u16>(list, <u16>(position + ctz(word)));
  word &= word - 1;
  store<u16>(list, <u16>(position + ctz(word)), 2);
  word &= word - 1;
  store<u16>(list, <u16>(position + ctz(word)), 4);
  word &= word - 1;
  store<u16>(list, <u16>(position + ctz(word)), 6);
  return word & (word - 1);
}

/** ULEB128, in one byte or two; a byte behind the first may be overwritten. */
// @ts-ignore: decorator
@inline
function writeLength(out: usize, length: usize): usize {
  const isLong = <usize>(length > 0x7f);
  store<u16>(out, <u16>((length & 0x7f) | (isLong << 7) | ((length >> 7) << 8)));
  return out + 1 + isLong;
}

/** Bytes that are compared before one test; see zero.ts. */
const BLOCK_BYTES: usize = 256;

// @ts-ignore: decorator
@inline
function isEqual(at: usize, base: usize, bytes: usize): bool {
  for (const end = at + bytes; at < end; at += BLOCK_BYTES, base += BLOCK_BYTES) {
    const low = v128.or(different64(at, base), different64(at + 64, base + 64));
    const high = v128.or(different64(at + 128, base + 128), different64(at + 192, base + 192));
    if (v128.any_true(v128.or(low, high))) return false;
  }
  return true;
}

// @ts-ignore: decorator
@inline
function different64(at: usize, base: usize): v128 {
  return v128.or(
    v128.or(
      v128.xor(v128.load(at), v128.load(base)),
      v128.xor(v128.load(at, 16), v128.load(base, 16)),
    ),
    v128.or(
      v128.xor(v128.load(at, 32), v128.load(base, 32)),
      v128.xor(v128.load(at, 48), v128.load(base, 48)),
    ),
  );
}

// @ts-ignore: decorator
@inline
function isZero(at: usize, bytes: usize): bool {
  for (const end = at + bytes; at < end; at += BLOCK_BYTES) {
    const low = v128.or(or64(at), or64(at + 64));
    const high = v128.or(or64(at + 128), or64(at + 192));
    if (v128.any_true(v128.or(low, high))) return false;
  }
  return true;
}

// @ts-ignore: decorator
@inline
function or64(at: usize): v128 {
  return v128.or(
    v128.or(v128.load(at), v128.load(at, 16)),
    v128.or(v128.load(at, 32), v128.load(at, 48)),
  );
}

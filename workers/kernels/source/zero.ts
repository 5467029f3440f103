// AssemblyScript: the kernels of the family "zero". Contracts: `ZeroKernels` in ../kernels.ts.

/**
 * Bytes that are ORed before one test. Measured on zero pages in the second-level cache: 16 bytes
 * 49 GB/s, 64 bytes 97, 128 bytes 106, 256 bytes 111, 512 bytes 111. It must divide 4096.
 */
const BLOCK_BYTES: usize = 256;

export function scanZero(at: usize, pageBytes: usize, pageCount: i32, flagsAt: usize): i32 {
  let zeroCount = 0;
  for (let page = 0; page < pageCount; page += 1) {
    const zero = <i32>isZero(at, at + pageBytes);
    store<u8>(flagsAt + page, zero);
    zeroCount += zero;
    at += pageBytes;
  }
  return zeroCount;
}

export function moveRaw(at: usize, pageBytes: usize, pageCount: i32, flagsAt: usize): i32 {
  let kept = 0;
  let page = 0;
  while (page < pageCount) {
    const first = page;
    while (page < pageCount && load<u8>(flagsAt + page) == 0) page += 1;
    const run = page - first;
    // Nothing has to move before the first page that is dropped.
    if (run > 0 && first != kept) {
      memory.copy(at + kept * pageBytes, at + first * pageBytes, run * pageBytes);
    }
    kept += run;
    page += 1;
  }
  return kept;
}

/** Stops at the first block with a bit in it. Integer lanes: a float would take -0 for zero. */
// @ts-ignore: decorator
@inline
function isZero(at: usize, end: usize): bool {
  for (; at < end; at += BLOCK_BYTES) {
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

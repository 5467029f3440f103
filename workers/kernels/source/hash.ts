// AssemblyScript: the kernels of the family "hash". Contracts: `HashKernels` in ../kernels.ts.

const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;

export function hashPages(at: usize, pageBytes: usize, pageCount: i32, hashesAt: usize): void {
  for (let page = 0; page < pageCount; page += 1) {
    store<u64>(hashesAt + (page << 3), hashPage(at, pageBytes));
    at += pageBytes;
  }
}

/**
 * xxHash64 with seed 0 of whole stripes of 32 bytes, of which every page is: the algorithm's steps
 * for what is left over at the end never apply. Four lanes keep the multiplier busy all the time
 * (8 products for 32 bytes), so that working on two pages at once would gain nothing.
 */
// @ts-ignore: decorator
@inline
function hashPage(at: usize, pageBytes: usize): u64 {
  let lane1: u64 = PRIME_1 + PRIME_2;
  let lane2: u64 = PRIME_2;
  let lane3: u64 = 0;
  let lane4: u64 = 0 - PRIME_1;
  for (const end = at + pageBytes; at < end; at += 32) {
    lane1 = mixed(lane1, load<u64>(at));
    lane2 = mixed(lane2, load<u64>(at, 8));
    lane3 = mixed(lane3, load<u64>(at, 16));
    lane4 = mixed(lane4, load<u64>(at, 24));
  }
  let hash = rotl<u64>(lane1, 1) + rotl<u64>(lane2, 7) + rotl<u64>(lane3, 12) + rotl<u64>(lane4, 18);
  hash = merged(hash, lane1);
  hash = merged(hash, lane2);
  hash = merged(hash, lane3);
  hash = merged(hash, lane4);
  return avalanche(hash + pageBytes);
}

// @ts-ignore: decorator
@inline
function mixed(lane: u64, input: u64): u64 {
  return rotl<u64>(lane + input * PRIME_2, 31) * PRIME_1;
}

// @ts-ignore: decorator
@inline
function merged(hash: u64, lane: u64): u64 {
  return (hash ^ mixed(0, lane)) * PRIME_1 + PRIME_4;
}

// @ts-ignore: decorator
@inline
function avalanche(hash: u64): u64 {
  hash = (hash ^ (hash >> 33)) * PRIME_2;
  hash = (hash ^ (hash >> 29)) * PRIME_3;
  return hash ^ (hash >> 32);
}

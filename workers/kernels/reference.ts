import type { Kernels } from "./kernels.ts";

/**
 * Every kernel again in the shortest TypeScript that is obviously right. Tests hold the kernels
 * against it; nothing that runs in a migration imports it.
 */
export function loadReference(memory: WebAssembly.Memory): Kernels {
  const bytesAt = (at: number, length: number) => new Uint8Array(memory.buffer, at, length);

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
  };
}

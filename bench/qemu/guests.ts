import { GIB } from "../../base/units.ts";
import { bootLinux } from "../../test/real/linux-guest.ts";
import { writeMixedMemory } from "./content.ts";

const SEED = 1;

/** A guest whose RAM is to be moved, as a file that nobody writes any more. */
interface Guest {
  readonly meaning: string;
  readonly sizeBytes: number;
  make(request: { path: string; sizeBytes: number; folder: string }): Promise<void>;
}

export const GUESTS = {
  mixed: {
    meaning: "a third zero, a third text-like, a third random, by groups of 64 pages",
    sizeBytes: 2 * GIB,
    async make({ path, sizeBytes }) {
      writeMixedMemory(path, { bytes: sizeBytes, seed: SEED });
    },
  },
  linux: {
    meaning: "a booted Linux with a page cache",
    sizeBytes: GIB,
    async make({ path, sizeBytes, folder }) {
      await using guest = await bootLinux({ ramPath: path, sizeBytes, folder });
      await guest.waitForBeat(3);
      await guest.stop();
    },
  },
} as const satisfies Record<string, Guest>;
export type GuestName = keyof typeof GUESTS;

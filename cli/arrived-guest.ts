import { setTimeout as sleep } from "node:timers/promises";
import { MigrationError } from "../base/errors.ts";
import type { MemoryGuest } from "../hosts/memory-guest/guest.ts";

/** What became of a guest that can check itself. */
export interface Verdict {
  readonly problems: readonly string[];
  /** Since it ran on where it is checked. */
  readonly writtenPages: number;
}

/** Lets a guest run on for so long, and pauses it to check every page. */
export async function runOn(
  guest: MemoryGuest,
  { forMs }: { readonly forMs: number },
): Promise<Verdict> {
  const writtenBefore = guest.writtenPages;
  await sleep(forMs);
  await guest.pause();
  const problems = await guest.verify();
  return { problems, writtenPages: guest.writtenPages - writtenBefore };
}

/** Throws INTERNAL where a page is wrong. */
export function checkWhole({ problems }: Verdict): void {
  if (problems.length === 0) return;
  throw new MigrationError("INTERNAL", {
    reason: `the guest was damaged: ${problems.join("; ")}`,
  });
}

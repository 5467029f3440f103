import { must } from "../../base/assert.ts";
import { ARMED, claimPages, markPresent } from "../../workers/fault-door.ts";
import type { ReceiveSetup } from "../../workers/protocol.ts";
import { type Message, type ThreadFlaws, usedOf } from "./thread.ts";

/** Places what came: in post-copy just those pages that nobody else has, or has begun to place. */
export function place(
  setup: ReceiveSetup,
  { block: index, pages }: Extract<Message, { kind: "pages" }>,
  flaws: ThreadFlaws,
): void {
  const block = must(setup.blocks[index], "a frame names a block");
  const { door } = setup;
  for (const { page, bytes } of pages) {
    const [word, bit] = [page >>> 5, 1 << (page & 31)];
    const isGuarded = door !== undefined && Atomics.load(door.words, ARMED) !== 0;
    const isOurs = !isGuarded || claimPages(door, index, word, bit) !== 0;
    if (!isOurs && flaws.overwrites !== true) continue;
    usedOf(block, page).set(bytes);
    if (isGuarded) markPresent(door, index, word, bit);
  }
}

import { nowMs } from "../base/clock.ts";

/** Of the time of a thread that has other things to do, what is looked at may take so much. */
const SHARE_MAX = 0.1;

/**
 * `call`, but left out while what it took before was more than a tenth of the time since: to count
 * the dirty pages of many TiB takes as long as a channel takes for all that it was given.
 */
export function sparing(call: () => void): () => void {
  let notBeforeMs = Number.NEGATIVE_INFINITY;
  return () => {
    const startMs = nowMs();
    if (startMs < notBeforeMs) return;
    call();
    notBeforeMs = startMs + (nowMs() - startMs) / SHARE_MAX;
  };
}

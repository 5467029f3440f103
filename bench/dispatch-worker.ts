import { assert, must } from "../base/assert.ts";
import type { TaskReport } from "../workers/protocol.ts";

/** What a channel's thread of the bench is started with. */
export interface DispatchSetup {
  /** One word per channel: tasks that its thread was given. */
  readonly counts: Int32Array;
}

let counts: Int32Array | null = null;
let own = 0;

/** A task that does nothing but to prove that the owner of its channel got it. */
export default function work(
  task: { readonly kind: "begin"; readonly setup: DispatchSetup } | { readonly channel: number },
): TaskReport {
  if ("setup" in task) {
    counts = task.setup.counts;
    return { state: "done", pages: 0 };
  }
  if (own === 0) own = task.channel;
  assert(task.channel === own, "a channel's tasks go to one thread");
  Atomics.add(must(counts, "a thread begins with its setup"), task.channel, 1);
  return { state: "done", pages: task.channel };
}

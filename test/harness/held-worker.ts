/** What a thread does that is held: word 0 says that it has begun, 1 that it may end, 2 that it has. */
export interface HeldTask {
  readonly words: Int32Array;
}

export const [BEGUN, RELEASED, ENDED] = [0, 1, 2];

let hangs = false;

/** Other tasks do nothing, but for one after which the next one hangs. */
export default function perform(
  task: HeldTask | { readonly kind: "ready" | "forget" } | { readonly hangsNext: boolean },
): object {
  if (!("words" in task)) {
    if (hangs) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20_000);
    hangs = "hangsNext" in task;
    return { state: "done", pages: 0 };
  }
  const { words } = task;
  set(words, BEGUN);
  Atomics.wait(words, RELEASED, 0, 20_000);
  set(words, ENDED);
  return { state: "done", pages: 1 };
}

export function set(words: Int32Array, index: number): void {
  Atomics.store(words, index, 1);
  Atomics.notify(words, index);
}

/** Returns when it has ended. Where it failed, what was to be learned takes longer when it is needed. */
export async function rehearsed(rehearsal: Promise<unknown>): Promise<void> {
  try {
    await rehearsal;
  } catch {
    // A thread that has not rehearsed serves all the same.
  }
}

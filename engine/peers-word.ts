import { after } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { FrameStream } from "../channels/frame-stream.ts";

/** A peer that gives up says why and closes; what it said may be a moment behind the closing. */
const GRACE_MS = 300;

/** Failures that only say that the peer is gone, not why. */
const SYMPTOMS: ReadonlySet<string> = new Set(["CHANNEL_LOST", "CHANNEL_STALLED", "PEER_SILENT"]);

/** The reason that the peer gave on the main channel, where `noticed` is a mere symptom of it. */
export async function preferPeersWord(
  noticed: MigrationError,
  main: FrameStream | null,
): Promise<MigrationError> {
  if (main === null || noticed.at !== undefined || !SYMPTOMS.has(noticed.code)) return noticed;
  const { promise: late, resolve } = Promise.withResolvers<null>();
  // In two halves: where this process was held up for all of the first, what came meanwhile is read now.
  let prevent = after(GRACE_MS / 2, () => {
    prevent = after(GRACE_MS / 2, () => resolve(null));
  });
  try {
    await Promise.race([main.failed, late]);
    return noticed;
  } catch (word) {
    return word instanceof MigrationError && word.at !== undefined ? word : noticed;
  } finally {
    prevent();
  }
}

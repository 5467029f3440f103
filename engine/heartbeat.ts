import { every, nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { FrameStream } from "../channels/frame-stream.ts";

/** Signs of life go out four times within the time after which the peer would miss them. */
const BEATS_PER_LIMIT = 4;

/** The peer's limit may be shorter than ours: no end stays silent for longer than this. */
const BEAT_MS_MAX = 250;

const NOTHING = new Uint8Array(0);

/**
 * Keeps a main channel alive and watches the peer: pings when nothing else was sent, and reports
 * PEER_SILENT when nothing at all came for `limitMs`. Returns what stops it.
 */
export function startHeartbeat(
  stream: FrameStream,
  limitMs: number,
  onSilence: (error: MigrationError) => void,
): () => void {
  const beatMs = Math.min(limitMs / BEATS_PER_LIMIT, BEAT_MS_MAX);
  let beatAtMs = nowMs();
  return every(beatMs, () => {
    const now = nowMs();
    const wasAsleep = now - beatAtMs > 2 * beatMs;
    beatAtMs = now;
    if (stream.isInterrupted) return; // Nobody can be heard; another watch is on that.
    if (now - stream.spokeAtMs >= beatMs / 2) {
      stream.send("ping", NOTHING, limitMs).catch(() => {}); // The stream itself tells why.
    }
    // Who did not run for a while has not listened either: that says nothing about the peer.
    if (!wasAsleep && now - stream.heardAtMs > limitMs) {
      onSilence(new MigrationError("PEER_SILENT", { waitingFor: "sign of life", limitMs }));
    }
  });
}

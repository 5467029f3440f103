import type { HypervisorLaps, RunningMessage } from "../channels/messages.ts";

/**
 * What only the hypervisors at both ends know of the downtime, gathered at the source while the
 * guest is handed over. All times are of one clock, the source's.
 */
export class HypervisorView {
  #stopMs: number | null = null;
  #saveMs = 0;
  #resumeMs: number | null = null;

  /** The host has paused the guest, which the hypervisor had stopped some time before. */
  paused(stoppedAtMs: number | undefined, nowMs: number): void {
    this.#stopMs = stoppedAtMs === undefined ? null : Math.max(0, nowMs - stoppedAtMs);
  }

  saved(elapsedMs: number): void {
    this.#saveMs = elapsedMs;
  }

  /** RUNNING came, so long after COMMIT; the guest had run for some of that. */
  runs({ runningForMs }: RunningMessage, sinceCommitMs: number): void {
    this.#resumeMs = runningForMs === null ? null : Math.max(0, sinceCommitMs - runningForMs);
  }

  /** Null unless both ends told. */
  get laps(): HypervisorLaps | null {
    const [stopMs, saveMs, resumeMs] = [this.#stopMs, this.#saveMs, this.#resumeMs];
    return stopMs === null || resumeMs === null ? null : { stopMs, saveMs, resumeMs };
  }
}

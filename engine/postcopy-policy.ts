import type { Verdict } from "./convergence.ts";
import type { Parameters } from "./parameters.ts";

/** What is known after a round, or when a round was cut short. */
export interface PostcopyFacts {
  readonly rounds: number;
  readonly verdict: Verdict["kind"];
  /** Somebody asked for it. */
  readonly isRequested: boolean;
  readonly isOutOfTime: boolean;
}

/** Whether the guest goes over now, with the rest of its memory to follow. */
export function goesOver(
  { rounds, verdict, isRequested, isOutOfTime }: PostcopyFacts,
  { postcopy, postcopyRounds }: Parameters,
): boolean {
  switch (postcopy) {
    case "never":
      return false;
    case "manual":
      return isRequested;
    case "after-rounds":
      return isRequested || rounds >= postcopyRounds;
    case "not-converging":
      return isRequested || isOutOfTime || verdict === "give-up";
  }
}

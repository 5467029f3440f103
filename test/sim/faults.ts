import { DESTINATION_PHASES } from "../../engine/destination.ts";
import { SOURCE_PHASES } from "../../engine/source.ts";
import type { Prng } from "../prng.ts";
import { HOST_CALLS, HOST_TROUBLES, type HostCall, type HostTrouble } from "./guest.ts";

/** What can befall a migration, other than by its hosts. */
export const FAULT_KINDS = [
  "loss",
  "short stall",
  "long stall",
  "half-open to source",
  "half-open to destination",
  "cut",
  "cut that only the source sees",
  "cut that only the destination sees",
  "nobody listens",
  "stranger with garbage",
  "stranger who says hello",
  "duplicate connection",
  "second attempt",
  "source crashes",
  "source's machine is gone",
  "destination crashes",
  "destination's machine is gone",
  "source cancels",
  "destination cancels",
  "a source's thread dies",
  "a destination's thread dies",
  "a source's disk hangs",
  "a destination's disk hangs",
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** When something happens: a while after the start, or after a step of the protocol begins. */
export interface Moment {
  /** As in "source precopy"; null for the start. */
  readonly step: string | null;
  /** The how manieth such step, where it comes again and again; left out, the next. */
  readonly nth?: number;
  readonly afterMs: number;
}

/** Which connections: the main channel is 0, and lanes come after the bulk channels. */
export type Target = "main" | "bulk" | "lane" | "all";
const TARGETS: readonly Target[] = ["main", "bulk", "lane", "all"];

export interface Fault {
  readonly kind: FaultKind;
  readonly target: Target;
  readonly moment: Moment;
}

export interface Plan {
  readonly seed: number;
  readonly channels: number;
  readonly latencyMs: number;
  readonly bytesPerMs: number;
  /** How many pages the guest writes at a time. */
  readonly eagerness: number;
  /** The migration hurries after this. */
  readonly timeoutMs: number;
  readonly nonConvergence: "cancel" | "switch-over";
  readonly autoConverge: boolean;
  readonly reconnectTimeoutMs: number;
  readonly postcopy: "never" | "manual" | "after-rounds" | "not-converging";
  /** When somebody asks for post-copy, after the start; where it is manual. */
  readonly switchAfterMs: number;
  readonly lanes: number;
  /** How often an operator looks whether a post-copy is paused, and recovers it; 0 where nobody does. */
  readonly operatorMs: number;
  readonly recoverTimeoutMs: number;
  readonly faults: readonly Fault[];
  readonly troubles: readonly { readonly call: HostCall; readonly trouble: HostTrouble }[];
}

/** Every step of the protocol at which something may happen. */
export const STEPS: readonly string[] = [
  ...SOURCE_PHASES.map((phase) => `source ${phase}`),
  ...DESTINATION_PHASES.map((phase) => `destination ${phase}`),
];

/** Those of them that come in post-copy only; the later ones when its link has broken. */
export const POSTCOPY_STEPS: readonly string[] = [
  "postcopy",
  "postcopy-paused",
  "postcopy-recover",
].flatMap((phase) => [`source ${phase}`, `destination ${phase}`]);

function pick<T>(random: Prng, from: readonly T[]): T {
  return from[random.below(from.length)] as T;
}

/** A migration without any fault, but otherwise as the seed has it. */
export function drawSetting(seed: number, random: Prng): Plan {
  return {
    seed,
    channels: 1 + random.below(3),
    latencyMs: (1 + random.below(100)) / 20,
    bytesPerMs: pick(random, [2_000, 10_000, 100_000]),
    eagerness: pick(random, [1, 4, 24]),
    timeoutMs: pick(random, [60, 250, 20_000]),
    nonConvergence: pick(random, ["cancel", "switch-over", "switch-over"]),
    autoConverge: random.below(2) === 0,
    reconnectTimeoutMs: pick(random, [0, 100, 1000, 1000]),
    postcopy: pick(random, ["never", "never", "manual", "after-rounds", "not-converging"]),
    switchAfterMs: random.below(300),
    lanes: 1 + random.below(2),
    operatorMs: pick(random, [0, 300]),
    recoverTimeoutMs: pick(random, [1500, 6000]),
    faults: [],
    troubles: [],
  };
}

/** Up to three faults, at moments and steps that the seed decides. */
export function drawPlan(seed: number, random: Prng): Plan {
  const faults = Array.from({ length: random.below(4) }, () => drawFault(random));
  const count = random.below(4) === 0 ? 1 + random.below(2) : 0;
  const troubles = Array.from({ length: count }, () => ({
    call: pick(random, HOST_CALLS),
    trouble: pick(random, HOST_TROUBLES),
  }));
  return { ...drawSetting(seed, random), faults, troubles };
}

function drawFault(random: Prng): Fault {
  const moment: Moment =
    random.below(3) === 0
      ? { step: null, afterMs: random.below(4000) / 10 }
      : {
          step: pick(random, [...STEPS, ...POSTCOPY_STEPS]),
          afterMs: random.below(random.below(2) === 0 ? 10 : 200) / 10,
        };
  return { kind: pick(random, FAULT_KINDS), target: pick(random, TARGETS), moment };
}

export function formatPlan({ faults, troubles, ...setting }: Plan): string {
  const lines = [
    JSON.stringify(setting),
    ...faults.map(({ kind, target, moment: { step, afterMs } }) => {
      return `${kind} (${target}), ${afterMs} ms after ${step ?? "the start"}`;
    }),
    ...troubles.map(({ call, trouble }) => `host: ${call} ${trouble}`),
  ];
  return lines.join("\n");
}

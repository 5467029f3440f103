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
  "stranger who joins again",
  "duplicate connection",
  "second attempt",
  "source crashes",
  "source's machine is gone",
  "destination crashes",
  "destination's machine is gone",
  "source cancels",
  "destination cancels",
  "source gives up",
  "destination gives up",
  "source breaks off",
  "a source's thread dies",
  "a destination's thread dies",
  "a source's disk hangs",
  "a destination's disk hangs",
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** Those of them after which a link is silent, though nobody closed it. */
export const SILENT: ReadonlySet<FaultKind> = new Set<FaultKind>([
  "long stall",
  "half-open to source",
  "half-open to destination",
]);

/** From whatever these do a migration is safe, once both ends have met. */
const HARMLESS: ReadonlySet<FaultKind> = new Set<FaultKind>([
  "stranger with garbage",
  "stranger who says hello",
  "stranger who joins again",
  "duplicate connection",
]);
const BEFORE_MEETING: ReadonlySet<string | null> = new Set([
  null,
  "source connect",
  "destination listen",
]);

const LINK_FAULTS: readonly FaultKind[] = [
  ...SILENT,
  "cut",
  "cut that only the source sees",
  "cut that only the destination sees",
];

/** When something happens: a while after the start, or after a step of the protocol begins. */
export interface Moment {
  /** As in "source precopy"; null for the start. */
  readonly step: string | null;
  /** The how manieth time that the step begins, as those of a recovery may again: 1 where left out. */
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
  /** How long after HANDOVER_UNKNOWN somebody settles it; COMMIT may still be on its way. */
  readonly settleAfterMs: number;
  /** Of the guest where it arrives in post-copy. */
  readonly vcpus: number;
  readonly faults: readonly Fault[];
  /** It can go on in spite of its faults, and so it has to. */
  readonly mustComplete?: boolean;
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
    lanes: 1 + random.below(3),
    operatorMs: pick(random, [0, 300]),
    recoverTimeoutMs: pick(random, [1500, 6000]),
    settleAfterMs: pick(random, [0, 0, 3, 6000]),
    vcpus: pick(random, [1, 2, 4]),
    faults: [],
    troubles: [],
  };
}

/** What most plans would miss, and where it matters most: some keep to it. */
type Focus = "hand-over" | "post-copy";
const FOCI: readonly (Focus | null)[] = [...Array<null>(6).fill(null), "hand-over", "post-copy"];

/** What becomes of COMMIT, or of its answer, is not known to all then. */
const HANDOVER_FAULTS: readonly FaultKind[] = [
  "cut",
  // Twice: it may leave COMMIT on its way when an operator comes.
  "cut that only the source sees",
  "cut that only the source sees",
  "half-open to source",
  "destination crashes",
  "destination's machine is gone",
];
/** In post-copy there is no doubt before all tries to recover it are over. */
const PLAIN = { postcopy: "never", nonConvergence: "switch-over" } as const;

/** Much is left for post-copy, and somebody sees to it that it goes on. */
export const LONG_POSTCOPY = {
  postcopy: "after-rounds",
  eagerness: 24,
  bytesPerMs: 2000,
  timeoutMs: 20_000,
  operatorMs: 300,
  recoverTimeoutMs: 6000,
} as const satisfies Partial<Plan>;

/** A few faults, at moments and steps that the seed decides. */
export function drawPlan(seed: number, random: Prng): Plan {
  const focus = pick(random, FOCI);
  const any = (most: number): Fault[] =>
    Array.from({ length: random.below(1 + most) }, () => drawFault(random));
  const faults =
    focus === "post-copy"
      ? drawPostcopyFaults(random)
      : focus === "hand-over"
        ? [drawHandoverFault(random), ...any(1)]
        : any(3);
  const count = random.below(4) === 0 ? 1 + random.below(2) : 0;
  const troubles = Array.from({ length: count }, () => ({
    call: pick(random, HOST_CALLS),
    trouble: pick(random, HOST_TROUBLES),
  }));
  const over = focus === "post-copy" ? LONG_POSTCOPY : focus === "hand-over" ? PLAIN : {};
  return { ...drawSetting(seed, random), ...over, faults, troubles };
}

function drawFault(random: Prng): Fault {
  const moment: Moment =
    random.below(3) === 0
      ? { step: null, afterMs: random.below(4000) / 10 }
      : { step: pick(random, [...STEPS, ...POSTCOPY_STEPS]), afterMs: drawDelay(random) };
  return { kind: pick(random, FAULT_KINDS), target: pick(random, TARGETS), moment };
}

function drawHandoverFault(random: Prng): Fault {
  const moment = { step: "source commit", afterMs: random.below(50) / 10 };
  return { kind: pick(random, HANDOVER_FAULTS), target: "main", moment };
}

/** The link breaks once post-copy has begun; then in its recovery, or after that; and so on. */
function drawPostcopyFaults(random: Prng): Fault[] {
  // Post-copy goes on only after a recovery that came about: what breaks one is no time of its own.
  let times = 0;
  return Array.from({ length: 2 + random.below(4) }, (_, breaks) => {
    const isInRecovery = breaks > 0 && random.below(2) === 0;
    if (!isInRecovery) times += 1;
    const [phase, nth] = isInRecovery ? ["postcopy-recover", breaks] : ["postcopy", times];
    const step = `${pick(random, ["source", "destination"])} ${phase}`;
    const kinds = random.below(4) === 0 ? FAULT_KINDS : LINK_FAULTS;
    const moment = { step, nth, afterMs: drawDelay(random) };
    return { kind: pick(random, kinds), target: pick(random, ["main", "lane", "all"]), moment };
  });
}

function drawDelay(random: Prng): number {
  return random.below(random.below(2) === 0 ? 10 : 200) / 10;
}

/** Whether nothing of it is a reason to fail. */
export function isHarmless({ faults, troubles, nonConvergence, mustComplete }: Plan): boolean {
  if (mustComplete === true) return true;
  return (
    nonConvergence === "switch-over" &&
    troubles.length === 0 &&
    faults.every(({ kind, moment: { step } }) => HARMLESS.has(kind) && !BEFORE_MEETING.has(step))
  );
}

export function formatPlan({ faults, troubles, ...setting }: Plan): string {
  const lines = [
    JSON.stringify(setting),
    ...faults.map(({ kind, target, moment: { step, nth = 1, afterMs } }) => {
      const when = nth === 1 ? "" : ` for the ${nth}. time`;
      return `${kind} (${target}), ${afterMs} ms after ${step ?? "the start"}${when}`;
    }),
    ...troubles.map(({ call, trouble }) => `host: ${call} ${trouble}`),
  ];
  return lines.join("\n");
}

import { assert } from "../base/assert.ts";
import { MigrationError } from "../base/errors.ts";
import { GIB, HOUR_MS, KIB, MIB, SECOND_MS, TIB } from "../base/units.ts";
import { CHANNELS_MAX } from "../channels/frame.ts";
import { PRIORITY_CHANNELS_MAX } from "../channels/messages.ts";
import {
  type BooleanDomain,
  type ChoiceDomain,
  contains,
  domainText,
  type NumberDomain,
} from "./domain.ts";
import type { Features } from "./features.ts";
import { legalityProblems } from "./legality.ts";
import { nearest } from "./nearest.ts";
import { AS_OPTIONS, type Wording } from "./wording.ts";

interface CommonRow {
  /** Both ends must use the same value; the handshake compares them. */
  readonly agreed: boolean;
  /** May change while a migration runs. */
  readonly live: boolean;
  /** Whose behaviour it changes. The other end accepts it and does nothing with it. */
  readonly side: "source" | "destination" | "both";
  /** What it does, in a sentence. */
  readonly meaning: string;
  /** Why the default is what it is. */
  readonly why: string;
  /** The flag, where it does not derive from the key; see `flagOf`. */
  readonly flag?: string;
}

export type ParameterRow = CommonRow &
  (
    | (NumberDomain & { readonly default: number })
    | (BooleanDomain & { readonly default: boolean })
    | (ChoiceDomain & { readonly default: string })
  );

/** Below this a timer measures the scheduler, not what it waits for. */
const TIMEOUT_MS_MIN = 10;

/** A migration that takes longer is left alone, not running; Node's timers end at 24 days. */
const TIMEOUT_MS_MAX = 7 * 24 * HOUR_MS;

/** Every knob, declared once: type, checks, flags, help, JSON and reference follow from here. */
export const PARAMETERS = {
  channels: {
    type: "count",
    default: 4,
    min: 1,
    max: CHANNELS_MAX,
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "Bulk connections, each with a thread of its own at both ends; the destination takes as many as the source opens.",
    why: "One connection is bound by one core; four fill a 25 Gb/s link and leave most hosts cores for the guest.",
  },
  chunkBytes: {
    flag: "chunk-size",
    type: "bytes",
    default: 2 * MIB,
    min: 128 * KIB,
    max: 1 * GIB,
    powerOfTwo: true,
    agreed: true,
    live: false,
    side: "both",
    meaning: "The span of guest memory that is handed to a channel as one piece of work.",
    why: "A common huge page; handing it over costs 1 to 4 % of the time that sending it takes.",
  },
  checksum: {
    type: "boolean",
    default: false,
    agreed: true,
    live: false,
    side: "both",
    meaning: "Adds an xxHash64 of the stable copy to every frame, checked before it is applied.",
    why: "TCP and most links check already; it costs a tenth of a core for each GB/s.",
  },
  downtimeLimitMs: {
    type: "milliseconds",
    default: 300,
    min: 1,
    max: 2_000_000,
    agreed: false,
    live: true,
    side: "source",
    meaning:
      "The longest pause of the guest that is accepted: switchover waits until it is expected to fit.",
    why: "Below the time after which clients see a failure instead of a pause; as in QEMU.",
  },
  maxBandwidthBytesPerSecond: {
    type: "bytesPerSecond",
    default: 0,
    min: 1 * KIB,
    max: 1 * TIB,
    zero: "unlimited",
    agreed: false,
    live: true,
    side: "source",
    meaning: "The most that all channels together send in a second; it holds in every phase.",
    why: "A faster migration re-sends less; a limit is for links that are shared with others.",
  },
  maxRounds: {
    type: "count",
    default: 30,
    min: 1,
    max: 1000,
    agreed: false,
    live: true,
    side: "source",
    meaning: "Passes over the dirty memory before it is decided that the guest does not converge.",
    why: "A guest that converges does so in under ten; thirty leave auto-converge time to act.",
  },
  timeoutMs: {
    type: "milliseconds",
    default: 1 * HOUR_MS,
    min: TIMEOUT_MS_MIN,
    max: TIMEOUT_MS_MAX,
    agreed: false,
    live: true,
    side: "source",
    meaning: "Time from the start until switchover must have begun.",
    why: "Long enough for a terabyte over 10 Gb/s, short enough to end one that nobody watches.",
  },
  nonConvergence: {
    type: "choice",
    default: "cancel",
    choices: ["cancel", "switch-over"],
    agreed: false,
    live: true,
    side: "source",
    meaning:
      "What happens when max-rounds are used up: cancel, or switch over although the downtime limit will be exceeded.",
    why: "A guest that stays where it runs is harmed less than one paused for an unknown time.",
  },
  postcopy: {
    type: "choice",
    default: "never",
    choices: ["never", "manual", "after-rounds", "not-converging"],
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "When the guest goes over before all its memory has: never; when it is asked for; after postcopy-rounds; or where it would be given up for not converging. All but never also on request.",
    why: "A link that breaks afterwards stops the guest: that is a decision for its owner.",
  },
  postcopyRounds: {
    type: "count",
    default: 1,
    min: 1,
    max: 1000,
    agreed: false,
    live: false,
    side: "source",
    meaning: "Passes over the memory before post-copy begins by itself.",
    why: "One pass brings nearly all of it; what a busy guest dirties again follows when it is needed.",
  },
  priorityChannels: {
    type: "count",
    default: 1,
    min: 1,
    max: PRIORITY_CHANNELS_MAX,
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "Connections of their own for the pages that a guest waits for; opened where post-copy may happen.",
    why: "One thread serves some ten thousand faults a second; several are for guests with many vCPUs.",
  },
  autoConverge: {
    type: "boolean",
    default: false,
    agreed: false,
    live: true,
    side: "source",
    meaning: "Throttles the guest, more and more, while rounds do not shrink.",
    why: "Slowing a guest down is a decision for its owner.",
  },
  throttleInitialPercent: {
    type: "percent",
    default: 20,
    min: 1,
    max: 99,
    agreed: false,
    live: false,
    side: "source",
    meaning: "The share of its time that auto-converge takes from the guest at first.",
    why: "Enough to be seen in the dirty rate and hardly in the guest; as in QEMU.",
  },
  throttleIncrementPercent: {
    type: "percent",
    default: 10,
    min: 1,
    max: 99,
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "What auto-converge adds to the throttle each time that a round still does not shrink.",
    why: "Eight steps from the initial to the full throttle: no guest is slowed far beyond its need.",
  },
  throttleMaxPercent: {
    type: "percent",
    default: 99,
    min: 1,
    max: 99,
    agreed: false,
    live: false,
    side: "source",
    meaning: "The largest share of its time that auto-converge takes from the guest.",
    why: "Who asks for auto-converge wants the migration to end; a lower limit is a wish for both.",
  },
  compression: {
    type: "choice",
    default: "none",
    choices: ["none", "zstd", "deflate", "auto"],
    agreed: false,
    live: true,
    side: "source",
    meaning:
      "Makes runs of pages smaller: always with one codec, or, with auto, where it pays, with deltas and whichever codec and level makes the migration shortest.",
    why: "On a fast link it costs time, and the processor belongs to the guest; who has a slow one knows.",
  },
  zstdLevel: {
    type: "count",
    default: 1,
    min: 1,
    max: 19,
    agreed: false,
    live: true,
    side: "source",
    meaning: "How hard zstd tries; auto begins with it.",
    why: "Level 1 has most of the gain, at a speed that fills a 10 Gb/s link.",
  },
  deflateLevel: {
    type: "count",
    default: 1,
    min: 1,
    max: 9,
    agreed: false,
    live: true,
    side: "source",
    meaning: "How hard deflate tries.",
    why: "The fastest of a slow codec.",
  },
  cpuLimitCores: {
    type: "cores",
    default: 0,
    min: 0.01,
    max: 1024,
    zero: "unlimited",
    agreed: false,
    live: true,
    side: "source",
    meaning:
      "The processor time that compression and deltas chosen by auto may take, all channels together.",
    why: "It is spent only where that makes the migration shorter.",
  },
  autoExtraTimePercent: {
    flag: "auto-extra-time",
    type: "percent",
    default: 0,
    min: 0,
    max: 1000,
    agreed: false,
    live: true,
    side: "source",
    meaning:
      "How much longer than raw memory compressed memory may take and still be chosen by auto, for the bytes that it saves.",
    why: "The shortest migration disturbs the guest least; who shares or pays for the link knows better.",
  },
  xbzrle: {
    type: "boolean",
    default: false,
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "Sends pages that were sent before as their difference from that version, while it is in the cache.",
    why: "It pays for guests that change few bytes of many pages, and costs memory at the source.",
  },
  xbzrleCacheBytes: {
    flag: "xbzrle-cache-size",
    type: "bytes",
    default: 64 * MIB,
    min: 64 * KIB,
    max: 1 * TIB,
    agreed: false,
    live: false,
    side: "source",
    meaning:
      "Versions of pages that are kept for xbzrle, all channels together; no more than memory, nor than 4 GiB per channel, is used. A channel whose part is less than a page makes no deltas.",
    why: "The working set of a small busy guest; as in QEMU.",
  },
  connectTimeoutMs: {
    type: "milliseconds",
    default: 10 * SECOND_MS,
    min: TIMEOUT_MS_MIN,
    max: 1 * HOUR_MS,
    agreed: false,
    live: false,
    side: "both",
    meaning:
      "Time for a connection to be made, for all channels to have joined, and for another connection to be found for one that is lost.",
    why: "Covers three lost SYN packets (1, 3 and 7 s) and no more.",
  },
  reconnectTimeoutMs: {
    type: "milliseconds",
    default: 0,
    min: TIMEOUT_MS_MIN,
    max: 1 * HOUR_MS,
    zero: "off",
    agreed: false,
    live: false,
    side: "both",
    meaning:
      "Before the guest is handed over, how long a lost main channel may take to be joined again with the migration's token; 0 ends the migration at once. In post-copy, how long a source tries by itself to join a paused destination again.",
    why: "Whoever knows that a peer is dead wants to hear it at once; where links break and come back, a few seconds are right.",
  },
  recoverTimeoutMs: {
    type: "milliseconds",
    default: 0,
    min: TIMEOUT_MS_MIN,
    max: TIMEOUT_MS_MAX,
    zero: "for ever",
    agreed: false,
    live: false,
    side: "both",
    meaning:
      "How long a post-copy whose link broke is kept, paused, to be joined again by `multifd recover`; after that the migration is interrupted.",
    why: "The guest is in two halves then, and ends with either: there is no time after which that is wanted.",
  },
  channelTimeoutMs: {
    type: "milliseconds",
    default: 10 * SECOND_MS,
    min: TIMEOUT_MS_MIN,
    max: 1 * HOUR_MS,
    agreed: false,
    live: false,
    side: "both",
    meaning: "Time in which at least one byte must move on a channel that has something to move.",
    why: "Longer than a route takes to fail over, shorter than an operator's patience.",
  },
  stepTimeoutMs: {
    type: "milliseconds",
    default: 30 * SECOND_MS,
    min: TIMEOUT_MS_MIN,
    max: 1 * HOUR_MS,
    agreed: false,
    live: false,
    side: "both",
    meaning: "Time for each step that a host or the peer performs, above all at switchover.",
    why: "Saving or loading devices takes seconds at worst; the guest may be paused while it waits.",
  },
  acceptTimeoutMs: {
    type: "milliseconds",
    default: 1 * HOUR_MS,
    min: TIMEOUT_MS_MIN,
    max: TIMEOUT_MS_MAX,
    zero: "for ever",
    agreed: false,
    live: false,
    side: "destination",
    meaning: "Time that the destination waits for a source to connect.",
    why: "A destination that was forgotten frees its memory in the end.",
  },
  deviceLimitBytes: {
    type: "bytes",
    default: 64 * MIB,
    min: 0,
    max: 1 * GIB,
    agreed: false,
    live: false,
    side: "both",
    meaning: "The most device state, in all sections together, that is sent or accepted.",
    why: "Ordinary guests have less than 1 MiB, those with large GPUs or vhost state tens of MiB.",
  },
} as const satisfies Readonly<Record<string, ParameterRow>>;

/** A parameter's name in the embedding interface and in JSON. */
export type ParameterKey = keyof typeof PARAMETERS;

type ValueOf<R> = R extends { type: "boolean" }
  ? boolean
  : R extends { type: "choice"; choices: readonly (infer C)[] }
    ? C
    : number;

/** A value for every parameter, all of them checked. */
export type Parameters = { readonly [K in ParameterKey]: ValueOf<(typeof PARAMETERS)[K]> };

/** What an embedder passes: anything left out has its default. */
export type ParameterOptions = Partial<Parameters>;

/** The keys in the order of the table. */
export const PARAMETER_KEYS = Object.keys(PARAMETERS) as readonly ParameterKey[];

const FLAGS = new Map(PARAMETER_KEYS.map((key) => [key, rowOf(key).flag ?? derivedFlag(key)]));
assert(new Set(FLAGS.values()).size === PARAMETER_KEYS.length, "every parameter has its own flag");

/** The row behind a key, without the narrow type of its literals. */
export function rowOf(key: ParameterKey): ParameterRow {
  return PARAMETERS[key];
}

export function isParameterKey(name: string): name is ParameterKey {
  return Object.hasOwn(PARAMETERS, name);
}

/** The flag of a parameter without its dashes: `downtimeLimitMs` is `downtime-limit`. */
export function flagOf(key: ParameterKey): string {
  const flag = FLAGS.get(key);
  assert(flag !== undefined, "every parameter has a flag");
  return flag;
}

function derivedFlag(key: string): string {
  return key
    .replace(/(BytesPerSecond|Bytes|Ms|Percent|Cores)$/, "")
    .replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/**
 * Everything that is wrong with the names and values in `given`, each in a sentence. An empty list
 * means that they are `ParameterOptions`; how they go together is asked of `legalityProblems`.
 */
export function parameterProblems(
  given: Readonly<Record<string, unknown>>,
  wording: Wording = AS_OPTIONS,
): string[] {
  const problems: string[] = [];
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!isParameterKey(name)) {
      const meant = nearest(name, PARAMETER_KEYS);
      const hint = meant === undefined ? "" : ` (did you mean "${meant}"?)`;
      problems.push(`"${name}" is not a parameter${hint}`);
    } else if (!contains(rowOf(name), value)) {
      const wanted = domainText(rowOf(name), wording);
      problems.push(
        `${wording.name(name)} must be ${wanted}: it is ${found(name, value, wording)}`,
      );
    }
  }
  return problems;
}

function found(key: ParameterKey, value: unknown, wording: Wording): string {
  if (typeof value === "number" || typeof value === "boolean") return wording.value(key, value);
  if (typeof value === "string") return `"${value}"`;
  return value === null ? "null" : `of type ${typeof value}`;
}

/** Names and values that are right by themselves; the rest is in `parameterProblems`. */
function usableOf(given: Readonly<Record<string, unknown>>): ParameterOptions {
  const usable = Object.entries(given).filter(
    ([name, value]) => isParameterKey(name) && contains(rowOf(name), value),
  );
  return Object.fromEntries(usable);
}

const DEFAULTS: Parameters = Object.freeze(
  Object.fromEntries(PARAMETER_KEYS.map((key) => [key, PARAMETERS[key].default])),
) as Parameters;

/** The defaults, and what of a host's preferences is right; see `parameterProblems` for the rest. */
export function preferring(preferences: ParameterOptions): Parameters {
  return Object.freeze({ ...DEFAULTS, ...usableOf({ ...preferences }) });
}

/** Everything that is wrong with `given`: names, values, and how they go together. */
export function configurationProblems(
  given: Readonly<Record<string, unknown>>,
  features?: Features,
  { base = DEFAULTS, wording = AS_OPTIONS }: { base?: Parameters; wording?: Wording } = {},
): string[] {
  const usable = usableOf(given);
  const illegal = legalityProblems(
    { parameters: { ...base, ...usable }, given: Object.keys(usable), features: features ?? {} },
    wording,
  );
  return [...parameterProblems(given, wording), ...illegal.map(({ message }) => message)];
}

/**
 * Fills in the defaults, or `base`. The result is frozen. Throws CONFIGURATION_INVALID with every problem at
 * once, so that one pass mends a configuration. `features` says what else is known about this
 * migration, for the rules of legality that ask; a rule about something unknown is not asked.
 */
export function resolveParameters(
  given: object = {},
  features?: Features,
  base = DEFAULTS,
): Parameters {
  const problems = configurationProblems({ ...given }, features, { base });
  if (problems.length > 0) throw new MigrationError("CONFIGURATION_INVALID", { problems });
  return Object.freeze({ ...base, ...usableOf({ ...given }) });
}

/**
 * What the parameters become while a migration runs. Throws CONFIGURATION_INVALID, and `current`
 * still holds, when a value is wrong or would change a parameter that is not live.
 */
export function changeParameters(
  current: Parameters,
  patch: object,
  features?: Features,
): Parameters {
  const usable = usableOf({ ...patch });
  const fixed = PARAMETER_KEYS.filter(
    (key) => !PARAMETERS[key].live && (usable[key] ?? current[key]) !== current[key],
  );
  const problems = [
    ...fixed.map((key) => `${AS_OPTIONS.name(key)} cannot change while a migration runs`),
    ...configurationProblems({ ...patch }, features, { base: current }),
  ];
  if (problems.length > 0) throw new MigrationError("CONFIGURATION_INVALID", { problems });
  return Object.freeze({ ...current, ...usable });
}

/** A parameter as the handshake names it: its flag, and its value in the one text that it has. */
export interface AgreedParameter {
  readonly name: string;
  readonly value: string;
}

/** What both ends must have alike, in the order of the table: plain numbers in the table's unit. */
export function agreedParameters(parameters: Parameters): AgreedParameter[] {
  return PARAMETER_KEYS.filter((key) => PARAMETERS[key].agreed).map((key) => ({
    name: flagOf(key),
    value: String(parameters[key]),
  }));
}

import { CHANNELS_MAX } from "../channels/frame.ts";
import { PRIORITY_CHANNELS_MAX } from "../channels/messages.ts";
import type { FeatureName, Features, FeatureValue } from "./features.ts";
import type { ParameterKey, Parameters } from "./parameters.ts";
import { AS_OPTIONS, type Wording } from "./wording.ts";

/** Something a configuration has a value for. `F` names the features that there are. */
type Subject<F extends string> = { readonly parameter: ParameterKey } | { readonly feature: F };

/** What a subject is compared with: a value, or another subject and something on top. */
type Bound<F extends string> = number | (Subject<F> & { readonly plus?: number });

/** A claim about one subject. */
type Comparison<F extends string> =
  | (Subject<F> & { readonly is: FeatureValue })
  | (Subject<F> & { readonly oneOf: readonly FeatureValue[] })
  | (Subject<F> & { readonly atLeast: Bound<F> })
  | (Subject<F> & { readonly atMost: Bound<F> });

/** Plain data, also in JSON, so that a manager can evaluate it without asking us. */
export type Condition<F extends string = FeatureName> =
  | Comparison<F>
  | { readonly given: ParameterKey }
  | { readonly all: readonly Condition<F>[] };

/**
 * Where `when` holds, `claim` must hold too (requires, limits) or must not (excludes). A parameter
 * that is left out has its default; `given` tells whether it was left out.
 */
export interface LegalityRule<F extends string = FeatureName> {
  readonly id: string;
  readonly kind: "requires" | "excludes" | "limits";
  readonly when: Condition<F>;
  readonly claim: Comparison<F>;
  /** A sentence that begins with an ordinary word, so that a message can go on with it. */
  readonly reason: string;
}

const ALWAYS: Condition = { all: [] };

/** Every choice of `postcopy` but never. */
const POSTCOPY: Condition = {
  parameter: "postcopy",
  oneOf: ["manual", "after-rounds", "not-converging"],
};

/** Which features and parameters go together. A row is the whole change. */
export const LEGALITY: readonly LegalityRule[] = [
  {
    id: "timeout-exceeds-downtime",
    kind: "limits",
    when: { given: "downtimeLimitMs" },
    claim: { parameter: "timeoutMs", atLeast: { parameter: "downtimeLimitMs" } },
    reason: "A pause longer than all the time before it is a mistake of units.",
  },
  {
    id: "throttle-in-order",
    kind: "limits",
    when: ALWAYS,
    claim: { parameter: "throttleInitialPercent", atMost: { parameter: "throttleMaxPercent" } },
    reason: "The throttle starts at its initial value and only grows.",
  },
  {
    id: "throttle-initial-needs-auto-converge",
    kind: "requires",
    when: { given: "throttleInitialPercent" },
    claim: { parameter: "autoConverge", is: true },
    reason: "Without it the guest is never throttled.",
  },
  {
    id: "throttle-increment-needs-auto-converge",
    kind: "requires",
    when: { given: "throttleIncrementPercent" },
    claim: { parameter: "autoConverge", is: true },
    reason: "Without it the guest is never throttled.",
  },
  {
    id: "throttle-max-needs-auto-converge",
    kind: "requires",
    when: { given: "throttleMaxPercent" },
    claim: { parameter: "autoConverge", is: true },
    reason: "Without it the guest is never throttled.",
  },
  {
    id: "auto-converge-needs-rounds",
    kind: "requires",
    when: { parameter: "autoConverge", is: true },
    claim: { parameter: "maxRounds", atLeast: 3 },
    reason: "The throttle waits for two rounds that do not shrink and needs another one to act in.",
  },
  {
    id: "auto-converge-needs-throttle",
    kind: "requires",
    when: { parameter: "autoConverge", is: true },
    claim: { feature: "throttle", is: true },
    reason: "Only the host can take time from its guest, and this one does not offer to.",
  },
  {
    id: "scan-needs-rounds",
    kind: "requires",
    when: { feature: "dirtyLog", is: "scan" },
    claim: { parameter: "maxRounds", atLeast: 2 },
    reason: "What is written shows only when memory is read a second time.",
  },
  {
    id: "postcopy-rounds-need-after-rounds",
    kind: "requires",
    when: { given: "postcopyRounds" },
    claim: { parameter: "postcopy", is: "after-rounds" },
    reason: "Nothing else counts them.",
  },
  {
    id: "postcopy-rounds-are-rounds",
    kind: "limits",
    when: { parameter: "postcopy", is: "after-rounds" },
    claim: { parameter: "postcopyRounds", atMost: { parameter: "maxRounds" } },
    reason: "What happens when those are used up comes before it.",
  },
  {
    id: "priority-channels-need-postcopy",
    kind: "excludes",
    when: { given: "priorityChannels" },
    claim: { parameter: "postcopy", is: "never" },
    reason: "Only a guest that runs before its memory is there waits for pages.",
  },
  {
    id: "postcopy-needs-faults",
    kind: "requires",
    when: POSTCOPY,
    claim: { feature: "faults", is: true },
    reason: "Before its memory is there, a guest must wait for what it touches.",
  },
  {
    id: "postcopy-leaves-room-for-priority",
    kind: "limits",
    when: POSTCOPY,
    claim: { parameter: "channels", atMost: CHANNELS_MAX - PRIORITY_CHANNELS_MAX },
    reason: "Priority channels are numbered after the bulk channels, and numbers end.",
  },
  {
    id: "scan-excludes-postcopy",
    kind: "requires",
    when: { feature: "dirtyLog", is: "scan" },
    claim: { parameter: "postcopy", is: "never" },
    reason:
      "What is missing must be known at the switch, and a scan knows only after reading all memory.",
  },
  {
    id: "postcopy-needs-its-descriptors",
    kind: "requires",
    when: { all: [{ feature: "address", is: "fd" }, { feature: "side", is: "source" }, POSTCOPY] },
    claim: { feature: "descriptors", atLeast: { parameter: "channels", plus: 2 } },
    reason: "A priority channel needs an inherited connection of its own.",
  },
  {
    id: "fd-has-one-priority-channel",
    kind: "limits",
    when: { all: [{ feature: "address", is: "fd" }, POSTCOPY] },
    claim: { parameter: "priorityChannels", atMost: 1 },
    reason: "Inherited connections are counted before the migration, for one priority channel.",
  },
  {
    id: "zstd-level-needs-zstd",
    kind: "requires",
    when: { given: "zstdLevel" },
    claim: { parameter: "compression", oneOf: ["zstd", "auto"] },
    reason: "The level is zstd's, which nothing else uses.",
  },
  {
    id: "deflate-level-needs-deflate",
    kind: "requires",
    when: { given: "deflateLevel" },
    claim: { parameter: "compression", is: "deflate" },
    reason: "The level is deflate's, which nothing else uses.",
  },
  {
    id: "cpu-limit-needs-auto",
    kind: "requires",
    when: { given: "cpuLimitCores" },
    claim: { parameter: "compression", is: "auto" },
    reason: "A codec that is set compresses everything, whatever it costs.",
  },
  {
    id: "extra-time-needs-auto",
    kind: "requires",
    when: { given: "autoExtraTimePercent" },
    claim: { parameter: "compression", is: "auto" },
    reason: "Only auto weighs time against bytes.",
  },
  {
    id: "cache-size-needs-xbzrle",
    kind: "requires",
    when: {
      all: [
        { given: "xbzrleCacheBytes" },
        { parameter: "compression", oneOf: ["none", "zstd", "deflate"] },
      ],
    },
    claim: { parameter: "xbzrle", is: true },
    reason: "Without xbzrle, or auto, which implies it, no versions of pages are kept.",
  },
  {
    id: "fd-names-every-channel",
    kind: "requires",
    when: {
      all: [
        { feature: "address", is: "fd" },
        { feature: "side", is: "source" },
      ],
    },
    claim: { feature: "descriptors", atLeast: { parameter: "channels", plus: 1 } },
    reason:
      "An inherited connection cannot be opened twice: the main channel needs one, and so does every bulk channel.",
  },
  {
    id: "fd-names-a-bulk-channel",
    kind: "requires",
    when: {
      all: [
        { feature: "address", is: "fd" },
        { feature: "side", is: "destination" },
      ],
    },
    claim: { feature: "descriptors", atLeast: 2 },
    reason: "Pages do not travel on the main channel, and there is at least one bulk channel.",
  },
  {
    id: "file-is-not-live",
    kind: "excludes",
    when: { feature: "address", is: "file" },
    claim: { feature: "migration", is: "live" },
    reason: "A file cannot answer, so nobody could say that the guest runs at the other end.",
  },
];

/** What is judged: all parameters, those that were given, and what else is known. */
export interface Configuration<F extends string = FeatureName> {
  readonly parameters: Parameters;
  readonly given: readonly string[];
  readonly features: Readonly<Partial<Record<F, FeatureValue>>>;
}

export interface LegalityProblem {
  /** The rule's `id`. */
  readonly rule: string;
  readonly message: string;
}

/** A rule that may be broken or kept: that depends on what is not known. */
export interface UndecidedRule<F extends string = FeatureName> {
  /** The rule's `id`. */
  readonly rule: string;
  /** The features that need to be known. */
  readonly needs: readonly F[];
}

/** Every rule of the engine's that `configuration` breaks, in the order of the table. */
export function legalityProblems(
  configuration: Configuration & { readonly features: Features },
  wording: Wording = AS_OPTIONS,
): LegalityProblem[] {
  return brokenOf(LEGALITY, configuration, wording);
}

/** Every one of `rules` that `configuration` breaks. What is not known breaks none. */
export function brokenOf<F extends string>(
  rules: readonly LegalityRule<F>[],
  configuration: Configuration<F>,
  wording: Wording,
): LegalityProblem[] {
  return rules
    .filter((rule) => isBroken(rule, configuration) === true)
    .map((rule) => ({ rule: rule.id, message: messageOf(rule, configuration, wording) }));
}

/** Every one of `rules` that cannot be decided, with what needs to be known for it. */
export function undecidedOf<F extends string>(
  rules: readonly LegalityRule<F>[],
  configuration: Configuration<F>,
): UndecidedRule<F>[] {
  return rules
    .filter((rule) => isBroken(rule, configuration) === undefined)
    .map(({ id, when, claim }) => ({
      rule: id,
      needs: [...new Set([when, claim].flatMap((part) => unknownIn(part, configuration)))],
    }));
}

/** Undefined when it depends on a feature that nobody told us about. */
function isBroken<F extends string>(
  rule: LegalityRule<F>,
  configuration: Configuration<F>,
): boolean | undefined {
  const applies = holds(rule.when, configuration);
  const outcome = holds(rule.claim, configuration);
  const isKept = outcome === (rule.kind !== "excludes");
  if (applies === false || isKept) return false;
  return applies === undefined || outcome === undefined ? undefined : true;
}

/** Whether a condition holds; undefined when that depends on a feature that is not known. */
export function holds<F extends string>(
  condition: Condition<F>,
  configuration: Configuration<F>,
): boolean | undefined {
  if ("given" in condition) return configuration.given.includes(condition.given);
  if ("all" in condition) {
    const parts = condition.all.map((part) => holds(part, configuration));
    if (parts.includes(false)) return false;
    return parts.includes(undefined) ? undefined : true;
  }
  const value = subjectValue(condition, configuration);
  if (value === undefined) return undefined;
  if ("is" in condition) return value === condition.is;
  if ("oneOf" in condition) return condition.oneOf.includes(value);
  const atLeast = "atLeast" in condition;
  const bound = boundOf(atLeast ? condition.atLeast : condition.atMost, configuration);
  if (bound === undefined || typeof value !== "number") return undefined;
  return atLeast ? value >= bound : value <= bound;
}

/** Features that keep a condition from being decided. */
function unknownIn<F extends string>(
  condition: Condition<F>,
  configuration: Configuration<F>,
): F[] {
  if (holds(condition, configuration) !== undefined || "given" in condition) return [];
  if ("all" in condition) return condition.all.flatMap((part) => unknownIn(part, configuration));
  const bound = boundSubject(condition);
  return [condition, ...(bound === undefined ? [] : [bound])].flatMap((subject) =>
    "feature" in subject && configuration.features[subject.feature] === undefined
      ? [subject.feature]
      : [],
  );
}

/** Every parameter and feature that a rule speaks of. */
export function subjectsOf<F extends string>(rule: LegalityRule<F>): Set<ParameterKey | F> {
  return new Set([...namesIn(rule.when), ...namesIn(rule.claim)]);
}

function namesIn<F extends string>(condition: Condition<F>): (ParameterKey | F)[] {
  if ("given" in condition) return [condition.given];
  if ("all" in condition) return condition.all.flatMap((part) => namesIn(part));
  const bound = boundSubject(condition);
  return [condition, ...(bound === undefined ? [] : [bound])].map((subject) =>
    "parameter" in subject ? subject.parameter : subject.feature,
  );
}

function subjectValue<F extends string>(
  subject: Subject<F>,
  { parameters, features }: Configuration<F>,
): FeatureValue | undefined {
  return "parameter" in subject ? parameters[subject.parameter] : features[subject.feature];
}

function boundOf<F extends string>(
  bound: Bound<F>,
  configuration: Configuration<F>,
): number | undefined {
  if (typeof bound === "number") return bound;
  const value = subjectValue(bound, configuration);
  return typeof value === "number" ? value + (bound.plus ?? 0) : undefined;
}

/** A rule in words: 'where "autoConverge" is true, "maxRounds" must be at least 2'. */
export function ruleText<F extends string>(
  rule: LegalityRule<F>,
  wording: Wording = AS_OPTIONS,
): string {
  const when = conditionText(rule.when, wording);
  const must = rule.kind === "excludes" ? "must not be" : "must be";
  const claim = `${nameOf(rule.claim, wording)} ${must} ${claimText(rule.claim, wording)}`;
  return when === "" ? claim : `where ${when}, ${claim}`;
}

/** The rule, what was found instead, and why it is a rule. */
function messageOf<F extends string>(
  rule: LegalityRule<F>,
  configuration: Configuration<F>,
  wording: Wording,
): string {
  const found = (subject: Subject<F>) =>
    valueText(subject, subjectValue(subject, configuration) ?? "unknown", wording);
  const facts = [`it is ${found(rule.claim)}`];
  const bound = boundSubject(rule.claim);
  if (bound !== undefined) facts.push(`${nameOf(bound, wording)} is ${found(bound)}`);
  const reason = rule.reason.slice(0, 1).toLowerCase() + rule.reason.slice(1, -1);
  return `${ruleText(rule, wording)}: ${facts.join(" and ")} (${reason})`;
}

function conditionText<F extends string>(condition: Condition<F>, wording: Wording): string {
  if ("given" in condition) return `${wording.name(condition.given)} is given`;
  if ("all" in condition)
    return condition.all.map((part) => conditionText(part, wording)).join(" and ");
  return `${nameOf(condition, wording)} is ${claimText(condition, wording)}`;
}

function claimText<F extends string>(claim: Comparison<F>, wording: Wording): string {
  if ("is" in claim) return valueText(claim, claim.is, wording);
  if ("oneOf" in claim) {
    return claim.oneOf.map((value) => valueText(claim, value, wording)).join(" or ");
  }
  const [relation, bound] =
    "atLeast" in claim ? ["at least", claim.atLeast] : ["at most", claim.atMost];
  if (typeof bound === "number") return `${relation} ${valueText(claim, bound, wording)}`;
  const plus = bound.plus === undefined ? "" : ` + ${bound.plus}`;
  return `${relation} ${nameOf(bound, wording)}${plus}`;
}

function boundSubject<F extends string>(claim: Comparison<F>): Subject<F> | undefined {
  if ("is" in claim || "oneOf" in claim) return undefined;
  const bound = "atLeast" in claim ? claim.atLeast : claim.atMost;
  return typeof bound === "number" ? undefined : bound;
}

function nameOf<F extends string>(subject: Subject<F>, wording: Wording): string {
  return "parameter" in subject
    ? wording.name(subject.parameter)
    : (wording.features?.[subject.feature] ?? subject.feature);
}

function valueText<F extends string>(
  subject: Subject<F>,
  value: FeatureValue,
  wording: Wording,
): string {
  return "parameter" in subject ? wording.value(subject.parameter, value) : String(value);
}

import { must } from "../base/assert.ts";
import { FEATURES, FREE_FEATURES } from "../engine/features.ts";
import {
  brokenOf,
  type Configuration,
  holds,
  LEGALITY,
  type LegalityProblem,
  type LegalityRule,
  ruleText,
  undecidedOf,
} from "../engine/legality.ts";
import { type ParameterOptions, resolveParameters } from "../engine/parameters.ts";
import {
  FLAG_RULES,
  FREE_GUEST_FEATURES,
  GUEST_FEATURES,
  type GuestFeatureName,
  type GuestFeatures,
  HOST_RULES,
} from "./guest-rules.ts";
import { AS_FLAGS } from "./values.ts";

const DEFAULTS = resolveParameters();

/** All that commands judge by: the engine's rules and their own. */
export const RULES: readonly LegalityRule<GuestFeatureName>[] = [
  ...LEGALITY,
  ...FLAG_RULES,
  ...HOST_RULES,
];

export const ALL_FEATURES = {
  ...FEATURES,
  ...GUEST_FEATURES,
  ...FREE_FEATURES,
  ...FREE_GUEST_FEATURES,
};

/** By what each feature is told to a command; `--host`, `--side`, `--throttle` and `--faults` to a check. */
export const FEATURE_FLAGS: Readonly<Record<keyof typeof ALL_FEATURES, string | null>> = {
  side: "send, receive, --side",
  address: "ADDRESS",
  descriptors: "ADDRESS",
  migration: null,
  dirtyLog: "--dirty-log, --host",
  throttle: "--throttle, --host",
  faults: "--faults, --host",
  host: "--memory, --qemu, --memory-guest, demo, --host",
  memory: "--memory",
  qemu: "--qemu",
  pauseCommand: "--pause-command",
  resumeCommand: "--resume-command",
  memoryGuest: "--memory-guest",
  shape: "--size and the like",
  vcpus: "--vcpus",
  runFor: "--run-for",
  live: null,
  postcopySwitch: "--control, SIGUSR1",
  recovery: "--control",
  threads: null,
  record: "--record",
};

/** A rule that a configuration breaks. */
export interface BrokenRule extends LegalityProblem {
  readonly reason: string;
}

/** A rule that a configuration may break or keep: that depends on what is not known. */
export interface UndecidedRule extends BrokenRule {
  /** The features that need to be known. */
  readonly needs: readonly GuestFeatureName[];
}

/** What can be said of a configuration before anything starts. */
export interface Judgement {
  /** Null where nothing that is known breaks a rule, and some rules could not be decided. */
  readonly legal: boolean | null;
  readonly problems: readonly BrokenRule[];
  readonly undecided: readonly UndecidedRule[];
}

/** The rules that parameters, each right by itself, break together with what else is known. */
export function brokenRules(options: ParameterOptions, features: GuestFeatures): BrokenRule[] {
  const configuration = configurationOf(options, withHost(features));
  return brokenOf(RULES, configuration, AS_FLAGS).map((problem) => ({
    ...problem,
    reason: rowOf(problem.rule).reason,
  }));
}

/** What the rules say of a configuration of which not everything need be known. */
export function judge(options: ParameterOptions, features: GuestFeatures): Judgement {
  const problems = brokenRules(options, features);
  const configuration = configurationOf(options, withHost(features));
  // What a host can do is no question to whoever has not said which host it is.
  const undecided = undecidedOf([...LEGALITY, ...FLAG_RULES], configuration).map(
    ({ rule, needs }) => {
      const row = rowOf(rule);
      return { rule, message: ruleText(row, AS_FLAGS), reason: row.reason, needs };
    },
  );
  const legal = problems.length > 0 ? false : undecided.length > 0 ? null : true;
  return { legal, problems, undecided };
}

function rowOf(id: string): LegalityRule<GuestFeatureName> {
  return must(
    RULES.find((rule) => rule.id === id),
    "a rule that was judged is in the table",
  );
}

function configurationOf(
  options: ParameterOptions,
  features: GuestFeatures,
): Configuration<GuestFeatureName> {
  return {
    parameters: { ...DEFAULTS, ...options },
    given: Object.keys(options),
    features,
  };
}

/** With what follows from the host; what is told stays as it is, and may contradict the host. */
function withHost(features: GuestFeatures): GuestFeatures {
  const configuration = configurationOf({}, features);
  const implied = HOST_RULES.flatMap(({ kind, when, claim }) =>
    kind === "requires" && "feature" in claim && "is" in claim && holds(when, configuration)
      ? [[claim.feature, claim.is] as const]
      : [],
  );
  return { ...Object.fromEntries(implied), ...features };
}

import { MigrationError } from "../base/errors.ts";
import { isObject } from "../base/object.ts";
import { LiveParameters } from "./live-parameters.ts";
import { PostcopyRecovery } from "./postcopy-recovery.ts";
import { PostcopySwitch } from "./postcopy-switch.ts";
import { ReadyThreads } from "./ready-threads.ts";

/** What an option that is no parameter must be: one of a class, or a function. */
const OPTIONS = {
  signal: AbortSignal,
  live: LiveParameters,
  postcopySwitch: PostcopySwitch,
  recovery: PostcopyRecovery,
  threads: ReadyThreads,
  onPhase: Function,
  onListening: Function,
  onMigration: Function,
  onProgress: Function,
} as const;

const METHODS = {
  source: ["startDirtyLog", "stopDirtyLog", "pause", "resume", "saveDevices"],
  destination: ["prepare", "loadDevices", "resume", "discard"],
} as const;

/** May be absent. */
const OTHER_METHODS = { source: ["throttle"], destination: ["takeFaults"] } as const;

/**
 * An embedder without types may give anything, and learns here what is wrong with it, all at once and
 * before anything is touched. Throws CONFIGURATION_INVALID.
 */
export function checkGiven(side: "source" | "destination", host: unknown, options: unknown): void {
  const problems = [...hostProblems(side, host), ...optionProblems(options)];
  if (problems.length > 0) throw new MigrationError("CONFIGURATION_INVALID", { problems });
}

/** What is in the middle of something, which a second migration at once would spoil. */
export class Occupied {
  readonly #taken = new WeakSet<object>();
  readonly #problem: string;

  constructor(problem: string) {
    this.#problem = problem;
  }

  /** Until it is disposed of. Throws CONFIGURATION_INVALID. */
  take(one: object): Disposable {
    if (this.#taken.has(one)) {
      throw new MigrationError("CONFIGURATION_INVALID", { problems: [this.#problem] });
    }
    this.#taken.add(one);
    return { [Symbol.dispose]: () => void this.#taken.delete(one) };
  }
}

const used = new Occupied(
  "each of live, recovery and postcopySwitch is of one migration at a time",
);

/**
 * What steers a migration is its alone until that is disposed of: of two at once, it would
 * steer the one that came last. Throws CONFIGURATION_INVALID.
 */
export function takeGiven(given: {
  readonly live?: LiveParameters;
  readonly recovery?: PostcopyRecovery;
  readonly postcopySwitch?: PostcopySwitch;
}): Disposable {
  using taken = new DisposableStack();
  for (const one of [given.live, given.recovery, given.postcopySwitch]) {
    if (one !== undefined) taken.use(used.take(one));
  }
  return taken.move();
}

/** What such a host answers, where a list is wanted. Throws HOST_FAILED. */
export function checkAnswer(action: string, answer: unknown): void {
  if (Array.isArray(answer)) return;
  throw new MigrationError("HOST_FAILED", { action, reason: `it answered ${answer}, no array` });
}

function hostProblems(side: "source" | "destination", host: unknown): string[] {
  if (!isObject(host)) return [`a host must be an object: it is ${host}`];
  const problems: string[] = [];
  for (const name of METHODS[side]) {
    if (typeof host[name] !== "function") problems.push(`the host needs a method "${name}"`);
  }
  for (const name of OTHER_METHODS[side]) {
    if (host[name] === undefined || typeof host[name] === "function") continue;
    problems.push(`the host's "${name}" must be a method, or absent`);
  }
  if (side === "source" && !Array.isArray(host["blocks"])) {
    problems.push('the host needs an array "blocks"');
  }
  return problems;
}

function optionProblems(options: unknown): string[] {
  if (!isObject(options)) return [`options must be an object: it is ${options}`];
  return Object.entries(OPTIONS).flatMap(([name, kind]) => {
    const value = options[name];
    if (value === undefined || value instanceof kind) return [];
    return [`"${name}" must be ${kind === Function ? "a function" : `one of ${kind.name}`}`];
  });
}

import { parseArgs } from "node:util";
import { assert } from "../base/assert.ts";
import { type ChoiceDomain, type Domain, domainText, type NumberDomain } from "../engine/domain.ts";
import type { Features } from "../engine/features.ts";
import { nearest } from "../engine/nearest.ts";
import { flagOf, PARAMETER_KEYS, type ParameterOptions, rowOf } from "../engine/parameters.ts";
import type { GuestFeatures } from "./guest-rules.ts";
import { brokenRules } from "./rules.ts";
import { AS_FLAGS, type FlagValue, formatValue, parseValue } from "./values.ts";

/** A flag of one command. Without `value` it is a switch: there or not. */
export interface CommandFlag {
  /** What follows the flag; the command itself checks text. */
  readonly value?: Domain | "text";
  /** What is wrong with a text, for a sentence that begins with the flag. */
  readonly problemOf?: (text: string) => string | undefined;
  /** The value in help, for text. */
  readonly placeholder?: string;
  /** May be given more than once; its values come as a list. */
  readonly repeatable?: boolean;
  readonly default?: FlagValue;
  /** One letter for those who type it often. */
  readonly short?: string;
  readonly meaning: string;
}

export type CommandFlags = Readonly<Record<string, CommandFlag>>;

export interface Positional {
  readonly name: string;
  readonly optional?: boolean;
  readonly meaning: string;
}

/** What a command takes: the whole description, from which parsing and help follow. */
export interface Command<F extends CommandFlags = CommandFlags> {
  readonly name: string;
  /** What it does, in a sentence. */
  readonly summary: string;
  readonly positionals: readonly Positional[];
  readonly flags: F;
  /** Whether every parameter of a migration is a flag, too. */
  readonly parameters: boolean;
  /** What the command knows of its migration, for the rules of legality; see `addressFeatures`. */
  readonly features?: (
    positionals: readonly string[],
    flags: FlagValues,
    given: GivenFlags,
  ) => GuestFeatures;
}

/** The flags of some command that were given, whatever their defaults. */
export type GivenFlags = ReadonlySet<string>;

/** What the flags of some command were given, or their defaults. */
export type FlagValues = Readonly<Record<string, FlagValue | readonly FlagValue[] | undefined>>;

type ValueOf<V> = V extends "text"
  ? string
  : V extends NumberDomain
    ? number
    : V extends ChoiceDomain
      ? V["choices"][number]
      : boolean;

type Given<F extends CommandFlag> = F extends { value: infer V }
  ? F extends { repeatable: true }
    ? readonly ValueOf<V>[]
    : F extends { default: FlagValue }
      ? ValueOf<V>
      : ValueOf<V> | undefined
  : boolean;

export interface Parsed<F extends CommandFlags> {
  /** The parameters that were given and are right by themselves. */
  readonly options: ParameterOptions;
  readonly flags: { readonly [K in keyof F]: Given<F[K]> };
  readonly given: GivenFlags;
  readonly positionals: readonly string[];
  /** Everything that is wrong, each in a sentence. The rest holds only when this is empty. */
  readonly problems: readonly string[];
  /** Of these, what is wrong whatever the rules of legality say. */
  readonly mistakes: readonly string[];
}

interface KnownFlag extends Pick<CommandFlag, "repeatable" | "short" | "problemOf"> {
  readonly value: Domain | "text";
  /** What a right value looks like. */
  readonly wanted: string;
}

const SWITCH: Domain = { type: "boolean" };

/**
 * Reads a command's arguments, without the command itself. Never throws for what a user typed: all
 * problems come back at once, to be told together with those that the command finds itself.
 */
export function parseFlags<const F extends CommandFlags>(
  command: Command<F>,
  argv: readonly string[],
): Parsed<F> {
  const known = knownFlags(command);
  const reading = new Reading(command, known);
  const { tokens } = parseArgs({
    args: reading.joined(argv),
    options: Object.fromEntries(Array.from(known, ([name, flag]) => [name, optionOf(flag)])),
    strict: false,
    tokens: true,
  });
  for (const token of tokens) {
    if (token.kind === "option") reading.option(token.name, token.rawName, token.value);
    if (token.kind === "positional") reading.positionals.push(token.value);
  }
  reading.countPositionals();
  return reading.parsed();
}

function optionOf(flag: KnownFlag): { type: "boolean" | "string"; short?: string } {
  const type = isSwitch(flag) ? "boolean" : "string";
  return flag.short === undefined ? { type } : { type, short: flag.short };
}

function isSwitch(flag: KnownFlag): boolean {
  return flag.value !== "text" && flag.value.type === "boolean";
}

function knownFlags(command: Command): Map<string, KnownFlag> {
  const known = new Map<string, KnownFlag>();
  for (const [name, flag] of Object.entries(command.flags)) {
    const value = flag.value ?? SWITCH;
    const wanted = value === "text" ? (flag.placeholder ?? "text") : domainText(value, AS_FLAGS);
    known.set(name, { ...flag, value, wanted });
  }
  if (!command.parameters) return known;
  for (const key of PARAMETER_KEYS) {
    assert(!known.has(flagOf(key)), "a command has no flag of a parameter's name");
    known.set(flagOf(key), { value: rowOf(key), wanted: domainText(rowOf(key), AS_FLAGS) });
  }
  return known;
}

/** One pass over the arguments of one command: what was understood, and what was not. */
class Reading<F extends CommandFlags> {
  readonly positionals: string[] = [];
  readonly #command: Command<F>;
  readonly #known: ReadonlyMap<string, KnownFlag>;
  readonly #values = new Map<string, FlagValue[]>();
  readonly #problems: string[] = [];

  constructor(command: Command<F>, known: ReadonlyMap<string, KnownFlag>) {
    this.#command = command;
    this.#known = known;
  }

  /**
   * The arguments with every value joined to its flag (`--channels=-3`), so that a value that is
   * forgotten does not swallow the next flag and one that begins with a dash stays a value. What
   * is no flag is told here and left out, with the value that was surely meant for it.
   */
  joined(argv: readonly string[]): string[] {
    const joined: string[] = [];
    for (let index = 0; index < argv.length; index += 1) {
      const argument = argv[index] ?? "";
      if (argument === "--") return [...joined, ...argv.slice(index)];
      const name = /^--?([A-Za-z][\w-]+)$/.exec(argument)?.[1];
      if (name === undefined) {
        joined.push(argument);
        continue;
      }
      const isKnown = argument.startsWith("--") && this.#isFlag(name);
      const takesValue = this.#takesValue(isKnown ? name : this.#unknown(argument));
      const next = argv[index + 1];
      const value = takesValue && next?.startsWith("--") === false ? next : undefined;
      if (value !== undefined) index += 1;
      if (isKnown) joined.push(takesValue ? `${argument}=${value ?? ""}` : argument);
    }
    return joined;
  }

  #isFlag(name: string): boolean {
    return this.#known.has(name) || this.#switchDenied(name) !== undefined;
  }

  #takesValue(name: string | undefined): boolean {
    const flag = name === undefined ? undefined : this.#known.get(name);
    return flag !== undefined && !isSwitch(flag);
  }

  /** The switch that `no-checksum` turns off. */
  #switchDenied(name: string): string | undefined {
    const denied = name.startsWith("no-") ? name.slice("no-".length) : "";
    const flag = this.#known.get(denied);
    return flag !== undefined && isSwitch(flag) ? denied : undefined;
  }

  option(name: string, rawName: string, text: string | undefined): void {
    const flag = this.#known.get(name);
    if (flag !== undefined) {
      if (name === flagOf("postcopy") && this.#addPostcopy(text ?? "")) return;
      this.#add(name, flag, text ?? (isSwitch(flag) ? "true" : ""));
      return;
    }
    const denied = this.#switchDenied(name);
    if (denied === undefined) this.#unknown(rawName);
    else if (text !== undefined) this.#problems.push(`${rawName} takes no value: it is "${text}"`);
    else this.#add(denied, { value: SWITCH, wanted: "" }, "false");
  }

  #add(name: string, flag: KnownFlag, text: string): void {
    const before = this.#values.get(name) ?? [];
    if (before.length > 0 && !flag.repeatable) this.#problems.push(`--${name} is given twice`);
    const value = flag.value === "text" ? text : parseValue(flag.value, text);
    const problem = flag.problemOf?.(text);
    if (text === "") this.#problems.push(`--${name} needs a value: ${flag.wanted}`);
    else if (problem !== undefined) this.#problems.push(`--${name} ${problem}`);
    else if (value === undefined)
      this.#problems.push(`--${name} must be ${flag.wanted}: it is "${text}"`);
    else this.#values.set(name, [...before, value]);
  }

  /** `--postcopy after-rounds=3` says both in one. */
  #addPostcopy(text: string): boolean {
    const rounds = /^after-rounds=(.*)$/.exec(text)?.[1];
    const [choice, count] = [flagOf("postcopy"), flagOf("postcopyRounds")];
    const [choiceFlag, countFlag] = [this.#known.get(choice), this.#known.get(count)];
    if (rounds === undefined || choiceFlag === undefined || countFlag === undefined) return false;
    this.#add(choice, choiceFlag, "after-rounds");
    this.#add(count, countFlag, rounds);
    return true;
  }

  /** Tells of a flag that there is not, and returns the one that was probably meant. */
  #unknown(rawName: string): string | undefined {
    const meant = nearest(rawName, this.#known.keys());
    const hint = meant === undefined ? "" : ` (did you mean "--${meant}"?)`;
    this.#problems.push(`${rawName} is not a flag of "${this.#command.name}"${hint}`);
    return meant;
  }

  countPositionals(): void {
    const { positionals: wanted, name } = this.#command;
    for (const positional of wanted.slice(this.positionals.length)) {
      if (!positional.optional)
        this.#problems.push(`${positional.name} is missing: ${positional.meaning}`);
    }
    for (const surplus of this.positionals.slice(wanted.length))
      this.#problems.push(`"${surplus}" is more than "${name}" takes`);
  }

  parsed(): Parsed<F> {
    const { flags, parameters, features } = this.#command;
    const options = Object.fromEntries(
      (parameters ? PARAMETER_KEYS : [])
        .map((key) => [key, this.#values.get(flagOf(key))?.at(-1)] as const)
        .filter(([, value]) => value !== undefined),
    ) as ParameterOptions;
    const values: FlagValues = Object.fromEntries(
      Object.entries(flags).map(([name, flag]) => [name, this.#valueOf(name, flag)]),
    );
    const given = new Set(this.#values.keys());
    const illegal = brokenRules(options, features?.(this.positionals, values, given) ?? {});
    return {
      options,
      flags: values as Parsed<F>["flags"],
      given,
      positionals: this.positionals,
      problems: [...this.#problems, ...illegal.map(({ message }) => message)],
      mistakes: this.#problems,
    };
  }

  #valueOf(name: string, flag: CommandFlag): FlagValue | FlagValue[] | undefined {
    const values = this.#values.get(name) ?? [];
    if (flag.repeatable) return values;
    return values.at(-1) ?? flag.default ?? (flag.value === undefined ? false : undefined);
  }
}

/** The arguments that give `options`: what `parseFlags` reads back as the same. */
export function flagsOf(options: ParameterOptions): string[] {
  return PARAMETER_KEYS.flatMap((key) => {
    const value = options[key];
    return value === undefined ? [] : [`--${flagOf(key)}=${formatValue(rowOf(key), value)}`];
  });
}

const ADDRESS_KINDS = ["tcp", "unix", "fd", "exec", "file"] as const;

/** What an address says to the rules of legality; one that cannot be read says nothing. */
export function addressFeatures(address: string | undefined): Features {
  const kind = ADDRESS_KINDS.find((name) => address?.startsWith(`${name}:`));
  if (kind === undefined) return {};
  if (kind !== "fd") return { address: kind };
  return { address: kind, descriptors: address?.split(",").length ?? 0 };
}

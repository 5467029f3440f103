import { MigrationError } from "../../base/errors.ts";
import { isObject } from "../../base/object.ts";
import type { Qmp, QmpObject } from "./qmp.ts";

/** Fields of an answer, each checked: what QEMU says is not taken for granted. */
export class Answer {
  readonly #command: string;
  readonly #fields: QmpObject;

  constructor(command: string, value: unknown) {
    this.#command = command;
    if (!isObject(value)) throw this.#unreadable("it is no object");
    this.#fields = value;
  }

  text(name: string): string {
    const value = this.#fields[name];
    if (typeof value !== "string") throw this.#unreadable(`its "${name}" is no text`);
    return value;
  }

  number(name: string): number {
    const value = this.#fields[name];
    if (typeof value !== "number") throw this.#unreadable(`its "${name}" is no number`);
    return value;
  }

  flag(name: string): boolean {
    const value = this.#fields[name];
    if (typeof value !== "boolean") throw this.#unreadable(`its "${name}" is no boolean`);
    return value;
  }

  optionalText(name: string): string | undefined {
    return this.#fields[name] === undefined ? undefined : this.text(name);
  }

  /** The texts of a list that may be missing. */
  texts(name: string): readonly string[] {
    const value = this.#fields[name];
    return Array.isArray(value) ? value.filter((each) => typeof each === "string") : [];
  }

  #unreadable(problem: string): MigrationError {
    const reason = `its answer cannot be read: ${problem}`;
    return new MigrationError("HYPERVISOR_REFUSED", { command: this.#command, reason });
  }
}

/** Asks for an object. */
export async function ask(qmp: Qmp, command: string, words: QmpObject = {}): Promise<Answer> {
  return new Answer(command, await qmp.execute(command, words));
}

/** Asks for a list of objects. */
export async function askList(qmp: Qmp, command: string, words: QmpObject = {}): Promise<Answer[]> {
  const value = await qmp.execute(command, words);
  if (Array.isArray(value)) return value.map((each) => new Answer(command, each));
  const reason = "its answer cannot be read: it is no list";
  throw new MigrationError("HYPERVISOR_REFUSED", { command, reason });
}

/** A property of one of QEMU's objects; undefined where it has none of that name. */
export async function property(qmp: Qmp, path: string, name: string): Promise<unknown> {
  try {
    return await qmp.execute("qom-get", { path, property: name });
  } catch (error) {
    if (error instanceof MigrationError && error.code === "HYPERVISOR_REFUSED") return undefined;
    throw error;
  }
}

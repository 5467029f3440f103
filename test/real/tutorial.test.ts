import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate as turn } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { assert } from "../../base/assert.ts";
import { Deadline, within } from "../../base/clock.ts";
import { MIB } from "../../base/units.ts";
import { endOfExpected, stepsOf } from "../fixtures/tutorial.ts";
import { missingPrograms } from "./programs.ts";
import { decideReadiness, MEMORY_FOLDER, missingRoom } from "./requirements.ts";

const CHECKOUT = fileURLToPath(new URL("../..", import.meta.url));
const STEPS = stepsOf(readFileSync(join(CHECKOUT, "docs/qemu.md"), "utf8"));

/** An emulated guest boots in 5 s on an idle machine; this one may be busy. */
const SEE_LIMIT_MS = 120_000;

const { missing, isSkipped, because } = decideReadiness("the tutorial for QEMU", [
  ...missingPrograms(),
  ...missingRoom(768 * MIB),
]);

test.skipIf(isSkipped)(`this machine can follow the tutorial for QEMU${because}`, () => {
  expect(missing).toEqual([]);
});

test("the tutorial types and sees something in each of its terminals", () => {
  for (const terminal of ["source", "destination", "receive", "send"]) {
    for (const kind of ["type", "see"]) {
      const blocks = STEPS.filter((step) => step.terminal === terminal && step.kind === kind);
      expect(blocks.length, `${kind} in ${terminal}`).toBeGreaterThan(0);
    }
  }
});

describe.skipIf(missing.length > 0)(`docs/qemu.md, word for word${because}`, () => {
  const terminals = new Map<string, Terminal>();
  const user = `multifd-tutorial-${process.pid}`;
  let home: string;

  beforeAll(async () => {
    home = await mkdtemp(join(tmpdir(), "multifd-home-"));
  });

  afterAll(async () => {
    for (const terminal of terminals.values()) await terminal[Symbol.asyncDispose]();
    await rm(home, { recursive: true, force: true });
    for (const name of ["source", "destination"]) {
      await rm(join(MEMORY_FOLDER, `${user}.${name}`), { force: true });
    }
  });

  function terminalOf(name: string): Terminal {
    const terminal = terminals.get(name) ?? new Terminal({ HOME: home, USER: user });
    terminals.set(name, terminal);
    return terminal;
  }

  for (const [index, { kind, terminal, lines }] of STEPS.entries()) {
    test(`${index + 1}: ${kind} "${lines[0]}" in terminal ${terminal}`, async () => {
      if (kind === "type") terminalOf(terminal).type(lines);
      else await terminalOf(terminal).see(lines);
    });
  }

  test("leaves nothing behind when all was typed", async () => {
    const isThere = (name: string) => existsSync(join(MEMORY_FOLDER, `${user}.${name}`));
    const deadline = new Deadline(SEE_LIMIT_MS);
    while (["source", "destination"].some(isThere) && !deadline.passed) await turn();
    expect(["source", "destination"].filter(isThere)).toEqual([]);
    expect(existsSync(join(home, "tutorial"))).toBe(false);
  });

  test("goes on counting at the destination where the source stopped", () => {
    const beats = (name: string): number[] => {
      return Array.from(terminalOf(name).text.matchAll(/^beat (\d+)/gm), ([, beat]) =>
        Number(beat),
      );
    };
    const [left, arrived] = [beats("source"), beats("destination")];
    expect(left.length).toBeGreaterThan(1);
    const all = [...left, ...arrived];
    expect(all).toEqual(all.map((_, beat) => beat + 1));
  });
});

/** A shell as a reader of the tutorial has it open. `await using` ends it and all it runs. */
class Terminal implements AsyncDisposable {
  readonly #shell: ChildProcess;
  readonly #ended: Promise<unknown>;
  #text = "";
  #seenTo = 0;
  #changed = Promise.withResolvers<void>();

  constructor(env: Readonly<Record<string, string>>) {
    // A group of its own: what it runs in the foreground ends with it.
    this.#shell = spawn("bash", [], {
      cwd: CHECKOUT,
      env: { ...process.env, ...env },
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    });
    this.#ended = once(this.#shell, "close");
    process.once("exit", this.#kill);
    for (const output of [this.#shell.stdout, this.#shell.stderr]) {
      output?.setEncoding("utf8").on("data", (text: string) => this.#hear(text));
    }
  }

  get text(): string {
    return this.#text;
  }

  type(lines: readonly string[]): void {
    const { stdin } = this.#shell;
    assert(stdin !== null, "a shell's input is a pipe");
    this.#seenTo = this.#text.length;
    stdin.write(`${lines.join("\n")}\n`);
  }

  /** All of these lines, in this order, since the last that was seen or typed. */
  async see(lines: readonly string[]): Promise<void> {
    const deadline = new Deadline(SEE_LIMIT_MS);
    const late = (): Error => new Error(`Cannot see "${lines.join("\n")}" in:\n${this.#text}`);
    for (;;) {
      const end = endOfExpected(this.#text.slice(this.#seenTo), lines);
      if (end >= 0) {
        this.#seenTo += end;
        return;
      }
      await within(deadline.leftMs, this.#changed.promise, late);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#kill();
    await this.#ended;
    process.removeListener("exit", this.#kill);
  }

  readonly #kill = (): void => {
    const { pid, exitCode, signalCode } = this.#shell;
    if (pid !== undefined && exitCode === null && signalCode === null)
      process.kill(-pid, "SIGKILL");
  };

  #hear(text: string): void {
    this.#text += text;
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

import { expect, test } from "vitest";
import {
  asMigrationError,
  FAILURES,
  type FactsOf,
  type FailureCode,
  isFailureCode,
  MigrationError,
} from "../base/errors.ts";
import { failureRows } from "../cli/tables.ts";
import { flagOf, PARAMETER_KEYS } from "../engine/parameters.ts";

/** Facts as they occur; a code without its line here does not compile. */
const SAMPLES: { readonly [C in FailureCode]: FactsOf<C> } = {
  CONFIGURATION_INVALID: { problems: ["one thing", "another thing"] },
  ADDRESS_UNUSABLE: { address: "tcp:localhost:1", reason: "EACCES" },
  CONNECT_FAILED: { address: "tcp:localhost:1", reason: "ECONNREFUSED" },
  NO_SOURCE: { address: "unix:/tmp/m", limitMs: 100 },
  CHANNELS_MISSING: { wanted: 4, found: 3, limitMs: 100 },
  CHANNEL_LOST: { channel: 2, reason: "ECONNRESET" },
  CHANNEL_STALLED: { channel: 2, direction: "read", limitMs: 100 },
  PEER_SILENT: { waitingFor: "READY", limitMs: 100 },
  VERSION_UNSUPPORTED: { offered: "7 to 8", supported: "1" },
  TOKEN_REFUSED: { channel: 2 },
  PARAMETER_MISMATCH: { parameter: "checksum", source: "true", destination: "false" },
  BLOCK_MISMATCH: { block: "ram", problem: "it is missing" },
  FRAME_CORRUPT: { channel: 2, field: "magic", found: 7 },
  FRAME_UNEXPECTED: { channel: 2, frame: "ready", wanted: "accept" },
  CHECKSUM_MISMATCH: { channel: 2, sequence: 9 },
  MEMORY_UNUSABLE: { block: "ram", path: "/dev/shm/ram", reason: "EACCES" },
  MEMORY_FULL: { block: "ram", path: "/dev/shm/ram" },
  MEMORY_FAILED: { block: "ram", action: "write", reason: "EIO" },
  DEVICES_TOO_LARGE: { bytes: 9, limitBytes: 8 },
  HOST_FAILED: { action: "pause the guest", reason: "no" },
  HOST_TIMEOUT: { action: "pause the guest", limitMs: 100 },
  HYPERVISOR_UNREACHABLE: { path: "/run/a.qmp", reason: "ENOENT" },
  HYPERVISOR_REFUSED: { command: "migrate", reason: "no" },
  HYPERVISOR_SILENT: { waitingFor: "answer to cont", limitMs: 100 },
  HYPERVISOR_LOST: { reason: "it closed its monitor" },
  GUEST_UNSUITABLE: { problems: ["one thing", "another thing"] },
  GUEST_MISMATCH: { problems: ["one thing", "another thing"] },
  NOT_CONVERGING: { rounds: 30, expectedDowntimeMs: 900, limitMs: 300 },
  TIMEOUT: { phase: "pre-copy", limitMs: 100 },
  CANCELLED: { phase: "pre-copy" },
  HANDOVER_UNKNOWN: { reason: "ECONNRESET" },
  POSTCOPY_UNSUPPORTED: { reason: "this host cannot let its guest wait for pages" },
  POSTCOPY_INTERRUPTED: { reason: "ECONNRESET" },
  GUEST_NOT_RESTORED: { action: "resume", reason: "no", after: "CANCELLED" },
  WORKER_DIED: { channel: 2, reason: "out of memory" },
  INTERNAL: { reason: "TypeError: x is not a function" },
};

const CODES = Object.keys(FAILURES) as FailureCode[];

for (const code of CODES) {
  test(`${code} says what could not be done, from its facts`, () => {
    expect(code).toMatch(/^[A-Z]+(_[A-Z]+)*$/);
    const { message } = new MigrationError(code, SAMPLES[code]);
    expect(message).toMatch(/^Cannot .+[^.]$/);
    expect(message).not.toMatch(/undefined|null|NaN|\[object/);
    for (const fact of Object.values(SAMPLES[code]).flat()) expect(message).toContain(String(fact));
    expect(FAILURES[code].advice).toMatch(/^[A-Z].+\.$/);
  });

  test(`${code} crosses a socket as data and comes back the same`, () => {
    const failure = new MigrationError(code, SAMPLES[code]).from("destination");
    const arrived = JSON.parse(JSON.stringify(failure)) as Record<string, unknown>;
    expect(arrived).toEqual({
      code,
      facts: SAMPLES[code],
      message: failure.message,
      remedy: FAILURES[code].remedy,
      advice: FAILURES[code].advice,
      at: "destination",
    });
    expect(isFailureCode(String(arrived["code"]))).toBe(true);
  });
}

test("the table for managers names every fact of every message", () => {
  const rows = failureRows();
  expect(rows.map(({ code }) => code)).toEqual(CODES);
  for (const { code, facts, message } of rows) {
    expect([...facts].sort()).toEqual(Object.keys(SAMPLES[code as FailureCode]).sort());
    for (const fact of facts) expect(message).toContain(`{${fact}}`);
  }
});

test("advice speaks of parameters by the names that they have", () => {
  const flags = PARAMETER_KEYS.map(flagOf);
  const names = /\b(?:raise|set|choose) ([a-z]+-[a-z-]+)/gi;
  for (const { advice } of Object.values(FAILURES)) {
    for (const [, name] of advice.matchAll(names)) expect(flags).toContain(name);
  }
});

test("the end that noticed first stays named", () => {
  const failure = new MigrationError("CANCELLED", SAMPLES.CANCELLED).from("destination");
  expect(failure.from("source").at).toBe("destination");
});

test("anything else that is thrown is INTERNAL and says what it was", () => {
  expect(asMigrationError(new TypeError("no")).facts).toEqual({ reason: "TypeError: no" });
  expect(asMigrationError("no").code).toBe("INTERNAL");
  const failure = new MigrationError("CANCELLED", SAMPLES.CANCELLED);
  expect(asMigrationError(failure)).toBe(failure);
});

test("names that every object has are not failure codes", () => {
  for (const name of ["constructor", "__proto__", "toString", ""])
    expect(isFailureCode(name)).toBe(false);
});

test("whatever is thrown has a reason", () => {
  const rude = {
    toString(): never {
      throw new Error("not this either");
    },
  };
  const unnamed = Object.assign(new Error("x"), { name: Symbol("name") });
  for (const thrown of [Object.create(null), rude, unnamed]) {
    expect(asMigrationError(thrown)).toMatchObject({
      code: "INTERNAL",
      facts: { reason: "a thrown object that cannot become text" },
      cause: thrown,
    });
  }
});

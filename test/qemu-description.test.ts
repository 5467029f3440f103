import { expect, test } from "vitest";
import {
  decodeDescription,
  differences,
  encodeDescription,
  type GuestDescription,
} from "../hosts/qemu/description.ts";
import { decodeRunState, encodeRunState } from "../hosts/qemu/run-state.ts";
import { endOfExpected, stepsOf } from "./fixtures/tutorial.ts";

const GUEST: GuestDescription = {
  machine: "pc-i440fx-7.2",
  version: "7.2.22",
  cpus: 2,
  backends: [{ id: "ram", sizeBytes: 2 ** 30, address: 0 }],
  ownBlocks: ["pc.bios", "0000:00:02.0/vga.vram"],
  kernel: "one",
  files: { ram: "26:7" },
};

/** The same guest on another machine. */
const THERE: GuestDescription = { ...GUEST, kernel: "other" };

test("a description arrives as it left", () => {
  expect(decodeDescription(encodeDescription(GUEST))).toMatchObject(GUEST);
});

test.for([
  "",
  "{",
  "null",
  "[]",
  "{}",
  JSON.stringify({ ...GUEST }),
  JSON.stringify({ ...GUEST, kind: "another" }),
  ...["machine", "version", "cpus", "backends", "ownBlocks", "kernel", "files"].flatMap((name) => [
    JSON.stringify({ ...GUEST, kind: "qemu", [name]: null }),
    JSON.stringify({ ...GUEST, kind: "qemu", [name]: [{}] }),
  ]),
])("%s is no description of a QEMU's guest", (text) => {
  expect(decodeDescription(text)).toBe(undefined);
});

test("the same guest on another machine suits, whatever versions and files are", () => {
  expect(differences(GUEST, { ...THERE, version: "10.0.0" })).toEqual([]);
  // Files can be told apart on one machine only.
  expect(differences({ ...GUEST, kernel: "" }, { ...GUEST, kernel: "" })).toEqual([]);
  expect(differences(GUEST, { ...GUEST, files: { ram: "26:8" } })).toEqual([]);
  // It may have more than the source, and may not be able to tell.
  expect(differences(GUEST, { ...THERE, ownBlocks: [...GUEST.ownBlocks, "more"] })).toEqual([]);
  expect(differences(GUEST, { ...THERE, ownBlocks: [] })).toEqual([]);
});

test("all that differs is told at once", () => {
  const other: GuestDescription = {
    machine: "pc-q35-7.2",
    version: "7.2.22",
    cpus: 1,
    backends: [{ id: "memory", sizeBytes: 2 ** 30, address: 0 }],
    ownBlocks: ["pc.bios"],
    kernel: "one",
    files: { memory: "26:7" },
  };
  expect(differences(GUEST, other)).toEqual([
    "the machine is pc-i440fx-7.2 at the source and pc-q35-7.2 at the destination: start it with -machine pc-i440fx-7.2",
    "the source has 2 processors and the destination 1: start it with -smp 2",
    'RAM backend "ram" is missing at the destination: give it one of that id',
    'RAM backend "memory" is missing at the source',
    'memory of "0000:00:02.0/vga.vram" is missing at the destination: give both the same devices',
    'RAM backend "memory" is in the source\'s own file: give the destination another',
  ]);
});

test("whether the guest ran arrives as it left, and nothing else is taken for it", () => {
  for (const hasRun of [true, false]) {
    expect(decodeRunState(encodeRunState({ hasRun }))).toEqual({ hasRun });
  }
  for (const text of ["", "{}", "true", '{"hasRun":1}', "\u0000"]) {
    expect(decodeRunState(Buffer.from(text))).toBe(undefined);
  }
});

test("a tutorial's blocks are those that name a terminal", () => {
  const page =
    "a\n```sh one\ncd x\nls\n```\nb\n```\nnone\n```\n```text one\ny…\n```\n```ts\nz\n```\n";
  expect(stepsOf(page)).toEqual([
    { kind: "type", terminal: "one", lines: ["cd x", "ls"] },
    { kind: "see", terminal: "one", lines: ["y…"] },
  ]);
});

test("expected lines are found whole and in order, with whatever comes between them", () => {
  const text = "beat 1\r\nnoise\r\nbeat 2\r\nbeat 3\n";
  expect(endOfExpected(text, ["beat 1", "beat 3"])).toBe(text.length);
  expect(endOfExpected(text, ["beat …", "beat …"])).toBe(text.indexOf("beat 3"));
  expect(endOfExpected(text, ["beat 3", "beat 1"])).toBe(-1);
  expect(endOfExpected(text, ["beat"])).toBe(-1);
  expect(endOfExpected("beat 1", ["beat 1"])).toBe(-1);
  expect(endOfExpected("a.c\n", ["abc"])).toBe(-1);
});

import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { type Address, formatAddress, parseAddress } from "../channels/address.ts";
import { type Connection, connector, listen } from "../channels/connection.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

const ADDRESSES: readonly (readonly [text: string, address: Address])[] = [
  ["tcp:localhost:4444", { kind: "tcp", host: "localhost", port: 4444 }],
  ["tcp:127.0.0.1:0", { kind: "tcp", host: "127.0.0.1", port: 0 }],
  ["tcp:[::1]:65535", { kind: "tcp", host: "::1", port: 65_535 }],
  ["tcp:[fe80::1.2.3.4]:1", { kind: "tcp", host: "fe80::1.2.3.4", port: 1 }],
  ["unix:/run/multifd.sock", { kind: "unix", path: "/run/multifd.sock" }],
  ["unix:a:b", { kind: "unix", path: "a:b" }],
  ["fd:3", { kind: "fd", descriptors: [3] }],
  ["fd:3,5,4", { kind: "fd", descriptors: [3, 5, 4] }],
  ["exec:ssh host multifd", { kind: "exec", command: "ssh host multifd" }],
  ["exec:a:b | c", { kind: "exec", command: "a:b | c" }],
];

for (const [text, address] of ADDRESSES) {
  test(`"${text}" is an address and is written the same`, () => {
    expect(parseAddress(text)).toEqual(address);
    expect(formatAddress(address)).toBe(text);
  });
}

const REFUSED: readonly (readonly [text: string, reason: string])[] = [
  ["", "must be tcp:HOST:PORT"],
  ["localhost:4444", "must be tcp:HOST:PORT"],
  ["TCP:localhost:4444", "must be tcp:HOST:PORT"],
  [":4444", "must be tcp:HOST:PORT"],
  ["tcp", "must be tcp:HOST:PORT"],
  ["tcp:", "a port in 0..65535"],
  ["tcp:localhost", "a port in 0..65535"],
  ["tcp::4444", "a port in 0..65535"],
  ["tcp:localhost:", "a port in 0..65535"],
  ["tcp:localhost:65536", "a port in 0..65535"],
  ["tcp:localhost:-1", "a port in 0..65535"],
  ["tcp:localhost:1e3", "a port in 0..65535"],
  ["tcp:::1:4444", "a port in 0..65535"],
  ["tcp:[::1]", "a port in 0..65535"],
  ["tcp:[localhost]:1", "a port in 0..65535"],
  ["unix:", "lacks a path"],
  ["exec:", "lacks a command"],
  ["fd:", "inherited descriptors"],
  ["fd:-1", "inherited descriptors"],
  ["fd:3,", "inherited descriptors"],
  ["fd:3, 4", "inherited descriptors"],
  ["fd:three", "inherited descriptors"],
  ["fd:3,4,3", "name each descriptor once"],
  ["file:/tmp/snapshot", "is for snapshots"],
];

for (const [text, reason] of REFUSED) {
  test(`"${text}" is no address, and the message says what would be`, () => {
    expect(() => parseAddress(text)).toThrow(RangeError);
    expect(() => parseAddress(text)).toThrow(reason);
    expect(() => parseAddress(text)).toThrow(`"${text}"`);
  });
}

test(`any text is an address that reads the same again, or a RangeError (SEED=${seed})`, () => {
  const random = new Prng(seed);
  const parts = ["tcp", "unix", "fd", "exec", ":", ",", "[", "]", "::1", "4", "65535", "a", "\n"];
  for (let run = 0; run < 5000; run += 1) {
    const text = Array.from({ length: random.below(8) }, () => parts[random.below(parts.length)]);
    try {
      const address = parseAddress(text.join(""));
      expect(parseAddress(formatAddress(address))).toEqual(address);
    } catch (error) {
      expect(error).toBeInstanceOf(RangeError);
    }
  }
});

const LIMIT_MS = 10_000;

/** Sends a word from each end and reads it at the other. */
async function expectConnected(one: Connection, other: Connection): Promise<void> {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.writer.write("word");
    const arriving = once(to.reader, "data");
    to.reader.resume();
    expect(String((await arriving)[0])).toBe("word");
    to.reader.pause();
  }
}

test("a tcp listener on port 0 names the port that it got, and connections arrive in order", async () => {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  onTestFinished(() => listener.close());
  expect(listener.address).toMatch(/^tcp:127\.0\.0\.1:[1-9]\d*$/);
  const dialer = connector(parseAddress(listener.address));
  for (let channel = 0; channel < 3; channel += 1) {
    const near = await dialer.connect(channel, LIMIT_MS);
    const far = await listener.next(LIMIT_MS);
    await expectConnected(near, far);
    near.close();
    far.close();
  }
});

test("a connection that is still being made ends when nobody wants it any more", async () => {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  onTestFinished(() => listener.close());
  const dialer = connector(parseAddress(listener.address));
  const connecting = dialer.connect(0, LIMIT_MS);
  dialer.close();
  await expect(connecting).rejects.toMatchObject({
    code: "CONNECT_FAILED",
    facts: { reason: "this end closed it" },
  });
});

test("a unix listener takes connections at its path", async () => {
  const folder = mkdtempSync(join(tmpdir(), "multifd-address-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const listener = await listen({ kind: "unix", path: join(folder, "socket") });
  onTestFinished(() => listener.close());
  const near = await connector(parseAddress(listener.address)).connect(0, LIMIT_MS);
  const far = await listener.next(LIMIT_MS);
  await expectConnected(near, far);
  near.close();
  far.close();
});

test("inherited descriptors become connections, each once and in order, also while somebody waits", async () => {
  const program = join(import.meta.dirname, "fixtures", "wire-inherited.ts");
  const stdio = ["ignore", "inherit", "inherit", "pipe", "pipe", "pipe", "pipe"] as const;
  const child = spawn(process.execPath, [program], { stdio: [...stdio] });
  const ended = once(child, "exit");
  const sockets = child.stdio.slice(3) as unknown as Socket[];
  for (const [index, socket] of sockets.entries()) {
    const [greeting] = await once(socket, "data");
    expect(String(greeting)).toBe(`connection ${index} is descriptor ${3 + index}`);
    socket.write("word");
    expect(String((await once(socket, "data"))[0])).toBe("word");
  }
  for (const socket of sockets) socket.end();
  expect(await ended).toEqual([0, null]);
});

test("an fd address without a descriptor for a channel is ADDRESS_UNUSABLE", async () => {
  const failing = connector({ kind: "fd", descriptors: [99] }).connect(1, LIMIT_MS);
  await expect(failing).rejects.toMatchObject({
    code: "ADDRESS_UNUSABLE",
    facts: { address: "fd:99", reason: expect.stringContaining("channel 1") },
  });
});

test("a descriptor that is no socket, or not open, is ADDRESS_UNUSABLE", async () => {
  const fd = openSync("/dev/null", "r");
  await expectUnusable(() => connector({ kind: "fd", descriptors: [fd] }).connect(0, LIMIT_MS));
  closeSync(fd);
  await expectUnusable(() => connector({ kind: "fd", descriptors: [fd] }).connect(0, LIMIT_MS));
  await expectUnusable(() => listen({ kind: "fd", descriptors: [fd] }));
});

test("exec connects two ends by the pipes of a command", async () => {
  const near = await connector({ kind: "exec", command: "cat" }).connect(0, LIMIT_MS);
  await expectConnected(near, near); // What goes in comes out.
  near.close();

  const listener = await listen({ kind: "exec", command: "cat" });
  const far = await listener.next(LIMIT_MS);
  await expectConnected(far, far);
  listener.close();
  far.close();
});

test("a connection that nobody took is closed with the listener", async () => {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const near = await connector(parseAddress(listener.address)).connect(0, LIMIT_MS);
  const second = await connector(parseAddress(listener.address)).connect(1, LIMIT_MS);
  const far = await listener.next(LIMIT_MS); // Both have arrived, or the second is refused.
  listener.close();
  second.reader.on("error", () => {});
  const closing = once(second.reader, "close");
  second.reader.resume();
  await closing;
  far.close();
  near.close();
});

test("nobody who comes is NO_SOURCE, a closed listener is CANCELLED for whoever waits", async () => {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  await expect(listener.next(20)).rejects.toMatchObject({
    code: "NO_SOURCE",
    facts: { address: listener.address, limitMs: 20 },
  });
  const waiting = listener.next(LIMIT_MS);
  listener.close();
  await expect(waiting).rejects.toMatchObject({ code: "CANCELLED" });
  await expect(listener.next(LIMIT_MS)).rejects.toMatchObject({ code: "CANCELLED" });
});

test("an address in use is ADDRESS_UNUSABLE, one without a listener CONNECT_FAILED", async () => {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  await expectUnusable(() => listen(parseAddress(listener.address)));
  listener.close();
  await expectUnusable(() => listen({ kind: "unix", path: "/nowhere/at/all" }));
  const failing = connector({ kind: "unix", path: "/nowhere/at/all" }).connect(0, LIMIT_MS);
  await expect(failing).rejects.toMatchObject({
    code: "CONNECT_FAILED",
    facts: { address: "unix:/nowhere/at/all", reason: expect.stringContaining("ENOENT") },
  });
});

async function expectUnusable(attempt: () => Promise<unknown>): Promise<void> {
  let failure: unknown;
  try {
    await attempt();
  } catch (error) {
    failure = error;
  }
  expect(failure).toBeInstanceOf(MigrationError);
  expect(failure).toMatchObject({ code: "ADDRESS_UNUSABLE" });
}

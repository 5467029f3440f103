import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { fstatSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import type { DescriptorOptions } from "../channels/descriptor.ts";
import { openInbox } from "../channels/inbox.ts";
import { SocketPairs, shut, threadDescriptorOf } from "./fixtures/wire-pair.ts";

const OPENER = fileURLToPath(new URL("./fixtures/inbox-opener.ts", import.meta.url));

let pairs: SocketPairs;
beforeAll(async () => {
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** More than a page of WASI's memory. */
const LENGTH = 100_000;

describe.each(["quiet", "loud"] as const)("a %s inbox", (kind) => {
  async function makeInbox() {
    // As where Node has no WASI, or does not let it be.
    const spy = vi.spyOn(process, "getBuiltinModule");
    onTestFinished(() => spy.mockRestore());
    if (kind === "loud") spy.mockReturnValue(undefined);
    const { near, far } = await pairs.make();
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const fd = threadDescriptorOf(near);
    const options: DescriptorOptions = { fd, channel: 3, stop, limitMs: 1000 };
    const inbox = openInbox(options, LENGTH);
    expect(inbox.isQuiet).toBe(kind === "quiet");
    return { far, inbox };
  }

  async function send(far: NodeJS.WritableStream, bytes: Uint8Array): Promise<void> {
    await new Promise((resolve) => far.write(bytes, resolve));
  }

  test("takes what is there, to where it is wanted, and never waits", async () => {
    const { far, inbox } = await makeInbox();
    expect(inbox.read(0, 10)).toBe(0);
    await send(far, Uint8Array.of(1, 2, 3, 4, 5));
    expect(inbox.read(10, 13)).toBe(3);
    expect(inbox.read(13, 100)).toBe(2);
    expect(inbox.read(15, 100)).toBe(0);
    expect([...inbox.bytes.subarray(9, 16)]).toEqual([0, 1, 2, 3, 4, 5, 0]);
    expect(inbox.view.getUint8(12)).toBe(3);
  });

  test("is filled to its last byte, and not beyond", async () => {
    const { far, inbox } = await makeInbox();
    const sent = Uint8Array.from({ length: LENGTH + 7 }, (_, index) => index % 251);
    await send(far, sent);
    let at = 0;
    for (let looks = 0; at < LENGTH && looks < 1000; looks += 1) at += inbox.read(at, LENGTH);
    expect(at).toBe(LENGTH);
    expect(Buffer.compare(inbox.bytes, sent.subarray(0, LENGTH))).toBe(0);
    expect(inbox.read(0, 100)).toBe(7);
  });

  test("tells of a peer that closed, as CHANNEL_LOST, once all it sent is read", async () => {
    const { far, inbox } = await makeInbox();
    await send(far, Uint8Array.of(9));
    await shut(far);
    expect(inbox.read(0, 10)).toBe(1);
    const facts = { channel: 3, reason: "the other end closed it" };
    expect(() => inbox.read(1, 10)).toThrow(
      expect.objectContaining({ code: "CHANNEL_LOST", facts }),
    );
  });
});

test("a thread that had an inbox leaves its descriptor open when it ends", async () => {
  const { near, far } = await pairs.make();
  const fd = threadDescriptorOf(near);
  const thread = new Worker(new URL("./fixtures/inbox-holder.ts", import.meta.url), {
    workerData: fd,
  });
  const [isQuiet] = await once(thread, "message");
  expect(isQuiet).toBe(true);
  await thread.terminate();
  expect(fstatSync(fd).isSocket()).toBe(true);
  expect(far.destroyed).toBe(false);
});

test("an inbox says nothing of being experimental, and is loud where it is forbidden", () => {
  const run = (flags: readonly string[]) => {
    const words = [...process.execArgv, ...flags, OPENER];
    const { stdout, stderr } = spawnSync(process.execPath, words, {
      input: "hello",
      timeout: 20_000,
    });
    return [String(stdout), String(stderr)];
  };
  expect(run([])).toEqual(["quiet hello", ""]);
  expect(run(["--permission", "--allow-fs-read=*"])).toEqual(["loud hello", ""]);
});

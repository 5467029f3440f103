import type { Worker } from "node:worker_threads";
import { afterAll, beforeAll, expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { KIB, MIB } from "../base/units.ts";
import type { MigrateInOptions } from "../engine/destination.ts";
import { type ParameterOptions, resolveParameters } from "../engine/parameters.ts";
import { ReadyThreads } from "../engine/ready-threads.ts";
import { Sender } from "../engine/sender.ts";
import type { MigrateOutOptions } from "../engine/source.ts";
import { REAL_SURROUNDINGS } from "../engine/surroundings.ts";
import { stopWorkers } from "../workers/control.ts";
import { SocketPairs, shut, threadDescriptorOf } from "./fixtures/wire-pair.ts";
import { FaultRig, warmUp } from "./harness/fault-rig.ts";
import { allocate, fillBlocks } from "./harness/guest-memory.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { Relay } from "./harness/relay.ts";
import { ThreadWatch } from "./harness/thread-watch.ts";
import { seedFromEnvironment } from "./prng.ts";
import { KIND, WireConnection } from "./wire-peer.ts";

/**
 * A thread that dies while it has taken a chunk's dirty bits and sent, or applied, a part of it. It
 * is ended from outside, as when it runs out of memory: nothing of its own runs any more, neither
 * its error handling nor what puts bits back.
 */
const seed = seedFromEnvironment();
const CHANNELS = 2;

/**
 * A chunk is four frames. At this pace the third one waits for half a second at the least, in the
 * middle of its chunk, from the moment that the second one has gone out.
 */
const SLOWLY: ParameterOptions = { maxBandwidthBytesPerSecond: 1 * MIB };
const CHUNK_BYTES = 2 * MIB;

/** Ways of sending: what a thread holds when it dies is different in each. */
const WAYS: Readonly<Record<string, ParameterOptions>> = {
  "pages as they are": {},
  checksums: { checksum: true },
  "deltas and zstd": { xbzrle: true, xbzrleCacheBytes: 64 * MIB, compression: "zstd" },
  "what pays": { compression: "auto" },
};

let pairs: SocketPairs;
beforeAll(async () => {
  await warmUp();
  pairs = await SocketPairs.open();
});
afterAll(() => pairs.close());

/** The threads of both ends, told apart by being made here. */
class Ends implements AsyncDisposable {
  readonly #out = new ReadyThreads("source", CHANNELS);
  readonly #in = new ReadyThreads("destination", CHANNELS);

  /** Those of either end, each with a channel once the hosts have agreed. */
  async of(side: "source" | "destination", watch: ThreadWatch): Promise<readonly Worker[]> {
    const threads = await watch.all();
    return side === "source" ? threads.slice(0, CHANNELS) : threads.slice(CHANNELS, 2 * CHANNELS);
  }

  get out(): MigrateOutOptions {
    return { channels: CHANNELS, threads: this.#out };
  }

  get in(): MigrateInOptions {
    return { threads: this.#in };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#out.close(), this.#in.close()]);
  }
}

for (const [way, options] of Object.entries(WAYS)) {
  for (const side of ["source", "destination"] as const) {
    test(`a thread of the ${side} that dies in the middle of a chunk: ${way} (SEED=${seed})`, async () => {
      const rig = new FaultRig(seed);
      {
        using watch = new ThreadWatch();
        await using relay = await Relay.start();
        await using ends = new Ends();
        const [victim] = await ends.of(side, watch);
        const die = (): void => void must(victim, "threads run").terminate();
        if (side === "source") {
          relay.at({ channel: 1, frame: "pages", nth: 2, where: "after" }, die);
        } else {
          // Half a frame came, and nothing more comes: every thread waits in the middle of one.
          let stalled = 0;
          for (const channel of [1, 2]) {
            relay.at({ channel, frame: "pages", nth: 2, where: "middle" }, () => {
              relay.do("stall", channel);
              stalled += 1;
              if (stalled === CHANNELS) die();
            });
          }
        }
        const pace = side === "source" ? SLOWLY : {};
        const out = { ...ends.out, ...options, ...pace };
        const { checksum = false } = options;
        const outcome = await rig.fails({ relay, out, in: { ...ends.in, checksum } });
        for (const { failure } of [outcome.source, outcome.destination]) {
          expect(failure).toMatchObject({
            code: "WORKER_DIED",
            at: side,
            facts: { channel: expect.any(Number), reason: expect.any(String) },
          });
        }
      }
      const { checksum = false } = options;
      const retry = { out: { channels: CHANNELS, ...options }, in: { checksum } };
      const { source } = await rig.succeeds(retry);
      // Everything is dirty for the next attempt: what the dead thread had taken, too.
      const pages = rig.source.blocks.reduce((sum, block) => sum + block.sizeBytes / 4096, 0);
      expect(source.report?.rounds[0]).toMatchObject({ dirtyPages: pages, sentPages: pages });
    });
  }
}

test(`a thread of the source that dies in a later round, with versions that were sent (SEED=${seed})`, async () => {
  const rig = new FaultRig(seed);
  rig.source.onLook = () => rig.source.writePages(1000);
  const deltas = { channels: CHANNELS, xbzrle: true, xbzrleCacheBytes: 64 * MIB };
  {
    using watch = new ThreadWatch();
    await using relay = await Relay.start();
    await using ends = new Ends();
    const threads = await ends.of("source", watch);
    // The first fence is from before the first round, the second one ends it.
    relay.at({ channel: 1, frame: "fence", nth: 2, where: "after" }, () => {
      relay.at({ channel: 1, frame: "pages", nth: 1, where: "after" }, () => {
        for (const thread of threads) void thread.terminate();
      });
    });
    const outcome = await rig.fails({
      relay,
      out: { ...deltas, ...ends.out, downtimeLimitMs: 1 },
      in: ends.in,
    });
    expect(outcome.source.failure).toMatchObject({ code: "WORKER_DIED", at: "source" });
  }
  rig.source.onLook = () => rig.source.writePages(2);
  await rig.succeeds({ out: deltas });
});

test(`pages whose dirty bits a thread took along are dirty again (SEED=${seed})`, async () => {
  const blocks = allocate([
    { name: "ram", sizeBytes: 5 * CHUNK_BYTES + 64 * KIB, pageBytes: 4 * KIB },
  ]);
  fillBlocks(blocks, seed);
  const leaks = new LeakCheck();
  using watch = new ThreadWatch();
  const sender = new Sender(
    blocks,
    resolveParameters({ channels: 1, ...SLOWLY }),
    REAL_SURROUNDINGS,
  );
  const all = sender.dirtyPages;
  const { near, far } = await pairs.make();
  const fd = threadDescriptorOf(near);
  const place = { channel: 1, readFd: fd, writeFd: fd, readSequence: 0, writeSequence: 0 };
  const peer = new WireConnection(far);
  far.resume();
  const opening = sender.open(place);
  await peer.send(KIND.fenced, await peer.expect(KIND.fence));
  await opening;

  const sending = sender.sendRound();
  await peer.expect(KIND.pages);
  await peer.expect(KIND.pages);
  expect(sender.dirtyPages).toBeLessThan(all);
  await must(watch.threads[0], "the channel has a thread").terminate();
  await expect(sending).rejects.toMatchObject({ code: "WORKER_DIED", facts: { channel: 1 } });
  expect(sender.dirtyPages).toBe(all);

  stopWorkers(sender.control);
  expect(await sender.close()).toBe(true);
  peer.close();
  await shut(near);
  await leaks.settled();
});

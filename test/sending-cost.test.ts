import { expect, test } from "vitest";
import { KIB, MIB } from "../base/units.ts";
import { SendingCost, type SentFrame } from "../workers/sending-cost.ts";

/** A channel whose frames are of 1 MiB, unless they say otherwise; `restMs` pass before each. */
class Channel {
  readonly cost = new SendingCost();
  #atMs = 0;

  send(frames: number, { restMs = 0, ...changes }: Partial<SentFrame> & { restMs?: number }): void {
    for (let count = 0; count < frames; count += 1) {
      const payloadBytes = changes.payloadBytes ?? MIB;
      const sizes = { pageBytes: payloadBytes, payloadBytes, wireBytes: payloadBytes };
      const frame = { way: "raw", ...sizes, elapsedMs: 1, blockedMs: 0, ...changes } as const;
      this.#atMs += restMs + frame.elapsedMs;
      this.cost.learn({ ...frame, atMs: this.#atMs });
    }
  }

  /** In milliseconds per MiB, rounded. */
  of(way: "raw" | "codec"): readonly number[] | null {
    const cost = this.cost.of(way);
    if (cost === null) return null;
    return [cost.workMs, cost.linkMs].map((ms) => Math.round(ms * MIB * 100) / 100);
  }
}

test("work is what is not waited for, and the link takes as long as the channel goes while it waits", () => {
  const channel = new Channel();
  channel.send(7, { elapsedMs: 8, blockedMs: 7 });
  expect(channel.of("raw")).toBeNull();
  channel.send(25, { elapsedMs: 8, blockedMs: 7 });
  expect(channel.of("raw")).toEqual([1, 8]);
  expect(channel.of("codec")).toBeNull();
});

test("a link that is never waited for takes no time, and what is compressed takes less of it", () => {
  const channel = new Channel();
  channel.send(32, { elapsedMs: 1 });
  expect(channel.of("raw")).toEqual([1, 0]);
  channel.send(32, { way: "codec", wireBytes: MIB / 4, elapsedMs: 10, blockedMs: 5 });
  expect(channel.of("codec")).toEqual([5, 10]);
  expect(channel.of("raw")).toEqual([1, 40]);
});

test("frames that are mostly deltas tell nothing of what pages cost that are none", () => {
  const channel = new Channel();
  channel.send(32, { elapsedMs: 1 });
  channel.send(100, { pageBytes: MIB, payloadBytes: MIB / 4, elapsedMs: 50 });
  channel.send(100, { payloadBytes: 64 * KIB, elapsedMs: 50 });
  expect(channel.of("raw")?.[0]).toBe(1);
});

test("a link that is given little is not taken for a faster one", () => {
  const slow = { elapsedMs: 8, blockedMs: 7 };
  const channel = new Channel();
  channel.send(32, slow);
  // Deltas: what they are is gone at once.
  channel.send(1000, { pageBytes: MIB, payloadBytes: 3 * KIB, elapsedMs: 1 });
  expect(channel.of("raw")?.[1]).toBe(8);
  // Buffers swallow it, and drain while nothing is sent.
  channel.send(32, { elapsedMs: 0.5, restMs: 30 });
  expect(channel.of("raw")?.[1]).toBe(8);
  channel.send(32, { elapsedMs: 0.5 });
  expect(channel.of("raw")?.[1]).toBeLessThan(1);
  channel.send(32, slow);
  expect(channel.of("raw")?.[1]).toBe(8);
});

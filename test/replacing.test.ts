import { expect, onTestFinished, test } from "vitest";
import { useClock } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import { parseAddress } from "../channels/address.ts";
import { Replacing } from "../engine/replacing.ts";
import type { SourcePeer } from "../engine/source-peer.ts";

const ADDRESS = "tcp:127.0.0.1:1";
const HOUR_MS = 3_600_000;

/** What a destination lets itself be told of lost channels; see docs/wire.md. */
const LETTINGS_MAX = 4096;

/** How often the destination is told of a channel that is sought for an hour, and always so in vain. */
async function toldOf(failure: MigrationError): Promise<{ tries: number; told: number }> {
  let now = 0;
  onTestFinished(
    useClock({
      nowMs: () => now,
      cpuMs: () => 0,
      after(ms, call) {
        now += ms;
        call();
        return () => {};
      },
      every: () => () => {},
    }),
  );
  const seen = { tries: 0, told: 0 };
  const peer = {
    openChannel() {
      seen.tries += 1;
      return Promise.reject(failure);
    },
    giveUp() {
      seen.told += 1;
      return Promise.resolve();
    },
  };
  const replacing = new Replacing(peer as unknown as SourcePeer, parseAddress(ADDRESS), HOUR_MS);
  expect(await replacing.replace(1)).toBe(null);
  return seen;
}

test("while the link is down a destination is told nothing, however many channels are sought", async () => {
  const facts = { address: ADDRESS, reason: "no route" };
  const { tries, told } = await toldOf(new MigrationError("CONNECT_FAILED", facts));
  expect(2 * tries).toBeGreaterThan(LETTINGS_MAX);
  expect(told).toBe(0);
});

test("a connection that was made and not answered may have been let in: it is given up", async () => {
  const facts = { waitingFor: "welcome", limitMs: 1 };
  const { tries, told } = await toldOf(new MigrationError("PEER_SILENT", facts));
  expect(told).toBe(tries - 1);
});

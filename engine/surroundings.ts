import type { Address } from "../channels/address.ts";
import { type Connector, connector, type Listener, listen } from "../channels/connection.ts";
import type { LaneSetup } from "../workers/protocol.ts";
import { Lanes } from "./lanes.ts";
import { ChannelPool } from "./pool.ts";
import { atOnce, ReadyThreads } from "./ready-threads.ts";
import type { ThreadStore } from "./thread-store.ts";

/** A thread per channel, with the tasks of each done in order. See `ChannelPool`. */
export type ThreadPool = Pick<ChannelPool, "begun" | "run" | "close">;

/** A thread for each priority lane. See `Lanes`. */
export type LaneThreads = Pick<Lanes, "start" | "serve" | "comeFirst" | "ended" | "close">;

/**
 * What a migration has around it: other machines and threads. With the clock (see base/clock.ts)
 * that is all that decides in which order things happen, so a simulation that stands in for these
 * can run the coordinator and repeat what it saw.
 */
export interface Surroundings {
  connector(address: Address): Connector;
  listen(address: Address): Promise<Listener>;
  /** Starts up to so many for bulk channels, and those for lanes, before it is known what for. */
  readyThreads(
    side: "source" | "destination",
    counts: { channels: number; lanes: number },
  ): ReadyThreads;
  startThreads(options: {
    module: URL;
    setup: object;
    channels: number;
    ready?: ThreadStore | undefined;
  }): ThreadPool;
  /** None where post-copy cannot happen. */
  startLanes(
    setups: readonly LaneSetup[],
    terms: { isGuestThere: boolean; ready?: ThreadStore | undefined },
  ): LaneThreads;
}

export const REAL_SURROUNDINGS: Surroundings = {
  connector,
  listen,
  readyThreads(side, { channels, lanes }) {
    return new ReadyThreads(side, atOnce(channels), { lanes, isForOne: true });
  },
  startThreads: (options) => new ChannelPool(options),
  startLanes: (setups, terms) => new Lanes(setups, terms),
};

import { after, nowMs } from "../base/clock.ts";
import { MigrationError } from "../base/errors.ts";
import type { Address } from "../channels/address.ts";
import type { ChannelPlace } from "../workers/protocol.ts";
import type { ChannelKeeper } from "./sender.ts";
import type { SourcePeer } from "./source-peer.ts";

/** The first tries come soon, for a connection that was merely cut; a link that is down takes longer. */
const PAUSE_MS_MIN = 50;
const PAUSE_MS_MAX = 1000;

/** A channel that is lost again and again is not worth having. */
const LOSSES_MAX = 16;

/** Gives lost channels up and seeks other connections for them, until `end`. */
export class Replacing implements ChannelKeeper {
  readonly #peer: SourcePeer;
  /** How long a connection is sought. */
  readonly #limitMs: number;
  readonly #isPossible: boolean;
  readonly #losses = new Map<number, number>();
  readonly #ended = Promise.withResolvers<void>();
  #isEnded = false;

  constructor(peer: SourcePeer, address: Address, limitMs: number) {
    this.#peer = peer;
    this.#limitMs = limitMs;
    // A descriptor that was inherited is there once: its number may be another file's by now.
    this.#isPossible = address.kind !== "fd";
  }

  async giveUp(channel: number): Promise<void> {
    await this.#peer.giveUp(channel);
  }

  async replace(channel: number): Promise<ChannelPlace | null> {
    const losses = (this.#losses.get(channel) ?? 0) + 1;
    this.#losses.set(channel, losses);
    if (!this.#isPossible || losses > LOSSES_MAX) return null;
    const endMs = nowMs() + this.#limitMs;
    for (
      let pauseMs = PAUSE_MS_MIN;
      !this.#isEnded;
      pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX)
    ) {
      let mayBeIn = true;
      try {
        const place = await this.#peer.openChannel(channel);
        if (!this.#isEnded) return place;
        this.discard(channel);
      } catch (error) {
        if (!(error instanceof MigrationError)) throw error;
        mayBeIn = error.code !== "CONNECT_FAILED";
      }
      if (nowMs() + pauseMs > endMs) return null;
      await this.#pause(pauseMs);
      // It may have been let in without our knowing; then nobody else would be. Where nothing was
      // connected nobody was: a link that is down for an hour must not use up what a destination
      // lets itself be told.
      if (mayBeIn && !this.#isEnded) await this.#peer.giveUp(channel);
    }
    return null;
  }

  discard(channel: number): void {
    this.#peer.closeChannel(channel);
  }

  /** From here on no channel joins. */
  end(): void {
    this.#isEnded = true;
    this.#ended.resolve();
  }

  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const prevent = after(ms, resolve);
    await Promise.race([promise, this.#ended.promise]);
    prevent();
  }
}

import { assert } from "../base/assert.ts";
import { asMigrationError, type MigrationError } from "../base/errors.ts";
import type { Address } from "../channels/address.ts";
import type { Checksum } from "../channels/checksum.ts";
import type { FaultsMessage } from "../channels/messages.ts";
import { stopWorkers } from "../workers/control.ts";
import { beginPostcopy } from "../workers/gate.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "../workers/lane-words.ts";
import type { Latencies } from "../workers/latencies.ts";
import type { Block } from "./block.ts";
import { mainChannelFigures } from "./figures.ts";
import { startHeartbeat } from "./heartbeat.ts";
import { laneCountOf } from "./lanes.ts";
import { Leg } from "./leg.ts";
import type { Parameters } from "./parameters.ts";
import type { ReadyThreads } from "./ready-threads.ts";
import { Replacing } from "./replacing.ts";
import { Sender } from "./sender.ts";
import { type SourceIdentity, SourcePeer } from "./source-peer.ts";
import type { ChannelFigures } from "./statistics.ts";
import type { LaneThreads, Surroundings } from "./surroundings.ts";

/** What the legs of one migration have in common. */
export interface SourceLegTerms {
  readonly blocks: readonly Block[];
  readonly checksum: Checksum;
  readonly surroundings: Surroundings;
  readonly served: Latencies;
  onFailure(error: MigrationError): void;
}

/** Connections to the destination at the source's end, and the threads that send over them. */
export class SourceLeg {
  readonly leg: Leg;
  readonly peer: SourcePeer;
  readonly #terms: SourceLegTerms;
  readonly #parameters: Parameters;
  readonly #replacing: Replacing;
  readonly #laneWords = createLaneWords();
  readonly #stops: (() => void)[] = [];
  #sender: Sender | null = null;
  #lanes: LaneThreads | null = null;

  constructor(
    terms: SourceLegTerms,
    address: Address,
    parameters: Parameters,
    identity: SourceIdentity | null = null,
  ) {
    const { checksum, surroundings } = terms;
    this.#terms = terms;
    this.#parameters = parameters;
    this.peer = new SourcePeer(address, parameters, checksum, surroundings, identity);
    this.#replacing = new Replacing(this.peer, address, parameters.connectTimeoutMs);
    this.leg = new Leg((error) => {
      this.stop();
      terms.onFailure(error);
    });
  }

  /** Watches the main channel from now on: the leg fails with it, unless it may be joined again. */
  watch(): void {
    const { main } = this.peer;
    main.failed.catch((error) => this.leg.fail(asMigrationError(error)));
    const onSilence = (error: MigrationError): void => {
      if (main.mayBeRejoined) main.interrupt(error);
      else this.leg.fail(error);
    };
    this.#stops.push(startHeartbeat(main, this.#parameters.channelTimeoutMs, onSilence));
  }

  /** Starts the threads. All memory is dirty to them, or none of it, where the guest has gone over. */
  startThreads(terms: { isClean: boolean; ready?: ReadyThreads | undefined }): Sender {
    const { blocks, surroundings, served } = this.#terms;
    const sender = new Sender(blocks, this.#parameters, surroundings, this.#replacing, terms);
    this.#sender = sender;
    const { setup } = sender;
    this.#lanes = surroundings.startLanes(
      Array.from({ length: laneCountOf(this.#parameters) }, () => {
        return { side: "source", send: setup, words: this.#laneWords, served };
      }),
      { isGuestThere: terms.isClean, ready: terms.ready?.lanes },
    );
    if (this.leg.failure !== null) this.stop();
    return sender;
  }

  /** Opens all channels, each with its thread. */
  async openChannels(): Promise<void> {
    const { sender, peer, leg } = this;
    const lanes = this.#lanes;
    assert(lanes !== null, "threads were started");
    const channels = Array.from({ length: this.#parameters.channels }, (_, index) => index + 1);
    await leg.guard(
      Promise.all(channels.map(async (channel) => sender.open(await peer.openChannel(channel)))),
    );
    await leg.guard(lanes.start());
    for (let lane = 0; lane < laneCountOf(this.#parameters); lane += 1) {
      const channel = this.#parameters.channels + 1 + lane;
      const place = await leg.guard(peer.openChannel(channel, "priority"));
      lanes.serve(lane, place, (error) => leg.fail(asMigrationError(error)));
    }
  }

  /** The guest goes over: from now on lanes answer requests, before everything else. */
  beginPostcopy(): void {
    beginPostcopy(this.sender.control);
    tellLanes(this.#laneWords, OPEN);
    this.#lanes?.comeFirst();
  }

  /** Sends what is dirty until the destination has all. Returns what it told. */
  async sendMissing(): Promise<FaultsMessage> {
    const { sender, leg } = this;
    await leg.guard(sender.sendRound());
    this.endReplacing();
    await leg.guard(sender.end());
    assert(sender.dirtyPages === 0, "nothing is dirty when all was sent and nobody writes");
    tellLanes(this.#laneWords, FINISH);
    return await leg.guard(this.peer.awaitComplete());
  }

  /** Ends every wait of its threads. */
  stop(): void {
    if (this.#sender !== null) stopWorkers(this.#sender.control);
  }

  /** No lost channel is replaced from here on. */
  endReplacing(): void {
    this.#replacing.end();
  }

  get sender(): Sender {
    assert(this.#sender !== null, "pages move after the hosts agreed");
    return this.#sender;
  }

  get hasThreads(): boolean {
    return this.#sender !== null;
  }

  /** The main channel first. */
  channelFigures(): ChannelFigures[] {
    const main = this.peer.isConnected ? [mainChannelFigures(this.peer.main.sentBytes)] : [];
    const isBroken = this.leg.failure !== null;
    return [...main, ...(this.#sender?.channelFigures({ isBroken }) ?? [])];
  }

  /**
   * Ends threads, then connections; nothing else may still use a descriptor. A thread that hangs is
   * waited for no longer than `limitMs`, and what it holds is freed whenever it ends.
   */
  async close(limitMs?: number): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop();
    this.#replacing.end();
    this.stop();
    const areThreadsGone = await this.#endThreads(limitMs);
    this.peer.close({ areThreadsGone });
    if (!areThreadsGone) void this.#closeLate();
  }

  async #closeLate(): Promise<void> {
    const areThreadsGone = await this.#endThreads(Number.POSITIVE_INFINITY);
    this.peer.close({ areThreadsGone });
  }

  async #endThreads(limitMs?: number): Promise<boolean> {
    const ends = await Promise.all([this.#sender?.close(limitMs), this.#lanes?.close(limitMs)]);
    return !ends.includes(false);
  }
}

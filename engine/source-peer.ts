import { randomBytes } from "node:crypto";
import { after, Deadline, settledWithin, within } from "../base/clock.ts";
import { errnoOf, MigrationError } from "../base/errors.ts";
import { type Address, formatAddress } from "../channels/address.ts";
import type { Checksum } from "../channels/checksum.ts";
import type { Connector } from "../channels/connection.ts";
import { corrupt, type Lane } from "../channels/frame.ts";
import { FrameStream } from "../channels/frame-stream.ts";
import {
  type Agreement,
  type DiscardMessage,
  type DoneMessage,
  decodeChannel,
  decodeDiscard,
  decodeFaults,
  decodeRejoin,
  decodeRunning,
  decodeSwitch,
  decodeWelcome,
  encodeAgreement,
  encodeChannel,
  encodeDone,
  encodeFailure,
  encodeFaults,
  encodeHello,
  encodeLanes,
  encodeRejoin,
  encodeRound,
  encodeSwitch,
  type FaultsMessage,
  MIGRATION_ID_BYTES,
  type RoundMessage,
  type RunningMessage,
  TOKEN_BYTES,
  VERSION,
} from "../channels/messages.ts";
import type { ChannelPlace } from "../workers/protocol.ts";
import { fingerprintOf } from "./agreement.ts";
import { sendDevices } from "./device-state.ts";
import type { DeviceSection } from "./host.ts";
import { laneCountOf } from "./lanes.ts";
import { tellMissing } from "./missing.ts";
import type { Parameters } from "./parameters.ts";
import type { Surroundings } from "./surroundings.ts";

type SourceFrame =
  | "lanes"
  | "agree"
  | "round"
  | "discard"
  | "switch"
  | "commit"
  | "recover"
  | "resumed"
  | "faults"
  | "done";

const NOTHING = new Uint8Array(0);

/** A failing source tells the peer why, but does not wait for it. */
const FAREWELL_MS = 200;

/** Between two tries to join again: soon enough not to be noticed, and no flood. */
const RETRY_MS = 50;

/** What a destination knows the source of its migration by. */
export interface SourceIdentity {
  readonly migrationId: Uint8Array<ArrayBuffer>;
  readonly token: Uint8Array<ArrayBuffer>;
}

/** The destination as the source talks to it: over the main channel, and to open the others. */
export class SourcePeer {
  readonly #connector: Connector;
  readonly #parameters: Parameters;
  readonly #checksum: Checksum;
  readonly #migrationId: Uint8Array<ArrayBuffer>;
  readonly #streams: FrameStream[] = [];
  readonly #address: string;
  readonly #joined = new Map<number, FrameStream>();
  /** Channels that were given up and that the destination has not let go of. */
  readonly #leaving = new Map<number, () => void>();
  readonly #canRejoin: boolean;
  #main: FrameStream | null = null;
  #isClosed = false;
  /** For the main channel, and for the others. */
  #token: Uint8Array<ArrayBuffer>;
  #channelToken: Uint8Array<ArrayBuffer>;

  /** With `identity` it is known already, to the destination of a migration that goes on. */
  constructor(
    address: Address,
    parameters: Parameters,
    checksum: Checksum,
    surroundings: Surroundings,
    identity: SourceIdentity | null = null,
  ) {
    this.#migrationId = identity?.migrationId ?? new Uint8Array(randomBytes(MIGRATION_ID_BYTES));
    this.#token = identity?.token ?? new Uint8Array(TOKEN_BYTES);
    this.#channelToken = this.#token;
    this.#address = formatAddress(address);
    const isLasting = address.kind === "tcp" || address.kind === "unix";
    this.#canRejoin = isLasting && parameters.reconnectTimeoutMs > 0;
    this.#connector = surroundings.connector(address);
    this.#parameters = parameters;
    this.#checksum = checksum;
  }

  get main(): FrameStream {
    if (this.#main === null) {
      throw new MigrationError("CONNECT_FAILED", {
        address: this.#address,
        reason: "not connected",
      });
    }
    return this.#main;
  }

  get isConnected(): boolean {
    return this.#main !== null;
  }

  /** Opens the main channel and obtains the token for the others. */
  async connect(): Promise<void> {
    const { stream, token } = await this.#join(0, "main");
    this.#main = stream;
    this.#token = token;
    this.#channelToken = token;
    if (this.#canRejoin) stream.mayRejoin((reason) => void this.#rejoin(stream, reason));
  }

  get identity(): SourceIdentity {
    return { migrationId: this.#migrationId, token: this.#token };
  }

  /** Joins the destination of a broken post-copy again, if that is ready for it. */
  async recover(): Promise<void> {
    const { stream, token } = await this.#join(0, "main");
    this.#main = stream;
    this.#channelToken = token;
    await this.#send("recover", NOTHING);
  }

  /** Every page that the destination lacks is told to `take`, which returns how many are new to it. */
  async receiveMissing(
    blocks: readonly { readonly pageCount: number }[],
    take: (missing: DiscardMessage) => number,
  ): Promise<void> {
    const { stepTimeoutMs } = this.#parameters;
    let pages = 0;
    for (;;) {
      const { name, body } = await this.main.receive(["missing", "recovered"], stepTimeoutMs);
      if (name === "missing") {
        pages += take(decodeDiscard(body, 0, blocks));
        continue;
      }
      const told = decodeSwitch(body, 0);
      if (told !== pages) throw corrupt(0, "missing pages", told);
      return;
    }
  }

  /** All channels have joined again. */
  async tellResumed(): Promise<void> {
    await this.#send("resumed", NOTHING);
  }

  /** Throws PARAMETER_MISMATCH, BLOCK_MISMATCH or what the destination's host says. */
  async agree(terms: Omit<Agreement, "fingerprint" | "channels">): Promise<void> {
    const { channels, stepTimeoutMs } = this.#parameters;
    const lanes = laneCountOf(this.#parameters);
    if (lanes > 0) await this.#send("lanes", encodeLanes(lanes));
    const fingerprint = fingerprintOf(terms.parameters, this.#checksum);
    await this.#send("agree", encodeAgreement({ ...terms, fingerprint, channels }));
    await this.main.receive(["accept"], stepTimeoutMs);
  }

  /** Opens one channel, ready for a thread. */
  async openChannel(channel: number, lane: Lane = "bulk"): Promise<ChannelPlace> {
    const { stream } = await this.#join(channel, lane);
    this.closeChannel(channel);
    this.#joined.set(channel, stream);
    return { channel, ...stream.release() };
  }

  /** Calls back when the destination says that it lost a channel. */
  onLost(tell: (channel: number) => void): void {
    const { channels } = this.#parameters;
    this.main.onNotice("lost", (body) => tell(decodeChannel(body, 0, channels)));
    this.main.onNotice("gone", (body) => {
      const channel = decodeChannel(body, 0, channels);
      const waiting = this.#leaving.get(channel);
      if (waiting === undefined) throw corrupt(0, "channel that is gone", channel);
      this.#leaving.delete(channel);
      waiting();
    });
  }

  /**
   * Closes a lost channel, which no thread may use any more, and has the destination let go of it.
   * Returns when nothing of it can arrive any more.
   */
  async giveUp(channel: number): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    this.closeChannel(channel);
    const { promise: gone, resolve } = Promise.withResolvers<void>();
    this.#leaving.set(channel, resolve);
    await this.main.send("lost", encodeChannel(channel), channelTimeoutMs);
    const facts = { waitingFor: `end of channel ${channel}`, limitMs: stepTimeoutMs };
    const late = () => new MigrationError("PEER_SILENT", facts);
    await this.main.within(stepTimeoutMs, Promise.race([gone, this.main.failed]), late);
  }

  /** Closes a channel that no thread uses. */
  closeChannel(channel: number): void {
    this.#joined.get(channel)?.close();
    this.#joined.delete(channel);
  }

  async tellRound(round: RoundMessage): Promise<void> {
    await this.#send("round", encodeRound(round));
  }

  async sendDevices(sections: readonly DeviceSection[]): Promise<void> {
    const { deviceLimitBytes, channelTimeoutMs } = this.#parameters;
    await sendDevices(this.main, sections, { deviceLimitBytes, limitMs: channelTimeoutMs });
  }

  async awaitReady(): Promise<void> {
    await this.main.receive(["ready"], this.#parameters.stepTimeoutMs);
    // From here on nothing is said twice: COMMIT least of all.
    this.main.endRejoining();
    if (this.main.failure !== null) throw this.main.failure;
  }

  /** Hands the guest over and returns what the destination says when it runs. */
  async commit(): Promise<RunningMessage> {
    await this.#send("commit", NOTHING);
    const { body } = await this.main.receive(["running"], this.#parameters.stepTimeoutMs);
    return decodeRunning(body, 0);
  }

  /** Names the pages that are missing at the destination. Stretches without any are left out. */
  async discard(blocks: Iterable<{ block: number; words: Int32Array }>): Promise<void> {
    const pages = await tellMissing(blocks, (body) => this.#send("discard", body));
    await this.#send("switch", encodeSwitch(pages));
  }

  /** Returns when the destination has all pages, with how long its guest waited for some. */
  async awaitComplete(): Promise<FaultsMessage> {
    const { stepTimeoutMs } = this.#parameters;
    const { body } = await this.main.receive(["faults"], stepTimeoutMs);
    const faults = decodeFaults(body, 0);
    await this.main.receive(["complete"], stepTimeoutMs);
    return faults;
  }

  async tellFaults(faults: FaultsMessage): Promise<void> {
    await this.#send("faults", encodeFaults(faults));
  }

  async tellDone(done: DoneMessage): Promise<void> {
    await this.#send("done", encodeDone(done));
  }

  /** Tells the destination why this attempt ends, if it can still be told. */
  async tellFailure(failure: MigrationError): Promise<void> {
    if (this.#main === null || failure.at === "destination") return;
    await this.#main.send("failure", encodeFailure(failure), FAREWELL_MS).catch(() => {});
  }

  /**
   * Returns when the destination has closed the main channel, for it has read the last word there, and after
   * `limitMs` in any case. What it writes to a channel that is closed here ends it before it has read.
   */
  async hasLeft(limitMs: number): Promise<void> {
    if (this.#main !== null) await settledWithin(limitMs, [this.#main.failed]);
  }

  /** Closes the main channel, and the others once no thread uses them any more. */
  close({ areThreadsGone }: { areThreadsGone: boolean }): void {
    this.#isClosed = true;
    // Else one that is not answered would stay for all of its limit, however long ago we gave up.
    this.#connector.close();
    for (const stream of this.#streams) {
      if (areThreadsGone || stream === this.#main) stream.close();
    }
  }

  async #send(name: SourceFrame, body: Uint8Array): Promise<void> {
    await this.main.send(name, body, this.#parameters.channelTimeoutMs);
  }

  async #join(
    channel: number,
    lane: Lane,
  ): Promise<{ stream: FrameStream; token: Uint8Array<ArrayBuffer> }> {
    const { connectTimeoutMs } = this.#parameters;
    const connection = await this.#connector.connect(channel, connectTimeoutMs);
    if (this.#isClosed) {
      connection.close();
      throw new MigrationError("CHANNEL_LOST", { channel, reason: "this end closed it" });
    }
    const stream = new FrameStream(connection, {
      channel,
      checksum: this.#checksum,
      peer: "destination",
      admitted: ["welcome", "failure"],
    });
    this.#streams.push(stream);
    try {
      const hello = encodeHello({
        versionMin: VERSION.min,
        versionMax: VERSION.max,
        migrationId: this.#migrationId,
        channel,
        lane,
        token: channel === 0 ? this.#token : this.#channelToken,
      });
      await stream.send("hello", hello, connectTimeoutMs);
      const { body } = await stream.receive(["welcome"], connectTimeoutMs);
      return { stream, token: new Uint8Array(decodeWelcome(body, channel).token) };
    } catch (error) {
      stream.close(); // A lost channel is sought again and again.
      throw error;
    }
  }

  /** Finds another connection for a main channel that lost its own, or gives it up. */
  async #rejoin(main: FrameStream, reason: MigrationError): Promise<void> {
    const deadline = new Deadline(this.#parameters.reconnectTimeoutMs);
    while (!this.#isClosed && !deadline.passed) {
      try {
        await within(deadline.leftMs, this.#joinAgain(main), () => reason);
        return;
      } catch (error) {
        if (isFinal(error)) {
          main.giveUp(reason, withVerdict(reason, error));
          return;
        }
      }
      const { promise, resolve } = Promise.withResolvers<void>();
      after(RETRY_MS, resolve);
      await promise;
    }
    main.giveUp(reason);
  }

  async #joinAgain(main: FrameStream): Promise<void> {
    const { connectTimeoutMs } = this.#parameters;
    const { stream } = await this.#join(0, "main");
    try {
      await stream.send("rejoin", encodeRejoin(main.lastingReceived), connectTimeoutMs);
      const { body } = await stream.receive(["rejoin"], connectTimeoutMs);
      main.adopt(stream, decodeRejoin(body, 0));
    } catch (error) {
      stream.close();
      throw error;
    }
  }
}

/** A lost connection is told with what the destination said when it was joined again. */
function withVerdict(loss: MigrationError, error: unknown): MigrationError {
  if (!(error instanceof MigrationError) || error.at !== "destination") return loss;
  const { reason: lost = loss.message } = loss.facts as { readonly reason?: string };
  const reason = `${lost}; joined again, the destination said: ${error.message}`;
  return new MigrationError("CHANNEL_LOST", { channel: 0, reason }, { cause: error });
}

/** Nobody is there any more who knows of this migration: no other try would change that. */
function isFinal(error: unknown): boolean {
  if (!(error instanceof MigrationError)) return true;
  const errno = errnoOf(error.cause);
  return error.at === "destination" || errno === "ECONNREFUSED" || errno === "ENOENT";
}

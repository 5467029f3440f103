import { randomBytes, timingSafeEqual } from "node:crypto";
import { assert } from "../base/assert.ts";
import { Deadline, within } from "../base/clock.ts";
import { asMigrationError, MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import type { Connection, Listener } from "../channels/connection.ts";
import { FrameStream } from "../channels/frame-stream.ts";
import {
  chooseVersion,
  decodeHello,
  decodeRejoin,
  encodeFailure,
  encodeRejoin,
  encodeWelcome,
  type Hello,
  TOKEN_BYTES,
} from "../channels/messages.ts";
import type { ChannelPlace } from "../workers/protocol.ts";

/** Connections that are not admitted yet. Of a flood, those that say nothing make room for others. */
const STRANGERS_MAX = 64;

/** A stranger is told why it is turned away, but not waited for. */
const FAREWELL_MS = 200;

/** A source that joins a post-copy again, on its new main channel. */
export interface Offer {
  readonly stream: FrameStream;
  /** For the other channels that come with it, and with no other. */
  readonly token: Uint8Array<ArrayBuffer>;
}

/**
 * Lets connections in at the destination. The first that says HELLO for a main channel becomes the
 * migration's; after that only channels with its id and its secret token are admitted. Everyone
 * else, whatever they send, is turned away without harm to the migration.
 */
export class Doorman {
  readonly #listener: Listener;
  readonly #otherListeners: Listener[] = [];
  readonly #checksum: Checksum;
  readonly #helloTimeoutMs: number;
  readonly #isOnlyChance: boolean;
  readonly #token = new Uint8Array(randomBytes(TOKEN_BYTES));
  readonly #streams = new Set<FrameStream>();
  readonly #main = Promise.withResolvers<FrameStream>();
  readonly #places: ChannelPlace[] = [];
  #onPlace: () => void = () => {};
  #migrationId: Uint8Array | null = null;
  /** Channels that may join; none before the hosts agreed. */
  #channels = 0;
  /** Of these, the last ones: they carry the pages that a guest waits for. */
  #lanes = 0;
  readonly #joined = new Map<number, FrameStream>();
  /** The main channel, where a lost one may be joined again. */
  #rejoinable: FrameStream | null = null;
  /** Of the bulk and priority channels. */
  #channelToken = this.#token;
  /** Told when the source joins a post-copy again; null before that could be. */
  #onOffer: (() => void) | null = null;
  #offer: Offer | null = null;
  /** Channels of which leg are let in. */
  #leg = 0;
  #strangers = 0;
  /** Those that have not said HELLO, the longest first. */
  readonly #silent = new Set<FrameStream>();
  #isClosed = false;

  /**
   * With `isOnlyChance`, nobody else will come if the first connection fails (it was inherited, or
   * is a command's); but whoever has it may be long in coming.
   */
  constructor(
    listener: Listener,
    options: { checksum: Checksum; helloTimeoutMs: number; isOnlyChance?: boolean },
  ) {
    this.#listener = listener;
    this.#isOnlyChance = options.isOnlyChance ?? false;
    this.#checksum = options.checksum;
    this.#helloTimeoutMs = options.helloTimeoutMs;
    this.#main.promise.catch(() => {}); // It may fail when nobody waits any more.
  }

  /** Waits for the source. Throws NO_SOURCE after `limitMs`. */
  async admitMain(limitMs: number): Promise<FrameStream> {
    const accepting = this.#accept(this.#listener);
    accepting.catch((error) => this.#main.reject(error));
    return await within(limitMs, this.#main.promise, () => {
      return new MigrationError("NO_SOURCE", { address: this.#listener.address, limitMs });
    });
  }

  /** Waits for all channels that are expected, until closed. Throws CHANNELS_MISSING after `limitMs`. */
  async *admitChannels(limitMs: number): AsyncGenerator<ChannelPlace> {
    const channels = this.#channels;
    const leg = this.#leg;
    const deadline = new Deadline(limitMs);
    for (let admitted = 0; admitted < channels; admitted += 1) {
      while (this.#places.length === 0) {
        if (this.#isClosed || this.#leg !== leg) return; // Nobody waits for the rest any more.
        const { promise, resolve } = Promise.withResolvers<void>();
        this.#onPlace = resolve;
        const facts = { wanted: channels, found: admitted, limitMs };
        await within(deadline.leftMs, promise, () => new MigrationError("CHANNELS_MISSING", facts));
      }
      const place = this.#places.shift();
      assert(place !== undefined, "a place was announced");
      yield place;
    }
  }

  /** From now on, who has the migration's token may take the place of a lost `main`. */
  mayRejoin(main: FrameStream): void {
    this.#rejoinable = main;
  }

  /** Of the source that was admitted. */
  get migrationId(): Uint8Array {
    assert(this.#migrationId !== null, "a source was admitted");
    return this.#migrationId;
  }

  /** Where it listens, as a source can use it. */
  get address(): string {
    return this.#listener.address;
  }

  /** From now on the guest is here: the source may join again, which is told each time. */
  awaitOffers(onOffer: () => void): void {
    this.#onOffer = onOffer;
  }

  /** The last one that came, once. */
  takeOffer(): Offer | null {
    const offer = this.#offer;
    this.#offer = null;
    return offer;
  }

  /** Closes all channels, which no thread may use any more, and lets in those of `offer` alone. */
  changeLeg(main: FrameStream, offer: Offer | null): void {
    this.#leg += 1;
    this.#channels = 0;
    this.#onPlace(); // Who waits for channels of the last leg waits in vain.
    this.#onPlace = () => {};
    this.#places.length = 0;
    for (const channel of [...this.#joined.keys()]) this.letGo(channel);
    this.#streams.delete(main);
    main.close();
    if (offer !== null) this.#channelToken = offer.token;
  }

  /** Lets the same connections in at another address as well; false, and closed, if this one is. */
  listenAlso(listener: Listener): boolean {
    if (this.#isClosed) {
      listener.close();
      return false;
    }
    this.#otherListeners.push(listener);
    this.#accept(listener).catch(() => {}); // It was closed.
    return true;
  }

  /** Hands over the connections that join later, each in the place of one that was let go. */
  onReplacement(take: (place: ChannelPlace) => void): void {
    this.#onPlace = () => {
      for (const place of this.#places.splice(0)) take(place);
    };
    this.#onPlace();
  }

  /** No channel joins any more. */
  refuseChannels(): void {
    this.#channels = 0;
  }

  /** Closes a channel's connection, which no thread uses any more; another one may join for it. */
  letGo(channel: number): void {
    const stream = this.#joined.get(channel);
    if (stream === undefined) return;
    this.#joined.delete(channel);
    this.#streams.delete(stream);
    stream.close();
  }

  /** Must be called before the source is told that it may open them. */
  expectChannels({ channels, lanes }: { channels: number; lanes: number }): void {
    this.#channels = channels + lanes;
    this.#lanes = lanes;
    this.#listener.expect(1 + this.#channels);
  }

  /** Closes every connection, those of bulk channels once no thread uses them any more. */
  close({ areThreadsGone }: { areThreadsGone: boolean }): void {
    this.#isClosed = true;
    this.#onPlace();
    this.#offer?.stream.close();
    for (const listener of [this.#listener, ...this.#otherListeners]) listener.close();
    for (const stream of this.#streams) {
      if (areThreadsGone || this.#joined.get(stream.channel) !== stream) stream.close();
    }
  }

  /** Takes connections in as long as the listener lives; each is looked at by itself. */
  async #accept(listener: Listener): Promise<void> {
    for (;;) {
      // Without a limit of its own: channels come long after the source, if memory takes a while.
      const connection = await listener.next(Number.POSITIVE_INFINITY);
      if (this.#isClosed || !this.#makeRoom()) {
        connection.close();
        continue;
      }
      this.#strangers += 1;
      this.#admit(connection)
        .catch((error) => this.#main.reject(error))
        .finally(() => {
          this.#strangers -= 1;
        });
    }
  }

  /** A source says HELLO at once: whoever has been silent the longest is none, and may go. */
  #makeRoom(): boolean {
    if (this.#strangers < STRANGERS_MAX) return true;
    const [longest] = this.#silent;
    if (longest === undefined) return false;
    this.#silent.delete(longest);
    longest.close();
    return true;
  }

  async #admit(connection: Connection): Promise<void> {
    const stream = new FrameStream(connection, {
      channel: 0,
      checksum: this.#checksum,
      peer: "source",
      admitted: ["hello"],
    });
    this.#streams.add(stream);
    this.#silent.add(stream);
    try {
      const isAwaited = this.#isOnlyChance && this.#migrationId === null;
      const limitMs = isAwaited ? Number.POSITIVE_INFINITY : this.#helloTimeoutMs;
      const { body } = await stream.receive(["hello"], limitMs);
      this.#silent.delete(stream);
      const hello = decodeHello(body, 0);
      stream.admitAll();
      stream.channel = hello.channel;
      if (hello.lane === "main") await this.#welcomeMain(stream, hello);
      else await this.#welcomeChannel(stream, hello);
    } catch (error) {
      this.#silent.delete(stream);
      this.#streams.delete(stream);
      await stream
        .send("failure", encodeFailure(asMigrationError(error)), FAREWELL_MS)
        .catch(() => {});
      stream.close();
      if (this.#isOnlyChance || !(error instanceof MigrationError)) throw error;
    }
  }

  async #welcomeMain(stream: FrameStream, hello: Hello): Promise<void> {
    const version = chooseVersion(hello);
    if (this.#migrationId !== null) {
      await this.#welcomeBack(stream, hello, version);
      return;
    }
    // Who brings a token comes back to a migration, which is none of ours.
    if (hello.token.some((byte) => byte !== 0)) {
      throw new MigrationError("TOKEN_REFUSED", { channel: 0 });
    }
    this.#migrationId = hello.migrationId;
    const welcome = encodeWelcome({ version, token: this.#token });
    try {
      await stream.send("welcome", welcome, this.#helloTimeoutMs);
    } catch (error) {
      this.#migrationId = null; // It was nobody's source, so the next one is welcome.
      throw error;
    }
    this.#main.resolve(stream);
  }

  /** The source is here again: it goes on where its last connection ended. */
  async #welcomeBack(stream: FrameStream, hello: Hello, version: number): Promise<void> {
    if (this.#onOffer !== null && this.isOfMigration(hello)) {
      await this.#welcomeOffer(stream, version, this.#onOffer);
      return;
    }
    const main = this.#rejoinable;
    if (main?.mayBeRejoined !== true || !this.isOfMigration(hello)) {
      throw new MigrationError("TOKEN_REFUSED", { channel: 0 });
    }
    const token = new Uint8Array(TOKEN_BYTES);
    await stream.send("welcome", encodeWelcome({ version, token }), this.#helloTimeoutMs);
    const { body } = await stream.receive(["rejoin"], this.#helloTimeoutMs);
    // What we say we have must not change any more by what the old connection may still bring.
    const reason = "the source has joined again";
    main.interrupt(new MigrationError("CHANNEL_LOST", { channel: 0, reason }));
    await stream.send("rejoin", encodeRejoin(main.lastingReceived), this.#helloTimeoutMs);
    main.adopt(stream, decodeRejoin(body, 0));
  }

  /** Whatever the source had before is over with that. Of several, the last one counts. */
  async #welcomeOffer(stream: FrameStream, version: number, tell: () => void): Promise<void> {
    const token = new Uint8Array(randomBytes(TOKEN_BYTES));
    await stream.send("welcome", encodeWelcome({ version, token }), this.#helloTimeoutMs);
    await stream.receive(["recover"], this.#helloTimeoutMs);
    this.#offer?.stream.close();
    this.#offer = { stream, token };
    tell();
  }

  /** Whether who says hello knows the secret of the migration that was admitted. */
  isOfMigration({ migrationId, token }: Hello, wanted = this.#token): boolean {
    return (
      this.#migrationId !== null &&
      timingSafeEqual(migrationId, this.#migrationId) &&
      timingSafeEqual(token, wanted)
    );
  }

  async #welcomeChannel(stream: FrameStream, hello: Hello): Promise<void> {
    const version = chooseVersion(hello);
    const { channel } = hello;
    const isOurs =
      hello.lane === (channel > this.#channels - this.#lanes ? "priority" : "bulk") &&
      this.isOfMigration(hello, this.#channelToken) &&
      channel <= this.#channels &&
      !this.#joined.has(channel);
    if (!isOurs) throw new MigrationError("TOKEN_REFUSED", { channel });
    this.#joined.set(channel, stream);
    const token = new Uint8Array(TOKEN_BYTES);
    try {
      await stream.send("welcome", encodeWelcome({ version, token }), this.#helloTimeoutMs);
      this.#places.push({ channel, ...stream.release() });
    } catch (error) {
      this.#joined.delete(channel); // It may come again.
      throw error;
    }
    this.#onPlace();
  }
}

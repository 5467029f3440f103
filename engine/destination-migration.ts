import { assert, must } from "../base/assert.ts";
import { after, cpuMs, Deadline, every, nowMs, within } from "../base/clock.ts";
import { asMigrationError, MigrationError } from "../base/errors.ts";
import { type Address, parseAddress } from "../channels/address.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { corrupt } from "../channels/frame.ts";
import type { Frame, FrameStream } from "../channels/frame-stream.ts";
import {
  type DoneMessage,
  decodeAgreement,
  decodeChannel,
  decodeDiscard,
  decodeDone,
  decodeFaults,
  decodeLanes,
  decodeRound,
  decodeSwitch,
  encodeChannel,
  encodeFailure,
  encodeFaults,
  encodeRunning,
  encodeSwitch,
  type FaultsMessage,
  formatMigrationId,
} from "../channels/messages.ts";
import { stopWorkers } from "../workers/control.ts";
import {
  ARMED,
  askAgain,
  discardPages,
  type FaultLink,
  faultTimes,
  MISSING,
  reconcile,
  setLink,
} from "../workers/fault-door.ts";
import { beginPostcopy } from "../workers/gate.ts";
import type { ChannelPlace } from "../workers/protocol.ts";
import { checkParameters, checkPostcopy, matchBlocks } from "./agreement.ts";
import { Attempt, callHost } from "./attempt.ts";
import { type Block, blockProblems } from "./block.ts";
import { configure } from "./configuration.ts";
import type { DestinationPhase, MigrateInOptions } from "./destination.ts";
import { receiveDevices } from "./device-state.ts";
import { Doorman, type Offer } from "./doorman.ts";
import {
  addedUp,
  channelsOfLegs,
  faultFigures,
  hypervisorReport,
  mainChannelFigures,
  pageFigures,
} from "./figures.ts";
import { checkAnswer } from "./given.ts";
import { startHeartbeat } from "./heartbeat.ts";
import { Hold } from "./hold.ts";
import type { DestinationHost, DeviceSection } from "./host.ts";
import { holdFiles, isHeld } from "./left-behind.ts";
import { Leg } from "./leg.ts";
import { tellMissing } from "./missing.ts";
import { agreedParameters, PARAMETERS, type Parameters } from "./parameters.ts";
import { preferPeersWord } from "./peers-word.ts";
import type { ReadyThreads } from "./ready-threads.ts";
import { Receiver } from "./receiver.ts";
import type { DowntimeFigures, Progress, Report, RoundFigures } from "./statistics.ts";
import type { Surroundings } from "./surroundings.ts";
import { Throughput } from "./throughput.ts";

const NOTHING = new Uint8Array(0);
/** As at the source. */
const PROGRESS_MS = 50;
const FAREWELL_MS = 200;

/** The source's figures are welcome but not worth waiting for. */
const DONE_MS = 1000;

/** A source that lost the link when all had come learns just that, if it asks so soon. */
const LINGER_MS = 1000;
/** How long a source that was told of a failure may take to close. */
const LINGER_AFTER_FAREWELL_MS = 300;

/** Longer ones are no limits. */
const WATCH_MS_MAX = 2 ** 31 - 1;

/** Rounds told by a hostile source must not fill memory. */
const ROUNDS_MAX = 10_000;

/** Nor must one that gives up channel after channel keep us busy for ever. */
const LETTINGS_MAX = 4096;

const NO_DOWNTIME: DowntimeFigures = {
  pauseMs: 0,
  syncMs: 0,
  pagesMs: 0,
  devicesMs: 0,
  handoverMs: 0,
};

type Counters = ReturnType<Receiver["counters"]>;

/** The steps behind the phases of `migrateIn`, and what they share. */
export class DestinationMigration {
  readonly attempt: Attempt<DestinationPhase>;
  readonly #host: DestinationHost;
  readonly #options: MigrateInOptions;
  readonly #surroundings: Surroundings;
  readonly #address: Address;
  readonly #parameters: Parameters;
  readonly #checksum: Checksum;
  readonly #throughput = new Throughput();
  readonly #rounds: RoundFigures[] = [];
  /** When the guest went over before its memory had: what it missed, and what had come. */
  #switched: { missing: number; startMs: number; before: Counters } | null = null;
  /** The first one has begun. */
  #hasRounds = false;
  readonly #stops: (() => void)[] = [];
  readonly #preparing: Hold;
  #hostLoss: MigrationError | null = null;
  #isLoading = false;
  #failure: Promise<MigrationError> | null = null;
  #doorman: Doorman | null = null;
  #main: FrameStream | null = null;
  #receiver: Receiver | null = null;
  #threadsEnd: Promise<boolean> | null = null;
  /** A thread that hangs was left behind, with memory that it may still write. */
  #areThreadsLeft = false;
  #letFilesGo: () => void = () => {};
  /** Started by this migration, and not taken yet. */
  #ownThreads: ReadyThreads | null = null;
  #blocks: readonly Block[] = [];
  #announcement: Uint8Array = NOTHING;
  #sections: readonly DeviceSection[] = [];
  #deviceBytes = 0;
  #isPostcopy = false;
  #faults: FaultsMessage | null = null;
  /** The connections that pages come over in post-copy, until they break. */
  #leg = this.#newLeg();
  #pausedFor: MigrationError | null = null;
  /** Somebody waits for the source to join again. */
  #onOffer: () => void = () => {};
  /** Those that broke. */
  readonly #broken: { main: FrameStream; receiver: Receiver }[] = [];
  #done: DoneMessage | null = null;
  #lanes = 0;
  #stopHeartbeat: () => void = () => {};
  #lettings = 0;
  #startMs = 0;
  #endMs = 0;
  #cpuBeforeMs = cpuMs();

  private constructor(
    host: DestinationHost,
    options: MigrateInOptions,
    configuration: { address: Address; parameters: Parameters; checksum: Checksum },
    surroundings: Surroundings,
  ) {
    this.#host = host;
    this.#surroundings = surroundings;
    this.#preparing = new Hold(host, "memory");
    this.#options = options;
    this.#address = configuration.address;
    this.#parameters = configuration.parameters;
    this.#checksum = configuration.checksum;
    this.attempt = new Attempt<DestinationPhase>({
      side: "destination",
      first: "listen",
      signal: options.signal,
      onPhase: options.onPhase,
    });
  }

  /** Checks everything that can be checked before anything is touched. */
  static async prepare(
    host: DestinationHost,
    address: string,
    options: MigrateInOptions,
    surroundings: Surroundings,
  ): Promise<DestinationMigration> {
    const {
      signal: _signal,
      onPhase: _onPhase,
      onListening: _onListening,
      onMigration: _onMigration,
      onProgress: _onProgress,
      recovery: _recovery,
      threads,
      ...given
    } = options;
    const configuration = configure(given, address, {
      side: "destination",
      faults: host.takeFaults !== undefined,
      threads,
    });
    const checksum = await loadChecksum();
    return new DestinationMigration(host, options, { ...configuration, checksum }, surroundings);
  }

  /** Waits for the source's main channel. */
  async listen(): Promise<void> {
    this.#watchHost();
    const { acceptTimeoutMs, connectTimeoutMs, reconnectTimeoutMs } = this.#parameters;
    const listener = await this.#surroundings.listen(this.#address);
    const isOnlyChance = this.#address.kind === "fd" || this.#address.kind === "exec";
    const doorman = new Doorman(listener, {
      checksum: this.#checksum,
      helloTimeoutMs: connectTimeoutMs,
      isOnlyChance,
    });
    this.#doorman = doorman;
    if (this.attempt.failure !== null) return doorman.close({ areThreadsGone: true });
    this.attempt.callBack(() => this.#options.onListening?.(listener.address));
    if (this.#options.threads === undefined) {
      // How many channels there will be is the source's choice, and whether it may come to post-copy.
      const channels = PARAMETERS.channels.default;
      const lanes = this.#host.takeFaults === undefined ? 0 : PARAMETERS.priorityChannels.default;
      this.#ownThreads = this.#surroundings.readyThreads("destination", { channels, lanes });
    }
    const limitMs = acceptTimeoutMs === 0 ? Number.POSITIVE_INFINITY : acceptTimeoutMs;
    const main = await doorman.admitMain(limitMs);
    // It came while a failed attempt was tidied up: what began now, nobody would end.
    if (this.attempt.failure !== null) throw this.attempt.failure;
    this.#main = main;
    const id = formatMigrationId(doorman.migrationId);
    this.attempt.callBack(() => this.#options.onMigration?.(id));
    this.#startMs = nowMs();
    this.#cpuBeforeMs = cpuMs();
    this.#watch(main);
    if (reconnectTimeoutMs > 0 && !isOnlyChance) this.#awaitRejoining(doorman, main);
    this.#options.recovery?.attach({
      pausedFor: () => this.#pausedFor,
      recover: (address) => this.#listenAlso(address),
      pause: () => this.#breakOff(),
      giveUp: () => this.attempt.cancelPause(),
    });
    this.#startProgress();
  }

  #newLeg(): Leg {
    return new Leg((error) => {
      if (this.#receiver !== null) stopWorkers(this.#receiver.control);
      if (!this.attempt.isCommitted) this.attempt.fail(error);
    });
  }

  #watch(main: FrameStream): void {
    const { channelTimeoutMs } = this.#parameters;
    const leg = this.#leg;
    main.failed.catch((error) => this.#lose(asMigrationError(error), leg));
    const onSilence = (error: MigrationError): void => {
      if (main.mayBeRejoined) main.interrupt(error);
      else this.#lose(error, leg);
    };
    this.#stopHeartbeat = startHeartbeat(main, channelTimeoutMs, onSilence);
  }

  /** Agrees on parameters and blocks, has the host prepare memory, and lets the channels in. */
  async agree(): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    let lanes = 0;
    let frame = await this.#ofMain.receive(["lanes", "agree"], stepTimeoutMs);
    if (frame.name === "lanes") {
      lanes = decodeLanes(frame.body, 0);
      frame = await this.#ofMain.receive(["agree"], stepTimeoutMs);
    }
    const agreement = decodeAgreement(frame.body, 0);
    checkPostcopy(this.#host, lanes, agreement.blocks);
    checkParameters(agreement, agreedParameters(this.#parameters), this.#checksum);
    const prepared = await this.attempt.askHost({
      action: "prepare memory",
      limitMs: stepTimeoutMs,
      call: () => {
        const terms = { mayFault: lanes > 0 };
        return this.#host.prepare(agreement.blocks, agreement.description, terms);
      },
      lasting: { hold: this.#preparing, undo: () => this.#host.discard() },
    });
    this.#checkPrepared(prepared);
    const matched = matchBlocks(agreement.blocks, prepared);
    // The wire speaks the source's pages; ours may differ, a page is a page of the guest.
    this.#blocks = matched.map((block, index) => ({
      ...block,
      pageBytes: agreement.blocks[index]?.pageBytes ?? block.pageBytes,
    }));
    const { channels } = agreement;
    const receiver = new Receiver(
      this.#blocks,
      { channels, lanes, ready: this.#options.threads ?? this.#ownThreads ?? undefined },
      this.#parameters,
      this.#surroundings,
    );
    void this.#ownThreads?.close();
    this.#receiver = receiver;
    this.#lanes = lanes;
    this.attempt.onFailure(() => stopWorkers(this.#ofReceiver.control));
    const started = receiver.start();
    started.catch(() => {}); // It is awaited below, unless something else fails before.
    const doorman = this.#ofDoorman;
    doorman.expectChannels({ channels, lanes });
    await this.#ofMain.send("accept", NOTHING, channelTimeoutMs);
    // A thread that has got its channel answers nothing more before the channel ends.
    await this.attempt.guard(started);
    await this.#admitChannels();
  }

  /** Pages arrive in the channels' threads; here, rounds are told, until devices come. */
  async receive(): Promise<void> {
    this.#hasRounds = true;
    for (;;) {
      // How long a guest takes is the source's business; the heartbeat watches that it lives.
      const wanted = ["round", "discard", "switch", "devices", "lost"] as const;
      const frame = await this.#ofMain.receive(wanted, Number.POSITIVE_INFINITY);
      if (frame.name === "discard" || frame.name === "switch") {
        await this.#receiveSwitch(frame);
        return;
      }
      if (frame.name === "devices") {
        this.#announcement = frame.body;
        this.#ofDoorman.refuseChannels(); // Nobody may write once the guest could run.
        return;
      }
      if (frame.name === "lost") {
        await this.#letGo(frame.body);
        continue;
      }
      const { round: _round, ...figures } = decodeRound(frame.body, 0);
      if (this.#rounds.length < ROUNDS_MAX) this.#rounds.push(figures);
    }
  }

  /** From the first discarded page on, the guest is paused and everything follows at once. */
  async #receiveSwitch(first: Frame): Promise<void> {
    const { channelTimeoutMs, stepTimeoutMs } = this.#parameters;
    const { door } = this.#ofReceiver;
    const { takeFaults } = this.#host;
    if (door === null || takeFaults === undefined) {
      const facts = { channel: 0, frame: first.name, wanted: "round or devices" };
      throw new MigrationError("FRAME_UNEXPECTED", facts);
    }
    let frame = first;
    for (; frame.name === "discard"; ) {
      const { block, firstPage, bits } = decodeDiscard(frame.body, 0, door.blocks);
      for (const [index, word] of bits.entries()) {
        if (word !== 0) discardPages(door, block, firstPage / 32 + index, word);
      }
      frame = await this.#ofMain.receive(["discard", "switch"], channelTimeoutMs);
    }
    const pages = decodeSwitch(frame.body, 0);
    const missing = Atomics.load(door.words, MISSING) >>> 0;
    if (pages !== missing) throw corrupt(0, "missing pages", pages);
    Atomics.store(door.words, ARMED, 1);
    this.#isPostcopy = true;
    this.#ofMain.onNotice("lost", (body) => {
      this.#letGo(body).catch((error) => this.#lose(asMigrationError(error)));
    });
    await this.attempt.askHost({
      action: "take faults",
      limitMs: stepTimeoutMs,
      call: async () => takeFaults.call(this.#host, door),
    });
    this.#announcement = (await this.#ofMain.receive(["devices"], channelTimeoutMs)).body;
    this.#switched = { missing, startMs: nowMs(), before: this.#counters() };
  }

  /** Whether memory follows the guest. */
  get isPostcopy(): boolean {
    return this.#isPostcopy;
  }

  /**
   * The guest runs; what it misses comes, until nothing is missing. When the link breaks it waits,
   * with everything kept, for the source to join again.
   */
  async receiveMissing(): Promise<void> {
    const { attempt } = this;
    for (;;) {
      try {
        await attempt.guard(this.#leg.guard(this.#receiveLeg()));
        attempt.succeed();
        this.#endMs = nowMs();
        this.#done = await this.#receiveDone();
        if (this.#done !== null) return;
        // Nothing is missing, but the source may not know that, and ask once it has noticed.
        this.#leg.fail(this.#ofMain.failure ?? noAnswer());
        const { reconnectTimeoutMs, channelTimeoutMs } = this.#parameters;
        const lingerMs = Math.max(reconnectTimeoutMs, channelTimeoutMs) + LINGER_MS;
        if (!(await this.#recover(lingerMs))) return;
      } catch (error) {
        if (attempt.failure !== null) throw attempt.failure;
        this.#leg.fail(asMigrationError(error));
        const { recoverTimeoutMs } = this.#parameters;
        const isBack = await this.#recover(
          recoverTimeoutMs === 0 ? Number.POSITIVE_INFINITY : recoverTimeoutMs,
        );
        if (!isBack && !attempt.isOver) throw must(this.#pausedFor, "it is paused for a reason");
        if (!isBack) return;
      }
    }
  }

  async #receiveLeg(): Promise<void> {
    const { channelTimeoutMs } = this.#parameters;
    const receiver = this.#ofReceiver;
    const { door } = receiver;
    assert(door !== null, "post-copy has a door");
    // Lanes end when all pages were applied, as the source has it from the answers to its fences.
    await receiver.lanesEnded();
    const missing = Atomics.load(door.words, MISSING) >>> 0;
    if (missing !== 0) throw corrupt(0, "pages that never came", missing);
    this.#ofDoorman.refuseChannels();
    await receiver.ended(channelTimeoutMs);
    this.#faults = faultTimes(door);
    await this.#ofMain.send("faults", encodeFaults(this.#faults), channelTimeoutMs).catch(() => {});
    await this.#ofMain.send("complete", NOTHING, channelTimeoutMs).catch(() => {});
  }

  /** Pauses, and returns when the source has joined again; false when it has not within `limitMs`. */
  async #recover(limitMs: number): Promise<boolean> {
    const { attempt } = this;
    await this.#pause();
    const deadline = new Deadline(limitMs);
    for (;;) {
      const offer = await attempt.guard(this.#nextOffer(deadline.leftMs));
      if (offer === null) return false;
      this.#ofDoorman.changeLeg(this.#ofMain, offer);
      this.#main = offer.stream;
      this.#leg = this.#newLeg();
      this.#watch(offer.stream);
      attempt.change("postcopy-recover");
      try {
        await attempt.guard(this.#leg.guard(this.#join()));
        this.#tellLink("open");
        attempt.change("postcopy");
        this.#pausedFor = null;
        return true;
      } catch (error) {
        if (attempt.failure !== null) throw attempt.failure;
        this.#leg.fail(asMigrationError(error));
        await this.#pause();
      }
    }
  }

  /** Ends the leg that broke: its threads and its connections. What came is here, and stays. */
  async #pause(): Promise<void> {
    const { attempt } = this;
    const main = this.#ofMain;
    const receiver = this.#ofReceiver;
    this.#stopHeartbeat();
    // When all is there nobody waits, and the source is to learn just that.
    if (!attempt.isOver) this.#tellLink("paused");
    this.#pausedFor = await preferPeersWord(must(this.#leg.failure, "it broke"), main);
    attempt.change("postcopy-paused", { isPaused: true });
    await this.#tellFailure(this.#pausedFor);
    stopWorkers(receiver.control);
    // Whoever may still write a page would write over what the guest writes there later.
    while (!(await attempt.guard(receiver.close())));
    this.#broken.push({ main, receiver });
    this.#ofDoorman.changeLeg(main, null);
    if (receiver.door !== null) reconcile(receiver.door);
  }

  /** Tells the source what is missing, and lets its channels in. */
  async #join(): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    const main = this.#ofMain;
    const before = this.#ofReceiver;
    const { channels } = before;
    const lanes = this.#lanes;
    const receiver = new Receiver(
      this.#blocks,
      { channels, lanes, ready: this.#options.threads },
      this.#parameters,
      this.#surroundings,
      before,
    );
    this.#receiver = receiver;
    const { door } = receiver;
    assert(door !== null, "post-copy has a door");
    beginPostcopy(receiver.control);
    const started = receiver.start();
    started.catch(() => {}); // It is awaited below, unless something else fails before.
    const missing = door.blocks.map(({ present }, block) => ({
      block,
      words: present.map((word) => ~word),
    }));
    const pages = await tellMissing(missing, (body) =>
      main.send("missing", body, channelTimeoutMs),
    );
    this.#ofDoorman.expectChannels({ channels, lanes });
    main.onNotice("lost", (body) => {
      this.#letGo(body).catch((error) => this.#lose(asMigrationError(error)));
    });
    await main.send("recovered", encodeSwitch(pages), channelTimeoutMs);
    await started;
    await this.#admitChannels();
    await main.receive(["resumed"], stepTimeoutMs);
    receiver.openLanes();
    askAgain(door);
  }

  #beginPostcopy(): void {
    beginPostcopy(this.#ofReceiver.control);
    this.#ofReceiver.openLanes();
  }

  async #nextOffer(limitMs: number): Promise<Offer | null> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onOffer = resolve;
    const offer = this.#ofDoorman.takeOffer();
    if (offer !== null) return offer;
    const prevent = limitMs > WATCH_MS_MAX ? () => {} : after(limitMs, resolve);
    await promise;
    prevent();
    return this.#ofDoorman.takeOffer();
  }

  /** The source is here again, whatever we thought of its old connections. */
  #offered(): void {
    const reason = "the source has joined again";
    this.#leg.fail(new MigrationError("CHANNEL_LOST", { channel: 0, reason }));
    this.#onOffer();
  }

  async #listenAlso(text: string | undefined): Promise<string> {
    const { phase } = this.attempt;
    if (this.#pausedFor === null)
      throw new RangeError(`Cannot recover: the migration is in phase ${phase}`);
    if (text === undefined) return this.#ofDoorman.address;
    const listener = await this.#surroundings.listen(parseAddress(text));
    if (this.#ofDoorman.listenAlso(listener)) return listener.address;
    throw new RangeError("Cannot recover: the migration has ended meanwhile");
  }

  #breakOff(): void {
    const { phase } = this.attempt;
    if (phase !== "postcopy" && phase !== "postcopy-recover") return;
    this.#leg.fail(new MigrationError("CANCELLED", { phase }));
  }

  async receiveDevices(): Promise<void> {
    const { deviceLimitBytes, channelTimeoutMs } = this.#parameters;
    const limits = { deviceLimitBytes, limitMs: channelTimeoutMs };
    this.#sections = await receiveDevices(this.#ofMain, this.#announcement, limits, (bytes) => {
      this.#deviceBytes = bytes;
    });
  }

  /** All RAM is in place, then the devices: the guest could run. */
  async load(): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    if (this.#isPostcopy) this.#beginPostcopy();
    else await this.attempt.guard(this.#ofReceiver.ended(channelTimeoutMs));
    this.#isLoading = true;
    await this.attempt.askHost({
      action: "load devices",
      limitMs: stepTimeoutMs,
      call: () => this.#host.loadDevices(this.#sections),
      lasting: { hold: this.#preparing, undo: () => this.#host.discard() },
    });
    this.#isLoading = false;
    if (this.#hostLoss !== null) throw this.#hostLoss;
    await this.#ofMain.send("ready", NOTHING, channelTimeoutMs);
  }

  async awaitCommit(): Promise<void> {
    await this.#ofMain.receive(["commit"], this.#parameters.stepTimeoutMs);
  }

  async resume(): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    this.#ofMain.endRejoining();
    if (this.#isPostcopy) this.#ofDoorman.awaitOffers(() => this.#offered());
    await callHost("resume the guest", stepTimeoutMs, () => this.#host.resume());
    this.#endMs = nowMs();
    const { untouched: untouchedPages } = this.#ofReceiver.counters();
    const { runningSinceMs } = this.#host;
    const runningForMs =
      runningSinceMs === undefined ? null : Math.max(0, this.#endMs - runningSinceMs);
    const running = encodeRunning({ untouchedPages, runningForMs });
    // It runs, whether or not the source hears of it: then the source says HANDOVER_UNKNOWN.
    await this.#ofMain.send("running", running, channelTimeoutMs).catch(() => {});
  }

  /** What the guest missed when it went over is the last round, of which the source tells nothing. */
  #roundOfMissing({ pages, movedBytes }: Counters): RoundFigures[] {
    if (this.#switched === null) return [];
    const { missing, startMs, before } = this.#switched;
    return [
      {
        dirtyPages: missing,
        sentPages: pages - before.pages,
        sentBytes: movedBytes - before.movedBytes,
        elapsedMs: this.#endMs - startMs,
      },
    ];
  }

  /** Of all legs. */
  #counters(): Counters {
    return this.#receivers.map((receiver) => receiver.counters()).reduce(addedUp);
  }

  /** One that is paused is among those that broke before another one follows. */
  get #receivers(): Receiver[] {
    const last = this.#receiver === null ? [] : [this.#receiver];
    return [...new Set([...this.#broken.map(({ receiver }) => receiver), ...last])];
  }

  async report(): Promise<Report> {
    const done = this.#isPostcopy ? this.#done : await this.#receiveDone();
    const unknown = { totalMs: this.#endMs - this.#startMs, ...NO_DOWNTIME, hypervisor: null };
    const { totalMs, hypervisor, ...downtime } = done ?? unknown;
    const last = { main: this.#ofMain, receiver: this.#ofReceiver };
    const legs = [...this.#broken.filter(({ main }) => main !== last.main), last];
    const counters = this.#counters();
    const channels = channelsOfLegs(
      legs.map(({ main, receiver }) => {
        return [mainChannelFigures(main.receivedBytes), ...receiver.channelFigures()];
      }),
    );
    return {
      totalMs,
      downtimeMs: Object.values(downtime).reduce((sum, part) => sum + part, 0),
      downtime,
      ...hypervisorReport(downtime, hypervisor),
      rounds: [...this.#rounds, ...this.#roundOfMissing(counters)],
      guestBytes: this.#guestBytes,
      sentBytes: channels.reduce((sum, channel) => sum + channel.sentBytes, 0),
      pages: pageFigures(counters, counters.untouched),
      channels,
      cpuMs: cpuMs() - this.#cpuBeforeMs,
      ...(this.#faults === null ? {} : { faults: faultFigures(this.#faults) }),
    };
  }

  /**
   * The attempt failed before COMMIT: the host frees what it prepared, once nobody writes there. A
   * thread that hangs must not keep the host waiting: it is left behind, which `leftover` tells.
   */
  async discard(): Promise<void> {
    // The source is told first: it need not wait for us to tidy up, which may hang.
    await this.failureOf(must(this.attempt.failure, "only a failed attempt is discarded"));
    if (!(await this.#endThreads())) {
      this.#areThreadsLeft = true;
      this.#letFilesGo = holdFiles(this.#files);
    }
    this.#preparing.release();
    await callHost("discard the guest", this.#parameters.stepTimeoutMs, () => this.#host.discard());
  }

  /** What stays behind of a failed attempt, known once all of it was undone. */
  get leftover(): string | undefined {
    if (this.attempt.isCommitted) return undefined;
    const { leftover } = this.#host;
    if (!this.#areThreadsLeft) return leftover;
    const where = this.#files.length === 0 ? "" : ` (${this.#files.join(", ")})`;
    const threads =
      "A thread of multifd hangs, as on a disk that does not answer, and may still write the " +
      `memory of this attempt${where}: use it for nothing else before this process has ended.`;
    return leftover === undefined ? threads : `${threads} ${leftover}`;
  }

  /** Where guest memory lies, each once. */
  get #files(): readonly string[] {
    const places = this.#blocks.map(({ place }) => place);
    return [...new Set(places.flatMap((place) => (place.kind === "file" ? [place.path] : [])))];
  }

  /** What `migrateIn` fails with. The source is told, once. */
  async failureOf(thrown: unknown): Promise<MigrationError> {
    this.#failure ??= this.#conclude(this.attempt.failure ?? asMigrationError(thrown));
    return await this.#failure;
  }

  async #conclude(first: MigrationError): Promise<MigrationError> {
    const failure = await preferPeersWord(first, this.#main);
    if (this.#isPostcopy && this.attempt.isCommitted) this.#tellLink("given-up");
    await this.#tellFailure(failure);
    if (this.#isPostcopy && this.attempt.isCommitted) {
      const facts = { reason: failure.message };
      return new MigrationError("POSTCOPY_INTERRUPTED", facts, {
        at: "destination",
        cause: failure,
      });
    }
    return failure.from("destination");
  }

  async #tellFailure(failure: MigrationError): Promise<void> {
    if (this.#main === null || this.#main.isClosed || failure.at === "source") return;
    const main = this.#main;
    try {
      await main.send("failure", encodeFailure(failure), FAREWELL_MS);
      // A source that still writes when we close may lose what we said: it closes when it has read it.
      await within(LINGER_AFTER_FAREWELL_MS, main.failed, () => new Error("it did not close"));
    } catch {
      // It knows, or it will find out.
    }
  }

  /** Whoever waits for pages may want to know. */
  #tellLink(link: FaultLink): void {
    const { door } = this.#ofReceiver;
    if (door !== null) setLink(door, link);
  }

  async close(): Promise<void> {
    this.#main?.endRejoining(); // It may be lost from here on: nobody waits for it any more.
    for (const stop of this.#stops.splice(0)) stop();
    this.#stopHeartbeat();
    this.#options.recovery?.detach();
    this.#onOffer();
    this.attempt.end();
    const areThreadsGone = await this.#endThreads();
    await this.#ownThreads?.close();
    this.#doorman?.close({ areThreadsGone });
    if (!areThreadsGone) void this.#closeLate();
  }

  /** Frees what a thread that hangs still holds, whenever it ends. */
  async #closeLate(): Promise<void> {
    const areThreadsGone = (await this.#receiver?.close(Number.POSITIVE_INFINITY)) ?? true;
    this.#doorman?.close({ areThreadsGone });
    this.#letFilesGo();
  }

  /** Nobody asks it anything while pages come: the source would give the guest to nobody. */
  #watchHost(): void {
    void this.#host.lost?.then((error) => {
      this.#hostLoss = error;
      // While it loads it has more to say.
      if (!this.#isLoading && !this.attempt.isCommitted) this.attempt.fail(error);
    });
  }

  /** A main channel that is lost may be joined again, for a while. */
  #awaitRejoining(doorman: Doorman, main: FrameStream): void {
    doorman.mayRejoin(main);
    main.mayRejoin((reason) => {
      const { reconnectTimeoutMs } = this.#parameters;
      this.#stops.push(after(reconnectTimeoutMs, () => main.giveUp(reason)));
    });
  }

  /**
   * Losing the source ends the attempt; but once COMMIT is here, nothing more is needed of it, unless
   * memory follows.
   */
  #lose(error: MigrationError, leg = this.#leg): void {
    if (!this.attempt.isCommitted || this.#isPostcopy) leg.fail(error);
  }

  /** Once: a thread that hangs is waited for before memory is given up, and not again after. */
  #endThreads(): Promise<boolean> {
    if (this.#receiver === null) return Promise.resolve(true);
    stopWorkers(this.#receiver.control);
    this.#threadsEnd ??= this.#receiver.close();
    return this.#threadsEnd;
  }

  async #admitChannels(): Promise<void> {
    const { connectTimeoutMs } = this.#parameters;
    const leg = this.#leg;
    for await (const place of this.#ofDoorman.admitChannels(connectTimeoutMs)) {
      if (this.attempt.failure !== null || leg.failure !== null) return;
      this.#receiveChannel(place);
    }
    this.#ofDoorman.onReplacement((place) => {
      const isWanted = this.attempt.failure === null && leg.failure === null && this.#isReceiving;
      if (isWanted) this.#receiveChannel(place);
      else this.#ofDoorman.letGo(place.channel);
    });
  }

  /** While pages may come. */
  get #isReceiving(): boolean {
    const { phase } = this.attempt;
    return phase === "agree" || phase === "receive" || this.#isPostcopy;
  }

  #receiveChannel(place: ChannelPlace): void {
    const leg = this.#leg;
    this.#ofReceiver.receive(place, {
      // The source decides: with other channels, it goes on. When all pages are fenced it is no loss.
      onLoss: () => {
        if (!this.#isReceiving || leg.failure !== null) return;
        const body = encodeChannel(place.channel);
        this.#ofMain.send("lost", body, this.#parameters.channelTimeoutMs).catch(() => {});
      },
      onFailure: (error) => this.#lose(asMigrationError(error), leg),
    });
  }

  /** The source gives a channel up, as often as it likes within reason. It is told when it is gone. */
  async #letGo(body: Uint8Array): Promise<void> {
    const { stepTimeoutMs, channelTimeoutMs } = this.#parameters;
    const channel = decodeChannel(body, 0, this.#ofReceiver.channels);
    this.#lettings += 1;
    if (this.#lettings > LETTINGS_MAX) throw corrupt(0, "channels given up", this.#lettings);
    await this.attempt.guard(this.#ofReceiver.letGo(channel, stepTimeoutMs));
    this.#ofDoorman.letGo(channel);
    await this.#ofMain.send("gone", body, channelTimeoutMs);
  }

  #checkPrepared(blocks: readonly Block[]): void {
    checkAnswer("prepare memory", blocks);
    const problems = blockProblems(blocks);
    if (problems.length > 0) {
      const facts = { action: "prepare memory", reason: problems.join("; ") };
      throw new MigrationError("HOST_FAILED", facts);
    }
    for (const { name, place } of blocks) {
      if (place.kind !== "file" || !isHeld(place.path)) continue;
      const reason = "a thread of an earlier attempt hangs, and may still write it";
      throw new MigrationError("MEMORY_UNUSABLE", { block: name, path: place.path, reason });
    }
  }

  async #receiveDone(): Promise<DoneMessage | null> {
    try {
      if (this.#isPostcopy) {
        // With what the source knows of them besides.
        const { body } = await this.#ofMain.receive(["faults"], DONE_MS);
        this.#faults = decodeFaults(body, 0);
      }
      return decodeDone((await this.#ofMain.receive(["done"], DONE_MS)).body, 0);
    } catch (error) {
      // The guest runs here. What the source measured is lost, and nothing else.
      if (error instanceof MigrationError) return null;
      throw error;
    }
  }

  #startProgress(): void {
    const { onProgress } = this.#options;
    if (onProgress === undefined) return;
    const tell = (): void => this.attempt.callBack(() => onProgress(this.#progress()));
    this.#stops.push(every(PROGRESS_MS, tell));
  }

  #progress(): Progress {
    const now = nowMs();
    const sentBytes = this.#receivers.reduce((sum, receiver) => {
      return sum + receiver.counters().movedBytes;
    }, 0);
    return {
      phase: this.attempt.phase,
      round: this.#hasRounds ? this.#rounds.length + 1 : 0,
      dirtyPages: 0,
      dirtyBytes: 0,
      sentBytes,
      totalBytes: this.#guestBytes,
      bytesPerSecond: this.#throughput.look(sentBytes, now),
      dirtyBytesPerSecond: 0,
      expectedDowntimeMs: null,
      throttlePercent: 0,
      deviceBytes: this.#deviceBytes,
      workingChannels: this.#receiver?.workingChannels ?? 0,
      elapsedMs: now - this.#startMs,
      ...this.#faultProgress(),
    };
  }

  #faultProgress(): Pick<Progress, "faults"> {
    const door = this.#receiver?.door ?? null;
    if (door === null || !this.#isPostcopy) return {};
    const { stages, ...faults } = faultFigures(faultTimes(door));
    const { served: _served, ...here } = stages;
    return { faults: { ...faults, stages: here } };
  }

  get #guestBytes(): number {
    return this.#blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
  }

  get #ofDoorman(): Doorman {
    assert(this.#doorman !== null, "connections come after listening began");
    return this.#doorman;
  }

  get #ofMain(): FrameStream {
    assert(this.#main !== null, "hosts talk after the source connected");
    return this.#main;
  }

  get #ofReceiver(): Receiver {
    assert(this.#receiver !== null, "pages move after the hosts agreed");
    return this.#receiver;
  }
}

function noAnswer(): MigrationError {
  return new MigrationError("PEER_SILENT", { waitingFor: "DONE", limitMs: DONE_MS });
}

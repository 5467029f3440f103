import { assert, must } from "../base/assert.ts";
import { after, cpuMs, Deadline, every, nowMs } from "../base/clock.ts";
import { asMigrationError, MigrationError, reasonOf } from "../base/errors.ts";
import { type Address, formatAddress, parseAddress } from "../channels/address.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import {
  type FaultsMessage,
  formatMigrationId,
  type RunningMessage,
} from "../channels/messages.ts";
import { createLatencies, latencyFigures } from "../workers/latencies.ts";
import { Attempt, callHost } from "./attempt.ts";
import { wirePageBytes } from "./block.ts";
import { type Configuration, configure } from "./configuration.ts";
import { Convergence, type Judgement, type Verdict } from "./convergence.ts";
import { checkSections } from "./device-state.ts";
import { type DirtyLog, logProblem, type ScanLog } from "./dirty-log.ts";
import type { Features } from "./features.ts";
import {
  addedUp,
  channelsOfLegs,
  faultFigures,
  framedPages,
  hypervisorReport,
  pageFigures,
} from "./figures.ts";
import { checkAnswer } from "./given.ts";
import { Hold } from "./hold.ts";
import type { DeviceSection, DeviceTerms, SourceHost } from "./host.ts";
import { HypervisorView } from "./hypervisor-view.ts";
import { laneCountOf } from "./lanes.ts";
import { agreedParameters, type Parameters } from "./parameters.ts";
import { preferPeersWord } from "./peers-word.ts";
import { goesOver } from "./postcopy-policy.ts";
import type { ReadyThreads } from "./ready-threads.ts";
import type { Sender, SentRound } from "./sender.ts";
import type { MigrateOutOptions, SourcePhase } from "./source.ts";
import { SourceLeg, type SourceLegTerms } from "./source-leg.ts";
import { sparing } from "./sparing.ts";
import type { DowntimeFigures, Progress, Report, RoundFigures } from "./statistics.ts";
import type { Surroundings } from "./surroundings.ts";
import { Throughput } from "./throughput.ts";

/** Who waits for news has it within 100 ms, also on a busy machine; a look costs microseconds. */
const PROGRESS_MS = 50;

/** Far shorter than the limit for a thread that hangs, and nothing to the machine. */
const THREADS_LOOK_MS = 250;

/**
 * A source that failed waits this long for its threads, which read guest memory and no more: one that
 * hangs on a disk must not hold up the answer to a cancel.
 */
const PATIENCE_MS = 30;

/** The last word is read in less; a destination that hangs does not keep a failure longer. */
const LAST_WORD_MS = 100;

/** Between two tries of a source to join again by itself. */
const OWN_TRY_MS = 200;

/** A process that waits for nothing but a plea would end without something that it waits for. */
const WATCH_MS = 60_000;

/** Somebody's wish that a paused post-copy goes on. */
interface Plea {
  readonly address: Address;
  resolve(): void;
  reject(error: Error): void;
}

/** The steps behind the phases of `migrateOut`, and what they share. */
export class SourceMigration {
  readonly attempt: Attempt<SourcePhase>;
  readonly #host: SourceHost;
  readonly #options: MigrateOutOptions;
  /** Where the destination is, as far as is known. */
  #address: Address;
  readonly #terms: SourceLegTerms;
  #leg: SourceLeg;
  /** Started by this migration, and not taken yet. */
  #ownThreads: ReadyThreads | null = null;
  /** As the guest went over: what it missed, and what had been sent. Lanes send before the last round begins. */
  #switched: { missing: number; before: ReturnType<Sender["counters"]> } | null = null;
  /** The last that knows what is dirty: one that joins again has to be told first. */
  #informed: Sender | null = null;
  /** Those that broke in post-copy. */
  readonly #brokenLegs: SourceLeg[] = [];
  #pausedFor: MigrationError | null = null;
  /** Somebody asks for a recovery. */
  #plea: Plea | null = null;
  #onPlea: () => void = () => {};
  readonly #convergence = new Convergence();
  readonly #startMs = nowMs();
  readonly #cpuBeforeMs = cpuMs();
  readonly #throughput = new Throughput();
  readonly #hypervisor = new HypervisorView();
  readonly #rounds: RoundFigures[] = [];
  /** Those that have begun. */
  #round = 0;
  readonly #stops: (() => void)[] = [];
  readonly #tracking: Hold;
  readonly #throttling: Hold;
  readonly #pausing: Hold;
  readonly #notUndone: { action: string; reason: string }[] = [];
  #parameters: Parameters;
  readonly #features: Features;
  readonly #served = createLatencies();
  #faults: FaultsMessage | null = null;
  /** The guest goes over before its memory; decided after a round. */
  #isPostcopy = false;
  #runsThere = false;
  #logs: readonly DirtyLog[] = [];
  #judgement: Judgement | null = null;
  #throttlePercent = 0;
  #isOutOfTime = false;
  #pausedAtMs = 0;
  #downtime: { -readonly [K in keyof DowntimeFigures]: DowntimeFigures[K] } = {
    pauseMs: 0,
    syncMs: 0,
    pagesMs: 0,
    devicesMs: 0,
    handoverMs: 0,
  };
  #lapStartMs = 0;
  #totalMs = 0;
  #deviceBytes = 0;
  #untouchedPages = 0;

  private constructor(
    host: SourceHost,
    options: MigrateOutOptions,
    configuration: Configuration & { checksum: Checksum },
    surroundings: Surroundings,
  ) {
    const { parameters, address, features, checksum } = configuration;
    this.#host = host;
    this.#address = address;
    this.#terms = {
      blocks: host.blocks,
      checksum,
      surroundings,
      served: this.#served,
      onFailure: (error) => this.#legFailed(error),
    };
    this.#tracking = new Hold(host, "dirty log");
    this.#throttling = new Hold(host, "throttle");
    this.#pausing = new Hold(host, "pause");
    this.#leg = new SourceLeg(this.#terms, address, parameters);
    this.#options = options;
    this.#parameters = parameters;
    this.#features = features;
    this.attempt = new Attempt<SourcePhase>({
      side: "source",
      first: "connect",
      signal: options.signal,
      onPhase: options.onPhase,
    });
  }

  /** Checks everything that can be checked before anything is touched. */
  static async prepare(
    host: SourceHost,
    address: string,
    options: MigrateOutOptions,
    surroundings: Surroundings,
  ): Promise<SourceMigration> {
    const {
      signal: _signal,
      onPhase: _onPhase,
      onMigration: _onMigration,
      onProgress: _onProgress,
      live: _live,
      postcopySwitch: _postcopySwitch,
      recovery: _recovery,
      threads,
      ...given
    } = options;
    const configuration = configure(given, address, {
      side: "source",
      blocks: host.blocks,
      description: host.description,
      throttle: host.throttle !== undefined,
      dirtyLog: host.dirtyLog,
      preferences: host.preferences,
      threads,
    });
    return new SourceMigration(
      host,
      options,
      { ...configuration, checksum: await loadChecksum() },
      surroundings,
    );
  }

  async connect(): Promise<void> {
    const [parameters, features] = [this.#parameters, this.#features];
    this.#options.live?.attach({ parameters, features }, (changed) => this.#change(changed));
    this.#options.recovery?.attach({
      pausedFor: () => this.#pausedFor,
      recover: (address) => this.#plead(address),
      pause: () => this.#breakOff(),
      giveUp: () => this.attempt.cancelPause(),
    });
    if (this.#options.threads === undefined) {
      // They start while the hosts meet.
      const { surroundings } = this.#terms;
      const { channels } = this.#parameters;
      const lanes = laneCountOf(this.#parameters);
      this.#ownThreads = surroundings.readyThreads("source", { channels, lanes });
    }
    await this.#leg.peer.connect();
    const id = formatMigrationId(this.#leg.peer.identity.migrationId);
    this.attempt.callBack(() => this.#options.onMigration?.(id));
    this.#leg.watch();
    this.#startProgress();
    this.#watchThreads();
  }

  /** Agrees on parameters and blocks, and opens all channels, each with its thread. */
  async agree(): Promise<void> {
    const { peer } = this.#leg;
    this.#informed = this.#startThreads(this.#leg, {
      isClean: false,
      ready: this.#options.threads ?? this.#ownThreads ?? undefined,
    });
    this.attempt.onFailure(() => this.#leg.stop());
    peer.onLost((channel) => this.#losesChannel(channel));
    const blocks = this.#host.blocks.map(({ name, sizeBytes, pageBytes }) => ({
      name,
      sizeBytes,
      pageBytes,
    }));
    await peer.agree({
      parameters: agreedParameters(this.#parameters),
      blocks,
      description: this.#host.description ?? "",
    });
    await this.attempt.guard(this.#leg.openChannels());
  }

  /** Sends round after round while the guest runs, until it may be paused. */
  async sendRounds(): Promise<void> {
    const logs = await this.attempt.askHost({
      action: "start the dirty log",
      limitMs: this.#parameters.stepTimeoutMs,
      call: () => this.#host.startDirtyLog(),
      lasting: { hold: this.#tracking, undo: () => this.#host.stopDirtyLog() },
    });
    this.#checkLogs(logs);
    this.#logs = logs.filter((log) => log.kind !== "scan");
    await this.attempt.guard(this.#ofSender.scan(logs.filter((log) => log.kind === "scan")));
    this.#startTimeout();
    const { postcopySwitch } = this.#options;
    if (this.#parameters.postcopy !== "never") {
      postcopySwitch?.attach(() => {
        if (this.#pausedAtMs === 0) this.#ofSender.hurry();
      });
      this.#stops.push(() => postcopySwitch?.detach());
    }
    for (;;) {
      const round = await this.#sendRound();
      this.#ofSender.sync(this.#logs);
      const verdict = this.#judge(round);
      this.#isPostcopy = goesOver(
        {
          rounds: this.#rounds.length,
          verdict: verdict.kind,
          isRequested: postcopySwitch?.isRequested === true,
          isOutOfTime: this.#isOutOfTime,
        },
        this.#parameters,
      );
      if (this.#isPostcopy) break;
      if (verdict.kind === "switch-over" || this.#isOutOfTime) break;
      if (verdict.kind === "give-up") throw this.#notConverging();
      await this.#throttle(verdict.throttlePercent);
    }
  }

  async pauseGuest(): Promise<void> {
    this.#pausedAtMs = nowMs();
    this.#lapStartMs = this.#pausedAtMs;
    await this.attempt.askHost({
      action: "pause the guest",
      limitMs: this.#parameters.stepTimeoutMs,
      call: () => this.#host.pause(this.#deviceTerms),
      // It came to rest after we had given up and let it run again.
      lasting: { hold: this.#pausing, undo: () => this.#host.resume() },
    });
    this.#downtime.pauseMs = this.#lap();
    this.#hypervisor.paused(this.#host.stoppedAtMs, this.#lapStartMs);
  }

  /**
   * Sends the rest over all channels, until all of it is applied at the destination; in post-copy,
   * says what the rest is.
   */
  async sendRest(): Promise<void> {
    const sender = this.#ofSender;
    sender.resumeRounds();
    sender.sync(this.#logs);
    this.#downtime.syncMs = this.#lap();
    if (this.#isPostcopy) {
      sender.widen();
      this.#switched = { missing: sender.dirtyPages, before: this.#counters() };
      await this.attempt.guard(this.#leg.peer.discard(sender.dirtyWords()));
      this.#downtime.pagesMs = this.#lap();
      return;
    }
    await this.#sendRound();
    this.#leg.endReplacing();
    await this.attempt.guard(sender.end());
    assert(sender.dirtyPages === 0, "nothing is dirty when all was sent and nobody writes");
    assert(sender.isScanComplete, "what may have changed was looked at when nobody writes");
    this.#downtime.pagesMs = this.#lap();
  }

  async sendDevices(): Promise<void> {
    const startMs = nowMs();
    const sections: readonly DeviceSection[] = await this.attempt.askHost({
      action: "save devices",
      limitMs: this.#parameters.stepTimeoutMs,
      call: () => this.#host.saveDevices(this.#deviceTerms),
    });
    this.#hypervisor.saved(nowMs() - startMs);
    checkSections(sections);
    this.#deviceBytes = sections.reduce((sum, { bytes }) => sum + bytes.length, 0);
    await this.#leg.peer.sendDevices(sections);
  }

  async awaitReady(): Promise<void> {
    await this.#leg.peer.awaitReady();
    this.#downtime.devicesMs = this.#lap();
  }

  /** After this was called, the guest is not ours any more, whatever happens. */
  async handOver(): Promise<void> {
    if (this.#isPostcopy) {
      this.#leg.beginPostcopy();
      try {
        this.#runs(await this.#leg.leg.guard(this.#leg.peer.commit()));
      } catch (error) {
        // Whether it runs there is told when the destination was joined again.
        this.#leg.leg.fail(asMigrationError(error));
      }
      return;
    }
    const running = await this.#leg.peer.commit();
    this.#runsThere = true;
    this.attempt.succeed();
    this.#runs(running);
    this.#totalMs = this.#lapStartMs - this.#startMs;
    await this.#tellDone();
  }

  #runs(running: RunningMessage): void {
    this.#runsThere = true;
    this.#untouchedPages = running.untouchedPages;
    this.#downtime.handoverMs = this.#lap();
    this.#hypervisor.runs(running, this.#downtime.handoverMs);
  }

  async #tellDone(): Promise<void> {
    const hypervisor = this.#hypervisor.laps;
    if (this.#faults !== null) await this.#leg.peer.tellFaults(this.#faults).catch(() => {});
    const done = { totalMs: this.#totalMs, ...this.#downtime, hypervisor };
    await this.#leg.peer.tellDone(done).catch(() => {}); // The guest runs there; the rest is figures.
  }

  /** Whether memory follows the guest. */
  get isPostcopy(): boolean {
    return this.#isPostcopy;
  }

  /**
   * Sends what the guest misses over all bulk channels, while the lanes send what it waits for. When
   * the link breaks it waits, with everything kept, to be joined to the destination again.
   */
  async sendMissing(): Promise<void> {
    const { attempt } = this;
    this.#round += 1;
    const { missing, before } = must(this.#switched, "what is missing was told");
    const startMs = nowMs();
    for (;;) {
      try {
        const { stages, vcpus } = await attempt.guard(this.#leg.sendMissing());
        const after = this.#counters();
        this.#rounds.push({
          dirtyPages: missing,
          sentPages: framedPages(after) - framedPages(before),
          sentBytes: after.movedBytes - before.movedBytes,
          elapsedMs: nowMs() - startMs,
        });
        this.#faults = { stages: { ...stages, served: latencyFigures(this.#served) }, vcpus };
        break;
      } catch (error) {
        if (attempt.failure !== null) throw attempt.failure;
        this.#leg.leg.fail(asMigrationError(error));
        await this.#recover();
      }
    }
    attempt.succeed();
    this.#totalMs = nowMs() - this.#startMs;
    await this.#tellDone();
  }

  /** Pauses, and returns when another leg has begun; a leg that fails before that leads back here. */
  async #recover(): Promise<void> {
    const { reconnectTimeoutMs, recoverTimeoutMs } = this.#parameters;
    const { attempt } = this;
    const limitMs = recoverTimeoutMs === 0 ? Number.POSITIVE_INFINITY : recoverTimeoutMs;
    await this.#pause();
    const deadline = new Deadline(limitMs);
    const ownTries = new Deadline(reconnectTimeoutMs);
    for (;;) {
      // It was given up while its leg ended: nobody is left to end a wait that begins now.
      if (attempt.failure !== null) throw attempt.failure;
      // However often somebody tries: the limit must end this some time.
      if (deadline.passed) throw must(this.#pausedFor, "it is paused for a reason");
      const isOwn = !ownTries.passed;
      const waitMs = isOwn ? OWN_TRY_MS : WATCH_MS;
      const plea = await attempt.guard(this.#nextPlea(Math.min(waitMs, deadline.leftMs)));
      if (plea === null && (!isOwn || deadline.passed)) continue;
      try {
        await attempt.guard(this.#joinAgain(plea?.address ?? this.#address));
        attempt.change("postcopy");
        this.#pausedFor = null;
        plea?.resolve();
        return;
      } catch (error) {
        const failure = asMigrationError(error);
        plea?.reject(failure);
        if (attempt.failure !== null) throw attempt.failure;
        this.#leg.leg.fail(failure);
        await this.#pause();
      }
    }
  }

  /** Ends the leg that broke; the other end notices, or is told. */
  async #pause(): Promise<void> {
    const leg = this.#leg;
    const noticed = must(leg.leg.failure, "a leg is left when it broke");
    const main = leg.peer.isConnected ? leg.peer.main : null;
    this.#pausedFor = await preferPeersWord(noticed, main);
    // Tries that never came to talk to the destination are no news.
    if (this.attempt.phase !== "postcopy-paused") {
      this.attempt.change("postcopy-paused", { isPaused: true });
    }
    await leg.peer.tellFailure(this.#pausedFor);
    await leg.close();
    if (main !== null) this.#brokenLegs.push(leg);
  }

  async #joinAgain(address: Address): Promise<void> {
    const parameters = { ...this.#parameters, xbzrle: false };
    const before = this.#leg;
    const leg = new SourceLeg(this.#terms, address, parameters, before.peer.identity);
    this.#leg = leg;
    await leg.leg.guard(leg.peer.recover());
    // They start while the destination's do.
    const sender = this.#startThreads(leg, {
      isClean: true,
      ready: this.#options.threads,
    });
    await leg.leg.guard(
      leg.peer.receiveMissing(sender.geometries, ({ block, firstPage, bits }) => {
        return sender.markDirty(block, firstPage, bits);
      }),
    );
    this.#informed = sender;
    // Who says what it misses has taken the guest over.
    if (!this.#runsThere) this.#runs({ untouchedPages: 0, runningForMs: null });
    this.attempt.change("postcopy-recover");
    leg.watch();
    leg.peer.onLost((channel) => this.#losesChannel(channel));
    await leg.openChannels();
    leg.beginPostcopy(); // Not sooner: V8 steps back then, which threads that start have much of.
    await leg.leg.guard(leg.peer.tellResumed());
    this.#address = address;
  }

  /** Parameters may have changed since the leg was made, while there were no threads to tell. */
  #startThreads(
    leg: SourceLeg,
    terms: { isClean: boolean; ready?: ReadyThreads | undefined },
  ): Sender {
    const sender = leg.startThreads(terms);
    sender.change(this.#parameters);
    return sender;
  }

  async #nextPlea(limitMs: number): Promise<Plea | null> {
    const { promise, resolve } = Promise.withResolvers<null>();
    this.#onPlea = () => resolve(null);
    if (this.#plea === null) {
      const prevent = after(limitMs, this.#onPlea);
      await promise;
      prevent();
    }
    const plea = this.#plea;
    this.#plea = null;
    return plea;
  }

  async #plead(text: string | undefined): Promise<string> {
    const address = text === undefined ? this.#address : parseAddress(text);
    if (this.#pausedFor === null || this.attempt.phase !== "postcopy-paused") {
      throw new RangeError(`Cannot recover: the migration is in phase ${this.attempt.phase}`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#plea?.reject(new MigrationError("CANCELLED", { phase: this.attempt.phase }));
    this.#plea = { address, resolve, reject };
    this.#onPlea();
    await promise;
    return formatAddress(address);
  }

  #breakOff(): void {
    const { phase } = this.attempt;
    if (phase !== "postcopy" && phase !== "postcopy-recover") return;
    this.#leg.leg.fail(new MigrationError("CANCELLED", { phase }));
  }

  report(): Report {
    const channels = channelsOfLegs(this.#legs.map((leg) => leg.channelFigures()));
    const counters = this.#counters();
    return {
      totalMs: this.#totalMs,
      downtimeMs: this.#lapStartMs - this.#pausedAtMs,
      downtime: { ...this.#downtime },
      ...hypervisorReport(this.#downtime, this.#hypervisor.laps),
      rounds: this.#rounds,
      guestBytes: this.#guestBytes,
      sentBytes: channels.reduce((sum, channel) => sum + channel.sentBytes, 0),
      pages: pageFigures(counters, this.#untouchedPages),
      channels,
      cpuMs: cpuMs() - this.#cpuBeforeMs,
      ...(this.#faults === null
        ? {}
        : { faults: { ...faultFigures(this.#faults), repeatedPages: counters.repeated } }),
    };
  }

  /** Of all legs. */
  #counters(): ReturnType<Sender["counters"]> {
    return this.#senders.map((sender) => sender.counters()).reduce(addedUp);
  }

  /** Undoes `pauseGuest`, also when that threw. */
  async resumeGuest(): Promise<void> {
    await this.#undo("resume the guest", this.#pausing, () => this.#host.resume());
  }

  /** Undoes the throttling of `sendRounds`, also when that threw. */
  async liftThrottle(): Promise<void> {
    const lift = async (): Promise<void> => await this.#host.throttle?.(0);
    await this.#undo("lift the throttle", this.#throttling, lift);
  }

  /** Undoes the dirty log of `sendRounds`, also when starting it threw. */
  async stopTracking(): Promise<void> {
    await this.#undo("stop the dirty log", this.#tracking, () => this.#host.stopDirtyLog());
  }

  /** What `migrateOut` fails with. */
  async failureOf(thrown: unknown): Promise<MigrationError> {
    const first = this.attempt.failure ?? asMigrationError(thrown);
    const { peer } = this.#leg;
    const main = peer.isConnected ? peer.main : null;
    const failure = await preferPeersWord(first, main);
    if (this.#runsThere) {
      // The destination must not wait for pages that will not come.
      await this.#leg.peer.tellFailure(failure);
      const facts = { reason: failure.message };
      return new MigrationError("POSTCOPY_INTERRUPTED", facts, { at: "source", cause: failure });
    }
    if (this.attempt.isCommitted) {
      return new MigrationError(
        "HANDOVER_UNKNOWN",
        { reason: failure.message },
        { at: "source", cause: failure },
      );
    }
    await peer.tellFailure(failure);
    // Who cancels waits for the answer.
    if (failure.at === undefined && failure.code !== "CANCELLED") await peer.hasLeft(LAST_WORD_MS);
    return this.#notRestored(failure) ?? failure.from("source");
  }

  /** Ends threads, then connections; nothing else may still use a descriptor. */
  async close(): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop();
    this.#options.live?.detach();
    this.#options.recovery?.detach();
    this.#plea?.reject(new MigrationError("CANCELLED", { phase: this.attempt.phase }));
    this.#onPlea();
    this.attempt.end();
    await this.#leg.close(this.attempt.failure === null ? undefined : PATIENCE_MS);
    await this.#ownThreads?.close(PATIENCE_MS);
  }

  /** In post-copy another leg may follow; before, the attempt ends with its leg. */
  #legFailed(error: MigrationError): void {
    if (!this.#isPostcopy || !this.attempt.isCommitted) this.attempt.fail(error);
  }

  /** The destination lost it. While channels are opened that ends the attempt; later, others go on. */
  #losesChannel(channel: number): void {
    const reason = "the other end lost it, or got nothing more of it";
    const error = new MigrationError("CHANNEL_LOST", { channel, reason });
    if (this.attempt.phase === "agree") this.attempt.fail(error);
    else this.#ofSender.lose(channel, error);
  }

  /** One that is paused is among those that broke before another one follows. */
  get #legs(): SourceLeg[] {
    return [...new Set([...this.#brokenLegs, this.#leg])];
  }

  /** A leg that never came to talk to the destination, or was lost as it did, has none. */
  get #senders(): Sender[] {
    return this.#legs.flatMap((leg) => (leg.hasThreads ? leg.sender : []));
  }

  get #ofSender(): Sender {
    return must(this.#senders.at(-1), "pages move after the hosts agreed");
  }

  get #deviceTerms(): DeviceTerms {
    const { deviceLimitBytes, stepTimeoutMs } = this.#parameters;
    const onBytes = (bytes: number): void => {
      this.#deviceBytes = bytes;
    };
    return { limitBytes: deviceLimitBytes, limitMs: stepTimeoutMs, onBytes };
  }

  get #guestBytes(): number {
    return this.#host.blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
  }

  async #sendRound(): Promise<SentRound> {
    this.#round += 1;
    const round = await this.attempt.guard(this.#ofSender.sendRound());
    const { dirtyPages, sentPages, sentBytes, elapsedMs } = round;
    const figures: RoundFigures = { dirtyPages, sentPages, sentBytes, elapsedMs };
    this.#rounds.push(figures);
    await this.#leg.peer.tellRound({ round: this.#rounds.length, ...figures });
    return round;
  }

  #judge(round: SentRound): Verdict {
    this.#judgement = this.#convergence.judge(
      {
        guestBytes: round.guestBytes,
        sentBytes: round.sentBytes,
        sendMs: round.sendMs,
        elapsedMs: round.elapsedMs,
        roundTripMs: round.roundTripMs,
        dirtyBytes: this.#ofSender.loggedBytes,
        deviceBytes: this.#host.deviceBytes ?? 0,
        ...(round.scan === null ? {} : { scan: round.scan }),
      },
      this.#parameters,
    );
    return this.#judgement.verdict;
  }

  async #throttle(percent: number): Promise<void> {
    const { throttle } = this.#host;
    if (throttle === undefined || percent === this.#throttlePercent) return;
    this.#throttlePercent = percent;
    await this.attempt.askHost({
      action: "throttle the guest",
      limitMs: this.#parameters.stepTimeoutMs,
      call: () => throttle.call(this.#host, percent),
      lasting: { hold: this.#throttling, undo: () => throttle.call(this.#host, 0) },
    });
  }

  #notConverging(): MigrationError {
    return new MigrationError("NOT_CONVERGING", {
      rounds: this.#rounds.length,
      expectedDowntimeMs: Math.round(this.#judgement?.expectedDowntimeMs ?? 0),
      limitMs: this.#parameters.downtimeLimitMs,
    });
  }

  /** What the bitmaps assert of logs is the host's doing where it comes from a host. */
  #checkLogs(logs: readonly (DirtyLog | ScanLog)[]): void {
    checkAnswer("start the dirty log", logs);
    const blocks = new Map(this.#host.blocks.map((block) => [block.name, block]));
    for (const log of logs) {
      const block = blocks.get(log.block);
      const problem =
        block === undefined
          ? "a dirty log of a block that the guest does not have"
          : logProblem(log, block);
      if (problem === null) continue;
      const reason = `it gave ${problem}`;
      throw new MigrationError("HOST_FAILED", { action: "start the dirty log", reason });
    }
  }

  #startTimeout(): void {
    const check = (): void => {
      const { timeoutMs, nonConvergence, postcopy } = this.#parameters;
      if (this.#pausedAtMs !== 0 || nowMs() - this.#startMs < timeoutMs) return;
      if (nonConvergence === "switch-over" || postcopy === "not-converging") {
        this.#isOutOfTime = true;
        this.#ofSender.hurry();
      } else {
        this.attempt.fail(
          new MigrationError("TIMEOUT", { phase: this.attempt.phase, limitMs: timeoutMs }),
        );
      }
    };
    // Looked at rather than set once: the limit may change while the migration runs.
    this.#stops.push(every(Math.min(PROGRESS_MS, this.#parameters.timeoutMs), check));
  }

  /**
   * Each wait for the peer has a limit of its own, in the thread. One for memory (a file on a disk
   * that does not answer) can have none, since the thread hangs in the kernel: it is missed here.
   */
  #watchThreads(): void {
    let lookedAtMs = nowMs();
    let sleptMs = 0;
    const look = (): void => {
      const now = nowMs();
      // Time in which this process did not run says nothing about its threads.
      if (now - lookedAtMs > 2 * THREADS_LOOK_MS) sleptMs += now - lookedAtMs;
      lookedAtMs = now;
      const limitMs = this.#parameters.stepTimeoutMs + this.#parameters.channelTimeoutMs;
      const sender = this.#leg.hasThreads ? this.#leg.sender : null;
      const channel = sender?.stuckChannel(limitMs + sleptMs) ?? null;
      if (channel === null) return;
      const reason = `its thread has hung for ${limitMs} ms, as on a disk that does not answer`;
      this.#leg.leg.fail(new MigrationError("WORKER_DIED", { channel, reason }));
    };
    this.#stops.push(every(THREADS_LOOK_MS, look));
  }

  #startProgress(): void {
    const { onProgress } = this.#options;
    if (onProgress === undefined) return;
    const tell = (): void => this.attempt.callBack(() => onProgress(this.#progress()));
    this.#stops.push(every(PROGRESS_MS, sparing(tell)));
  }

  #progress(): Progress {
    const now = nowMs();
    const senders = this.#senders;
    const dirty = this.#informed?.dirty ?? this.#allDirty;
    // Of all legs: what was sent stays sent when the link breaks.
    const sentBytes = senders.reduce((sum, sender) => sum + sender.sentBytes, 0);
    return {
      phase: this.attempt.phase,
      round: this.#round,
      dirtyPages: dirty.pages,
      dirtyBytes: dirty.bytes,
      sentBytes,
      totalBytes: this.#guestBytes,
      bytesPerSecond: this.#throughput.look(sentBytes, now),
      dirtyBytesPerSecond: this.#judgement?.dirtyBytesPerSecond ?? 0,
      expectedDowntimeMs: this.#judgement?.expectedDowntimeMs ?? null,
      throttlePercent: this.#throttlePercent,
      deviceBytes: this.#deviceBytes,
      workingChannels: senders.at(-1)?.liveChannels ?? 0,
      elapsedMs: now - this.#startMs,
      ...(this.#isPostcopy && this.attempt.isCommitted
        ? { faults: { stages: { served: latencyFigures(this.#served) } } }
        : {}),
    };
  }

  /** As a sender counts it, before there is one. */
  get #allDirty() {
    const { blocks } = this.#host;
    const pages = blocks.reduce((sum, { sizeBytes, pageBytes }) => {
      return sum + sizeBytes / wirePageBytes(pageBytes);
    }, 0);
    return { pages, bytes: this.#guestBytes };
  }

  #change(parameters: Parameters): void {
    this.#parameters = parameters;
    if (this.#leg.hasThreads) this.#leg.sender.change(parameters);
  }

  /** The time since the last lap: the parts of the downtime follow each other without a gap. */
  #lap(): number {
    const now = nowMs();
    const lapMs = now - this.#lapStartMs;
    this.#lapStartMs = now;
    return lapMs;
  }

  /** Takes back what was asked of the host. All that can be taken back is, whatever fails. */
  async #undo(action: string, hold: Hold, call: () => Promise<void>): Promise<void> {
    if (!hold.isAsked) return;
    hold.release();
    try {
      await callHost(action, this.#parameters.stepTimeoutMs, call);
    } catch (error) {
      this.#notUndone.push({ action, reason: reasonOf(error) });
    }
  }

  /** A step back that fails leaves the guest in somebody's hands: it must be said, with the cause. */
  #notRestored(failure: MigrationError): MigrationError | null {
    if (this.#notUndone.length === 0) return null;
    const action = this.#notUndone.map((each) => each.action).join(" and ");
    const reason = this.#notUndone.map((each) => each.reason).join("; ");
    const facts = { action, reason, after: failure.code };
    return new MigrationError("GUEST_NOT_RESTORED", facts, { at: "source", cause: failure });
  }
}

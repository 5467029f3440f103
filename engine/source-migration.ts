import { assert } from "../base/assert.ts";
import { every, nowMs } from "../base/clock.ts";
import { asMigrationError, MigrationError, reasonOf } from "../base/errors.ts";
import { loadChecksum } from "../channels/checksum.ts";
import type { FaultsMessage } from "../channels/messages.ts";
import { stopWorkers } from "../workers/control.ts";
import { beginPostcopy } from "../workers/gate.ts";
import { createLaneWords, FINISH, OPEN, tellLanes } from "../workers/lane-words.ts";
import { createLatencies, latencyFigures } from "../workers/latencies.ts";
import { Attempt, callHost } from "./attempt.ts";
import { configure } from "./configuration.ts";
import { Convergence, type Judgement, type Verdict } from "./convergence.ts";
import type { DirtyLog, ScanLog } from "./dirty-log.ts";
import { faultFigures, hypervisorReport, mainChannelFigures, pageFigures } from "./figures.ts";
import { startHeartbeat } from "./heartbeat.ts";
import { Hold } from "./hold.ts";
import type { DeviceSection, DeviceTerms, SourceHost } from "./host.ts";
import { HypervisorView } from "./hypervisor-view.ts";
import { laneCountOf } from "./lanes.ts";
import { agreedParameters, type Parameters } from "./parameters.ts";
import { preferPeersWord } from "./peers-word.ts";
import { goesOver } from "./postcopy-policy.ts";
import { Replacing } from "./replacing.ts";
import { Sender, type SentRound } from "./sender.ts";
import type { MigrateOutOptions, SourcePhase } from "./source.ts";
import { SourcePeer } from "./source-peer.ts";
import type { DowntimeFigures, Progress, Report, RoundFigures } from "./statistics.ts";
import type { LaneThreads, Surroundings } from "./surroundings.ts";
import { Throughput } from "./throughput.ts";

/** Several looks per second: smooth to the eye, nothing to the machine. */
const PROGRESS_MS = 100;

/** The steps behind the phases of `migrateOut`, and what they share. */
export class SourceMigration {
  readonly attempt: Attempt<SourcePhase>;
  readonly #host: SourceHost;
  readonly #options: MigrateOutOptions;
  readonly #peer: SourcePeer;
  readonly #surroundings: Surroundings;
  readonly #replacing: Replacing;
  readonly #convergence = new Convergence();
  readonly #startMs = nowMs();
  readonly #cpuBefore = process.cpuUsage();
  readonly #throughput = new Throughput();
  readonly #hypervisor = new HypervisorView();
  readonly #rounds: RoundFigures[] = [];
  readonly #stops: (() => void)[] = [];
  readonly #tracking: Hold;
  readonly #throttling: Hold;
  readonly #pausing: Hold;
  readonly #notUndone: { action: string; reason: string }[] = [];
  #parameters: Parameters;
  #sender: Sender | null = null;
  #lanes: LaneThreads | null = null;
  readonly #laneWords = createLaneWords();
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
    peer: SourcePeer,
    replacing: Replacing,
    options: MigrateOutOptions,
    parameters: Parameters,
    surroundings: Surroundings,
  ) {
    this.#host = host;
    this.#surroundings = surroundings;
    this.#tracking = new Hold(host, "dirty log");
    this.#throttling = new Hold(host, "throttle");
    this.#pausing = new Hold(host, "pause");
    this.#peer = peer;
    this.#replacing = replacing;
    this.#options = options;
    this.#parameters = parameters;
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
      onProgress: _onProgress,
      live: _live,
      postcopySwitch: _postcopySwitch,
      ...given
    } = options;
    const { parameters, address: parsed } = configure(given, address, {
      side: "source",
      blocks: host.blocks,
      description: host.description,
      throttle: host.throttle !== undefined,
      dirtyLog: host.dirtyLog,
    });
    const peer = new SourcePeer(parsed, parameters, await loadChecksum(), surroundings);
    const replacing = new Replacing(peer, parsed, parameters.connectTimeoutMs);
    return new SourceMigration(host, peer, replacing, options, parameters, surroundings);
  }

  async connect(): Promise<void> {
    const features = { throttle: this.#host.throttle !== undefined };
    this.#options.live?.attach({ parameters: this.#parameters, features }, (parameters) =>
      this.#change(parameters),
    );
    await this.#peer.connect();
    const { main } = this.#peer;
    main.failed.catch((error) => this.attempt.fail(asMigrationError(error)));
    const { channelTimeoutMs } = this.#parameters;
    const onSilence = (error: MigrationError): void => {
      if (main.mayBeRejoined) main.interrupt(error);
      else this.attempt.fail(error);
    };
    this.#stops.push(startHeartbeat(main, channelTimeoutMs, onSilence));
  }

  /** Agrees on parameters and blocks, and opens all channels, each with its thread. */
  async agree(): Promise<void> {
    // First of all: its threads start while the hosts agree, as the destination's do.
    const sender = new Sender(
      this.#host.blocks,
      this.#parameters,
      this.#surroundings,
      this.#replacing,
    );
    this.#sender = sender;
    this.#peer.onLost((channel) => this.#losesChannel(channel));
    const laneCount = laneCountOf(this.#parameters);
    const lanes = this.#surroundings.startLanes(
      Array.from({ length: laneCount }, () => {
        return {
          side: "source",
          send: sender.setup,
          words: this.#laneWords,
          served: this.#served,
        };
      }),
    );
    this.#lanes = lanes;
    this.attempt.onFailure(() => stopWorkers(sender.control));
    const blocks = this.#host.blocks.map(({ name, sizeBytes, pageBytes }) => ({
      name,
      sizeBytes,
      pageBytes,
    }));
    await this.#peer.agree({
      parameters: agreedParameters(this.#parameters),
      blocks,
      description: this.#host.description ?? "",
    });
    const channels = Array.from({ length: this.#parameters.channels }, (_, index) => index + 1);
    await Promise.all(
      channels.map(async (channel) => sender.open(await this.#peer.openChannel(channel))),
    );
    await this.attempt.guard(lanes.start());
    for (let lane = 0; lane < laneCount; lane += 1) {
      const channel = this.#parameters.channels + 1 + lane;
      const place = await this.#peer.openChannel(channel, "priority");
      lanes.serve(lane, place, (error) => this.attempt.fail(asMigrationError(error)));
    }
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
    this.#startProgress();
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
      await this.attempt.guard(this.#peer.discard(sender.dirtyWords()));
      this.#downtime.pagesMs = this.#lap();
      return;
    }
    await this.#sendRound();
    this.#replacing.end();
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
    this.#deviceBytes = sections.reduce((sum, { bytes }) => sum + bytes.length, 0);
    await this.#peer.sendDevices(sections);
  }

  async awaitReady(): Promise<void> {
    await this.#peer.awaitReady();
    this.#downtime.devicesMs = this.#lap();
  }

  /** After this was called, the guest is not ours any more, whatever happens. */
  async handOver(): Promise<void> {
    if (this.#isPostcopy) {
      beginPostcopy(this.#ofSender.control);
      tellLanes(this.#laneWords, OPEN);
    }
    const running = await this.#peer.commit();
    this.#runsThere = true;
    if (!this.#isPostcopy) this.attempt.succeed();
    this.#untouchedPages = running.untouchedPages;
    this.#downtime.handoverMs = this.#lap();
    this.#hypervisor.runs(running, this.#downtime.handoverMs);
    this.#totalMs = this.#lapStartMs - this.#startMs;
    if (!this.#isPostcopy) await this.#tellDone();
  }

  async #tellDone(): Promise<void> {
    const hypervisor = this.#hypervisor.laps;
    if (this.#faults !== null) await this.#peer.tellFaults(this.#faults).catch(() => {});
    const done = { totalMs: this.#totalMs, ...this.#downtime, hypervisor };
    await this.#peer.tellDone(done).catch(() => {}); // The guest runs there; the rest is figures.
  }

  /** Whether memory follows the guest. */
  get isPostcopy(): boolean {
    return this.#isPostcopy;
  }

  /** Sends what the guest misses over all bulk channels, while the lanes send what it waits for. */
  async sendMissing(): Promise<void> {
    const sender = this.#ofSender;
    const { attempt } = this;
    const round = await attempt.guard(sender.sendRound());
    const { dirtyPages, sentPages, sentBytes, elapsedMs } = round;
    this.#rounds.push({ dirtyPages, sentPages, sentBytes, elapsedMs });
    await attempt.guard(sender.end());
    assert(sender.dirtyPages === 0, "nothing is dirty when all was sent and nobody writes");
    tellLanes(this.#laneWords, FINISH);
    const { stages, vcpus } = await attempt.guard(this.#peer.awaitComplete());
    this.#faults = { stages: { ...stages, served: latencyFigures(this.#served) }, vcpus };
    attempt.succeed();
    this.#totalMs = nowMs() - this.#startMs;
    await this.#tellDone();
  }

  report(): Report {
    const cpu = process.cpuUsage(this.#cpuBefore);
    const main = mainChannelFigures(this.#peer.main.sentBytes);
    const channels = [main, ...this.#ofSender.channelFigures()];
    return {
      totalMs: this.#totalMs,
      downtimeMs: this.#lapStartMs - this.#pausedAtMs,
      downtime: { ...this.#downtime },
      ...hypervisorReport(this.#downtime, this.#hypervisor.laps),
      rounds: this.#rounds,
      guestBytes: this.#guestBytes,
      sentBytes: channels.reduce((sum, channel) => sum + channel.sentBytes, 0),
      pages: pageFigures(this.#ofSender.counters(), this.#untouchedPages),
      channels,
      cpuMs: (cpu.user + cpu.system) / 1000,
      ...(this.#faults === null ? {} : { faults: faultFigures(this.#faults) }),
    };
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
    const main = this.#peer.isConnected ? this.#peer.main : null;
    const failure = await preferPeersWord(first, main);
    if (this.#runsThere) {
      // The destination must not wait for pages that will not come.
      await this.#peer.tellFailure(failure);
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
    await this.#peer.tellFailure(failure);
    return this.#notRestored(failure) ?? failure.from("source");
  }

  /** Ends threads, then connections; nothing else may still use a descriptor. */
  async close(): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop();
    this.#options.live?.detach();
    this.attempt.end();
    this.#replacing.end();
    if (this.#sender !== null) stopWorkers(this.#sender.control);
    const ends = await Promise.all([this.#sender?.close(), this.#lanes?.close()]);
    const areThreadsGone = !ends.includes(false);
    this.#peer.close({ areThreadsGone });
  }

  /** The destination lost it. While channels are opened that ends the attempt; later, others go on. */
  #losesChannel(channel: number): void {
    const reason = "the other end lost it, or got nothing more of it";
    const error = new MigrationError("CHANNEL_LOST", { channel, reason });
    if (this.attempt.phase === "agree") this.attempt.fail(error);
    else this.#ofSender.lose(channel, error);
  }

  get #ofSender(): Sender {
    assert(this.#sender !== null, "pages move after the hosts agreed");
    return this.#sender;
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
    const round = await this.attempt.guard(this.#ofSender.sendRound());
    const { dirtyPages, sentPages, sentBytes, elapsedMs } = round;
    const figures: RoundFigures = { dirtyPages, sentPages, sentBytes, elapsedMs };
    this.#rounds.push(figures);
    await this.#peer.tellRound({ round: this.#rounds.length, ...figures });
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

  #checkLogs(logs: readonly (DirtyLog | ScanLog)[]): void {
    const names = new Set(this.#host.blocks.map(({ name }) => name));
    if (logs.every((log) => names.has(log.block))) return;
    const reason = "it gave a dirty log of a block that the guest does not have";
    throw new MigrationError("HOST_FAILED", { action: "start the dirty log", reason });
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

  #startProgress(): void {
    const { onProgress } = this.#options;
    if (onProgress === undefined) return;
    const tell = (): void => this.attempt.callBack(() => onProgress(this.#progress()));
    this.#stops.push(every(PROGRESS_MS, tell));
  }

  #progress(): Progress {
    const now = nowMs();
    const sender = this.#ofSender;
    return {
      phase: this.attempt.phase,
      round: this.#rounds.length + 1,
      dirtyPages: sender.dirtyPages,
      dirtyBytes: sender.dirtyBytes,
      sentBytes: sender.sentBytes,
      totalBytes: this.#guestBytes,
      bytesPerSecond: this.#throughput.look(sender.sentBytes, now),
      dirtyBytesPerSecond: this.#judgement?.dirtyBytesPerSecond ?? 0,
      expectedDowntimeMs: this.#judgement?.expectedDowntimeMs ?? null,
      throttlePercent: this.#throttlePercent,
      deviceBytes: this.#deviceBytes,
      workingChannels: sender.liveChannels,
      elapsedMs: now - this.#startMs,
    };
  }

  #change(parameters: Parameters): void {
    this.#parameters = parameters;
    this.#sender?.change(parameters);
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

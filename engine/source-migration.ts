import { assert } from "../base/assert.ts";
import { nowMs } from "../base/clock.ts";
import { asMigrationError, MigrationError, reasonOf } from "../base/errors.ts";
import { loadChecksum } from "../channels/checksum.ts";
import { setBandwidthLimit, stopWorkers } from "../workers/control.ts";
import { Attempt, callHost } from "./attempt.ts";
import { configure } from "./configuration.ts";
import { Convergence, type Judgement, type Verdict } from "./convergence.ts";
import type { DirtyLog } from "./dirty-log.ts";
import { pageFigures } from "./figures.ts";
import { startHeartbeat } from "./heartbeat.ts";
import type { DeviceSection, SourceHost } from "./host.ts";
import { agreedParameters, type Parameters } from "./parameters.ts";
import { preferPeersWord } from "./peers-word.ts";
import { Sender, type SentRound } from "./sender.ts";
import type { MigrateOutOptions, SourcePhase } from "./source.ts";
import { SourcePeer } from "./source-peer.ts";
import type { DowntimeFigures, Progress, Report, RoundFigures } from "./statistics.ts";
import { Throughput } from "./throughput.ts";

/** Several looks per second: smooth to the eye, nothing to the machine. */
const PROGRESS_MS = 100;

/** The steps behind the phases of `migrateOut`, and what they share. */
export class SourceMigration {
  readonly attempt: Attempt<SourcePhase>;
  readonly #host: SourceHost;
  readonly #options: MigrateOutOptions;
  readonly #peer: SourcePeer;
  readonly #convergence = new Convergence();
  readonly #startMs = nowMs();
  readonly #cpuBefore = process.cpuUsage();
  readonly #throughput = new Throughput();
  readonly #rounds: RoundFigures[] = [];
  readonly #stops: (() => void)[] = [];
  #parameters: Parameters;
  #sender: Sender | null = null;
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
  #deviceMark = 0;
  #downtimeMs = 0;
  #totalMs = 0;
  #untouchedPages = 0;

  private constructor(
    host: SourceHost,
    peer: SourcePeer,
    options: MigrateOutOptions,
    parameters: Parameters,
  ) {
    this.#host = host;
    this.#peer = peer;
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
  ): Promise<SourceMigration> {
    const {
      signal: _signal,
      onPhase: _onPhase,
      onProgress: _onProgress,
      live: _live,
      ...given
    } = options;
    const { parameters, address: parsed } = configure(given, address, {
      side: "source",
      blocks: host.blocks,
      throttle: host.throttle !== undefined,
    });
    const peer = new SourcePeer(parsed, parameters, await loadChecksum());
    return new SourceMigration(host, peer, options, parameters);
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
    this.#stops.push(startHeartbeat(main, channelTimeoutMs, (error) => this.attempt.fail(error)));
  }

  /** Agrees on parameters and blocks, and opens all channels, each with its thread. */
  async agree(): Promise<void> {
    const blocks = this.#host.blocks.map(({ name, sizeBytes, pageBytes }) => ({
      name,
      sizeBytes,
      pageBytes,
    }));
    await this.#peer.agree(agreedParameters(this.#parameters), blocks);
    const sender = new Sender(this.#host.blocks, this.#parameters);
    this.#sender = sender;
    this.attempt.onFailure(() => stopWorkers(sender.control));
    const channels = Array.from({ length: this.#parameters.channels }, (_, index) => index + 1);
    await Promise.all(
      channels.map(async (channel) => sender.open(await this.#peer.openChannel(channel))),
    );
  }

  /** Sends round after round while the guest runs, until it may be paused. */
  async sendRounds(): Promise<void> {
    const { stepTimeoutMs } = this.#parameters;
    this.#logs = await this.attempt.askHost(
      "start the dirty log",
      stepTimeoutMs,
      () => this.#host.startDirtyLog(),
      () => this.#host.stopDirtyLog(),
    );
    this.#checkLogs();
    this.#startTimeout();
    this.#startProgress();
    for (;;) {
      const round = await this.#sendRound();
      this.#ofSender.sync(this.#logs);
      const verdict = this.#judge(round);
      if (verdict.kind === "switch-over" || this.#isOutOfTime) break;
      if (verdict.kind === "give-up") throw this.#notConverging();
      await this.#throttle(verdict.throttlePercent);
    }
  }

  async pauseGuest(): Promise<void> {
    this.#pausedAtMs = nowMs();
    await this.attempt.askHost(
      "pause the guest",
      this.#parameters.stepTimeoutMs,
      () => this.#host.pause(),
      // It came to rest after we had given up and let it run again.
      () => this.#host.resume(),
    );
    this.#downtime.pauseMs = nowMs() - this.#pausedAtMs;
  }

  /** Sends the rest over all channels, until all of it is applied at the destination. */
  async sendRest(): Promise<void> {
    const startMs = nowMs();
    const sender = this.#ofSender;
    sender.resumeRounds();
    sender.sync(this.#logs);
    const syncedMs = nowMs();
    this.#downtime.syncMs = syncedMs - startMs;
    await this.#sendRound();
    await sender.fence();
    await sender.end();
    assert(sender.dirtyPages === 0, "nothing is dirty when all was sent and nobody writes");
    this.#downtime.pagesMs = nowMs() - syncedMs;
  }

  async sendDevices(): Promise<void> {
    this.#deviceMark = nowMs();
    const { stepTimeoutMs } = this.#parameters;
    const sections: readonly DeviceSection[] = await this.attempt.askHost(
      "save devices",
      stepTimeoutMs,
      () => this.#host.saveDevices(),
    );
    await this.#peer.sendDevices(sections);
  }

  async awaitReady(): Promise<void> {
    await this.#peer.awaitReady();
    this.#downtime.devicesMs = nowMs() - this.#deviceMark;
  }

  /** After this was called, the guest is not ours any more, whatever happens. */
  async handOver(): Promise<void> {
    const startMs = nowMs();
    this.#untouchedPages = await this.#peer.commit();
    this.attempt.succeed();
    const endMs = nowMs();
    this.#downtime.handoverMs = endMs - startMs;
    this.#downtimeMs = endMs - this.#pausedAtMs;
    this.#totalMs = endMs - this.#startMs;
    const done = { totalMs: this.#totalMs, ...this.#downtime };
    await this.#peer.tellDone(done).catch(() => {}); // The guest runs there; the rest is figures.
  }

  report(): Report {
    const cpu = process.cpuUsage(this.#cpuBefore);
    const main = {
      id: 0,
      lane: "main",
      sentBytes: this.#peer.main.sentBytes,
      waitMs: 0,
      busyMs: 0,
    } as const;
    const channels = [main, ...this.#ofSender.channelFigures()];
    return {
      totalMs: this.#totalMs,
      downtimeMs: this.#downtimeMs,
      downtime: { ...this.#downtime },
      rounds: this.#rounds,
      guestBytes: this.#guestBytes,
      sentBytes: channels.reduce((sum, channel) => sum + channel.sentBytes, 0),
      pages: pageFigures(this.#ofSender.counters(), this.#untouchedPages),
      channels,
      cpuMs: (cpu.user + cpu.system) / 1000,
    };
  }

  /** Undoes `pauseGuest`, also when that threw. */
  async resumeGuest(): Promise<void> {
    await this.#undo("resume the guest", () => this.#host.resume());
  }

  /** Undoes the throttling of `sendRounds`. */
  async liftThrottle(): Promise<void> {
    const { throttle } = this.#host;
    if (this.#throttlePercent === 0 || throttle === undefined) return;
    await this.#undo("lift the throttle", () => throttle.call(this.#host, 0));
  }

  /** Undoes the dirty log of `sendRounds`, also when starting it threw. */
  async stopTracking(): Promise<void> {
    await this.#undo("stop the dirty log", () => this.#host.stopDirtyLog());
  }

  /** What `migrateOut` fails with. */
  async failureOf(thrown: unknown): Promise<MigrationError> {
    if (thrown instanceof SuppressedError) return asMigrationError(thrown.error);
    const first = this.attempt.failure ?? asMigrationError(thrown);
    const main = this.#peer.isConnected ? this.#peer.main : null;
    const failure = await preferPeersWord(first, main);
    if (this.attempt.isCommitted) {
      return new MigrationError(
        "HANDOVER_UNKNOWN",
        { reason: failure.message },
        { at: "source", cause: failure },
      );
    }
    await this.#peer.tellFailure(failure);
    return failure.from("source");
  }

  /** Ends threads, then connections; nothing else may still use a descriptor. */
  async close(): Promise<void> {
    for (const stop of this.#stops.splice(0)) stop();
    this.#options.live?.detach();
    this.attempt.end();
    if (this.#sender !== null) stopWorkers(this.#sender.control);
    const areThreadsGone = (await this.#sender?.close()) ?? true;
    this.#peer.close({ areThreadsGone });
  }

  get #ofSender(): Sender {
    assert(this.#sender !== null, "pages move after the hosts agreed");
    return this.#sender;
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
        dirtyBytes: this.#ofSender.dirtyBytes,
        deviceBytes: this.#host.deviceBytes ?? 0,
      },
      this.#parameters,
    );
    return this.#judgement.verdict;
  }

  async #throttle(percent: number): Promise<void> {
    const { throttle } = this.#host;
    if (throttle === undefined || percent === this.#throttlePercent) return;
    this.#throttlePercent = percent; // Before the call: a throttle that fails is lifted as well.
    const { stepTimeoutMs } = this.#parameters;
    const lift = (): Promise<void> => throttle.call(this.#host, 0);
    await this.attempt.askHost(
      "throttle the guest",
      stepTimeoutMs,
      () => throttle.call(this.#host, percent),
      lift,
    );
  }

  #notConverging(): MigrationError {
    return new MigrationError("NOT_CONVERGING", {
      rounds: this.#rounds.length,
      expectedDowntimeMs: Math.round(this.#judgement?.expectedDowntimeMs ?? 0),
      limitMs: this.#parameters.downtimeLimitMs,
    });
  }

  #checkLogs(): void {
    const names = new Set(this.#host.blocks.map(({ name }) => name));
    if (this.#logs.every((log) => names.has(log.block))) return;
    const reason = "it gave a dirty log of a block that the guest does not have";
    throw new MigrationError("HOST_FAILED", { action: "start the dirty log", reason });
  }

  #startTimeout(): void {
    const check = (): void => {
      const { timeoutMs, nonConvergence } = this.#parameters;
      if (this.#pausedAtMs !== 0 || nowMs() - this.#startMs < timeoutMs) return;
      if (nonConvergence === "switch-over") {
        this.#isOutOfTime = true;
        this.#ofSender.hurry();
      } else {
        this.attempt.fail(
          new MigrationError("TIMEOUT", { phase: this.attempt.phase, limitMs: timeoutMs }),
        );
      }
    };
    // Looked at rather than set once: the limit may change while the migration runs.
    const timer = setInterval(check, Math.min(PROGRESS_MS, this.#parameters.timeoutMs));
    this.#stops.push(() => clearInterval(timer));
  }

  #startProgress(): void {
    const { onProgress } = this.#options;
    if (onProgress === undefined) return;
    const timer = setInterval(() => onProgress(this.#progress()), PROGRESS_MS);
    this.#stops.push(() => clearInterval(timer));
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
      elapsedMs: now - this.#startMs,
    };
  }

  #change(parameters: Parameters): void {
    this.#parameters = parameters;
    if (this.#sender !== null) {
      setBandwidthLimit(this.#sender.control, parameters.maxBandwidthBytesPerSecond);
    }
  }

  /** A step back that fails leaves the guest in somebody's hands: it must be said, with the cause. */
  async #undo(action: string, call: () => Promise<void>): Promise<void> {
    try {
      await callHost(action, this.#parameters.stepTimeoutMs, call);
    } catch (error) {
      const after = this.attempt.failure?.code ?? "a failure";
      throw new MigrationError(
        "GUEST_NOT_RESTORED",
        { action, reason: reasonOf(error), after },
        { at: "source", cause: this.attempt.failure ?? error },
      );
    }
  }
}

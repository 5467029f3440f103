import { must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import { parseAddress } from "../../channels/address.ts";
import { loadChecksum } from "../../channels/checksum.ts";
import { FrameStream } from "../../channels/frame-stream.ts";
import {
  encodeFailure,
  encodeHello,
  encodeRejoin,
  MIGRATION_ID_BYTES,
  TOKEN_BYTES,
  VERSION,
} from "../../channels/messages.ts";
import { notesOf, settle, type Verdict, verdictOf } from "../../cli/handover.ts";
import { migrateIn } from "../../engine/destination.ts";
import type { ParameterOptions } from "../../engine/parameters.ts";
import { PostcopyRecovery } from "../../engine/postcopy-recovery.ts";
import { PostcopySwitch } from "../../engine/postcopy-switch.ts";
import { ReadyThreads } from "../../engine/ready-threads.ts";
import { migrateOut } from "../../engine/source.ts";
import type { Surroundings } from "../../engine/surroundings.ts";
import {
  recordedDestination,
  recordedIn,
  recordedOut,
  recordedSource,
} from "../../hosts/handover-record.ts";
import type { ReceiveSetup, SendSetup } from "../../workers/protocol.ts";
import { Prng } from "../prng.ts";
import { type Fault, type FaultKind, isHarmless, type Plan, SILENT } from "./faults.ts";
import {
  createGuest,
  Ledger,
  type Machine,
  SimulatedDestinationHost,
  SimulatedSourceHost,
} from "./guest.ts";
import { SimulatedLanes } from "./lanes.ts";
import { Network, type Wire } from "./network.ts";
import { Operator, problemsOf, type Records } from "./operator.ts";
import { SimulatedRecord } from "./record.ts";
import type { ThreadFlaws } from "./thread.ts";
import { SimulatedThreads } from "./threads.ts";
import { Side, World } from "./world.ts";

/** What is simulated: the real engine, or one with a flaw that has to be found. */
export interface Engine {
  readonly migrateOut: typeof migrateOut;
  readonly migrateIn: typeof migrateIn;
  readonly threads: ThreadFlaws;
  readonly recordedDestination: typeof recordedDestination;
  readonly settle: typeof settle;
  /** Puts a flaw into the coordinator itself, until it is disposed. */
  spoil?(): Disposable;
}

export const REAL_ENGINE: Engine = {
  migrateOut,
  migrateIn,
  threads: {},
  recordedDestination,
  settle,
};

export interface Outcome {
  /** What is wrong with it; nothing, of an engine that keeps its promises. */
  readonly violations: readonly string[];
  readonly trace: readonly string[];
  /** How each attempt at the source ended, and the first at the destination. */
  readonly ends: readonly string[];
  /** What came about in it that a simulator must not miss: see COVERED in the test. */
  readonly reached: ReadonlySet<string>;
}

const ADDRESS = "tcp:destination:4444";

const CHUNK_BYTES = 128 * 1024;

const STEP_TIMEOUT_MS = 1500;
const LIMITS = {
  stepTimeoutMs: STEP_TIMEOUT_MS,
  channelTimeoutMs: 500,
  connectTimeoutMs: 1000,
  acceptTimeoutMs: 3000,
};

/** A slow host is later than that. */
const SLOW_MS = 2 * STEP_TIMEOUT_MS;

/** Longer than all limits of a migration after each other: what has not ended then, hangs. */
const HANG_MS = 120_000;

/** After the ends are known: late steps of hosts, and what they are taken back by, come to rest. */
const REST_MS = 20_000;

/** Longer than it takes to give a thread up, and for an attempt to end without it. */
const DISK_HANGS_MS = 5000;

type Saying = "garbage" | "hello" | "rejoin" | Uint8Array;

/** No fault that strikes the migration's own channels strikes a stranger's. */
const STRANGE_CHANNEL = 99;

/** For another attempt: what a slow link does to one is seen before. */
const HEALTHY = { latencyMs: 0.1, bytesPerMs: 100_000 };

const LONG_STALL_MS = 5000;
const SHORT_STALL_MS = 150;

interface End {
  readonly name: string;
  readonly side: Side;
  /** "completed" or the failure's code; null while it runs. */
  code: string | null;
}

/** Is told of every report of progress, and when it came. */
export type Watch = (side: "source" | "destination", atMs: number) => void;

/** Runs one plan to its end, then checks what must hold after every end. */
export async function simulate(
  plan: Plan,
  engine: Engine = REAL_ENGINE,
  watch?: Watch,
): Promise<Outcome> {
  using _flaw = engine.spoil?.();
  return await new Simulation(plan, engine, watch).run();
}

class Simulation {
  readonly #plan: Plan;
  readonly #engine: Engine;
  readonly #watch: Watch | undefined;
  readonly #random: Prng;
  readonly #world = new World();
  readonly #source = new Side("source");
  readonly #destination = new Side("destination");
  readonly #ledger: Ledger;
  readonly #guest: Machine;
  readonly #sourceHost: SimulatedSourceHost;
  readonly #recordedSource: SimulatedSourceHost;
  readonly #operator: Operator;
  /** Of each attempt at the source one. */
  readonly #sourceRecords: SimulatedRecord[] = [];
  readonly #destinationRecord = new SimulatedRecord("destination");
  /** The last one whose attempt came to the devices, which is when it notes that COMMIT may follow. */
  #savingRecord: SimulatedRecord | null = null;
  /** The machines that are gone for good, with the records on them. */
  readonly #gone = new Set<Side>();
  readonly #cancels = { source: new AbortController(), destination: new AbortController() };
  readonly #ends: End[] = [];
  readonly #threads: { side: Side; threads: SimulatedThreads | SimulatedLanes }[] = [];
  readonly #switch = new PostcopySwitch();
  readonly #recovery = new PostcopyRecovery();
  readonly #recoveryThere = new PostcopyRecovery();
  readonly #pending: Fault[];
  /** How often each step has begun. */
  readonly #begun = new Map<string | null, number>();
  #sourceStep = "";
  #network: Network;
  #isAtRest = false;

  constructor(plan: Plan, engine: Engine, watch: Watch | undefined) {
    this.#plan = plan;
    this.#watch = watch;
    this.#engine = engine;
    this.#random = new Prng(plan.seed);
    const { latencyMs, bytesPerMs } = plan;
    this.#network = new Network(this.#world, this.#random, { latencyMs, bytesPerMs });
    this.#ledger = new Ledger(this.#world, this.#random, SLOW_MS);
    this.#guest = createGuest(this.#source, this.#ledger);
    this.#sourceHost = new SimulatedSourceHost(this.#guest);
    this.#operator = new Operator(this.#world, this.#sourceHost, engine.settle);
    this.#recordedSource = this.#recorded();
    this.#pending = [...plan.faults];
    for (const { call, trouble } of plan.troubles) this.#ledger.troubles.set(call, trouble);
  }

  async run(): Promise<Outcome> {
    const { vcpus } = this.#plan;
    const host = new SimulatedDestinationHost(this.#destination, this.#guest, vcpus);
    const incoming = this.#moveIn(host, this.#destinationRecord, "migrateIn");
    this.#moveOut("migrateOut", 5);
    this.#arm(null);
    this.#operate();
    await this.#settle(host);
    this.#checkPhases(host, incoming);
    await this.#lookAfter(host);
    this.#checkOwner(host, incoming);
    this.#checkRest();
    await this.#retry();
    return {
      violations: this.#world.violations,
      trace: this.#world.trace,
      ends: this.#ends.map(({ name, code }) => `${name} ${code}`),
      reached: this.#world.reached,
    };
  }

  /** Somebody begins post-copy, and looks after it. */
  #operate(): void {
    const { postcopy, switchAfterMs, operatorMs } = this.#plan;
    const side = this.#source;
    if (postcopy === "manual") this.#world.at(switchAfterMs, side, () => this.#switch.start());
    if (operatorMs === 0) return;
    const look = (): void => {
      if (this.#isAtRest) return;
      if (this.#recovery.pausedFor !== null) {
        this.#world.tell("the operator recovers");
        this.#recovery.recover().catch(() => this.#world.tell("it is not recovered"));
      }
      this.#world.at(operatorMs, side, look);
    };
    this.#world.at(operatorMs, side, look);
  }

  /** Runs until every attempt of a side that lives has ended, and what it set off is over. */
  async #settle(host: SimulatedDestinationHost): Promise<void> {
    this.#isAtRest = false;
    this.#guest.live(this.#plan.eagerness);
    const isOver = (): boolean =>
      this.#operator.isIdle &&
      this.#ends.every(({ side, code }) => code !== null || side.isCrashed);
    if (!(await this.#world.run(isOver, HANG_MS))) {
      for (const { name, side, code } of this.#ends) {
        if (code === null && !side.isCrashed) this.#world.blame(`${name} hangs`);
      }
    }
    this.#isAtRest = true;
    this.#guest.rest();
    host.vcpus?.rest();
    await this.#world.run(() => false, REST_MS);
  }

  #surroundings(side: Side): Surroundings {
    const network = this.#network;
    return {
      connector: (address) => network.connector(side, address),
      listen: (address) => network.listen(side, address),
      readyThreads: (end) => new ReadyThreads(end, 0),
      startThreads: ({ setup, channels }) => {
        const threads = new SimulatedThreads(
          this.#world,
          network,
          { setup: setup as SendSetup | ReceiveSetup, channels },
          this.#engine.threads,
        );
        this.#threads.push({ side, threads });
        return threads;
      },
      startLanes: (setups) => {
        const lanes = new SimulatedLanes(this.#world, network, setups, this.#engine.threads);
        this.#threads.push({ side, threads: lanes });
        return lanes;
      },
    };
  }

  get #parameters(): ParameterOptions {
    const { channels, timeoutMs, nonConvergence, autoConverge, reconnectTimeoutMs } = this.#plan;
    const { postcopy, lanes, recoverTimeoutMs } = this.#plan;
    return {
      ...LIMITS,
      channels,
      ...(postcopy === "never" ? {} : { postcopy, priorityChannels: lanes, recoverTimeoutMs }),
      ...(postcopy === "after-rounds" ? { postcopyRounds: 1 } : {}),
      chunkBytes: CHUNK_BYTES,
      timeoutMs,
      nonConvergence,
      autoConverge,
      reconnectTimeoutMs,
      downtimeLimitMs: 20,
    };
  }

  #recorded(): SimulatedSourceHost {
    return recordedSource(this.#sourceHost, {
      write: (word) => must(this.#savingRecord, "devices are an attempt's").write(word),
    });
  }

  #moveOut(
    name: string,
    afterMs: number,
    { parameters = this.#parameters, host = this.#recordedSource } = {},
  ): void {
    const record = new SimulatedRecord("source");
    this.#sourceRecords.push(record);
    const migrate = (): Promise<unknown> =>
      this.#engine.migrateOut(
        host,
        ADDRESS,
        {
          ...parameters,
          signal: this.#cancels.source.signal,
          // Each is of one migration.
          ...(name === "migrateOut"
            ? { postcopySwitch: this.#switch, recovery: this.#recovery }
            : {}),
          ...this.#watched("source"),
          onPhase: (phase) => {
            if (phase === "devices") this.#savingRecord = record;
            this.#arm(`source ${phase}`);
          },
          onMigration: (id) => record.identify(id),
        },
        this.#surroundings(this.#source),
      );
    this.#follow(name, this.#source, afterMs, () => recordedOut(record, migrate));
  }

  #moveIn(host: SimulatedDestinationHost, record: SimulatedRecord, name: string): End {
    const { side } = host;
    const migrate = (): Promise<unknown> =>
      this.#engine.migrateIn(
        this.#engine.recordedDestination(host, record),
        ADDRESS,
        {
          ...LIMITS,
          reconnectTimeoutMs: this.#plan.reconnectTimeoutMs,
          recoverTimeoutMs: this.#plan.recoverTimeoutMs,
          chunkBytes: CHUNK_BYTES,
          signal: this.#cancels.destination.signal,
          ...this.#watched("destination"),
          ...(name === "migrateIn" ? { recovery: this.#recoveryThere } : {}),
          onPhase: (phase) => {
            this.#checkLink(host, phase);
            this.#arm(`destination ${phase}`);
          },
          onMigration: (id) => record.identify(id),
        },
        this.#surroundings(side),
      );
    return this.#follow(name, side, 0, () => recordedIn(record, migrate));
  }

  #watched(side: "source" | "destination"): { onProgress?: () => void } {
    const watch = this.#watch;
    return watch === undefined ? {} : { onProgress: () => watch(side, this.#world.nowMs()) };
  }

  /** vCPUs know of a pause as soon as anybody does, and of its end. */
  #checkLink({ vcpus }: SimulatedDestinationHost, phase: string): void {
    // Where nothing is missing any more nobody waits.
    if (vcpus === null || vcpus.missing === 0 || !phase.startsWith("postcopy")) return;
    const { link } = vcpus;
    const wanted = phase === "postcopy" ? "open" : "paused";
    if (link !== wanted) this.#world.blame(`in ${phase} vCPUs have it that their link is ${link}`);
  }

  #follow(name: string, side: Side, afterMs: number, start: () => Promise<unknown>): End {
    const end: End = { name, side, code: null };
    this.#ends.push(end);
    this.#world.at(afterMs, side, () => {
      this.#world.tell(`${name} starts`);
      start().then(
        () => this.#conclude(end, "completed"),
        (error: unknown) => this.#conclude(end, error),
      );
    });
    return end;
  }

  #conclude(end: End, how: unknown): void {
    end.code = how === "completed" ? how : how instanceof MigrationError ? how.code : "untyped";
    const why = how instanceof Error ? `: ${how.message}` : "";
    this.#world.tell(`${end.name} ends: ${end.code}${why}`);
    if (end.code === "untyped" || end.code === "INTERNAL") {
      this.#world.blame(`${end.name} ended without a name: ${String(how)}`);
    }
    this.#reach(`${end.name}: ${end.code}`);
    const hasCome = end.name === "migrateIn" && this.#begun.has("destination resume");
    if (hasCome && this.#operator.hasTakenBack) this.#reach("COMMIT is overtaken");
    if (end.code === "HANDOVER_UNKNOWN") {
      this.#operator.settle(this.#plan.settleAfterMs, () => this.#records);
    }
  }

  /** Those that can be read from outside; of attempts, the one that met the destination. */
  get #records(): Records {
    const { migration } = this.#destinationRecord.read();
    const source =
      this.#sourceRecords.find((record) => record.read().migration === migration) ??
      this.#sourceRecords[0];
    return {
      ...(source === undefined || this.#gone.has(this.#source) ? {} : { source }),
      ...(this.#gone.has(this.#destination) ? {} : { destination: this.#destinationRecord }),
    };
  }

  /** The faults whose step begins now will happen. */
  #arm(step: string | null): void {
    if (step !== null) this.#note(step);
    const times = 1 + (this.#begun.get(step) ?? 0);
    this.#begun.set(step, times);
    const isNow = ({ moment: { step: its, nth = 1 } }: Fault): boolean =>
      its === step && nth === times;
    for (const fault of this.#pending.filter(isNow)) {
      this.#pending.splice(this.#pending.indexOf(fault), 1);
      this.#world.at(fault.moment.afterMs, null, () => this.#strike(fault));
    }
  }

  #note(step: string): void {
    this.#world.tell(step);
    if (step === "source postcopy-paused") {
      const times = 1 + (this.#begun.get(step) ?? 0);
      this.#reach(`post-copy pauses for the ${times}. time`);
      this.#reach(`post-copy pauses: ${this.#recovery.pausedFor?.code}`);
      if (this.#sourceStep === "source postcopy-recover") this.#reach("a recovery breaks");
    }
    if (step.startsWith("source ")) this.#sourceStep = step;
  }

  #reach(what: string): void {
    this.#world.reached.add(what);
  }

  #strike({ kind, target }: Fault): void {
    this.#world.tell(`fault: ${kind} (${target})`);
    const wires = this.#wires(target);
    const isSilent = SILENT.has(kind) && wires.length > 0;
    if (isSilent && this.#sourceStep === "source postcopy") this.#reach("post-copy falls silent");
    this.#strikes[kind](wires);
  }

  readonly #strikes: Readonly<Record<FaultKind, (wires: readonly Wire[]) => void>> = {
    loss: (wires) => {
      for (const { source, destination } of wires) {
        source.out.delayMs = 5 + this.#random.below(200);
        destination.out.delayMs = 5 + this.#random.below(200);
      }
    },
    "short stall": (wires) => stall(wires, ["source", "destination"], SHORT_STALL_MS),
    "long stall": (wires) => stall(wires, ["source", "destination"], LONG_STALL_MS),
    "half-open to source": (wires) => stall(wires, ["destination"], Number.POSITIVE_INFINITY),
    "half-open to destination": (wires) => stall(wires, ["source"], Number.POSITIVE_INFINITY),
    cut: (wires) => this.#cut(wires, "both"),
    "cut that only the source sees": (wires) => this.#cut(wires, "source"),
    "cut that only the destination sees": (wires) => this.#cut(wires, "destination"),
    "nobody listens": () => this.#network.closeDoors(),
    "stranger with garbage": () => this.#knock("garbage"),
    "stranger who says hello": () => this.#knock("hello"),
    "stranger who joins again": () => this.#knock("rejoin"),
    "duplicate connection": (wires) => {
      for (const { source } of wires)
        if (source.out.opening !== null) this.#knock(source.out.opening);
    },
    "second attempt": () => {
      if (this.#source.isCrashed) return;
      // An engine itself knows a host that is leaving; another one of the guest meets its destination.
      const host = this.#random.below(2) === 0 ? this.#recordedSource : this.#recorded();
      this.#moveOut("migrateOut again", 0, { host });
    },
    "source crashes": () => this.#crash(this.#source, { isSilent: false }),
    "source's machine is gone": () => this.#crash(this.#source, { isSilent: true }),
    "destination crashes": () => this.#crash(this.#destination, { isSilent: false }),
    "destination's machine is gone": () => this.#crash(this.#destination, { isSilent: true }),
    "source cancels": () => this.#cancel(this.#source),
    "destination cancels": () => this.#cancel(this.#destination),
    "source gives up": () => this.#world.at(0, this.#source, () => this.#recovery.giveUp()),
    "destination gives up": () => {
      this.#world.at(0, this.#destination, () => this.#recoveryThere.giveUp());
    },
    "source breaks off": () => this.#world.at(0, this.#source, () => this.#recovery.pause()),
    "a source's thread dies": () => this.#killThread(this.#source),
    "a destination's thread dies": () => this.#killThread(this.#destination),
    "a source's disk hangs": () => this.#hangThread(this.#source),
    "a destination's disk hangs": () => this.#hangThread(this.#destination),
  };

  #cut(wires: readonly Wire[], seenBy: "both" | "source" | "destination"): void {
    for (const wire of wires) this.#network.cut(wire, seenBy);
  }

  #cancel(side: Side): void {
    const { source, destination } = this.#cancels;
    const cancel = side === this.#source ? source : destination;
    this.#world.at(0, side, () => cancel.abort());
  }

  #wires(target: Fault["target"]): Wire[] {
    const { channels } = this.#plan;
    const kindOf = (channel: number): typeof target =>
      channel === 0 ? "main" : channel > channels ? "lane" : "bulk";
    const wires = this.#network.wires.filter(({ channel, source }) => {
      if (channel === STRANGE_CHANNEL || source.isOver) return false;
      return target === "all" || target === kindOf(channel);
    });
    return target === "bulk" ? wires.slice(0, 1) : wires;
  }

  #crash(side: Side, { isSilent }: { isSilent: boolean }): void {
    if (side.isCrashed) return;
    this.#network.crash(side, isSilent);
    this.#ledger.crash(side);
    if (isSilent) this.#gone.add(side);
  }

  #killThread(side: Side): void {
    const { channels, postcopy, lanes } = this.#plan;
    const channel = 1 + this.#random.below(channels + (postcopy === "never" ? 0 : lanes));
    for (const each of this.#threads) if (each.side === side) each.threads.kill(channel);
  }

  #hangThread(side: Side): void {
    const channel = 1 + this.#random.below(this.#plan.channels);
    for (const { side: theirs, threads } of this.#threads) {
      if (theirs === side && threads instanceof SimulatedThreads) {
        threads.hang(channel, DISK_HANGS_MS);
      }
    }
  }

  /** Somebody else connects, says something (bytes: what a channel began with), and goes away later. */
  #knock(saying: Saying): void {
    const stranger = new Side("stranger");
    this.#world.at(0, stranger, () => {
      this.#visit(stranger, saying).catch(() => this.#world.tell("the stranger is turned away"));
    });
  }

  async #visit(stranger: Side, saying: Saying): Promise<void> {
    const connector = this.#network.connector(stranger, parseAddress(ADDRESS));
    const limitMs = LIMITS.connectTimeoutMs;
    const connection = await connector.connect(STRANGE_CHANNEL, limitMs);
    const checksum = await loadChecksum();
    const stream = new FrameStream(connection, { channel: 0, checksum, peer: "destination" });
    try {
      const garbage = new Uint8Array(64);
      this.#random.bytes(garbage);
      const hello = encodeHello({
        versionMin: VERSION.min,
        versionMax: VERSION.max,
        migrationId: garbage.slice(0, MIGRATION_ID_BYTES),
        channel: 0,
        lane: "main",
        token: garbage.slice(0, TOKEN_BYTES),
      });
      if (saying === "hello") await stream.send("hello", hello, limitMs);
      else if (saying === "rejoin") await this.#intrude(stream, hello);
      else connection.writer.write(saying === "garbage" ? garbage : saying);
      await this.#world.sleep(this.#random.below(1000));
    } finally {
      stream.close();
    }
  }

  /** As a source that lost its main channel, and then tells a failure; if it is let in. */
  async #intrude(stream: FrameStream, hello: Uint8Array): Promise<void> {
    const limitMs = LIMITS.connectTimeoutMs;
    await stream.send("hello", hello, limitMs);
    await stream.receive(["welcome"], limitMs);
    await stream.send("rejoin", encodeRejoin(0), limitMs);
    await stream.receive(["rejoin"], limitMs);
    const failure = new MigrationError("CANCELLED", { phase: "precopy" });
    await stream.send("failure", encodeFailure(failure), limitMs);
  }

  /** What must hold when all has come to rest, before somebody looks after it. */
  #checkPhases(host: SimulatedDestinationHost, incoming: End): void {
    const runsThere = host.machine?.runs === true;
    const blame = this.#blame;
    if (isHarmless(this.#plan) && !this.#codes.includes("completed")) {
      blame("a migration fails that had no reason to");
    }
    if (this.#codes.includes("completed")) {
      if (!this.#destination.isCrashed) this.#checkWhole(host, blame);
      if (incoming.code === "POSTCOPY_INTERRUPTED") blame("what is complete was given up");
    } else if (this.#codes.includes("POSTCOPY_INTERRUPTED")) {
      if (this.#guest.runs) blame("the source resumed a guest that went over");
    } else if (this.#codes.includes("HANDOVER_UNKNOWN")) {
      const isIts = this.#operator.hasTakenBack;
      if (this.#guest.runs && !isIts) blame("the source resumed a guest that it had handed over");
    } else if (!this.#source.isCrashed && !this.#codes.includes(null)) {
      if (runsThere) blame("the guest runs at the destination, and the source does not know");
      const isTold = this.#codes.includes("GUEST_NOT_RESTORED") && this.#plan.troubles.length > 0;
      if (!isTold) this.#checkRestored(blame);
    }
    if (this.#destination.isCrashed) return;
    this.#checkDiscarded(host, incoming);
    this.#checkVerdictThere(incoming, runsThere);
    if (incoming.code === "completed") {
      if (!runsThere) blame("the destination says that the guest runs, and it does not");
      this.#checkWhole(host, blame);
      const link = host.vcpus?.link ?? "open";
      if (link !== "open") blame(`the guest is whole, and its vCPUs have it that it is ${link}`);
    }
    if (incoming.code === "POSTCOPY_INTERRUPTED") {
      const mayRun = this.#canRun && !this.#operator.hasTakenBack;
      if (!runsThere && mayRun) blame("a guest that went over does not run");
      const waits = host.vcpus !== null && host.vcpus.link !== "given-up";
      if (waits) blame("vCPUs wait for ever for what will not come");
    }
    host.check();
  }

  /** What failed before COMMIT leaves nothing, unless the host cannot discard it. */
  #checkDiscarded({ machine }: SimulatedDestinationHost, { code }: End): void {
    const hasFailed = code !== null && code !== "completed";
    const canDiscard = this.#plan.troubles.every(({ call }) => call !== "discard");
    if (!hasFailed || !canDiscard || this.#begun.has("destination resume")) return;
    if (machine !== null) this.#blame("what failed before COMMIT was not discarded");
  }

  /** What the destination says of itself is what has come to be. */
  #checkVerdictThere({ code }: End, runsThere: boolean): void {
    if (this.#codes.includes("completed") && code !== "completed") {
      this.#blame(`the source completed, and the destination did not: ${code}`);
    }
    const isTold = code === "completed" || code === "POSTCOPY_INTERRUPTED";
    if (runsThere && !isTold && this.#canRun) {
      this.#blame(`the guest runs at the destination, which says ${code}`);
    }
  }

  /** What an operator does who finds a guest that its engine left at rest, and says so. */
  async #lookAfter(host: SimulatedDestinationHost): Promise<void> {
    if (this.#verdict === "taken over" && !this.#destination.isCrashed)
      this.#operator.runThere(host);
    if (this.#codes.includes("GUEST_NOT_RESTORED") && !this.#source.isCrashed) {
      this.#operator.restore();
    }
    await this.#world.run(() => this.#operator.isIdle, HANG_MS);
    host.vcpus?.rest();
    if (!this.#operator.isIdle) this.#world.blame("the operator hangs");
  }

  /** Who owns the guest by the records, as `multifd handover` tells, and whether it runs just there. */
  #checkOwner(host: SimulatedDestinationHost, incoming: End): void {
    const isUndecided = this.#destinationRecord.read().owner === "unknown";
    if (incoming.code !== null && isUndecided) this.#blame("the destination ended undecided");
    const problems = problemsOf(this.#verdict, {
      runsHere: this.#guest.runs,
      runsThere: host.machine?.runs === true,
      source: this.#source,
      destination: this.#destination,
    });
    for (const problem of problems) this.#blame(problem);
    const isRestored = this.#codes.includes("GUEST_NOT_RESTORED") && !this.#source.isCrashed;
    if (isRestored) this.#checkRestored(this.#blame);
  }

  get #verdict(): Verdict {
    return verdictOf(notesOf(this.#records));
  }

  /** How the attempts at the source ended. */
  get #codes(): readonly (string | null)[] {
    return this.#ends.filter(({ name }) => name.startsWith("migrateOut")).map(({ code }) => code);
  }

  readonly #blame = (what: string): void => {
    this.#world.blame(`${what} (${this.#codes.join(", ")})`);
  };

  /** A host that fails to run the guest leaves it at rest, whole as far as it came. */
  get #canRun(): boolean {
    return this.#plan.troubles.every(({ call }) => call !== "run");
  }

  #checkWhole({ vcpus }: SimulatedDestinationHost, blame: (what: string) => void): void {
    if (vcpus === null) return; // All was there before the guest ran.
    if (vcpus.missing !== 0) blame(`${vcpus.missing} pages never came`);
  }

  #checkRestored(blame: (what: string) => void): void {
    if (!this.#guest.runs) blame("the guest runs nowhere");
    if (this.#guest.log !== null) blame("tracking is left on");
    if (this.#guest.throttlePercent !== 0) blame("the guest is left throttled");
  }

  #checkRest(): void {
    for (const left of this.#network.leftOpen()) this.#world.blame(left);
    const timers = [...this.#world.timers.values()].filter((side) => side?.isCrashed === false);
    if (timers.length > 0) this.#world.blame(`${timers.length} timers are left`);
  }

  /** Where the guest is still the source's, another attempt over a healthy network moves it. */
  async #retry(): Promise<void> {
    if (this.#world.violations.length > 0 || this.#source.isCrashed || !this.#guest.runs) return;
    this.#ledger.troubles.clear();
    this.#pending.length = 0;
    this.#network = new Network(this.#world, this.#random, HEALTHY);
    this.#cancels.source = new AbortController();
    this.#cancels.destination = new AbortController();
    this.#ends.length = 0;
    const side = new Side("second destination");
    const host = new SimulatedDestinationHost(side, this.#guest, this.#plan.vcpus);
    this.#moveIn(host, new SimulatedRecord("destination"), "migrateIn, retried");
    const parameters = { timeoutMs: 20_000, nonConvergence: "switch-over", maxRounds: 10 } as const;
    this.#moveOut("migrateOut, retried", 5, { parameters: { ...this.#parameters, ...parameters } });
    await this.#settle(host);
    for (const { name, code } of this.#ends) {
      if (code !== "completed") this.#world.blame(`${name} fails: ${code}`);
    }
    if (host.machine?.runs !== true) this.#world.blame("the guest does not run after the retry");
    this.#checkWhole(host, this.#blame);
    host.check();
    this.#checkRest();
  }
}

function stall(
  wires: readonly Wire[],
  senders: readonly ("source" | "destination")[],
  forMs: number,
): void {
  for (const wire of wires) for (const sender of senders) wire[sender].out.stall(forMs);
}

import { assert, must } from "../../base/assert.ts";
import { createDirtyLog, type DirtyLog } from "../../engine/dirty-log.ts";
import { type FaultDoor, isPresent, SEATS_MAX } from "../../engine/faults.ts";
import type { DeviceSection, SourceHost } from "../../engine/host.ts";
import { type Control, createControl, readState, writeState } from "./control.ts";
import { DESCRIPTION, encodeDevices, type GuestDevices } from "./devices.ts";
import { allocateBlock, fillMemory, type SharedBlock } from "./memory.ts";
import { checkShape, type GuestShape } from "./shape.ts";
import { firstState, sweepsOf, type VcpuState } from "./sweep.ts";
import type { VcpuFaults } from "./vcpu.ts";
import { startVcpuThreads, stopVcpuThreads, type VcpuThread } from "./vcpu-thread.ts";
import { type IsHere, verifyMemory } from "./verify.ts";

/** A vCPU answers in a millisecond; far beyond this its thread hangs and nobody should wait. */
const ANSWER_LIMIT_MS = 10_000;

/** Patience with a vCPU that is about to be ended anyway. */
const STOP_LIMIT_MS = 1000;

/** What a guest is made of: threads that are blank still, and memory that holds its content. */
export interface GuestParts extends GuestDevices {
  /** In the order of the shape's blocks. */
  readonly memory: readonly SharedBlock[];
  /** One for each vCPU. They belong to the guest from here on, also when it is not made. */
  readonly threads: readonly VcpuThread[];
  /** Where its memory may still be on its way. */
  readonly door?: FaultDoor | undefined;
}

/**
 * A pretend hypervisor in this process whose guest really writes memory, from one thread per vCPU.
 *
 * Its content is at any moment a pure function of its shape and its vCPUs' states, so `verify` can
 * tell every lost, torn or damaged page. Calls are served one after the other, in order. Running,
 * it keeps its process alive; paused, it does not. `stop` ends its threads.
 */
export class MemoryGuest implements SourceHost {
  readonly description = DESCRIPTION;
  readonly shape: GuestShape;
  readonly blocks: readonly SharedBlock[];
  readonly #threads: readonly VcpuThread[];
  readonly #controls: readonly Control[];
  readonly #logs: readonly DirtyLog[];
  readonly #door: FaultDoor | undefined;
  #running = false;
  #tracking = false;
  #throttlePercent = 0;
  #ranBeforePause = false;
  #isStopped = false;
  #stopping: Promise<void> | null = null;
  /** Settles when the call before has ended. */
  #turn: Promise<unknown> = Promise.resolve();

  private constructor({ shape, states, memory, threads, door }: GuestParts) {
    this.shape = shape;
    this.blocks = memory;
    this.#threads = threads;
    this.#door = door;
    this.#logs = memory.map((block) => createDirtyLog(block.name, block));
    this.#controls = states.map((state) => {
      const control = createControl();
      writeState(control, state);
      return control;
    });
    for (const index of threads.keys()) this.#assign(index, door);
  }

  /** A new guest, paused, in memory of its own. Throws RangeError with all problems of a shape. */
  static async create(given: GuestShape): Promise<MemoryGuest> {
    const shape = checkShape(given);
    const memory = shape.blocks.map(allocateBlock);
    const starting = startVcpuThreads(shape.vcpus.length, { mayFault: false });
    const [filled, started] = await Promise.allSettled([fillMemory(shape, memory), starting]);
    if (started.status === "rejected") throw started.reason;
    if (filled.status === "rejected") {
      await stopVcpuThreads(started.value);
      throw filled.reason;
    }
    const states = shape.vcpus.map((vcpu) => firstState(sweepsOf(vcpu)));
    return await MemoryGuest.over({ shape, states, memory, threads: started.value });
  }

  /** A guest that goes on, paused, where another one was: the memory holds its content already. */
  static async over(parts: GuestParts): Promise<MemoryGuest> {
    try {
      const guest = new MemoryGuest(parts);
      await guest.#inTurn(() => guest.#order(ANSWER_LIMIT_MS));
      return guest;
    } catch (error) {
      await stopVcpuThreads(parts.threads);
      throw error;
    }
  }

  /** True from `run` or `resume` to `pause` or `stop`. */
  get running(): boolean {
    return this.#running;
  }

  /** True while writes are recorded. */
  get tracking(): boolean {
    return this.#tracking;
  }

  get throttlePercent(): number {
    return this.#throttlePercent;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  /** Pages written on this host so far, by all vCPUs. A page written twice counts twice. */
  get writtenPages(): number {
    return this.#controls.reduce((sum, { written }) => sum + (written[0] ?? 0), 0);
  }

  /** vCPU threads that exist. */
  get threadCount(): number {
    return this.#threads.filter(({ isAlive }) => isAlive).length;
  }

  get deviceBytes(): number {
    return encodeDevices({ shape: this.shape, states: this.#states() }).reduce(
      (sum, { bytes }) => sum + bytes.length,
      0,
    );
  }

  /** Lets the guest run, whether it ran before or not. */
  run(): Promise<void> {
    return this.#inTurn(async () => {
      this.#checkLives("run");
      this.#ranBeforePause = false;
      await this.#run();
    });
  }

  pause(): Promise<void> {
    return this.#inTurn(() => this.#pause(ANSWER_LIMIT_MS));
  }

  resume(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#ranBeforePause) return;
      this.#checkLives("resume");
      this.#ranBeforePause = false;
      await this.#run();
    });
  }

  /** Throws RangeError unless `percent` is an integer of 0 to 99. */
  async throttle(percent: number): Promise<void> {
    if (!Number.isInteger(percent) || percent < 0 || percent > 99) {
      throw new RangeError(`Cannot throttle: percent must be an integer in 0..99: ${percent}`);
    }
    await this.#inTurn(async () => {
      if (percent === this.#throttlePercent) return;
      this.#throttlePercent = percent;
      await this.#order(ANSWER_LIMIT_MS);
    });
  }

  /** The logs are clean, and the same each time: whoever reads them must have stopped before. */
  startDirtyLog(): Promise<readonly DirtyLog[]> {
    return this.#inTurn(async () => {
      this.#checkLives("track writes");
      if (!this.#tracking) for (const log of this.#logs) clear(log);
      this.#tracking = true;
      await this.#order(ANSWER_LIMIT_MS);
      return this.#logs;
    });
  }

  stopDirtyLog(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#tracking) return;
      this.#tracking = false;
      await this.#order(ANSWER_LIMIT_MS);
    });
  }

  saveDevices(): Promise<readonly DeviceSection[]> {
    return this.#inTurn(async () => {
      this.#checkIsStill("save devices");
      return encodeDevices({ shape: this.shape, states: this.#states() });
    });
  }

  /**
   * What is wrong with the paused guest's memory; nothing if it is intact. Every byte of it is
   * looked at, about 2 GB each second, without keeping the event loop for longer than 5 ms.
   */
  verify(): Promise<string[]> {
    return this.#inTurn(() => this.#verify());
  }

  /** As `verify`, of a guest whose memory still comes after it: of the pages that have come. */
  verifyPresent(): Promise<string[]> {
    const door = this.#door;
    if (door === undefined) return this.verify();
    const numbers = new Map(door.blocks.map(({ name }, number) => [name, number]));
    return this.#inTurn(() =>
      this.#verify((name, page) => {
        return isPresent(door, must(numbers.get(name), "a door has every block"), page);
      }),
    );
  }

  /**
   * Pauses the guest and ends its threads, also those that do not answer. Idempotent. Memory stays,
   * and can still be verified.
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#inTurn(async () => {
      try {
        await this.#pause(STOP_LIMIT_MS);
      } catch {
        // A vCPU that died or hangs is ended like the others; `verify` will tell.
      }
      this.#isStopped = true;
      this.#ranBeforePause = false;
      this.#tracking = false;
      await stopVcpuThreads(this.#threads);
    });
    return this.#stopping;
  }

  #assign(index: number, door: FaultDoor | undefined): void {
    const shape = must(this.shape.vcpus[index], "a thread has its vCPU");
    const number = this.blocks.findIndex(({ name }) => name === shape.block);
    const block = must(this.blocks[number], "a vCPU's block exists");
    must(this.#threads[index], "a vCPU has its thread").assign({
      shape,
      pageBytes: block.pageBytes,
      memory: block.place.buffer,
      log: must(this.#logs[number], "a block has its log"),
      control: must(this.#controls[index], "a vCPU has its control words"),
      ...(door === undefined ? {} : { faults: faultsOf(door, { seat: index, name: block.name }) }),
    });
  }

  async #verify(isHere?: IsHere): Promise<string[]> {
    const deaths = this.#threads.flatMap(({ death }) => death ?? []);
    if (deaths.length > 0) return deaths;
    this.#checkIsStill("verify");
    return await verifyMemory(this.shape, this.blocks, this.#states(), isHere);
  }

  async #run(): Promise<void> {
    this.#running = true;
    await this.#order(ANSWER_LIMIT_MS);
  }

  /** Remembers first that the guest ran: `resume` must undo also a pause that failed half-way. */
  async #pause(limitMs: number): Promise<void> {
    if (this.#running) this.#ranBeforePause = true;
    this.#running = false;
    await this.#order(limitMs);
  }

  /** Tells all vCPUs what holds now and returns when they follow. After `stop` nobody is told. */
  async #order(limitMs: number): Promise<void> {
    if (this.#isStopped) return;
    const orders = {
      run: this.#running,
      track: this.#tracking,
      throttlePercent: this.#throttlePercent,
    };
    await Promise.all(this.#threads.map((thread) => thread.obey(orders, limitMs)));
  }

  #checkLives(action: string): void {
    if (this.#isStopped) throw new Error(`Cannot ${action}: the guest was stopped`);
  }

  #checkIsStill(action: string): void {
    if (this.#running) throw new Error(`Cannot ${action}: the guest is running`);
    const isStill = this.#threads.every((thread) => thread.death === null && thread.isStill);
    if (!isStill) throw new Error(`Cannot ${action}: a vCPU did not answer when it was paused`);
  }

  #states(): VcpuState[] {
    return this.shape.vcpus.map((vcpu, index) =>
      readState(must(this.#controls[index], "a vCPU has its control words"), sweepsOf(vcpu).length),
    );
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work);
    this.#turn = mine.catch(() => {});
    return await mine;
  }
}

/** The door's blocks are in the order of the announcement, which need not be the shape's. */
function faultsOf(door: FaultDoor, { seat, name }: { seat: number; name: string }): VcpuFaults {
  const block = door.blocks.findIndex((one) => one.name === name);
  assert(block !== -1 && seat < SEATS_MAX, "a door has every block, and a seat for each vCPU");
  return { door, seat, block };
}

function clear({ words, summary }: DirtyLog): void {
  words.fill(0);
  summary.fill(0);
}

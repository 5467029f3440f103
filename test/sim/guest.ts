import { must } from "../../base/assert.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import { createDirtyLog, type DirtyLog, markDirty } from "../../engine/dirty-log.ts";
import type { DestinationHost, DeviceSection, SourceHost } from "../../engine/host.ts";
import type { FaultDoor } from "../../workers/fault-door.ts";
import type { Prng } from "../prng.ts";
import { Vcpus } from "./vcpus.ts";
import type { Side, World } from "./world.ts";

export const PAGE_BYTES = 4096;

/** Guests write in the first bytes of a page only: pages are compared whole, and copied in part. */
export const USED_BYTES = 512;

/** Two chunks and a bit: with two channels each has something to do. */
const PAGES = { ram: 80, firmware: 16 } as const;

/** What a host can be asked, at either end. */
export const HOST_CALLS = [
  "startDirtyLog",
  "stopDirtyLog",
  "pause",
  "resume",
  "throttle",
  "saveDevices",
  "prepare",
  "takeFaults",
  "loadDevices",
  "run",
  "discard",
] as const;
export type HostCall = (typeof HOST_CALLS)[number];

/** How a host may fail to do what it is asked: it takes effect late, not at all, or never ends. */
export const HOST_TROUBLES = ["slow", "throws", "hangs"] as const;
export type HostTrouble = (typeof HOST_TROUBLES)[number];

/** All machines of a simulation, of which at most one may run. */
export class Ledger {
  readonly world: World;
  readonly random: Prng;
  readonly troubles = new Map<HostCall, HostTrouble>();
  readonly #running = new Set<Machine>();
  /** Of all that ever ran the one that was made last: to it the guest has gone. */
  #latest: Machine | null = null;
  #machines = 0;
  /** Longer than the engine's limit for a step. */
  readonly slowMs: number;

  constructor(world: World, random: Prng, slowMs: number) {
    this.world = world;
    this.random = random;
    this.slowMs = slowMs;
  }

  /** Machines are numbered as they are made. */
  next(): number {
    this.#machines += 1;
    return this.#machines;
  }

  runs(machine: Machine): boolean {
    return this.#running.has(machine);
  }

  /** What ran there is gone. */
  crash(side: Side): void {
    for (const machine of [...this.#running]) if (machine.side === side) machine.runs = false;
  }

  setRunning(machine: Machine, runs: boolean): void {
    if (runs === this.runs(machine) || (runs && machine.side.isCrashed)) return;
    this.world.tell(`${machine.side.name}'s guest ${runs ? "runs" : "stands still"}`);
    if (runs) this.#running.add(machine);
    else this.#running.delete(machine);
    if (this.#running.size > 1) this.world.blame("two copies of the guest run");
    if (!runs) return;
    const { side, number } = this.#latest ?? machine;
    if (machine.number < number) {
      this.world.blame(`${machine.side.name}'s guest runs again after it ran at the ${side.name}`);
    } else this.#latest = machine;
  }

  /** Everything a host does takes a while, and may go wrong. */
  async step(side: Side, call: HostCall, effect: () => void): Promise<void> {
    const trouble = this.troubles.get(call);
    this.world.tell(`${side.name}'s host: ${call}${trouble === undefined ? "" : ` ${trouble}`}`);
    this.troubles.delete(call);
    await this.world.sleep((1 + this.random.below(30)) / 10);
    if (trouble === "throws") throw new Error(`cannot ${call}`);
    if (trouble === "hangs") await new Promise(() => {});
    if (trouble === "slow") await this.world.sleep(this.slowMs);
    effect();
  }
}

/** A guest at one end: its memory, and whether it runs there. */
export class Machine {
  readonly side: Side;
  readonly number: number;
  readonly ledger: Ledger;
  readonly blocks: readonly Block[];
  devices: readonly DeviceSection[] = [];
  log: readonly DirtyLog[] | null = null;
  throttlePercent = 0;
  #isAtRest = false;

  constructor(side: Side, ledger: Ledger, blocks: readonly Block[]) {
    this.side = side;
    this.number = ledger.next();
    this.ledger = ledger;
    this.blocks = blocks;
  }

  get runs(): boolean {
    return this.ledger.runs(this);
  }

  set runs(runs: boolean) {
    this.ledger.setRunning(this, runs);
  }

  /** Writes, now and then, for as long as it runs; less when throttled. Until `rest`. */
  live(eagerness: number): void {
    this.#isAtRest = false;
    const { world, random } = this.ledger;
    const next = (): void => {
      const restMs = (3 + random.below(20)) / (1 - this.throttlePercent / 100);
      world.at(restMs, null, () => {
        if (this.side.isCrashed || this.#isAtRest) return;
        if (this.runs) for (let i = random.below(1 + eagerness); i >= 0; i -= 1) this.#write();
        next();
      });
    };
    next();
  }

  /** Nothing is watched any more. */
  rest(): void {
    this.#isAtRest = true;
  }

  #write(): void {
    const { random } = this.ledger;
    const block = must(this.blocks[random.below(this.blocks.length)], "a guest has blocks");
    const page = random.below(block.sizeBytes / PAGE_BYTES);
    const memory = memoryOf(block);
    random.bytes(
      memory.subarray(page * PAGE_BYTES + 8 * random.below(USED_BYTES / 8)).subarray(0, 8),
    );
    const log = this.log?.find((each) => each.block === block.name);
    if (log !== undefined) markDirty(log, page);
  }
}

export function memoryOf({ place }: Block): Uint8Array {
  if (place.kind !== "shared") throw new Error("simulated memory is shared");
  return new Uint8Array(place.buffer);
}

function createBlock(name: string, sizeBytes: number): Block {
  const place = { kind: "shared", buffer: new SharedArrayBuffer(sizeBytes) } as const;
  return { name, sizeBytes, pageBytes: PAGE_BYTES, place };
}

/** A guest that was born here, and runs. */
export function createGuest(side: Side, ledger: Ledger): Machine {
  const blocks = Object.entries(PAGES).map(([name, pages]) =>
    createBlock(name, pages * PAGE_BYTES),
  );
  for (const block of blocks) {
    for (let at = 0; at < block.sizeBytes; at += PAGE_BYTES) {
      ledger.random.bytes(memoryOf(block).subarray(at, at + 16));
    }
  }
  const machine = new Machine(side, ledger, blocks);
  machine.runs = true;
  return machine;
}

/** The host of a guest that leaves. */
export class SimulatedSourceHost implements SourceHost {
  readonly machine: Machine;
  readonly dirtyLog = "bitmap";
  #ranBefore = false;
  #isPaused = false;

  constructor(machine: Machine) {
    this.machine = machine;
  }

  get blocks(): readonly Block[] {
    return this.machine.blocks;
  }

  async startDirtyLog(): Promise<readonly DirtyLog[]> {
    const { machine } = this;
    const log = machine.blocks.map((block) => createDirtyLog(block.name, block));
    await this.#step("startDirtyLog", () => {
      machine.log = log;
    });
    return log;
  }

  async stopDirtyLog(): Promise<void> {
    await this.#step("stopDirtyLog", () => {
      this.machine.log = null;
    });
  }

  async pause(): Promise<void> {
    await this.#step("pause", () => {
      if (!this.#isPaused) this.#ranBefore = this.machine.runs;
      this.#isPaused = true;
      this.machine.runs = false;
    });
  }

  async resume(): Promise<void> {
    await this.#step("resume", () => {
      if (this.#isPaused && this.#ranBefore) this.machine.runs = true;
      this.#isPaused = false;
    });
  }

  async throttle(percent: number): Promise<void> {
    await this.#step("throttle", () => {
      this.machine.throttlePercent = percent;
    });
  }

  async saveDevices(): Promise<readonly DeviceSection[]> {
    const { machine } = this;
    if (machine.runs) machine.ledger.world.blame("devices are saved while the guest runs");
    const bytes = new Uint8Array(100 + this.machine.ledger.random.below(3000));
    this.machine.ledger.random.bytes(bytes);
    await this.#step("saveDevices", () => {
      this.machine.devices = [{ name: "disk", bytes }];
    });
    return this.machine.devices;
  }

  async #step(call: HostCall, effect: () => void): Promise<void> {
    await this.machine.ledger.step(this.machine.side, call, effect);
  }
}

/** The host where a guest arrives: it knows what should arrive, and says when it does not. */
export class SimulatedDestinationHost implements DestinationHost {
  readonly side: Side;
  readonly origin: Machine;
  machine: Machine | null = null;
  /** In post-copy, once the guest runs. */
  vcpus: Vcpus | null = null;
  readonly #vcpus: number;
  #door: FaultDoor | null = null;
  #devices: readonly DeviceSection[] = [];

  constructor(side: Side, origin: Machine, vcpus: number) {
    this.side = side;
    this.origin = origin;
    this.#vcpus = vcpus;
  }

  async prepare(announced: readonly BlockAnnouncement[]): Promise<readonly Block[]> {
    const machine = new Machine(
      this.side,
      this.origin.ledger,
      announced.map(({ name, sizeBytes }) => createBlock(name, sizeBytes)),
    );
    await this.#step("prepare", () => {
      this.machine = machine;
    });
    return machine.blocks;
  }

  async takeFaults(door: FaultDoor): Promise<void> {
    await this.#step("takeFaults", () => {
      this.#door = door;
    });
  }

  async loadDevices(sections: readonly DeviceSection[]): Promise<void> {
    await this.#step("loadDevices", () => {
      this.#devices = sections;
    });
  }

  async resume(): Promise<void> {
    await this.#step("run", () => {
      const machine = must(this.machine, "only a guest that was prepared runs");
      const [door, { origin }] = [this.#door, this];
      if (door !== null) this.vcpus = new Vcpus(machine, { door, origin, count: this.#vcpus });
      this.#compare(machine);
      machine.runs = true;
      this.vcpus?.live();
    });
  }

  async discard(): Promise<void> {
    await this.#step("discard", () => {
      if (this.machine?.runs === true) this.#world.blame("a guest that runs was discarded");
      this.machine = null;
    });
  }

  /** Once all is over: without post-copy nobody writes to a guest that arrived, nor at its source. */
  check(): void {
    if (this.vcpus !== null) this.vcpus.check();
    else if (this.machine?.runs === true)
      this.#compareMemory(this.machine, "is not the same once all is over");
  }

  #compare(machine: Machine): void {
    if (this.vcpus !== null) this.vcpus.check();
    else this.#compareMemory(machine, "is not the same when the guest runs");
    this.#compareDevices();
  }

  #compareMemory(machine: Machine, problem: string): void {
    for (const [index, block] of this.origin.blocks.entries()) {
      const wanted = memoryOf(block);
      const found = memoryOf(must(machine.blocks[index], "every block has arrived"));
      if (Buffer.compare(wanted, found) !== 0) {
        this.#world.blame(`block "${block.name}" ${problem}`);
      }
    }
  }

  #compareDevices(): void {
    const [wanted, found] = [this.origin.devices, this.#devices].map((sections) =>
      sections.map(({ name, bytes }) => `${name}=${Buffer.from(bytes).toString("hex")}`).join(),
    );
    if (wanted !== found) this.#world.blame("devices are not the same when the guest runs");
  }

  get #world(): World {
    return this.origin.ledger.world;
  }

  async #step(call: HostCall, effect: () => void): Promise<void> {
    await this.origin.ledger.step(this.side, call, effect);
  }
}

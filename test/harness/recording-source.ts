import { assert, must } from "../../base/assert.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import { createDirtyLog, type DirtyLog, markDirty, type ScanLog } from "../../engine/dirty-log.ts";
import type { DeviceSection, SourceHost } from "../../engine/host.ts";
import { Prng } from "../prng.ts";
import { allocate, bytesOf, difference, fillBlocks, SMALL_GUEST } from "./guest-memory.ts";
import type { Misbehaviour } from "./misbehaviour.ts";

export type SourceAction =
  | "startDirtyLog"
  | "stopDirtyLog"
  | "pause"
  | "resume"
  | "throttle"
  | "saveDevices";

export const DEVICES: readonly DeviceSection[] = [
  { name: "clock", bytes: new Uint8Array([1, 2, 3]) },
  { name: "nothing", bytes: new Uint8Array(0) },
  { name: "cpu/0", bytes: new Uint8Array(300).fill(7) },
];

/**
 * A source whose every call is recorded and can be made to fail. Its guest writes when the test
 * says so: in `onLook`, whenever the engine is about to read the dirty log (where it scans: after
 * each round), and in `onPause`, just before it comes to rest. So rounds have the same dirty pages
 * however fast this machine is. One without a dirty log has a stopped guest, which writes nothing.
 */
export class RecordingSource implements SourceHost {
  readonly blocks: readonly Block[];
  readonly dirtyLog: "none" | "bitmap" | "scan";
  readonly calls: string[] = [];
  sections: readonly DeviceSection[] = DEVICES;
  running: boolean;
  tracking = false;
  throttlePercent = 0;
  /** Absent for a host that cannot throttle. */
  throttle?: (percent: number) => Promise<void>;
  onLook: () => void = () => {};
  onPause: () => void = () => {};
  readonly #misbehaviours = new Map<SourceAction, Misbehaviour>();
  readonly #prng: Prng;
  /** What the guest alone made of memory that is this source's own: nobody else has it. */
  readonly #intended: readonly Block[] | null = null;
  #logs: readonly DirtyLog[] = [];
  #isWriting = false;
  #isPaused = false;
  #ranBefore = false;

  constructor(options: {
    seed: number;
    shape?: readonly BlockAnnouncement[];
    blocks?: readonly Block[];
    canThrottle?: boolean;
    dirtyLog?: "none" | "bitmap" | "scan";
  }) {
    this.dirtyLog = options.dirtyLog ?? "bitmap";
    this.running = this.dirtyLog !== "none";
    this.blocks = options.blocks ?? allocate(options.shape ?? SMALL_GUEST);
    this.#prng = new Prng(options.seed);
    if (options.blocks === undefined) {
      fillBlocks(this.blocks, options.seed);
      this.#intended = allocate(this.blocks);
      fillBlocks(this.#intended, options.seed);
    }
    if (options.canThrottle === true) this.throttle = (percent) => this.#throttle(percent);
  }

  /** None. The engine asks after each round, when it judges. */
  get deviceBytes(): number {
    if (this.dirtyLog === "scan") this.#look();
    return 0;
  }

  /** Where memory is not what the guest wrote: somebody else did. Null when all is as it should be. */
  get damage(): string | null {
    return difference(this.blocks, must(this.#intended, "the memory is of this source's making"));
  }

  /** The next call of `action`, and only that one, goes wrong. */
  misbehave(action: SourceAction, misbehaviour: Misbehaviour): void {
    this.#misbehaviours.set(action, misbehaviour);
  }

  /** The running guest writes so many pages, anywhere in its memory: so many bytes in each. */
  writePages(count: number, bytes = 64): void {
    assert(this.running, "a guest that does not run does not write");
    for (let done = 0; done < count; done += 1) {
      const index = this.#prng.below(this.blocks.length);
      const block = must(this.blocks[index], "a random block is there");
      const page = this.#prng.below(block.sizeBytes / block.pageBytes);
      this.#write(block, page, bytes);
    }
  }

  async startDirtyLog(): Promise<readonly (DirtyLog | ScanLog)[]> {
    return await this.#call("startDirtyLog", async () => {
      if (this.dirtyLog === "scan") {
        this.tracking = true;
        return this.blocks.map(({ name }) => ({ kind: "scan", block: name }) as const);
      }
      if (this.dirtyLog === "bitmap" && !this.tracking) {
        this.#logs = this.blocks.map((block) => createDirtyLog(block.name, block));
      }
      this.tracking = true;
      return this.#logs.map((log) => this.#watched(log));
    });
  }

  async stopDirtyLog(): Promise<void> {
    await this.#call("stopDirtyLog", async () => {
      this.tracking = false;
    });
  }

  async pause(): Promise<void> {
    await this.#call("pause", async () => {
      if (this.#isPaused) return;
      if (this.running) this.onPause();
      this.#ranBefore = this.running;
      this.#isPaused = true;
      this.running = false;
    });
  }

  async resume(): Promise<void> {
    await this.#call("resume", async () => {
      if (this.#isPaused) this.running = this.#ranBefore;
      this.#isPaused = false;
    });
  }

  async saveDevices(): Promise<readonly DeviceSection[]> {
    return await this.#call("saveDevices", async () => {
      assert(!this.running, "devices are saved at rest");
      return this.sections;
    });
  }

  async #throttle(percent: number): Promise<void> {
    this.calls.push(`throttle ${percent}`);
    await this.#act("throttle", async () => {
      this.throttlePercent = percent;
    });
  }

  /** The log, and the guest writes just before somebody reads of which block it is. */
  #watched(log: DirtyLog): DirtyLog {
    const look = (): void => this.#look();
    return {
      ...log,
      get block() {
        look();
        return log.block;
      },
    };
  }

  #look(): void {
    if (!this.running || !this.tracking || this.#isWriting) return;
    this.#isWriting = true;
    this.onLook();
    this.#isWriting = false;
  }

  #write(block: Block, page: number, bytes: number): void {
    const { pageBytes } = block;
    const target = bytesOf(block).subarray(page * pageBytes, (page + 1) * pageBytes);
    // Some bytes and, now and then, a page that becomes zero.
    if (this.#prng.below(8) === 0) target.fill(0);
    else
      this.#prng.bytes(target.subarray(this.#prng.below(pageBytes - bytes + 1)).subarray(0, bytes));
    const intended = this.#intended?.find(({ name }) => name === block.name);
    if (intended !== undefined) bytesOf(intended).set(target, page * pageBytes);
    const log = this.#logs.find((each) => each.block === block.name);
    if (this.tracking && log !== undefined) markDirty(log, page);
  }

  async #call<T>(action: SourceAction, act: () => Promise<T>): Promise<T> {
    this.calls.push(action);
    return await this.#act(action, act);
  }

  async #act<T>(action: SourceAction, act: () => Promise<T>): Promise<T> {
    const misbehaviour = this.#misbehaviours.get(action);
    this.#misbehaviours.delete(action);
    return await (misbehaviour === undefined ? act() : misbehaviour(act));
  }
}

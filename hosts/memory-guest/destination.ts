import { totalmem } from "node:os";
import { MigrationError, reasonOf } from "../../base/errors.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import type { FaultDoor } from "../../engine/faults.ts";
import type { DestinationHost, DeviceSection, PrepareTerms } from "../../engine/host.ts";
import { cannotLoad, DESCRIPTION, decodeDevices } from "./devices.ts";
import { MemoryGuest } from "./guest.ts";
import { allocateBlock, type SharedBlock } from "./memory.ts";
import { announcementProblems, type GuestShape } from "./shape.ts";
import { startVcpuThreads, stopVcpuThreads, type VcpuThread } from "./vcpu-thread.ts";

export interface MemoryGuestDestinationOptions {
  /** The only blocks it takes, with its own page sizes. Absent: whatever is announced. */
  readonly expected?: readonly BlockAnnouncement[];
  /** The most memory it provides. Absent: all the memory of this machine. */
  readonly limitBytes?: number;
  /**
   * vCPU threads started by `prepare`. A thread takes 100 ms to start, and one that is missing in
   * `loadDevices` starts while the guest is down. Absent: one.
   */
  readonly vcpuThreads?: number;
}

/** What one attempt has taken. */
interface Attempt {
  readonly blocks: readonly SharedBlock[];
  readonly mayFault: boolean;
  /** Blank ones; those that became vCPUs belong to the guest. */
  readonly threads: VcpuThread[];
  guest: MemoryGuest | null;
  isDiscarded: boolean;
  /** In post-copy. */
  door?: FaultDoor;
}

/**
 * Where a `MemoryGuest` arrives. After `loadDevices` the guest is there, paused and exactly as it
 * was saved; after `resume` it runs and can be migrated onward. After `discard` nothing is left,
 * and another attempt may begin.
 */
export class MemoryGuestDestination implements DestinationHost {
  readonly #options: MemoryGuestDestinationOptions;
  #attempt: Attempt | null = null;
  /** Threads that were not needed and are about to be gone. */
  #leaving: Promise<void> = Promise.resolve();

  /** Throws RangeError for expected blocks that no guest can have. */
  constructor(options: MemoryGuestDestinationOptions = {}) {
    const problems = (options.expected ?? []).flatMap((block) =>
      announcementProblems(block, `expected block "${block.name}"`),
    );
    if (problems.length > 0) throw new RangeError(`Cannot expect a guest: ${problems.join("; ")}`);
    this.#options = options;
  }

  /** The guest that arrived. Throws before `loadDevices` has returned. */
  get guest(): MemoryGuest {
    const guest = this.#attempt?.guest ?? null;
    if (guest === null) throw new Error("Cannot give the guest: it has not arrived");
    return guest;
  }

  async prepare(
    announced: readonly BlockAnnouncement[],
    description: string = DESCRIPTION,
    { mayFault }: PrepareTerms = { mayFault: false },
  ): Promise<readonly Block[]> {
    if (this.#attempt !== null) throw new Error("Cannot prepare: an earlier attempt is here");
    if (description !== DESCRIPTION) {
      const problem = "it is another kind of guest: receive it with its own kind of host";
      throw new MigrationError("GUEST_MISMATCH", { problems: [problem] });
    }
    checkAnnounced(announced, this.#options);
    const blocks = announced.map(allocate);
    const attempt: Attempt = {
      blocks,
      mayFault,
      threads: [],
      guest: null,
      isDiscarded: false,
    };
    this.#attempt = attempt;
    await addThreads(attempt, this.#options.vcpuThreads ?? 1);
    return blocks.map((block) => ({
      ...block,
      pageBytes: this.#expectedOf(block.name)?.pageBytes ?? block.pageBytes,
      pristine: true,
    }));
  }

  takeFaults(door: FaultDoor): void {
    if (this.#attempt === null) throw cannotLoad("no memory was prepared");
    this.#attempt.door = door;
  }

  async loadDevices(sections: readonly DeviceSection[]): Promise<void> {
    const attempt = this.#attempt;
    if (attempt === null) throw cannotLoad("no memory was prepared");
    if (attempt.guest !== null) throw cannotLoad("they were loaded before");
    const { shape, states } = decodeDevices(sections);
    const memory = memoryFor(shape, attempt.blocks);
    await addThreads(attempt, states.length - attempt.threads.length);
    const threads = attempt.threads.splice(0, states.length);
    this.#leaving = stopVcpuThreads(attempt.threads.splice(0));
    const guest = await MemoryGuest.over({
      shape,
      states,
      memory,
      threads,
      door: attempt.door,
    });
    if (attempt.isDiscarded) {
      await guest.stop();
      throw cannotLoad("the attempt was discarded");
    }
    attempt.guest = guest;
  }

  async resume(): Promise<void> {
    await this.guest.run();
  }

  async discard(): Promise<void> {
    const attempt = this.#attempt;
    this.#attempt = null;
    if (attempt !== null) {
      attempt.isDiscarded = true;
      await stopVcpuThreads(attempt.threads.splice(0));
      await attempt.guest?.stop();
    }
    await this.#leaving;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.discard();
  }

  #expectedOf(name: string): BlockAnnouncement | undefined {
    return this.#options.expected?.find((block) => block.name === name);
  }
}

/** The other host announces: BLOCK_MISMATCH names the first of its blocks that is wrong. */
function checkAnnounced(
  announced: readonly BlockAnnouncement[],
  { expected, limitBytes = totalmem() }: MemoryGuestDestinationOptions,
): void {
  const names = announced.map(({ name }) => name);
  for (const [index, block] of announced.entries()) {
    const [problem] = announcementProblems(block, "it");
    if (problem !== undefined) throw mismatch(block.name, problem);
    if (names.indexOf(block.name) !== index) throw mismatch(block.name, "it comes twice");
    const wanted = expected?.find(({ name }) => name === block.name);
    if (expected !== undefined && wanted === undefined) {
      throw mismatch(block.name, "it is unknown at the destination");
    }
    if (wanted !== undefined && wanted.sizeBytes !== block.sizeBytes) {
      const sizes = `${block.sizeBytes} bytes at the source and ${wanted.sizeBytes}`;
      throw mismatch(block.name, `it has ${sizes} at the destination`);
    }
  }
  const missing = expected?.find(({ name }) => !names.includes(name));
  if (missing !== undefined) throw mismatch(missing.name, "it is missing at the source");
  checkFits(announced, limitBytes);
}

function checkFits(announced: readonly BlockAnnouncement[], limitBytes: number): void {
  let sumBytes = 0;
  for (const { name, sizeBytes } of announced) {
    sumBytes += sizeBytes;
    if (sumBytes > limitBytes) {
      throw mismatch(name, `with it ${sumBytes} bytes are wanted, there are ${limitBytes}`);
    }
  }
}

function allocate(announced: BlockAnnouncement): SharedBlock {
  try {
    return allocateBlock(announced);
  } catch (error) {
    throw mismatch(announced.name, reasonOf(error), error);
  }
}

function mismatch(block: string, problem: string, cause?: unknown): MigrationError {
  return new MigrationError("BLOCK_MISMATCH", { block, problem }, { cause });
}

/** Adds blank threads, unless the attempt is given up meanwhile: then none is left. */
async function addThreads(attempt: Attempt, count: number): Promise<void> {
  if (count <= 0) return;
  const threads = await startVcpuThreads(count, { mayFault: attempt.mayFault });
  if (attempt.isDiscarded) {
    await stopVcpuThreads(threads);
    throw new Error("Cannot start vCPUs: the attempt was discarded");
  }
  attempt.threads.push(...threads);
}

/** What was prepared, in the order of the shape. The shape must be of just these blocks. */
function memoryFor(shape: GuestShape, prepared: readonly SharedBlock[]): readonly SharedBlock[] {
  if (shape.blocks.length !== prepared.length) {
    throw cannotLoad(`it has ${shape.blocks.length} blocks, ${prepared.length} were prepared`);
  }
  return shape.blocks.map((wanted) => {
    const block = prepared.find(({ name }) => name === wanted.name);
    if (block?.sizeBytes !== wanted.sizeBytes || block.pageBytes !== wanted.pageBytes) {
      throw cannotLoad(`block "${wanted.name}" is not as it was announced`);
    }
    return block;
  });
}

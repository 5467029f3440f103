import { MigrationError } from "../../base/errors.ts";
import type { Block, BlockAnnouncement } from "../../engine/block.ts";
import type { DestinationHost, DeviceSection } from "../../engine/host.ts";
import type { FaultDoor } from "../../workers/fault-door.ts";
import { allocate, bytesOf } from "./guest-memory.ts";
import type { Misbehaviour } from "./misbehaviour.ts";

export type DestinationAction = "prepare" | "loadDevices" | "resume" | "discard";

/** A destination whose every call is recorded and can be made to fail. */
export class RecordingDestination implements DestinationHost {
  readonly calls: DestinationAction[] = [];
  /** What `prepare` gave out and `discard` did not take back. */
  blocks: readonly Block[] | null = null;
  sections: readonly DeviceSection[] | null = null;
  running = false;
  /** Called when it gets the door. */
  onFaults: (door: FaultDoor) => void = () => {};
  readonly #lost = Promise.withResolvers<MigrationError>();
  readonly #misbehaviours = new Map<DestinationAction, Misbehaviour>();
  readonly #provide: (announced: readonly BlockAnnouncement[]) => readonly Block[];

  /** Unless told otherwise it provides memory that was never used. */
  constructor(provide: (announced: readonly BlockAnnouncement[]) => readonly Block[] = pristine) {
    this.#provide = provide;
  }

  get lost(): Promise<MigrationError> {
    return this.#lost.promise;
  }

  /** As a hypervisor that ends. */
  lose(reason: string): void {
    this.#lost.resolve(new MigrationError("HYPERVISOR_LOST", { reason }));
  }

  misbehave(action: DestinationAction, misbehaviour: Misbehaviour): void {
    this.#misbehaviours.set(action, misbehaviour);
  }

  async prepare(announced: readonly BlockAnnouncement[]): Promise<readonly Block[]> {
    return await this.#call("prepare", async () => {
      const blocks = this.#provide(announced);
      this.blocks = blocks;
      return blocks;
    });
  }

  /** Its guest never looks at a page. */
  takeFaults(door: FaultDoor): void {
    this.onFaults(door);
  }

  async loadDevices(sections: readonly DeviceSection[]): Promise<void> {
    await this.#call("loadDevices", async () => {
      this.sections = sections;
    });
  }

  async resume(): Promise<void> {
    await this.#call("resume", async () => {
      this.running = true;
    });
  }

  async discard(): Promise<void> {
    await this.#call("discard", async () => {
      this.blocks = null;
      this.sections = null;
    });
  }

  async #call<T>(action: DestinationAction, act: () => Promise<T>): Promise<T> {
    this.calls.push(action);
    const misbehaviour = this.#misbehaviours.get(action);
    this.#misbehaviours.delete(action);
    return await (misbehaviour === undefined ? act() : misbehaviour(act));
  }
}

export function pristine(announced: readonly BlockAnnouncement[]): Block[] {
  return allocate(announced, { pristine: true });
}

/** Memory that somebody used before: what arrives as zero must be made zero. */
export function used(announced: readonly BlockAnnouncement[]): Block[] {
  const blocks = allocate(announced);
  for (const block of blocks) bytesOf(block).fill(0xa5);
  return blocks;
}

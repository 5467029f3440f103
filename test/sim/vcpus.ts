import { must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import {
  awaitPage,
  type FaultDoor,
  type FaultLink,
  isPresent,
  linkOf,
  MISSING,
} from "../../workers/fault-door.ts";
import { type Machine, memoryOf, PAGE_BYTES, USED_BYTES } from "./guest.ts";

const WRITE_BYTES = 8;

/**
 * A guest that runs where it arrived before all its memory has: each vCPU touches page after page,
 * and waits for those that are missing. It knows what must be in them: what the source left there, and
 * what it has written since.
 */
export class Vcpus {
  readonly #machine: Machine;
  readonly #door: FaultDoor;
  readonly #count: number;
  /** By block. */
  readonly #truth: readonly Uint8Array[];
  readonly #waiting = new Set<number>();
  #isAtRest = false;

  constructor(
    machine: Machine,
    { door, origin, count }: { door: FaultDoor; origin: Machine; count: number },
  ) {
    this.#machine = machine;
    this.#door = door;
    this.#count = count;
    this.#truth = origin.blocks.map((block) => memoryOf(block).slice());
  }

  /** Until `rest`, or for as long as the guest runs. */
  live(): void {
    for (let seat = 0; seat < this.#count; seat += 1) this.#touch(seat, this.#choose());
  }

  rest(): void {
    this.#isAtRest = true;
  }

  get missing(): number {
    return Atomics.load(this.#door.words, MISSING);
  }

  /** What its vCPUs are told of what they wait for. */
  get link(): FaultLink {
    return linkOf(this.#door);
  }

  /** Says when a page that is there is not what it should be. */
  check(): void {
    for (const [index, { name, sizeBytes }] of this.#machine.blocks.entries()) {
      for (let page = 0; page < sizeBytes / PAGE_BYTES; page += 1) {
        if (isPresent(this.#door, index, page)) this.#compare(index, page, name);
      }
    }
  }

  /** A look at a page, again and again until it is there; then at another one. */
  #touch(seat: number, wish: { block: number; page: number }): void {
    const { world, random } = this.#machine.ledger;
    world.at(1 + random.below(8), null, () => {
      if (this.#machine.side.isCrashed || this.#isAtRest || !this.#machine.runs) return;
      const isThere = this.#ask(seat, wish);
      if (isThere === null) return; // It stands still for good.
      if (isThere) this.#use(wish);
      if (isThere) this.#waiting.delete(seat);
      else this.#waiting.add(seat);
      if (this.#waiting.size > 1) world.reached.add("several vCPUs wait for pages");
      this.#touch(seat, isThere ? this.#choose() : wish);
    });
  }

  /** Null when it never comes. */
  #ask(seat: number, wish: { block: number; page: number }): boolean | null {
    try {
      return awaitPage(this.#door, { seat, ...wish }, 0);
    } catch (error) {
      if (error instanceof MigrationError && this.link === "given-up") return null;
      throw error;
    }
  }

  #choose(): { block: number; page: number } {
    const { ledger, blocks } = this.#machine;
    const block = ledger.random.below(blocks.length);
    const { sizeBytes } = must(blocks[block], "a guest has blocks");
    return { block, page: ledger.random.below(sizeBytes / PAGE_BYTES) };
  }

  #use({ block: index, page }: { block: number; page: number }): void {
    const block = must(this.#machine.blocks[index], "a guest has blocks");
    this.#compare(index, page, block.name);
    const bytes = new Uint8Array(WRITE_BYTES);
    this.#machine.ledger.random.bytes(bytes);
    const word = this.#machine.ledger.random.below(USED_BYTES / WRITE_BYTES);
    const at = page * PAGE_BYTES + WRITE_BYTES * word;
    memoryOf(block).set(bytes, at);
    must(this.#truth[index], "every block has a truth").set(bytes, at);
  }

  #compare(index: number, page: number, name: string): void {
    const range = [page * PAGE_BYTES, (page + 1) * PAGE_BYTES] as const;
    const wanted = must(this.#truth[index], "every block has a truth").subarray(...range);
    const block = must(this.#machine.blocks[index], "a guest has blocks");
    if (Buffer.compare(wanted, memoryOf(block).subarray(...range)) === 0) return;
    this.#machine.ledger.world.blame(`page ${page} of "${name}" is not what the guest has there`);
  }
}

import { type Clock, useClock } from "../../base/clock.ts";

/** One process of the simulation. What a crashed one was waiting for never happens to it. */
export class Side {
  readonly name: string;
  isCrashed = false;

  constructor(name: string) {
    this.name = name;
  }
}

/** Of one turn of the event loop, which costs more than all of them. */
const IMMEDIATES = 64;
let immediates = 0;
let onImmediate: (() => void) | null = null;

/**
 * Returns when no promise can go on any more: their turns come before an immediate's, and what was
 * rejected with nobody to take it is told between any two of them.
 */
function drain(): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  onImmediate = resolve;
  if (immediates === 0) {
    for (; immediates < IMMEDIATES; immediates += 1) {
      setImmediate(() => {
        immediates -= 1;
        onImmediate?.();
        onImmediate = null;
      });
    }
  }
  return promise;
}

interface Happening {
  readonly atMs: number;
  readonly order: number;
  readonly side: Side | null;
  readonly call: () => void;
  isCalledOff: boolean;
}

/**
 * A clock that stands still while anything can run, and then goes to what happens next. All that
 * happens has a side, and whatever that sets off until nothing can run any more is of this side:
 * so a timer belongs to who set it without anybody passing sides around.
 */
export class World implements Clock {
  readonly trace: string[] = [];
  readonly violations: string[] = [];
  /** Situations that came about, by which the test knows that its runs lead anywhere. */
  readonly reached = new Set<string>();
  /** Timers of the engine that are set: none may be left. */
  readonly timers = new Map<object, Side | null>();
  #now = 1000;
  #order = 0;
  #side: Side | null = null;
  /** A binary heap by time, then order. */
  readonly #heap: Happening[] = [];

  /** Runs until `isOver` or until nothing more happens; false when `limitMs` went by before. */
  async run(isOver: () => boolean, limitMs: number): Promise<boolean> {
    const endMs = this.#now + limitMs;
    const restore = useClock(this);
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0; // Nobody looks at the stacks of failures that are to be.
    try {
      await drain();
      for (;;) {
        if (isOver()) return true;
        const next = this.#heap[0];
        if (next === undefined) return isOver();
        if (next.atMs > endMs) return false; // It stays for another run.
        this.#pop();
        if (next.isCalledOff || next.side?.isCrashed === true) continue;
        this.#now = next.atMs;
        this.#side = next.side;
        next.call();
        if (next.side !== null) await drain();
      }
    } finally {
      this.#side = null;
      Error.stackTraceLimit = stackTraceLimit;
      restore();
    }
  }

  nowMs(): number {
    return this.#now;
  }

  /** Nobody's thinking takes time. */
  cpuMs(): number {
    return 0;
  }

  get side(): Side | null {
    return this.#side;
  }

  /**
   * Something happens to `side`; where it is nobody's, it must wake no promise. Returns what calls
   * it off.
   */
  at(afterMs: number, side: Side | null, call: () => void): () => void {
    const happening = {
      atMs: this.#now + Math.max(0, afterMs),
      order: this.#order++,
      side,
      call,
      isCalledOff: false,
    };
    this.#push(happening);
    return () => {
      happening.isCalledOff = true;
    };
  }

  after(ms: number, call: () => void): () => void {
    const timer = {};
    this.timers.set(timer, this.#side);
    const callOff = this.at(ms, this.#side, () => {
      this.timers.delete(timer);
      call();
    });
    return () => {
      this.timers.delete(timer);
      callOff();
    };
  }

  every(ms: number, call: () => void): () => void {
    const timer = {};
    const side = this.#side;
    this.timers.set(timer, side);
    let callOff = (): void => {};
    const next = (): void => {
      callOff = this.at(ms, side, () => {
        next();
        call();
      });
    };
    next();
    return () => {
      this.timers.delete(timer);
      callOff();
    };
  }

  /**
   * Looks every `everyMs` whether something is so, as a thread that polls does, and calls once it is.
   * To look wakes nobody, and costs next to nothing. Returns what ends it.
   */
  watch(everyMs: number, isSo: () => boolean, call: () => void): () => void {
    const side = this.#side;
    let callOff = (): void => {};
    const look = (): void => {
      if (side?.isCrashed === true) return;
      callOff = isSo() ? this.at(0, side, call) : this.at(everyMs, null, look);
    };
    callOff = this.at(everyMs, null, look);
    return () => callOff();
  }

  /** Waits, as the side that asks. */
  async sleep(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.at(ms, this.#side, resolve);
    await promise;
  }

  tell(what: string): void {
    this.trace.push(`${this.#now.toFixed(3)} ${what}`);
  }

  blame(what: string): void {
    this.tell(`VIOLATION ${what}`);
    this.violations.push(what);
  }

  #push(happening: Happening): void {
    const heap = this.#heap;
    let at = heap.push(happening) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(happening, heap[parent] as Happening)) break;
      heap[at] = heap[parent] as Happening;
      at = parent;
    }
    heap[at] = happening;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      const right = child + 1;
      if (right < heap.length && isBefore(heap[right] as Happening, heap[child] as Happening)) {
        child = right;
      }
      if (!isBefore(heap[child] as Happening, last)) break;
      heap[at] = heap[child] as Happening;
      at = child;
    }
    heap[at] = last;
  }
}

function isBefore(one: Happening, other: Happening): boolean {
  return one.atMs === other.atMs ? one.order < other.order : one.atMs < other.atMs;
}

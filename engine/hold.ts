/** Who asked a host last for each thing that lasts, of all attempts in this process. */
const HOLDERS = new WeakMap<object, Map<string, Hold>>();

/**
 * What one attempt asked of a host and what lasts until it is taken back: a paused guest, a dirty
 * log, a throttle, memory.
 *
 * A step that takes effect after its attempt has ended is taken back at once, unless a later
 * attempt has asked the same host for the same meanwhile: then it is that one's to take back or,
 * once the guest has left, nobody's. A guest that was resumed for the sake of an earlier attempt
 * would run twice.
 */
export class Hold {
  readonly #host: object;
  readonly #name: string;
  #isAsked = false;
  #isReleased = false;

  constructor(host: object, name: string) {
    this.#host = host;
    this.#name = name;
  }

  /** Whether the host was asked at all, and there may be something to take back. */
  get isAsked(): boolean {
    return this.#isAsked;
  }

  /** Called just before the host is asked. */
  take(): void {
    this.#isAsked = true;
    const holders = HOLDERS.get(this.#host) ?? new Map<string, Hold>();
    HOLDERS.set(this.#host, holders.set(this.#name, this));
  }

  /** Called just before it is taken back. */
  release(): void {
    this.#isReleased = true;
    if (this.#holder === this) HOLDERS.get(this.#host)?.delete(this.#name);
  }

  /**
   * Whether what takes effect only now must be taken back for itself: it was taken back already, and no
   * later attempt has it. Before that it goes with everything else.
   */
  get isLeftOver(): boolean {
    return this.#isReleased && !this.isSuperseded;
  }

  /** A later attempt has it now. */
  get isSuperseded(): boolean {
    return this.#holder !== undefined && this.#holder !== this;
  }

  get #holder(): Hold | undefined {
    return HOLDERS.get(this.#host)?.get(this.#name);
  }
}

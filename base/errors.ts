/** What an operator can do next; `advice` says it in a sentence. */
export type Remedy = "retry" | "reconfigure" | "settle" | "report";

/** Which end, or which thread of it, noticed a failure first. */
export type Origin = "source" | "destination";

/**
 * Every way a migration fails in the field. A row is the whole change: the type of its facts, its
 * message, what to do about it and its page in `docs/reference/failures.md` follow from here. A message says
 * what could not be done, then why. Bad arguments are `TypeError` or `RangeError` and bugs are
 * `InvariantError`; neither belongs here. Codes are never renamed.
 */
export const FAILURES = {
  CONFIGURATION_INVALID: {
    remedy: "reconfigure",
    advice:
      "Correct every problem listed; `multifd parameters` and `multifd legality` say what is allowed.",
    says: (f: { problems: readonly string[] }) =>
      `Cannot use this configuration: ${f.problems.join("; ")}`,
  },
  ADDRESS_UNUSABLE: {
    remedy: "reconfigure",
    advice: "Choose an address that is free and that this user may open.",
    says: (f: { address: string; reason: string }) =>
      `Cannot use address "${f.address}": ${f.reason}`,
  },
  CONNECT_FAILED: {
    remedy: "retry",
    advice: "Check that somebody listens there and can be reached, then try again.",
    says: (f: { address: string; reason: string }) =>
      `Cannot connect to "${f.address}": ${f.reason}`,
  },
  NO_SOURCE: {
    remedy: "retry",
    advice: "Start the source, or raise accept-timeout.",
    says: (f: { address: string; limitMs: number }) =>
      `Cannot start: no source connected to "${f.address}" within ${f.limitMs} ms`,
  },
  CHANNELS_MISSING: {
    remedy: "retry",
    advice: "Look for a firewall or a connection limit between the hosts.",
    says: (f: { wanted: number; found: number; limitMs: number }) =>
      `Cannot start: ${f.found} of ${f.wanted} channels joined within ${f.limitMs} ms`,
  },
  CHANNEL_LOST: {
    remedy: "retry",
    advice:
      "Check the network and the other host, then start again; the guest still runs at the source.",
    says: (f: { channel: number; reason: string }) =>
      `Cannot go on: channel ${f.channel} was lost: ${f.reason}`,
  },
  CHANNEL_STALLED: {
    remedy: "retry",
    advice: "The other host stopped reading or writing; check its load, or raise channel-timeout.",
    says: (f: { channel: number; direction: "read" | "write"; limitMs: number }) =>
      `Cannot ${f.direction} on channel ${f.channel}: nothing moved for ${f.limitMs} ms`,
  },
  PEER_SILENT: {
    remedy: "retry",
    advice:
      "The other host is alive but does not answer; check its load, or raise the limit, which is step-timeout's or channel-timeout's.",
    says: (f: { waitingFor: string; limitMs: number }) =>
      `Cannot go on: no ${f.waitingFor} came within ${f.limitMs} ms`,
  },
  VERSION_UNSUPPORTED: {
    remedy: "reconfigure",
    advice: "Bring both hosts to neighbouring versions of multifd.",
    says: (f: { offered: string; supported: string }) =>
      `Cannot agree on a wire version: offered ${f.offered}, supported ${f.supported}`,
  },
  TOKEN_REFUSED: {
    remedy: "retry",
    advice: "Something other than the source of this migration connected; it was turned away.",
    says: (f: { channel: number }) =>
      `Cannot admit channel ${f.channel}: its token or migration id is wrong`,
  },
  PARAMETER_MISMATCH: {
    remedy: "reconfigure",
    advice: "Give this parameter the same value on both hosts.",
    says: (f: { parameter: string; source: string; destination: string }) =>
      `Cannot agree on "${f.parameter}": it is ${f.source} at the source and ${f.destination} at the destination`,
  },
  BLOCK_MISMATCH: {
    remedy: "reconfigure",
    advice: "Give both hosts the same RAM blocks: names and sizes.",
    says: (f: { block: string; problem: string }) =>
      `Cannot agree on block "${f.block}": ${f.problem}`,
  },
  FRAME_CORRUPT: {
    remedy: "retry",
    advice: "Bytes were changed on the way or the other end is not multifd; use checksum or TLS.",
    says: (f: { channel: number; field: string; found: number | string }) =>
      `Cannot read a frame on channel ${f.channel}: ${f.field} is ${f.found}`,
  },
  FRAME_UNEXPECTED: {
    remedy: "report",
    advice: "The other end broke the protocol; report both versions.",
    says: (f: { channel: number; frame: string; wanted: string }) =>
      `Cannot accept frame "${f.frame}" on channel ${f.channel}: wanted ${f.wanted}`,
  },
  CHECKSUM_MISMATCH: {
    remedy: "retry",
    advice: "Bytes were changed on the way: check memory and network hardware of both hosts.",
    says: (f: { channel: number; sequence: number }) =>
      `Cannot trust frame ${f.sequence} on channel ${f.channel}: its checksum is wrong`,
  },
  MEMORY_UNUSABLE: {
    remedy: "reconfigure",
    advice:
      "Name a file of the right size that this user can read and write, and that nobody else has.",
    says: (f: { block: string; path: string; reason: string }) =>
      `Cannot use "${f.path}" for block "${f.block}": ${f.reason}`,
  },
  MEMORY_FULL: {
    remedy: "reconfigure",
    advice: "Make room where the destination's memory lives, then start again.",
    says: (f: { block: string; path: string }) =>
      `Cannot write block "${f.block}": no space is left for "${f.path}"`,
  },
  MEMORY_FAILED: {
    remedy: "report",
    advice: "Reading or writing guest memory failed; look at the kernel's log of that host.",
    says: (f: { block: string; action: "read" | "write"; reason: string }) =>
      `Cannot ${f.action} block "${f.block}": ${f.reason}`,
  },
  DEVICES_TOO_LARGE: {
    remedy: "reconfigure",
    advice: "Raise device-limit on both hosts.",
    says: (f: { bytes: number; limitBytes: number }) =>
      `Cannot move device state of ${f.bytes} bytes: the limit is ${f.limitBytes} bytes`,
  },
  HOST_FAILED: {
    remedy: "report",
    advice: "The hypervisor host refused a step; its own log says why.",
    says: (f: { action: string; reason: string }) =>
      `Cannot ${f.action}: the host failed: ${f.reason}`,
  },
  HOST_TIMEOUT: {
    remedy: "retry",
    advice: "The hypervisor host did not finish a step in time; check it, or raise step-timeout.",
    says: (f: { action: string; limitMs: number }) =>
      `Cannot ${f.action}: the host did not finish within ${f.limitMs} ms`,
  },
  HYPERVISOR_UNREACHABLE: {
    remedy: "reconfigure",
    advice:
      "Give the path of the QMP socket of a QEMU that runs, to a user who may open it; a QMP socket serves one client at a time.",
    says: (f: { path: string; reason: string }) =>
      `Cannot talk to the hypervisor at "${f.path}": ${f.reason}`,
  },
  HYPERVISOR_REFUSED: {
    remedy: "report",
    advice: "The hypervisor said no; what it says here and in its own log tells why.",
    says: (f: { command: string; reason: string }) =>
      `Cannot have the hypervisor do "${f.command}": ${f.reason}`,
  },
  HYPERVISOR_SILENT: {
    remedy: "retry",
    advice: "The hypervisor lives but hangs; look at its storage and its load.",
    says: (f: { waitingFor: string; limitMs: number }) =>
      `Cannot go on: the hypervisor gave no ${f.waitingFor} within ${f.limitMs} ms`,
  },
  HYPERVISOR_LOST: {
    remedy: "retry",
    advice: "The hypervisor ended or closed its monitor; its own log says why. Start it again.",
    says: (f: { reason: string }) => `Cannot go on: the hypervisor was lost: ${f.reason}`,
  },
  GUEST_UNSUITABLE: {
    remedy: "reconfigure",
    advice: "Start the hypervisor as every problem listed says; the guest was not touched.",
    says: (f: { problems: readonly string[] }) =>
      `Cannot migrate the guest of this hypervisor: ${f.problems.join("; ")}`,
  },
  GUEST_MISMATCH: {
    remedy: "reconfigure",
    advice:
      "Start the destination's hypervisor with the machine, memory and devices of the source's; the guest was not touched.",
    says: (f: { problems: readonly string[] }) =>
      `Cannot take this guest in: ${f.problems.join("; ")}`,
  },
  NOT_CONVERGING: {
    remedy: "reconfigure",
    advice:
      "Raise downtime-limit, max-bandwidth or channels, set auto-converge, or choose non-convergence switch-over.",
    says: (f: { rounds: number; expectedDowntimeMs: number; limitMs: number }) =>
      `Cannot pause within ${f.limitMs} ms: after ${f.rounds} rounds it would take ${f.expectedDowntimeMs} ms`,
  },
  TIMEOUT: {
    remedy: "retry",
    advice:
      "Raise timeout, or find out what was slow by the phases and the progress that were told.",
    says: (f: { phase: string; limitMs: number }) =>
      `Cannot finish within ${f.limitMs} ms: time ran out in phase "${f.phase}"`,
  },
  CANCELLED: {
    remedy: "retry",
    advice:
      "Somebody cancelled; unless it has arrived, the guest runs on at the source. Start again when ready.",
    says: (f: { phase: string }) => `Cannot finish: cancelled in phase "${f.phase}"`,
  },
  HANDOVER_UNKNOWN: {
    remedy: "settle",
    advice:
      "Find out whether the guest runs at the destination. Only if it surely does not, resume it at the source.",
    says: (f: { reason: string }) =>
      `Cannot tell who owns the guest: COMMIT was sent but RUNNING did not come: ${f.reason}`,
  },
  POSTCOPY_UNSUPPORTED: {
    remedy: "reconfigure",
    advice: "Choose postcopy never, or a host that lets its vCPUs wait for pages.",
    says: (f: { reason: string }) => `Cannot take this guest in by post-copy: ${f.reason}`,
  },
  POSTCOPY_INTERRUPTED: {
    remedy: "settle",
    advice:
      "The guest runs at the destination and misses pages that the source still has: keep both; ending either loses the guest.",
    says: (f: { reason: string }) =>
      `Cannot bring the rest of the memory to the guest that runs already: ${f.reason}`,
  },
  GUEST_NOT_RESTORED: {
    remedy: "settle",
    advice:
      "The migration failed and undoing it failed too: bring the guest back by the hypervisor's own means.",
    says: (f: { action: string; reason: string; after: string }) =>
      `Cannot restore the guest after ${f.after}: ${f.action} failed: ${f.reason}`,
  },
  WORKER_DIED: {
    remedy: "report",
    advice: "A worker thread ended unexpectedly; report the reason.",
    says: (f: { channel: number; reason: string }) =>
      `Cannot go on: the worker of channel ${f.channel} died: ${f.reason}`,
  },
  INTERNAL: {
    remedy: "report",
    advice: "This is a bug in multifd or in its host; report the reason.",
    says: (f: { reason: string }) => `Cannot go on: ${f.reason}`,
  },
} as const satisfies Record<string, { remedy: Remedy; advice: string; says(facts: never): string }>;

export type FailureCode = keyof typeof FAILURES;
export type FactsOf<C extends FailureCode> = Parameters<(typeof FAILURES)[C]["says"]>[0];

/** Plain data: it crosses threads and sockets, where a class would arrive as a bare `Error`. */
export interface Failure<C extends FailureCode = FailureCode> {
  readonly code: C;
  readonly facts: FactsOf<C>;
  /** The end that noticed, when it is not the one that reports. */
  readonly at?: Origin;
  /** What stayed behind of the attempt, in a sentence. */
  readonly leftover?: string;
}

interface FailureOptions extends ErrorOptions {
  readonly at?: Origin;
  readonly leftover?: string;
}

/** The only error that a migration fails with in the field. `toJSON` gives what managers read. */
export class MigrationError<C extends FailureCode = FailureCode>
  extends Error
  implements Failure<C>
{
  override name = "MigrationError";
  readonly code: C;
  readonly facts: FactsOf<C>;
  readonly at?: Origin;
  readonly leftover?: string;

  constructor(code: C, facts: FactsOf<C>, options: FailureOptions = {}) {
    super(FAILURES[code].says(facts as never), options);
    this.code = code;
    this.facts = facts;
    if (options.at !== undefined) this.at = options.at;
    if (options.leftover !== undefined) this.leftover = options.leftover;
  }

  get remedy(): Remedy {
    return FAILURES[this.code].remedy;
  }

  get advice(): string {
    return FAILURES[this.code].advice;
  }

  /** The same failure, noticed at `origin` unless it says otherwise already. */
  from(origin: Origin): MigrationError<C> {
    return this.at === undefined ? this.#copy({ at: origin }) : this;
  }

  /** The same failure, with what it left behind. */
  leaving(leftover: string | undefined): MigrationError<C> {
    return leftover === undefined ? this : this.#copy({ leftover });
  }

  #copy(changes: Pick<FailureOptions, "at" | "leftover">): MigrationError<C> {
    const { at, leftover, cause } = this;
    return new MigrationError(this.code, this.facts, {
      cause,
      ...(at === undefined ? {} : { at }),
      ...(leftover === undefined ? {} : { leftover }),
      ...changes,
    });
  }

  toJSON(): Failure<C> & { message: string; remedy: Remedy; advice: string } {
    const { code, facts, message, remedy, advice } = this;
    return {
      code,
      facts,
      message,
      remedy,
      advice,
      ...(this.at === undefined ? {} : { at: this.at }),
      ...(this.leftover === undefined ? {} : { leftover: this.leftover }),
    };
  }
}

export function isFailureCode(text: string): text is FailureCode {
  return Object.hasOwn(FAILURES, text);
}

/** Anything thrown, as a failure: what is not one already is a bug, and says so. */
export function asMigrationError(thrown: unknown): MigrationError {
  if (thrown instanceof MigrationError) return thrown;
  return new MigrationError("INTERNAL", { reason: reasonOf(thrown) }, { cause: thrown });
}

/** The reason in anything thrown, also in what cannot become text: who asks handles a failure. */
export function reasonOf(thrown: unknown): string {
  try {
    if (!(thrown instanceof Error)) return String(thrown);
    return thrown.name === "Error" ? thrown.message : `${thrown.name}: ${thrown.message}`;
  } catch {
    return `a thrown ${typeof thrown} that cannot become text`;
  }
}

/** The `errno` name (`"EAGAIN"`) of a failed system call, or undefined. */
export function errnoOf(thrown: unknown): string | undefined {
  const code = (thrown as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : undefined;
}

import { Deadline, nowMs, within } from "../../base/clock.ts";
import { MigrationError } from "../../base/errors.ts";
import { ask } from "./answer.ts";
import type { Qmp, QmpEvent } from "./qmp.ts";

/** After these QEMU's own migration does nothing more. */
const ENDS: ReadonlySet<string> = new Set(["completed", "failed", "cancelled"]);

/** What QEMU says of a migration before there was any. */
const NONE = "none";

const LOOK_MS = 20;

/** The state of QEMU's own migration; undefined when nothing is under way. */
export async function migrationUnderWay(qmp: Qmp): Promise<string | undefined> {
  const status = (await ask(qmp, "query-migrate")).optionalText("status") ?? NONE;
  return status === NONE || ENDS.has(status) ? undefined : status;
}

/** Waits for the end of a migration that may not even have begun, and then ends without an event. */
export async function untilIdle(qmp: Qmp, limitMs: number): Promise<void> {
  const deadline = new Deadline(limitMs);
  while ((await migrationUnderWay(qmp)) !== undefined) {
    if (deadline.passed) {
      const facts = { waitingFor: "end of its migration", limitMs };
      throw new MigrationError("HYPERVISOR_SILENT", facts);
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** Follows one migration of QEMU by the events it sends, from the moment this is made. */
export class MigrationStatus {
  readonly #qmp: Qmp;
  readonly #unlisten: () => void;
  readonly #seen = new Set<string>();
  #changed = Promise.withResolvers<void>();
  #stoppedAtMs: number | undefined;

  constructor(qmp: Qmp) {
    this.#qmp = qmp;
    this.#unlisten = qmp.listen((event) => this.#hear(event));
  }

  /** When QEMU stopped the guest for it; undefined if it stood still before. */
  get stoppedAtMs(): number | undefined {
    return this.#stoppedAtMs;
  }

  get hasEnded(): boolean {
    return [...ENDS].some((end) => this.#seen.has(end));
  }

  has(status: string): boolean {
    return this.#seen.has(status);
  }

  /**
   * Waits until it was in one of these states. Fails, with QEMU's reason, as soon as it cannot be
   * any more.
   */
  async reach(wanted: readonly string[], limitMs: number): Promise<void> {
    const deadline = new Deadline(limitMs);
    const late = (): MigrationError => {
      const waitingFor = `migration state ${wanted.join(" or ")}`;
      return new MigrationError("HYPERVISOR_SILENT", { waitingFor, limitMs });
    };
    while (!wanted.some((status) => this.#seen.has(status))) {
      if (this.hasEnded) throw await this.#reason();
      const lost = this.#qmp.lost.then((failure) => Promise.reject(failure));
      await within(deadline.leftMs, Promise.race([this.#changed.promise, lost]), late);
    }
  }

  close(): void {
    this.#unlisten();
  }

  #hear({ name, data, atMs }: QmpEvent): void {
    if (name === "STOP") this.#stoppedAtMs ??= Math.min(atMs, nowMs());
    if (name !== "MIGRATION" || typeof data["status"] !== "string") return;
    this.#seen.add(data["status"]);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  async #reason(): Promise<MigrationError> {
    const found = await ask(this.#qmp, "query-migrate");
    const reason = found.optionalText("error-desc") ?? "it does not say why";
    const how = [...ENDS].find((end) => this.#seen.has(end));
    return new MigrationError("HYPERVISOR_REFUSED", {
      command: "migrate",
      reason: `it ${how}: ${reason}`,
    });
  }
}

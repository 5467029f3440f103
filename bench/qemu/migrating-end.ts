import { must } from "../../base/assert.ts";
import { MigrationStatus } from "../../hosts/qemu/migration-status.ts";
import type { Qmp } from "../../hosts/qemu/qmp.ts";

const MOVE_LIMIT_MS = 120_000;

/** As good as no limit; zero would mean that to newer versions only. */
const BANDWIDTH_MAX = 2 ** 50;

export interface MigrationSettings {
  readonly channels: number;
  readonly compression: "none" | "zstd";
  readonly downtimeLimitMs: number;
}

/** What QEMU says of a migration that it has completed. */
export interface QemuFigures {
  readonly totalMs: number;
  readonly downtimeMs: number;
}

/** A QEMU that migrates by itself, with multifd: one end of it, told by its monitor. */
export class MigratingEnd {
  readonly #monitor: Qmp;
  readonly #status: MigrationStatus;

  private constructor(monitor: Qmp) {
    this.#monitor = monitor;
    this.#status = new MigrationStatus(monitor);
  }

  /** Sets what both ends must have alike, and lifts every limit but one. */
  static async prepare(
    monitor: Qmp,
    { channels, compression, downtimeLimitMs }: MigrationSettings,
  ): Promise<MigratingEnd> {
    await monitor.execute("migrate-set-capabilities", {
      capabilities: ["multifd", "events"].map((capability) => ({ capability, state: true })),
    });
    await monitor.execute("migrate-set-parameters", {
      "multifd-channels": channels,
      "multifd-compression": compression,
      "max-bandwidth": BANDWIDTH_MAX,
      "downtime-limit": downtimeLimitMs,
    });
    return new MigratingEnd(monitor);
  }

  /** Returns the address at which it waits for the source. */
  async listen(): Promise<string> {
    await this.#monitor.execute("migrate-incoming", { uri: "tcp:127.0.0.1:0" });
    const status = (await this.#monitor.execute("query-migrate")) as {
      readonly "socket-address"?: readonly { readonly host: string; readonly port: string }[];
    };
    const { host, port } = must(status["socket-address"]?.[0], "QEMU says where it listens");
    return `tcp:${host}:${port}`;
  }

  async send(uri: string): Promise<void> {
    await this.#monitor.execute("migrate", { uri });
  }

  /** Without any polling that would cost time. */
  async ended(): Promise<void> {
    await this.#status.reach(["completed"], MOVE_LIMIT_MS);
  }

  async figures(): Promise<QemuFigures> {
    const found = (await this.#monitor.execute("query-migrate")) as Readonly<
      Record<string, number>
    >;
    const of = (name: string): number => must(found[name], "QEMU tells times of what it completed");
    return { totalMs: of("total-time"), downtimeMs: of("downtime") };
  }
}

import { once } from "node:events";
import { truncateSync, writeFileSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { type Asked, type Behaviour, FakeQmp } from "./fake-qmp.ts";

const CAPABILITIES = [
  ...["xbzrle", "multifd", "events", "postcopy-ram", "validate-uuid"],
  ...["pause-before-switchover", "x-ignore-shared", "late-block-activate"],
];

export interface FakeBackend {
  readonly id: string;
  readonly sizeBytes: number;
  readonly isShared?: boolean;
  /** Absent: a file of its own. Null: none. */
  readonly path?: string | null;
  readonly kind?: string;
  readonly address?: number;
  /** Made by the user and not used by the guest. */
  readonly isUnused?: boolean;
}

export interface FakeQemuOptions {
  readonly runState?: "running" | "paused" | "inmigrate";
  readonly backends?: readonly FakeBackend[];
  readonly machine?: string;
  readonly cpus?: number;
  readonly ownBlocks?: readonly string[];
  readonly capabilities?: readonly string[];
}

/**
 * As much of QEMU 7.2 as hosts see: its states and events in the order in which the real one has
 * them, without a guest. A test may put its own behaviour in place of any command's.
 */
export class FakeQemu implements AsyncDisposable {
  readonly on = new Map<string, Behaviour>();
  readonly capabilities: Map<string, boolean>;
  devices: Buffer = Buffer.from("what QEMU says of its devices");
  /** What it wrote into RAM before it stopped: ROMs, video memory. */
  early: Buffer = Buffer.from("QEVM");
  loaded: Buffer | null = null;
  runState: string;
  migration: string | undefined;
  blockedReasons: readonly string[] = [];
  tlsCredentials = "";
  failsToLoad = false;
  /** The state of its migration that it does not leave by itself: it has stopped the guest. */
  staysIn: "active" | "device" | null = null;
  readonly #stays = Promise.withResolvers<void>();
  readonly #options: FakeQemuOptions;
  #qmp: FakeQmp | null = null;
  #stream: Socket | null = null;
  #listener: Server | null = null;
  #wasRunning = false;
  #hasAutostart = true;

  private constructor(options: FakeQemuOptions) {
    this.#options = options;
    this.runState = options.runState ?? "running";
    const known = options.capabilities ?? CAPABILITIES;
    this.capabilities = new Map(known.map((name) => [name, false]));
  }

  static async start(options: FakeQemuOptions = {}): Promise<FakeQemu> {
    const fake = new FakeQemu(options);
    fake.#qmp = await FakeQmp.start((asked) => fake.#obey(asked));
    for (const backend of fake.backends) {
      if (backend.path !== undefined) continue;
      writeFileSync(fake.ramPath(backend.id), "");
      truncateSync(fake.ramPath(backend.id), backend.sizeBytes);
    }
    return fake;
  }

  get qmp(): FakeQmp {
    if (this.#qmp === null) throw new Error("it was not started");
    return this.#qmp;
  }

  get path(): string {
    return this.qmp.path;
  }

  get backends(): readonly FakeBackend[] {
    return this.#options.backends ?? [{ id: "ram", sizeBytes: 2 ** 20 }];
  }

  /** The capabilities that are on. */
  get enabled(): string[] {
    return [...this.capabilities].flatMap(([name, isOn]) => (isOn ? [name] : [])).sort();
  }

  /** Resolves when it is in that state. */
  get staying(): Promise<void> {
    return this.#stays.promise;
  }

  ramPath(id: string): string {
    return join(this.qmp.folder, `${id}.ram`);
  }

  /** As a QEMU that ends. */
  die(): void {
    this.#stream?.destroy();
    this.#listener?.close();
    this.qmp.hangUp();
  }

  /** Leaves the state that it stays in. */
  goOn(): void {
    const stayed = this.staysIn;
    this.staysIn = null;
    if (stayed === "active") this.#become("pre-switchover");
    if (stayed === "device") this.#saveRest();
  }

  /** Writes a part of its devices, before the rest. */
  savePart(part: Buffer): void {
    this.#stream?.write(part);
  }

  /** Does what the real one would do, also where a test has its own behaviour for it. */
  obey(asked: Asked): void {
    const command = asked.execute ?? asked["exec-oob"] ?? "";
    const words = asked.arguments ?? {};
    const answers = this.#answers(command, words);
    if (answers !== undefined) this.qmp.answer(asked, answers);
    else if (!this.#act(command, words, asked)) this.qmp.refuse(asked, `${command} is unknown`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.die();
    await this.qmp[Symbol.asyncDispose]();
  }

  #obey(asked: Asked): void {
    const own = this.on.get(asked.execute ?? asked["exec-oob"] ?? "");
    if (own !== undefined) own(asked, this.qmp);
    else this.obey(asked);
  }

  #answers(command: string, words: Readonly<Record<string, unknown>>): unknown {
    const { machine = "pc-i440fx-7.2", cpus = 1, ownBlocks = ["pc.bios"] } = this.#options;
    switch (command) {
      case "qmp_capabilities":
        return {};
      case "query-status":
        return { status: this.runState, running: this.runState === "running" };
      case "query-version":
        return { qemu: { major: 7, minor: 2, micro: 22 } };
      case "query-cpus-fast":
        return Array.from({ length: cpus }, () => ({ "thread-id": 0 }));
      case "query-migrate":
        return {
          ...(this.migration === undefined ? {} : { status: this.migration }),
          ...(this.migration === "failed" ? { "error-desc": "it broke" } : {}),
          ...(this.blockedReasons.length > 0 ? { "blocked-reasons": this.blockedReasons } : {}),
        };
      case "query-migrate-capabilities":
        return Array.from(this.capabilities, ([capability, state]) => ({ capability, state }));
      case "query-migrate-parameters":
        return { "tls-creds": this.tlsCredentials };
      case "query-memdev":
        return this.backends.map(({ id, sizeBytes, isShared = true }) => {
          return { id, size: sizeBytes, share: isShared };
        });
      case "qom-list":
        return [{ name: "region[0]", type: "child<memory-region>" }];
      case "qom-get":
        return this.#property(String(words["path"]), String(words["property"]), machine);
      case "x-query-ramblock":
        return { "human-readable-text": ramBlockTable(ownBlocks) };
      default:
        return undefined;
    }
  }

  #property(path: string, name: string, machine: string): unknown {
    if (path === "/machine") return name === "type" ? `${machine}-machine` : "";
    const backend = this.backends.find(({ id }) => path.startsWith(`/objects/${id}`));
    if (backend === undefined) return undefined;
    const { id, address = 0, kind = "memory-backend-file", isUnused = false, path: file } = backend;
    const properties: Readonly<Record<string, unknown>> = {
      type: kind,
      "mem-path": file === undefined ? this.ramPath(id) : (file ?? undefined),
      container: isUnused ? "" : "/machine/ram[0]",
      addr: address,
    };
    return properties[name];
  }

  /** False for what there is not. */
  #act(command: string, words: Readonly<Record<string, unknown>>, asked: Asked): boolean {
    const act = this.#acts()[command];
    if (act === undefined) return false;
    const refusal = act(words);
    if (typeof refusal === "string") this.qmp.refuse(asked, refusal);
    else this.qmp.answer(asked);
    return true;
  }

  #acts(): Readonly<Record<string, (words: Readonly<Record<string, unknown>>) => unknown>> {
    return {
      stop: () => this.#stop("paused"),
      cont: () => this.#cont(),
      "announce-self": () => {},
      "migrate-set-capabilities": ({ capabilities }) => this.#setCapabilities(capabilities),
      "migrate-set-parameters": (words) => {
        this.tlsCredentials = String(words["tls-creds"]);
      },
      migrate: ({ uri }) => this.#migrate(String(uri)),
      "migrate-continue": () => this.#saveDevices(),
      migrate_cancel: () => this.#cancel(),
      yank: () => this.#cancel(),
      "migrate-incoming": (words) => this.#listen(words),
    };
  }

  #setCapabilities(capabilities: unknown): unknown {
    if (this.#isMigrating) return "There's a migration process in progress";
    for (const { capability, state } of capabilities as { capability: string; state: boolean }[]) {
      this.capabilities.set(capability, state);
    }
    return undefined;
  }

  get #isMigrating(): boolean {
    return !["completed", "failed", "cancelled", undefined].includes(this.migration);
  }

  #become(status: string): void {
    this.migration = status;
    if (this.capabilities.get("events") === true) this.qmp.event("MIGRATION", { status });
  }

  #stop(runState: string): void {
    if (this.runState === "inmigrate") this.#hasAutostart = false;
    else if (this.runState === "running") {
      this.runState = runState;
      this.qmp.event("STOP");
    }
  }

  #cont(): unknown {
    if (this.runState === "finish-migrate") return "Migration is not finalized yet";
    if (this.runState === "inmigrate") this.#hasAutostart = true;
    else this.#run();
    return undefined;
  }

  #run(): void {
    if (this.runState === "running") return;
    this.runState = "running";
    this.qmp.event("RESUME");
  }

  #migrate(uri: string): void {
    this.#become("setup");
    const stream = createConnection(uri.slice("unix:".length));
    this.#stream = stream;
    stream.on("error", () => this.#fail());
    stream.on("close", () => this.#fail());
    stream.once("connect", () => {
      if (this.migration !== "setup") return;
      stream.write(this.early);
      this.#become("active");
      this.#wasRunning = this.runState === "running";
      this.#stop("finish-migrate");
      this.runState = "finish-migrate";
      if (this.staysIn === "active") this.#stays.resolve();
      else this.#become("pre-switchover");
    });
  }

  #saveDevices(): void {
    this.#become("device");
    if (this.staysIn === "device") this.#stays.resolve();
    else this.#saveRest();
  }

  #saveRest(): void {
    this.#stream?.end(this.devices, () => {
      if (this.migration !== "device") return;
      this.runState = "postmigrate";
      this.#become("completed");
    });
  }

  #fail(): void {
    if (!this.#isMigrating || this.runState === "inmigrate") return;
    this.#giveBack();
    this.#become("failed");
  }

  #cancel(): void {
    if (!this.#isMigrating) return;
    this.#become("cancelling");
    this.#giveBack();
    this.#become("cancelled");
    this.#stream?.destroy();
  }

  #giveBack(): void {
    if (this.#wasRunning) this.#run();
    else if (this.runState === "finish-migrate") this.runState = "postmigrate";
  }

  #listen(words: Readonly<Record<string, unknown>>): unknown {
    if ("exit-on-error" in words) return "Parameter 'exit-on-error' is unexpected";
    this.#become("setup");
    const listener = createServer((stream) => void this.#load(stream));
    this.#listener = listener;
    listener.listen(String(words["uri"]).slice("unix:".length));
    return undefined;
  }

  async #load(stream: Socket): Promise<void> {
    const pieces: Buffer[] = [];
    stream.on("error", () => this.die());
    stream.on("data", (piece) => pieces.push(piece));
    await once(stream, "end").catch(() => {});
    this.#listener?.close();
    if (this.failsToLoad) {
      this.die();
      return;
    }
    this.loaded = Buffer.concat(pieces);
    this.runState = "paused";
    if (this.#hasAutostart) this.#run();
    this.#become("completed");
  }
}

function ramBlockTable(names: readonly string[]): string {
  const rows = names.map((name) => `${name.padStart(24)}    4 KiB  0x0000 0x0000 0x0000\n`);
  return ["              Block Name    PSize              Offset  Used  Total\n", ...rows].join("");
}

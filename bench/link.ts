import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { assert, must } from "../base/assert.ts";
import { CannotMeasure } from "./measure.ts";

/** One end of a link: a network namespace. */
export interface LinkEnd {
  /** A command that runs the one given to it in here. */
  readonly within: readonly string[];
  readonly address: string;
}

/** From the block that is set aside for examples, so that nobody's network is meant. */
const NEAR = { device: "near", address: "192.0.2.1" } as const;
const FAR = { device: "far", address: "192.0.2.2" } as const;

/** What may go out at once, in time: the kernel looks after some milliseconds, not after each packet. */
const BURST_MS = 2;
/** A packet as the kernel hands it to a device may be so large. */
const BURST_BYTES_MIN = 128 * 1024;
/** What waits longer is dropped, which is how TCP learns of the limit. */
const QUEUE_MS = 20;

/**
 * A link of its own between two network namespaces: a virtual cable whose ends let no more through
 * than they are told. Nobody else's network is touched, and when whoever made it ends, however it
 * ends, the kernel removes everything.
 */
export class Link implements AsyncDisposable {
  readonly near: LinkEnd;
  readonly far: LinkEnd;
  readonly #keepers: readonly Keeper[];
  #bitsPerSecond: number | null = null;

  private constructor(keepers: readonly [Keeper, Keeper]) {
    const [near, far] = keepers;
    this.#keepers = keepers;
    this.near = { within: near.within, address: NEAR.address };
    this.far = { within: far.within, address: FAR.address };
  }

  /** Throws CannotMeasure, with what this machine lacks, where it cannot be made. */
  static async make(): Promise<Link> {
    const near = await Keeper.start(null);
    try {
      const far = await Keeper.start(near);
      const link = new Link([near, far]);
      try {
        link.#connect(far.processId);
        link.limit(1_000_000);
        link.limit(null);
      } catch (error) {
        await link[Symbol.asyncDispose]();
        throw error;
      }
      return link;
    } catch (error) {
      await near.end();
      throw error;
    }
  }

  /** Lets through so many bits per second in each direction; null lifts the limit. */
  limit(bitsPerSecond: number | null): void {
    for (const [end, { device }] of [
      [this.near, NEAR],
      [this.far, FAR],
    ] as const) {
      const words = ["tc", "qdisc"];
      if (bitsPerSecond === null) {
        if (this.#bitsPerSecond !== null) run(end, [...words, "del", "dev", device, "root"]);
        continue;
      }
      const burstBytes = Math.max(BURST_BYTES_MIN, Math.ceil((bitsPerSecond / 8000) * BURST_MS));
      const shape = ["tbf", "rate", `${bitsPerSecond}bit`, "burst", `${burstBytes}`];
      run(end, [...words, "replace", "dev", device, "root", ...shape, "latency", `${QUEUE_MS}ms`]);
    }
    this.#bitsPerSecond = bitsPerSecond;
  }

  /** Asserts that no more went through than was let through: else the limit was none. */
  expectHeld({ sentBytes, totalMs }: { sentBytes: number; totalMs: number }): void {
    if (this.#bitsPerSecond === null) return;
    const bytes = (this.#bitsPerSecond / 8000) * (totalMs + QUEUE_MS);
    assert(sentBytes <= bytes, "a link lets no more through than its limit");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#keepers.map((keeper) => keeper.end()));
  }

  #connect(farProcessId: number): void {
    const { near, far } = this;
    const peer = ["peer", "name", FAR.device, "netns", `${farProcessId}`];
    run(near, ["ip", "link", "add", NEAR.device, "type", "veth", ...peer]);
    for (const [end, { device, address }] of [
      [near, NEAR],
      [far, FAR],
    ] as const) {
      run(end, ["ip", "address", "add", `${address}/30`, "dev", device]);
      run(end, ["ip", "link", "set", device, "up"]);
    }
  }
}

function run({ within }: LinkEnd, words: readonly string[]): void {
  const [program = "", ...rest] = [...within, ...words];
  try {
    execFileSync(program, rest, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    throw new CannotMeasure(`"${words.join(" ")}" failed: ${(stderr || message).trim()}`);
  }
}

/** A process that does nothing but hold a namespace, until its standard input ends as we do. */
class Keeper {
  readonly #child: ChildProcess;
  readonly within: readonly string[];

  private constructor(child: ChildProcess, within: readonly string[]) {
    this.#child = child;
    this.within = within;
  }

  /** A namespace of its own; who is not root needs to be one in there, the same in both. */
  static async start(other: Keeper | null): Promise<Keeper> {
    const isRoot = process.getuid?.() === 0;
    const user = isRoot || other !== null ? [] : ["--user", "--map-root-user"];
    const words = [...(isRoot ? [] : (other?.within ?? [])), "unshare", ...user, "--net"];
    const [program = "", ...rest] = [...words, "sh", "-c", "echo ready; exec cat"];
    const child = spawn(program, rest, { stdio: ["pipe", "pipe", "pipe"] });
    let complaints = "";
    child.stderr.on("data", (text: Buffer) => {
      complaints += text;
    });
    const isReady = await Promise.race([
      once(child.stdout, "data").then(() => true),
      once(child, "exit").then(
        () => false,
        (error: Error) => {
          complaints += error.message;
          return false;
        },
      ),
    ]);
    if (!isReady) throw new CannotMeasure(`no network namespace can be made: ${complaints.trim()}`);
    const id = must(child.pid, "what says that it is ready runs");
    const join = ["nsenter", "--target", `${id}`, "--net"];
    return new Keeper(child, isRoot ? join : [...join, "--user", "--preserve-credentials"]);
  }

  get processId(): number {
    return must(this.#child.pid, "a keeper runs");
  }

  async end(): Promise<void> {
    const { exitCode, signalCode } = this.#child;
    if (exitCode !== null || signalCode !== null) return;
    const ended = once(this.#child, "exit");
    this.#child.stdin?.end();
    await ended;
  }
}

import { assert } from "../../base/assert.ts";
import { nowMs } from "../../base/clock.ts";
import { problemsOf } from "../../test/real/guest/beats.ts";
import type { GuestImage } from "../../test/real/guest/image.ts";
import { type GuestWork, Qemu } from "../../test/real/guest/qemu.ts";
import { cpuMsWithout, loopbackBytes } from "./meters.ts";
import { MigratingEnd } from "./migrating-end.ts";
import { type OwnFigures, readyOf, runMultifd, type SourceThreads } from "./multifd.ts";
import { PauseWatch } from "./pause-watch.ts";
import type { Sample } from "./sample.ts";

/** How the guest must go on where it arrived. A sweep looks at everything that it rewrites. */
const BEATS_AFTER = 10;
const SWEEPS_AFTER = 1;

/** How this engine is told to go about it. */
export const LIVE_WAYS = {
  none: ["--compression", "none"],
  zstd: ["--compression", "zstd"],
  auto: ["--compression", "auto"],
  "auto-for-time": ["--compression", "auto", "--auto-extra-time", "0%"],
} as const;

export type LiveWay = keyof typeof LIVE_WAYS;

/** A guest that works, and how it is to be moved. */
export interface LiveMove {
  readonly image: GuestImage;
  readonly memoryMib: number;
  readonly work: GuestWork;
  readonly channels: number;
  readonly downtimeLimitMs: number;
  readonly threads: SourceThreads;
  /** Called when the guest works and both ends are ready, just before it moves. */
  readonly isReady: () => void;
  /** For small files. */
  readonly folder: string;
}

/** Processor time is of everything that migrates, and not of the guest's own processors. */
export interface LiveSample extends Sample {
  /** From STOP at the source to RESUME at the destination, as both QEMUs say. */
  readonly pauseMs: number;
  /** As the engine itself reports it. */
  readonly downtimeMs: number;
  /** It does not work on where it arrived. */
  readonly isHarmed: boolean;
  /** What only this engine tells. */
  readonly own?: OwnFigures;
}

type Moved = Omit<LiveSample, "pauseMs" | "isHarmed">;

/**
 * QEMU 7.2 loses writes of an emulated guest: where the dirty bitmap of a block of RAM is made of
 * whole words, it is read in a way that leaves the emulator's cache of written pages as it is. The
 * guest then breaks soon after, which is told, and the sample counts: QEMU sent too little, so it
 * has only won by it. Memory that is not a multiple of 256 KiB is read in another way, and survives.
 */
export async function moveLiveWithQemu(move: LiveMove): Promise<LiveSample> {
  const migrate = async (source: Qemu, destination: Qemu): Promise<Moved> => {
    const settings = { ...move, compression: "none" } as const;
    const from = await MigratingEnd.prepare(source.monitor, settings);
    const to = await MigratingEnd.prepare(destination.monitor, settings);
    const uri = await to.listen();
    const [ofSource, ofDestination] = [await CpuMeter.of(source), await CpuMeter.of(destination)];
    move.isReady();
    const before = { sourceMs: ofSource.ms, destinationMs: ofDestination.ms };
    const bytesBefore = loopbackBytes();
    const startMs = nowMs();
    await from.send(uri);
    // Looked at as soon as may be: a guest that breaks takes its QEMU along.
    const destinationMs = to.ended().then(() => ofDestination.ms);
    await Promise.all([from.ended(), destinationMs]);
    return {
      wallMs: nowMs() - startMs,
      sourceCpuMs: ofSource.ms - before.sourceMs,
      destinationCpuMs: (await destinationMs) - before.destinationMs,
      wireBytes: loopbackBytes() - bytesBefore,
      ...(await from.figures()),
    };
  };
  return await moveLive(move, migrate, { mayHarm: true });
}

export async function moveLiveWithMultifd(move: LiveMove, way: LiveWay): Promise<LiveSample> {
  const { channels, downtimeLimitMs, folder, threads } = move;
  return await moveLive(move, async (source, destination) => {
    const words = {
      receive: ["--qemu", destination.qmpPath],
      send: [
        ...["--qemu", source.qmpPath, "--channels", String(channels)],
        ...LIVE_WAYS[way],
        ...["--downtime-limit", `${downtimeLimitMs}ms`],
        // On a busy machine a goal is missed, which is told; a move that is given up tells nothing.
        ...["--non-convergence", "switch-over"],
      ],
      readyThreads: readyOf(threads, channels),
    };
    const [ofSource, ofDestination] = [await CpuMeter.of(source), await CpuMeter.of(destination)];
    let before = { sourceMs: 0, destinationMs: 0 };
    const { sample, own } = await runMultifd(words, folder, () => {
      move.isReady();
      before = { sourceMs: ofSource.ms, destinationMs: ofDestination.ms };
    });
    const { hypervisor } = own.source;
    assert(hypervisor !== undefined, "of a guest of QEMU the engine tells QEMU's downtime");
    return {
      ...sample,
      sourceCpuMs: sample.sourceCpuMs + ofSource.ms - before.sourceMs,
      destinationCpuMs: sample.destinationCpuMs + ofDestination.ms - before.destinationMs,
      downtimeMs: hypervisor.downtimeMs,
      own,
    };
  });
}

/** Boots a guest, has it moved into a fresh QEMU, and throws unless it works on there unharmed. */
async function moveLive(
  { image, memoryMib, work }: LiveMove,
  migrate: (source: Qemu, destination: Qemu) => Promise<Moved>,
  { mayHarm = false } = {},
): Promise<LiveSample> {
  const request = { image, memoryMib, work };
  await using source = await Qemu.boot(request);
  await using destination = await Qemu.start({ ...request, isIncoming: true });
  using watch = new PauseWatch(source.monitor, destination.monitor);
  const moved = await migrate(source, destination);
  const pauseMs = await watch.pauseMs();
  const harm = await expectUnharmed(source, destination).then(
    () => null,
    (error: Error) => error,
  );
  if (harm !== null && !mayHarm) throw harm;
  return { ...moved, pauseMs, isHarmed: harm !== null };
}

async function expectUnharmed(source: Qemu, destination: Qemu): Promise<void> {
  await destination.waitForBeats(BEATS_AFTER);
  await destination.waitForSweeps(SWEEPS_AFTER);
  const [former, latter] = [await source.status(), await destination.status()];
  assert(former === "postmigrate" && latter === "running", "the guest runs where it arrived only");
  const { text } = destination.serial;
  const said = [source.serial.text, text.slice(0, text.lastIndexOf("\n") + 1)];
  const problems = problemsOf(said);
  if (problems.length > 0) throw new Error(problems.join("; "));
}

/** Processor time of a QEMU but that of its guest. */
class CpuMeter {
  readonly #processId: number;
  readonly #threadIds: readonly number[];

  private constructor(processId: number, threadIds: readonly number[]) {
    this.#processId = processId;
    this.#threadIds = threadIds;
  }

  static async of(qemu: Qemu): Promise<CpuMeter> {
    return new CpuMeter(qemu.processId, await qemu.threadIds());
  }

  get ms(): number {
    return cpuMsWithout(this.#processId, this.#threadIds);
  }
}

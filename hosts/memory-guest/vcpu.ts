import { parentPort, workerData } from "node:worker_threads";
import { must } from "../../base/assert.ts";
import { MigrationError } from "../../base/errors.ts";
import { type DirtyLog, markDirty } from "../../engine/dirty-log.ts";
import {
  type FaultBlock,
  type FaultDoor,
  isPresent,
  isWhole,
  type OwnFaults,
  openFaults,
  prepareFaults,
} from "../../engine/faults.ts";
import {
  ADOPTED,
  type Control,
  type Orders,
  SWEEP_WORDS,
  SWEEPS,
  TURN,
  unpackOrders,
  WANTED,
} from "./control.ts";
import { Pace, WAIT_MS_MAX } from "./pace.ts";
import { type Rewrite, rewriteOf, rewritePage } from "./rewrite.ts";
import type { VcpuShape } from "./shape.ts";
import { pageAt, type Sweep, sweepsOf } from "./sweep.ts";

/**
 * The thread of one vCPU. It starts blank, so that a destination can have it ready before it knows
 * what arrives; one message makes it a vCPU, and from then on it only looks at its control words,
 * until its host terminates it.
 */
export interface VcpuJob {
  readonly shape: VcpuShape;
  readonly pageBytes: number;
  readonly memory: SharedArrayBuffer;
  readonly log: DirtyLog;
  readonly control: Control;
  /** Where its pages may still be missing, and its seat there. */
  readonly faults?: VcpuFaults;
}

/** What a blank thread is told. */
export interface VcpuThreadData {
  /** It may become the vCPU of a guest that runs before its memory is there. */
  readonly mayFault: boolean;
}

export interface VcpuFaults {
  readonly door: FaultDoor;
  readonly seat: number;
  readonly block: number;
}

/** What it misses, it fetches itself. */
interface FetchedFaults extends VcpuFaults {
  readonly own: OwnFaults;
}

/** A vCPU that waits for a page looks at its orders this often. */
const FAULT_WAIT_MS = 20;

/** Memory changed between two looks at the control words: about 100 us of work. */
const BATCH_BYTES = 128 * 1024;
const BATCH_PAGES_MAX = 64;

interface Vcpu {
  readonly words: Int32Array;
  readonly rewrite: Rewrite;
  readonly sweeps: readonly Sweep[];
  readonly log: DirtyLog;
  readonly control: Control;
  /** None once all its memory is there. */
  faults: FetchedFaults | undefined;
  readonly pageBytes: number;
}

const host = must(parentPort, "a vCPU is a thread");
host.once("message", async (job: VcpuJob) => {
  const { shape, pageBytes, memory, log, control } = job;
  const faults = job.faults && { ...job.faults, own: await openFaults(job.faults.door) };
  const rewrite = rewriteOf(pageBytes, shape.changedBytes);
  const batchPages = Math.max(1, Math.floor(BATCH_BYTES / shape.changedBytes));
  runForever(
    {
      words: new Int32Array(memory),
      rewrite,
      sweeps: sweepsOf(shape),
      log,
      control,
      faults,
      pageBytes,
    },
    new Pace(shape.rateBytesPerSecond / pageBytes),
    Math.min(BATCH_PAGES_MAX, batchPages),
  );
});
host.postMessage("ready");
if ((workerData as VcpuThreadData).mayFault) await prepareFaults();

function runForever(vcpu: Vcpu, pace: Pace, batchPages: number): never {
  const { words, written } = vcpu.control;
  let adopted = 0;
  let orders: Orders = unpackOrders(adopted);
  for (;;) {
    const wanted = Atomics.load(words, WANTED);
    if (wanted !== adopted) {
      adopted = wanted;
      orders = unpackOrders(wanted);
      pace.throttlePercent = orders.throttlePercent;
      Atomics.store(words, ADOPTED, wanted);
      Atomics.notify(words, ADOPTED);
    }
    if (!orders.run) {
      pace.stop();
      Atomics.wait(words, WANTED, adopted, WAIT_MS_MAX);
      continue;
    }
    if (vcpu.faults !== undefined && isWhole(vcpu.faults.door)) {
      vcpu.faults.own.close();
      vcpu.faults = undefined;
    }
    pace.advance(performance.now());
    const pages = Math.min(batchPages, pace.pages);
    if (pages > 0) {
      const count = writePages(vcpu, pages, orders.track);
      written[0] = (written[0] as number) + count;
      pace.wrote(count);
    } else {
      Atomics.wait(words, WANTED, adopted, pace.waitMs);
    }
  }
}

/** Returns how many were written: a page that does not come ends the batch, for there may be orders. */
function writePages(vcpu: Vcpu, pages: number, isTracked: boolean): number {
  const { words, rewrite, sweeps, log } = vcpu;
  const control = vcpu.control.words;
  for (let i = 0; i < pages; i += 1) {
    const turn = control[TURN] as number;
    const sweep = sweeps[turn] as Sweep;
    const at = SWEEPS + turn * SWEEP_WORDS;
    const position = control[at] as number;
    const page = pageAt(sweep, position);
    if (vcpu.faults !== undefined && !isThere(vcpu, vcpu.faults, page)) return i;
    rewritePage(words, page * rewrite.pageWords, rewrite);
    // Only now: marked first, the page could be read in between and this write would be lost.
    if (isTracked) markDirty(log, page);
    const isLast = position + 1 === sweep.pageCount;
    control[at] = isLast ? 0 : position + 1;
    if (isLast) control[at + 1] = ((control[at + 1] as number) + 1) | 0;
    control[TURN] = turn + 1 === sweeps.length ? 0 : turn + 1;
  }
  return pages;
}

/** Waits for a page of the guest, which may be several of the wire's. */
function isThere(
  { control, pageBytes }: Vcpu,
  { door, seat, block, own }: FetchedFaults,
  page: number,
): boolean {
  const count = pageBytes / (door.blocks[block] as FaultBlock).pageBytes;
  for (let piece = page * count; piece < (page + 1) * count; piece += 1) {
    if (isPresent(door, block, piece)) continue;
    try {
      if (!own.awaitPage({ seat, block, page: piece }, FAULT_WAIT_MS)) return false;
    } catch (error) {
      if (!(error instanceof MigrationError)) throw error;
      // It never comes: this vCPU stands still for good, and goes on to obey.
      Atomics.wait(control.words, WANTED, Atomics.load(control.words, ADOPTED), FAULT_WAIT_MS);
      return false;
    }
  }
  return true;
}

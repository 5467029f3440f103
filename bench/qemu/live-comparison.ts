import { MIB } from "../../base/units.ts";
import { GuestImage } from "../../test/real/guest/image.ts";
import type { GuestWork } from "../../test/real/guest/qemu.ts";
import { MEMORY_KINDS } from "./enclosure.ts";
import {
  type LiveMove,
  type LiveSample,
  type LiveWay,
  moveLiveWithMultifd,
  moveLiveWithQemu,
} from "./live-move.ts";
import type { Turns } from "./program.ts";
import { warm } from "./warm.ts";

export const DOWNTIME_LIMIT_MS = 400;

/** What the guest does, and how large it is. */
export interface LiveGuest {
  readonly memoryMib: number;
  readonly work: GuestWork;
}

export interface LivePlan extends Turns {
  readonly guest: LiveGuest;
  readonly compressions: readonly LiveWay[];
}

/** Moves of a guest of the same kind, turn and turn about. */
export interface LiveComparison {
  readonly guest: LiveGuest;
  readonly compression: LiveWay;
  /** With each compression of ours the same: QEMU compresses nothing. */
  readonly qemu: readonly LiveSample[];
  readonly multifd: readonly LiveSample[];
}

/** Compares inside an enclosure. QEMU has one move in each turn, and this engine one for each compression. */
export async function compareLive(plan: LivePlan): Promise<LiveComparison[]> {
  const { guest, compressions, pairs, warmups, channels, threads } = plan;
  const { folder } = MEMORY_KINDS.small;
  await using image = await GuestImage.build(folder); // Gone with the enclosure, however that ends.
  const isReady = (): void => warm(`${folder}/warm`, Math.ceil(guest.memoryMib) * MIB);
  const move: LiveMove = {
    ...{ ...guest, image, channels, threads, folder, isReady },
    downtimeLimitMs: DOWNTIME_LIMIT_MS,
  };
  const qemu: LiveSample[] = [];
  const runners = [
    { samples: qemu, run: () => moveLiveWithQemu(move) },
    ...compressions.map((compression) => ({
      samples: [] as LiveSample[],
      run: () => moveLiveWithMultifd(move, compression),
    })),
  ];
  for (let turn = -warmups; turn < pairs; turn += 1) {
    // Who comes second may find things warmer.
    for (const { samples, run } of turn % 2 === 0 ? runners : runners.toReversed()) {
      const sample = await run();
      if (turn >= 0) samples.push(sample);
    }
  }
  return compressions.map((compression, index) => {
    const multifd = runners[index + 1]?.samples ?? [];
    return { guest, compression, qemu, multifd };
  });
}

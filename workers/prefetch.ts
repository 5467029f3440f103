/** Pages that are sent unasked with a fault. */
const WINDOW_MIN = 4;
const WINDOW_MAX = 64;

/** Walks through memory that are told apart: several vCPUs fault by turns. */
const WALKS_MAX = 4;

/** Pages that a guest may leave out and still go on where its window ended. */
const SLACK_PAGES = 4;

/** Faults that lie further apart are no walk. */
const STRIDE_PAGES_MAX = 512;

/** Faults that may follow each other, and what was sent with the last of them. */
interface Walk {
  readonly block: number;
  /** The page that was asked for last. */
  readonly page: number;
  /** From one page to the next one that is wanted, negative where the guest goes down; 0 unknown. */
  readonly step: number;
  /** Sent unasked: so many steps from `page`, or around it where no step is known. */
  readonly pages: number;
  /** How far the last two faults lay apart. */
  readonly gap: number;
}

/**
 * Which pages are worth sending before anyone asks for them. A first fault gets some on either side.
 * A guest that goes through memory in order, up or down or by strides, comes to the end of what was
 * sent and asks for the next page: then the window was used, and the next one lies in that direction
 * and is twice as long. A fault that continues nothing halves what others like it get, down to nothing.
 */
export class Prefetch {
  /** The last one first. */
  #walks: readonly Walk[] = [];
  /** For faults that continue nothing. */
  #pages = WINDOW_MIN;

  /** Takes a fault; returns the pages to send, the likeliest first, also ones that do not exist. */
  fault(block: number, page: number): number[] {
    let found: Walk | null = null;
    let near: Walk | null = null;
    for (const walk of this.#walks) {
      if (walk.block !== block) continue;
      if (stepTo(walk, page) !== 0) {
        found = walk;
        break;
      }
      if (near === null && Math.abs(page - walk.page) <= STRIDE_PAGES_MAX) near = walk;
    }
    const walk = found === null ? this.#stray(block, page, near) : follow(found, page);
    this.#remember(walk, found ?? near);
    return pagesOf(walk);
  }

  /** Instead of the one that it goes on with, or that it may be the second step of. */
  #remember(walk: Walk, instead: Walk | null): void {
    const walks = [walk];
    for (const before of this.#walks) {
      if (before !== instead && walks.length < WALKS_MAX) walks.push(before);
    }
    this.#walks = walks;
  }

  /** It continues nothing, but may be the second step of a stride. */
  #stray(block: number, page: number, near: Walk | null): Walk {
    const pages = this.#pages;
    this.#pages = Math.floor(pages / 2);
    return { block, page, step: 0, pages, gap: near === null ? 0 : page - near.page };
  }
}

/** The step by which a fault continues a walk; 0 where it does not. */
function stepTo({ page: from, step, pages, gap }: Walk, page: number): number {
  const distance = page - from;
  if (step === 0) {
    const sent = Math.ceil(pages / 2);
    const reach = sent === 0 ? 1 : sent + 1 + SLACK_PAGES;
    if (Math.abs(distance) <= reach) return Math.sign(distance);
    return distance === gap ? gap : 0;
  }
  const steps = distance / step;
  const slack = Math.abs(step) === 1 ? SLACK_PAGES : 0;
  return Number.isInteger(steps) && steps > 0 && steps <= pages + 1 + slack ? step : 0;
}

function follow(walk: Walk, page: number): Walk {
  const step = stepTo(walk, page);
  // One within the window was asked for before it came there: that is no end of it.
  const isEnd = walk.step === 0 || Math.abs(page - walk.page) > walk.pages * Math.abs(step);
  const pages = isEnd ? Math.min(WINDOW_MAX, walk.pages * 2) : walk.pages;
  return { block: walk.block, page, step, pages: Math.max(WINDOW_MIN, pages), gap: step };
}

function pagesOf({ page, step, pages }: Walk): number[] {
  const wanted: number[] = [];
  for (let index = 0; index < pages; index += 1) {
    const side = index % 2 === 0 ? 1 : -1;
    wanted.push(page + (step === 0 ? side * (1 + (index >> 1)) : step * (index + 1)));
  }
  return wanted;
}

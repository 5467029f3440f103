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
  readonly #walks: Walk[] = [];
  /** For faults that continue nothing. */
  #pages = WINDOW_MIN;

  /** Takes a fault; returns the pages to send, the likeliest first, also ones that do not exist. */
  fault(block: number, page: number): number[] {
    const at = this.#walks.findIndex((walk) => walk.block === block && stepTo(walk, page) !== 0);
    const found = this.#walks[at];
    const walk = found === undefined ? this.#stray(block, page) : follow(found, page);
    if (found !== undefined) this.#walks.splice(at, 1);
    this.#walks.unshift(walk);
    this.#walks.length = Math.min(this.#walks.length, WALKS_MAX);
    return pagesOf(walk);
  }

  /** It continues nothing, but may be the second step of a stride. */
  #stray(block: number, page: number): Walk {
    const at = this.#walks.findIndex((walk) => {
      return walk.block === block && Math.abs(page - walk.page) <= STRIDE_PAGES_MAX;
    });
    const [near] = at === -1 ? [] : this.#walks.splice(at, 1);
    const pages = this.#pages;
    this.#pages = Math.floor(pages / 2);
    return { block, page, step: 0, pages, gap: near === undefined ? 0 : page - near.page };
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
  return Array.from({ length: pages }, (_, index) => {
    if (step !== 0) return page + step * (index + 1);
    return page + (index % 2 === 0 ? 1 : -1) * (1 + (index >> 1));
  });
}

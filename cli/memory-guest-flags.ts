import { formatBytes, GIB, MIB, MINUTE_MS } from "../base/units.ts";
import type { ContentMix, GuestShape, Pattern } from "../hosts/memory-guest/shape.ts";
import type { CommandFlag, CommandFlags } from "./flags.ts";

const PAGE_BYTES = 4096;
const PATTERNS = ["sweep", "stride", "hot"] as const satisfies readonly Pattern[];

/** What the guest's memory holds at first. */
const CONTENT: ContentMix = { zero: 1 / 3, text: 1 / 3, random: 1 / 3 };

export const MEMORY_GUEST_FLAG = {
  meaning:
    "A guest of multifd's own instead of files: it really writes its memory, and every page is checked.",
} as const satisfies CommandFlag;

export const VCPUS_FLAG = {
  value: { type: "count", min: 1, max: 16 },
  default: 2,
  meaning: "Threads of the guest that write.",
} as const satisfies CommandFlag;

/** What such a guest is like where it begins. */
export const SHAPE_FLAGS = {
  size: {
    value: { type: "bytes", min: 16 * MIB, max: 64 * GIB },
    default: 512 * MIB,
    meaning: "The guest's RAM.",
  },
  "working-set": {
    value: { type: "bytes", min: MIB, max: 64 * GIB },
    default: 64 * MIB,
    meaning: "Memory that its vCPUs keep writing.",
  },
  "dirty-rate": {
    value: { type: "bytesPerSecond", min: 0, max: 64 * GIB },
    default: 100 * MIB,
    meaning: "How fast they do, all together.",
  },
  pattern: {
    value: { type: "choice", choices: PATTERNS },
    default: "sweep",
    meaning: "The order in which they write.",
  },
  "changed-bytes": {
    value: { type: "bytes", min: 8, max: PAGE_BYTES },
    default: 64,
    meaning: "What a write changes in a page.",
  },
  seed: {
    value: { type: "count", min: 0, max: 2 ** 32 - 1 },
    default: 1,
    meaning: "What the guest's content grows from.",
  },
} as const satisfies CommandFlags;

export const RUN_FOR_FLAG = {
  value: { type: "milliseconds", min: 0, max: 10 * MINUTE_MS },
  default: 1000,
  meaning: "How long the guest runs on before all of it is checked.",
} as const satisfies CommandFlag;

/** `flags` of a command that has other guests as well. */
export function withMemoryGuest<F extends CommandFlags>(flags: F): F {
  const described = Object.entries(flags).map(([name, flag]) => {
    const meaning = flag.meaning.slice(0, 1).toLowerCase() + flag.meaning.slice(1);
    return [name, { ...flag, meaning: `With --memory-guest: ${meaning}` }];
  });
  return Object.fromEntries(described) as F;
}

interface ShapeValues {
  readonly vcpus: number;
  readonly size: number;
  readonly "working-set": number;
  readonly "dirty-rate": number;
  readonly pattern: Pattern;
  readonly "changed-bytes": number;
  readonly seed: number;
}

/** What each flag by itself cannot tell. */
export function shapeProblems(values: Pick<ShapeValues, "size" | "working-set">): string[] {
  if (values["working-set"] <= values.size) return [];
  const [wanted, room] = [formatBytes(values["working-set"]), formatBytes(values.size)];
  return [`--working-set is ${wanted}: it must fit into --size, which is ${room}`];
}

/** Whether this machine has room for `copies` of the guest. */
export function roomProblems({ size }: Pick<ShapeValues, "size">, copies: number): string[] {
  const neededBytes = copies * size * (1 - CONTENT.zero);
  const freeBytes = process.availableMemory();
  if (neededBytes <= freeBytes) return [];
  const [needed, free] = [formatBytes(neededBytes), formatBytes(freeBytes)];
  const where = copies === 1 ? "" : " for both processes";
  return [`--size needs about ${needed}${where}: ${free} are free`];
}

export function shapeOf(values: ShapeValues): GuestShape {
  const { size, vcpus: count, seed, pattern } = values;
  const sizeBytes = Math.floor(size / PAGE_BYTES) * PAGE_BYTES;
  const pageCount = Math.floor(values["working-set"] / count / PAGE_BYTES);
  const vcpus = Array.from({ length: count }, (_, index) => ({
    block: "ram",
    firstPage: index * pageCount,
    pageCount,
    pattern,
    rateBytesPerSecond: Math.round(values["dirty-rate"] / count),
    changedBytes: values["changed-bytes"],
  }));
  return {
    blocks: [{ name: "ram", sizeBytes, pageBytes: PAGE_BYTES }],
    seed,
    content: CONTENT,
    vcpus,
  };
}

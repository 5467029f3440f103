import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { must } from "../base/assert.ts";
import { Deadline } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import { median } from "../bench/measure.ts";
import type { Holdings } from "./fixtures/to-and-fro.ts";
import { type Cli, type CliEvent, startCli } from "./run-cli.ts";

const PROGRAM = fileURLToPath(new URL("fixtures/to-and-fro.ts", import.meta.url));

/** `npm run soak` has a thousand. */
const MOVES = Number(process.env["MOVES"] ?? 20);
const MOVE_LIMIT_MS = 5000;

/** Until then processes load what they keep: code, thread stacks, the allocator's own reserves. */
const WARM_UP_MOVES = 6;

/**
 * More than the noise between two windows: an allocator keeps some megabytes of threads that ended.
 * It is less than three of the guests (8 MiB), of which a short run would have left six behind, and
 * in a long one it is some kilobytes a move.
 */
const GROWTH_MAX_BYTES = 24 * MIB;

/** The nth event of a name; a process says most of them again and again. */
async function nth(cli: Cli, name: string, count: number): Promise<CliEvent> {
  let seen = 0;
  return await cli.waitFor(name, () => {
    seen += 1;
    return seen === count;
  });
}

/** One of the two, with what was said of each kind so far. */
class Place {
  readonly cli = startCli(["--json"], {
    program: PROGRAM,
    input: true,
    limitMs: 20_000 + MOVES * MOVE_LIMIT_MS,
  });
  readonly #said = new Map<string, number>();
  readonly residentBytes: number[] = [];

  async order(line: string, answer: string): Promise<CliEvent> {
    this.cli.tell(line);
    return await this.next(answer);
  }

  async next(name: string): Promise<CliEvent> {
    const count = (this.#said.get(name) ?? 0) + 1;
    this.#said.set(name, count);
    return await nth(this.cli, name, count);
  }

  async holdings(): Promise<Holdings> {
    return (await this.order("measure", "holds")) as CliEvent & Holdings;
  }

  /** What it holds without a guest, once that is no more than `before`: ends show a moment later. */
  async settled(before: Counts | null): Promise<Counts> {
    const deadline = new Deadline(MOVE_LIMIT_MS);
    for (;;) {
      const { residentBytes, ...rest } = await this.holdings();
      const { threads, descriptors, mappedFiles } = rest;
      const counts = { threads, descriptors, mappedFiles };
      const isMore =
        before !== null && (threads > before.threads || descriptors > before.descriptors);
      if (isMore && !deadline.passed) continue;
      this.residentBytes.push(residentBytes);
      return counts;
    }
  }
}

type Counts = Omit<Holdings, "residentBytes">;

/** Both ends do it both ways. */
function isFollowed(move: number): boolean {
  return move % 4 >= 2;
}

test(
  `a guest that moves ${MOVES} times to and fro, every other time before its memory, leaves nothing behind`,
  async () => {
    const places = [new Place(), new Place()];
    await using _first = must(places[0], "there are two").cli;
    await using _second = must(places[1], "there are two").cli;
    const before = new Map<Place, Counts>();
    await places[0]?.order("create", "created");
    for (let move = 0; move < MOVES; move += 1) {
      const from = must(places[move % 2], "there are two");
      const to = must(places[1 - (move % 2)], "there are two");
      const { address } = await to.order("receive", "listening");
      from.cli.tell(`${isFollowed(move) ? "post-copy " : ""}${address}`);
      const [arrived, left] = await Promise.all([to.next("arrived"), from.next("left")]);
      expect(left["isFollowed"]).toBe(isFollowed(move));
      expect(arrived).toMatchObject({ runsOn: true, problems: [] });
      const isWarm = move >= WARM_UP_MOVES;
      const counts = await from.settled(isWarm ? (before.get(from) ?? null) : null);
      if (isWarm) expect({ move, ...counts }).toEqual({ move, ...before.get(from) });
      else before.set(from, counts);
    }
    for (const { residentBytes } of places) {
      const warm = residentBytes.slice(WARM_UP_MOVES / 2);
      const window = Math.ceil(warm.length / 4);
      const early = median(warm.slice(0, window));
      const late = median(warm.slice(-window));
      if (MOVES > 100) {
        process.stdout.write(`${early / MIB} MiB, then ${late / MIB} MiB\n`);
      }
      expect(late - early).toBeLessThan(GROWTH_MAX_BYTES);
    }
  },
  20_000 + MOVES * MOVE_LIMIT_MS,
);

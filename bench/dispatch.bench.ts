import { assert } from "../base/assert.ts";
import { ChannelPool } from "../engine/pool.ts";
import type { DispatchSetup } from "./dispatch-worker.ts";
import type { Benchmark } from "./measure.ts";
import { timeTasks } from "./tasks.ts";

const SMOKE = { timeMs: 1, channels: 2, batch: 8 };

/** As many as the source keeps in flight per channel. */
const IN_FLIGHT = 2;

/** What it costs the coordinator to hand a task to the thread that owns a channel. */
export const dispatch: Benchmark<typeof SMOKE> = {
  name: "dispatch",
  about: "tasks that do nothing, each to the thread that owns its channel",
  smoke: SMOKE,
  real: { timeMs: 1000, channels: 2, batch: 256 },

  async run(report, { timeMs, channels, batch }) {
    const counts = new Int32Array(new SharedArrayBuffer((channels + 1) * 4));
    const setup: DispatchSetup = { counts };
    const module = new URL("./dispatch-worker.ts", import.meta.url);
    const pool = new ChannelPool({ module, setup, channels });
    const run = async (channel: number): Promise<void> => {
      const done = await pool.run(channel, { channel });
      assert(done?.pages === channel, "a task comes back");
    };
    const pipeline = async (channel: number): Promise<void> => {
      let left = batch;
      const lane = async (): Promise<void> => {
        for (; left > 0; ) {
          left -= 1;
          await run(channel);
        }
      };
      await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
    };
    const all = Array.from({ length: channels }, (_, index) => index + 1);
    let given = 0;
    const tasks = [
      {
        name: "round trip, one task at a time",
        async work() {
          given += 1;
          await run(1);
        },
      },
      {
        name: `pipelined, ${channels} channels, ${IN_FLIGHT} tasks in flight each`,
        times: batch * channels,
        async work() {
          given += batch * channels;
          await Promise.all(all.map(pipeline));
        },
      },
    ];
    await Promise.all(all.map(run)); // The threads are there.
    counts.fill(0);
    await timeTasks(tasks, timeMs, report);
    assert(
      counts.reduce((sum, count) => sum + count, 0) === given && counts[0] === 0,
      "every task reached a thread, once",
    );
    await pool.close();
  },
};

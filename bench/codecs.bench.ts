import { assert, must } from "../base/assert.ts";
import { KIB } from "../base/units.ts";
import { letGo } from "../workers/codecs/let-go.ts";
import { CODECS } from "../workers/codecs/list.ts";
import { PIECE_BYTES } from "../workers/workbench.ts";
import type { Benchmark } from "./measure.ts";
import { type Task, timeTasks } from "./tasks.ts";
import { fill } from "./workloads.ts";

const SMOKE = { timeMs: 1, payloadBytes: 64 * KIB, level: 1 };

/**
 * What each codec does to a payload of text, and of random bytes, on one core. Results are let go of
 * at once, as the engine does.
 */
export const codecs: Benchmark<typeof SMOKE> = {
  name: "codecs",
  about: "compressing and expanding payloads, in bytes before compression",
  smoke: SMOKE,
  real: { timeMs: 1000, payloadBytes: PIECE_BYTES, level: 1 },

  async run(report, { timeMs, payloadBytes, level }) {
    const tasks: Task[] = [];
    for (const content of ["text", "random"] as const) {
      const payload = new Uint8Array(payloadBytes);
      fill(payload, content, 1);
      for (const codec of CODECS) {
        const small = codec.compress(payload, level);
        const value = payloadBytes / small.length;
        report({ name: `${codec.name} of ${content}, ratio`, value, unit: "" });
        const work = (): void => {
          const made = codec.compress(payload, level);
          assert(made.length === small.length, "a codec repeats itself");
          letGo(made);
        };
        tasks.push({ name: `${codec.name} compresses ${content}`, bytes: payloadBytes, work });
        if (small.length >= payloadBytes) continue;
        const expand = (): void => {
          letGo(must(codec.expand(small, payloadBytes), "a codec knows its own"));
        };
        tasks.push({ name: `${codec.name} expands ${content}`, bytes: payloadBytes, work: expand });
      }
    }
    await timeTasks(tasks, timeMs, report);
  },
};

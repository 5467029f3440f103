import { assert } from "../base/assert.ts";
import { parseAddress } from "../channels/address.ts";
import { connector, descriptorOf, listen, stopReading } from "../channels/connection.ts";
import { readNow } from "../channels/descriptor.ts";
import { openInbox } from "../channels/inbox.ts";
import type { Benchmark } from "./measure.ts";
import { timeTasks } from "./tasks.ts";

const SMOKE = { timeMs: 1, times: 10 };

const LIMIT_MS = 10_000;
const BYTES = 64;

/** What a lane does dozens of times for each page that a guest waits for. */
export const looks: Benchmark<typeof SMOKE> = {
  name: "looks",
  about: "a look at a connection on which nothing has come, as a lane looks and by fs.readSync",
  smoke: SMOKE,
  real: { timeMs: 1000, times: 100 },

  async run(report, { timeMs, times }) {
    const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
    const dialer = connector(parseAddress(listener.address));
    const near = await dialer.connect(1, LIMIT_MS);
    const far = await listener.next(LIMIT_MS);
    listener.close();
    stopReading(near.reader);
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const options = { fd: descriptorOf(near.reader), channel: 1, stop, limitMs: LIMIT_MS };
    const inbox = openInbox(options, BYTES);
    assert(inbox.isQuiet, "Node has WASI, and this host does not forbid it");
    const target = new Uint8Array(BYTES);
    const task = (name: string, look: () => number) => ({
      name,
      times,
      work() {
        let found = 0;
        for (let time = 0; time < times; time += 1) found += look();
        assert(found === 0, "nothing has come");
      },
    });
    const tasks = [
      task("by an inbox", () => inbox.read(0, BYTES)),
      task("by fs.readSync, which throws", () => readNow(options, target)),
    ];
    await timeTasks(tasks, timeMs, report);
    for (const connection of [near, far]) connection.close();
  },
};

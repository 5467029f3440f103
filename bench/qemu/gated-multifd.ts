import { readSync, writeFileSync } from "node:fs";
import { enableCompileCache, getCompileCacheDir } from "node:module";

/**
 * One end of a migration, which once it is loaded waits for a line of its input, and when it ends
 * leaves in a file what processor time it has used in all: `/proc` forgets a process as soon as it
 * is gone. It is the command `multifd`, or with ready threads what a host does that embeds the engine,
 * as QEMU has its own loaded: its threads have started before it is told to begin.
 */
// As the command does, for its threads, too.
enableCompileCache();
const cache = getCompileCacheDir();
if (cache !== undefined) process.env["NODE_COMPILE_CACHE"] ??= cache;
const { main } = await import("../../cli/main.ts");
const { send } = await import("../../cli/send.ts");
const { ReadyThreads } = await import("../../engine/ready-threads.ts");
const [cpuPath = "", readyThreads = "0", ...words] = process.argv.slice(2);
const count = Number(readyThreads);
const threads = count === 0 ? undefined : new ReadyThreads("source", count, { isForOne: true });
await threads?.started();
process.stdout.write(`${JSON.stringify({ event: "loaded" })}\n`);
readSync(0, new Uint8Array(1));
process.on("exit", () => {
  const { user, system } = process.cpuUsage();
  writeFileSync(cpuPath, String((user + system) / 1000));
});
process.exit(threads === undefined ? await main(words) : await send(words.slice(1), threads));

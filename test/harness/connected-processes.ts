import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { buffer, text } from "node:stream/consumers";
import { onTestFinished } from "vitest";
import { must } from "../../base/assert.ts";

/**
 * Starts two programs, each with its arguments, until the end of the test. Both inherit `count`
 * sockets, as descriptors 3, 4 and so on: 3 of one is connected with 3 of the other.
 */
export function startConnected(
  count: number,
  argv: { source: readonly string[]; destination: readonly string[] },
): { source: ChildProcess; destination: ChildProcess } {
  const destination = start(argv.destination, Array(count).fill("pipe"));
  const ends = destination.stdio.slice(3);
  const source = start(argv.source, ends);
  // They live in the two processes only, so that each notices when the other one goes.
  for (const end of ends) if (end !== null && end !== undefined && "destroy" in end) end.destroy();
  return { source, destination };
}

type Inherited = "pipe" | NodeJS.ReadableStream | NodeJS.WritableStream | null | undefined;

function start(argv: readonly string[], inherited: readonly Inherited[]): ChildProcess {
  const stdio = ["ignore", "pipe", "pipe", ...inherited] as ("ignore" | "pipe")[];
  const child = spawn(process.execPath, argv, { stdio });
  onTestFinished(() => void child.kill("SIGKILL"));
  return child;
}

/** All that a process puts out until it ends. Throws, with its complaint, where it does not end well. */
export async function outputOf(child: ChildProcess): Promise<Buffer> {
  const output = buffer(must(child.stdout, "its output is a pipe"));
  const complaint = text(must(child.stderr, "its complaints are a pipe"));
  const [status, signal] = await once(child, "close");
  if (status === 0) return await output;
  throw new Error(`a process ended with ${signal ?? `status ${status}`}: ${await complaint}`);
}

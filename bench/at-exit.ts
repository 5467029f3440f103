import { constants } from "node:os";

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** Calls `end` when this process ends, by a signal too, unless it is disposed of before. */
export function atExit(end: () => void): Disposable {
  const exit = (signal: NodeJS.Signals): void => process.exit(128 + constants.signals[signal]);
  process.once("exit", end);
  // By itself a signal ends a process without its exit being told.
  for (const signal of SIGNALS) process.on(signal, exit);
  return {
    [Symbol.dispose]() {
      process.removeListener("exit", end);
      for (const signal of SIGNALS) process.removeListener(signal, exit);
    },
  };
}

import type { CommandFlag } from "./flags.ts";

export const JSON_FLAG = {
  meaning: "Standard output is JSON, one object a line.",
} as const satisfies CommandFlag;

export const HELP_FLAG = {
  short: "h",
  meaning: "Tells what this command takes.",
} as const satisfies CommandFlag;

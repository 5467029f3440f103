import type { NumberWording } from "./domain.ts";
import type { ParameterKey } from "./parameters.ts";

/** How messages name parameters and their values: an embedder and a shell read different words. */
export interface Wording extends NumberWording {
  name(key: ParameterKey): string;
  value(key: ParameterKey, value: number | boolean | string): string;
  /** What features are called that are not called by their name. */
  readonly features?: Readonly<Partial<Record<string, string>>>;
}

/** For embedders: the option as it stands in code, in the unit that its name ends in. */
export const AS_OPTIONS: Wording = {
  name: (key) => `"${key}"`,
  value: (_key, value) => (typeof value === "string" ? `"${value}"` : String(value)),
  number: (_domain, value) => String(value),
  nouns: {
    count: "a whole number",
    bytes: "a whole number of bytes",
    bytesPerSecond: "a number of bytes per second",
    milliseconds: "a number of milliseconds",
    percent: "a whole percentage",
    cores: "a number of cores",
  },
};

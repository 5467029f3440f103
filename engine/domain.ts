/** Counts, bytes and percentages are whole; times and rates may have a fraction. */
export interface NumberDomain {
  readonly type: "count" | "bytes" | "bytesPerSecond" | "milliseconds" | "percent" | "cores";
  readonly min: number;
  readonly max: number;
  /** What 0 means, where it is allowed beside `min` to `max`. */
  readonly zero?: string;
  readonly powerOfTwo?: boolean;
}

export interface BooleanDomain {
  readonly type: "boolean";
}

export interface ChoiceDomain {
  readonly type: "choice";
  readonly choices: readonly string[];
}

/** The values that a parameter or a flag may have. */
export type Domain = NumberDomain | BooleanDomain | ChoiceDomain;

/** What is measured may have a fraction; a percentage is a setting, and steps of one are enough. */
const WHOLE: ReadonlySet<Domain["type"]> = new Set(["count", "bytes", "percent"]);

export function contains(domain: Domain, value: unknown): boolean {
  if (domain.type === "boolean") return typeof value === "boolean";
  if (domain.type === "choice") return domain.choices.some((choice) => choice === value);
  if (typeof value !== "number" || !Number.isFinite(value)) return false;
  if (value === 0 && domain.zero !== undefined) return true;
  if (WHOLE.has(domain.type) && !Number.isSafeInteger(value)) return false;
  if (domain.powerOfTwo && !Number.isInteger(Math.log2(value))) return false;
  return value >= domain.min && value <= domain.max;
}

/** How a domain's numbers are written for one kind of reader. */
export interface NumberWording {
  readonly nouns: Readonly<Record<NumberDomain["type"], string>>;
  number(domain: NumberDomain, value: number): string;
}

/** What a domain takes, for messages and help: "a whole number from 1 to 64". */
export function domainText(domain: Domain, { nouns, number }: NumberWording): string {
  if (domain.type === "boolean") return "true or false";
  if (domain.type === "choice") return domain.choices.map((choice) => `"${choice}"`).join(" or ");
  const zero = domain.zero === undefined ? "" : `0 (${domain.zero}) or `;
  const power = domain.powerOfTwo ? " that is a power of two" : "";
  const range = `from ${number(domain, domain.min)} to ${number(domain, domain.max)}`;
  return `${zero}${nouns[domain.type]}${power} ${range}`;
}

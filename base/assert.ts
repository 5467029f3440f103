/** A broken belief of the programmer. Never caught and mended: it ends the attempt, not the guest. */
export class InvariantError extends Error {
  override name = "InvariantError";
}

/** States what must hold here, also in production. `claim` is constant: no string is built. */
export function assert(condition: boolean, claim: string): asserts condition {
  if (!condition) throw new InvariantError(claim);
}

/** Closes a switch: a new union member that nobody handles fails to compile here. */
export function unreachable(value: never): never {
  throw new InvariantError(`Unhandled case ${JSON.stringify(value)}`);
}

/** Unwraps what an index or a map must hold; the claim says why it is there. */
export function must<T>(value: T | undefined | null, claim: string): T {
  if (value === undefined || value === null) throw new InvariantError(claim);
  return value;
}

import { assert } from "../base/assert.ts";
import { MigrationError, reasonOf } from "../base/errors.ts";
import { type Address, parseAddress } from "../channels/address.ts";
import { DESCRIPTION_BYTES_MAX } from "../channels/frame.ts";
import { type Block, blockProblems } from "./block.ts";
import type { Features } from "./features.ts";
import {
  configurationProblems,
  type ParameterOptions,
  type Parameters,
  parameterProblems,
  preferring,
  resolveParameters,
} from "./parameters.ts";
import type { ReadyThreads } from "./ready-threads.ts";

export interface Configuration {
  readonly address: Address;
  readonly parameters: Parameters;
  /** What the parameters were judged by, and changes of them are. */
  readonly features: Features;
}

/**
 * Everything that can be checked before anything is touched, all problems at once. Throws
 * CONFIGURATION_INVALID.
 */
export function configure(
  given: object,
  addressText: string,
  known: {
    side: "source" | "destination";
    blocks?: readonly Block[];
    throttle?: boolean;
    faults?: boolean;
    dirtyLog?: Features["dirtyLog"] | undefined;
    description?: string | undefined;
    preferences?: ParameterOptions | undefined;
    threads?: ReadyThreads | undefined;
  },
): Configuration {
  const { address, problems } = tryAddress(addressText);
  const features: Features = {
    side: known.side,
    migration: "live",
    ...(known.throttle === undefined ? {} : { throttle: known.throttle }),
    ...(known.faults === undefined ? {} : { faults: known.faults }),
    ...(known.dirtyLog === undefined ? {} : { dirtyLog: known.dirtyLog }),
    ...(address === null ? {} : { address: address.kind }),
    ...(address?.kind === "fd" ? { descriptors: address.descriptors.length } : {}),
  };
  const { preferences = {} } = known;
  problems.push(
    ...parameterProblems({ ...preferences }).map((text) => `the host prefers: ${text}`),
  );
  const base = preferring(preferences);
  problems.push(...configurationProblems({ ...given }, features, { base }));
  if (known.blocks !== undefined) problems.push(...blockProblems(known.blocks));
  const descriptionBytes = new TextEncoder().encode(known.description).length;
  if (descriptionBytes > DESCRIPTION_BYTES_MAX) {
    problems.push(
      `a host describes its guest in at most ${DESCRIPTION_BYTES_MAX} bytes: it is ${descriptionBytes}`,
    );
  }
  const { side, threads } = known;
  if (threads !== undefined && threads.side !== side) {
    problems.push(`threads made ready for a ${threads.side} do not serve a ${side}`);
  }
  if (problems.length > 0) throw new MigrationError("CONFIGURATION_INVALID", { problems });
  assert(address !== null, "an address without a problem was read");
  return { address, parameters: resolveParameters(given, features, base), features };
}

function tryAddress(text: string): { address: Address | null; problems: string[] } {
  try {
    // Also where a host without types gives none.
    return { address: parseAddress(String(text)), problems: [] };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return { address: null, problems: [reasonOf(error).replace(/^RangeError: /, "")] };
  }
}

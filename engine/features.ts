import type { AddressKind } from "../channels/address.ts";

/** What rules of legality ask about beside parameters. What is not known is left out. */
export interface Features {
  /** The end that is configured. */
  readonly side?: "source" | "destination";
  readonly address?: AddressKind | "file";
  /** Descriptors that an `fd:` address names. */
  readonly descriptors?: number;
  /** Whether the guest runs while it moves. */
  readonly migration?: "live";
  /** How the engine learns what the guest writes. */
  readonly dirtyLog?: "none" | "bitmap" | "scan";
  /** Whether the source's host can slow its guest down (`SourceHost.throttle`). */
  readonly throttle?: boolean;
  /** Whether the destination's host can let its guest wait for pages (`DestinationHost.takeFaults`). */
  readonly faults?: boolean;
}

export type FeatureName = keyof Features;

export type FeatureValue = number | boolean | string;

/** Something that a configuration has and that is no parameter. */
export interface FeatureRow {
  readonly meaning: string;
  /** All that it may be, or a count. */
  readonly values: readonly FeatureValue[] | "count";
  /** What tells it to the engine: a function, what it is given, or a property of a host. */
  readonly call: string | null;
}

/** What each feature is that rules ask about. */
export const FEATURES: Readonly<Record<FeatureName, FeatureRow>> = {
  side: {
    meaning: "the end that is configured",
    values: ["source", "destination"],
    call: "migrateOut, migrateIn",
  },
  address: {
    meaning: "the kind of address",
    values: ["tcp", "unix", "fd", "exec", "file"],
    call: "the address",
  },
  descriptors: {
    meaning: "how many descriptors an fd address names",
    values: "count",
    call: "the address",
  },
  migration: {
    meaning: "live: the guest runs while it moves",
    values: ["live"],
    call: "migrateOut, migrateIn",
  },
  dirtyLog: {
    meaning: "how writes are found: none, nobody writes; bitmap, the host marks them; or scan",
    values: ["none", "bitmap", "scan"],
    call: "SourceHost.dirtyLog",
  },
  throttle: {
    meaning: "whether the source's host can slow its guest down",
    values: [true, false],
    call: "SourceHost.throttle",
  },
  faults: {
    meaning: "whether the destination's host can let its guest wait for pages that are missing",
    values: [true, false],
    call: "DestinationHost.takeFaults",
  },
};

/** What goes with everything: no rule asks about it. */
export const FREE_FEATURES = {
  live: {
    meaning: "whether parameters may change while the guest moves",
    values: [true, false],
    call: "MigrateOutOptions.live",
  },
  postcopySwitch: {
    meaning: "whether somebody may ask for post-copy while the guest moves",
    values: [true, false],
    call: "MigrateOutOptions.postcopySwitch",
  },
  recovery: {
    meaning: "whether a post-copy whose link broke may go on",
    values: [true, false],
    call: "MigrateOutOptions.recovery, MigrateInOptions.recovery",
  },
  threads: {
    meaning: "whether threads were made ready before",
    values: [true, false],
    call: "MigrateOutOptions.threads, MigrateInOptions.threads",
  },
} as const satisfies Readonly<Record<string, FeatureRow>>;

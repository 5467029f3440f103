import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MigrationError } from "../../base/errors.ts";
import {
  type DestinationPhase,
  type MigrateInOptions,
  migrateIn,
} from "../../engine/destination.ts";
import type { DestinationHost, SourceHost } from "../../engine/host.ts";
import { type MigrateOutOptions, migrateOut } from "../../engine/source.ts";
import type { Report } from "../../engine/statistics.ts";
import type { Surroundings } from "../../engine/surroundings.ts";
import { keptThreads, refillThreads } from "./kept-threads.ts";
import type { Relay } from "./relay.ts";

const CHANNELS = 2;

/** How a migration ended at one end. Anything but a report or a MigrationError fails the test. */
export type Outcome =
  | { readonly report: Report; readonly failure: null }
  | { readonly report: null; readonly failure: MigrationError };

export interface PairOptions {
  readonly source: SourceHost;
  readonly destination: DestinationHost;
  readonly out?: MigrateOutOptions;
  readonly in?: MigrateInOptions;
  readonly kind?: "tcp" | "unix";
  readonly relay?: Relay;
  readonly sourceSurroundings?: Surroundings;
  readonly destinationSurroundings?: Surroundings;
  /** Called when the source has its outcome, whatever the destination still does. */
  readonly onSourceEnd?: () => void;
  /** The same of the destination. */
  readonly onDestinationEnd?: () => void;
}

export interface PairOutcome {
  readonly source: Outcome;
  readonly destination: Outcome;
}

/**
 * Migrates from one host to another within this process, with threads that the last one had, unless
 * there are others, or other surroundings. A destination that no source has reached when the source
 * gave up is cancelled, since nobody else will come.
 */
export async function migratePair(pair: PairOptions): Promise<PairOutcome> {
  const folder = pair.kind === "unix" ? await mkdtemp(join(tmpdir(), "multifd-pair-")) : null;
  const threads = await keptThreads();
  const abort = new AbortController();
  const listening = Promise.withResolvers<string>();
  let phase: DestinationPhase = "listen";
  const arriving = outcomeOf(
    migrateIn(
      pair.destination,
      folder === null ? "tcp:127.0.0.1:0" : `unix:${folder}/socket`,
      {
        ...(pair.destinationSurroundings === undefined ? { threads: threads.destination } : {}),
        ...pair.in,
        signal: AbortSignal.any([abort.signal, ...(pair.in?.signal ? [pair.in.signal] : [])]),
        onListening: (address) => {
          pair.in?.onListening?.(address);
          listening.resolve(address);
        },
        onPhase: (next) => {
          phase = next;
          pair.in?.onPhase?.(next);
        },
      },
      pair.destinationSurroundings,
    ),
  );
  void arriving.then(() => pair.onDestinationEnd?.());
  const address = await Promise.race([listening.promise, arriving.then(() => null)]);
  // Nobody listens where the destination failed before it did; the source shall find that out.
  const target = address ?? "tcp:127.0.0.1:1";
  const source = await outcomeOf(
    migrateOut(
      pair.source,
      pair.relay?.before(target) ?? target,
      {
        channels: CHANNELS,
        ...(pair.sourceSurroundings === undefined ? { threads: threads.source } : {}),
        ...pair.out,
      },
      pair.sourceSurroundings,
    ),
  );
  pair.onSourceEnd?.();
  if (source.failure !== null && phase === "listen") abort.abort();
  const destination = await arriving;
  if (folder !== null) await rm(folder, { recursive: true });
  await refillThreads();
  return { source, destination };
}

export async function outcomeOf(migration: Promise<Report>): Promise<Outcome> {
  try {
    return { report: await migration, failure: null };
  } catch (failure) {
    if (!(failure instanceof MigrationError)) throw failure;
    return { report: null, failure };
  }
}

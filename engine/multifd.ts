/**
 * What an embedder imports from "multifd". Everything else is private and may change with any
 * version. `docs/embedding.md` tells what the engine asks of a host and what it promises.
 */
export {
  FAILURES,
  type FactsOf,
  type Failure,
  type FailureCode,
  MigrationError,
  type Origin,
  type Remedy,
} from "../base/errors.ts";
export { orBits } from "../workers/dirty-words.ts";
export {
  awaitPage,
  type FaultBlock,
  type FaultDoor,
  type FaultLink,
  isPresent,
  isWhole,
  linkOf,
} from "../workers/fault-door.ts";
export type { RamPlace, RamRegion } from "../workers/ram.ts";
export type { Block, BlockAnnouncement } from "./block.ts";
export {
  DESTINATION_PHASES,
  type DestinationPhase,
  type MigrateInOptions,
  migrateIn,
} from "./destination.ts";
export {
  createDirtyLog,
  type DirtyLog,
  markDirty,
  type PagePresence,
  type ScanLog,
} from "./dirty-log.ts";
export { type OwnFaults, openFaults, prepareFaults } from "./faults.ts";
export { FEATURES, type FeatureRow, type Features, FREE_FEATURES } from "./features.ts";
export type {
  DestinationHost,
  DeviceSection,
  DeviceTerms,
  PrepareTerms,
  SourceHost,
} from "./host.ts";
export { type Condition, LEGALITY, type LegalityRule } from "./legality.ts";
export { LiveParameters } from "./live-parameters.ts";
export {
  PARAMETERS,
  type ParameterOptions,
  type ParameterRow,
  type Parameters,
  resolveParameters,
} from "./parameters.ts";
export { PostcopyRecovery } from "./postcopy-recovery.ts";
export { PostcopySwitch } from "./postcopy-switch.ts";
export { ReadyThreads } from "./ready-threads.ts";
export { type MigrateOutOptions, migrateOut, SOURCE_PHASES, type SourcePhase } from "./source.ts";
export {
  type ChannelFigures,
  type DowntimeFigures,
  type FaultFigures,
  type FaultProgress,
  type PageFigures,
  type Progress,
  type Report,
  type RoundFigures,
  STATISTICS,
  type WayFigures,
} from "./statistics.ts";

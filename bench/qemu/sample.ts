/** What one migration cost, measured alike for both engines. */
export interface Sample {
  /** As the engine itself reports it. */
  readonly totalMs: number;
  /** From telling the source to begin until both ends have said that it is completed. */
  readonly wallMs: number;
  /** Of both whole processes, from when both are ready until it is completed. */
  readonly sourceCpuMs: number;
  readonly destinationCpuMs: number;
  /** On the loopback interface. */
  readonly wireBytes: number;
}

/** What is to be moved, and how. */
export interface Move {
  readonly sourcePath: string;
  /** Nothing is there yet, so that its memory is fresh. */
  readonly destinationPath: string;
  readonly sizeBytes: number;
  readonly channels: number;
  readonly compression: Compression;
}

export const COMPRESSIONS = ["none", "zstd", "auto"] as const;
export type Compression = (typeof COMPRESSIONS)[number];

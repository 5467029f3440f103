import {
  closeSync,
  fsyncSync,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { errnoOf, MigrationError, reasonOf } from "../base/errors.ts";
import type { DestinationHost, SourceHost } from "../engine/host.ts";

export type Side = "source" | "destination";

/** What one end knows of who owns the guest. */
export interface HandoverNote {
  readonly side: Side;
  /** `unknown`: COMMIT may be sent, at the source; nothing is decided yet, at the destination. */
  readonly owner: Side | "unknown";
  /** At the destination: it resumed the guest, and that worked. */
  readonly runs: boolean;
  /** The id of the migration; null before this end has met the other one. */
  readonly migration: string | null;
}

/** What changes in a record while the migration stays the same. */
export type HandoverWord = Omit<HandoverNote, "migration">;

/**
 * A file in which one end keeps who owns the guest, so that it is known when its process is gone.
 *
 * At the destination it is decided once, by whoever links the decision to its name first: the
 * migration when COMMIT comes, or somebody who takes the guest back to the source. So a COMMIT that
 * is still on its way can be overtaken, and no two may both believe that the guest is theirs.
 */
export class HandoverRecord {
  readonly path: string;
  readonly #decision: string;
  /** The migration that this process has it for, as far as it said; undefined where it began none. */
  #own: string | null | undefined;

  constructor(path: string) {
    this.path = path;
    this.#decision = `${path}.owner`;
  }

  /** Throws CONFIGURATION_INVALID where there is no record. */
  read(): HandoverNote {
    return this.#known() ?? this.#throw("there is no such record");
  }

  /** Begins one. Throws CONFIGURATION_INVALID where an older one does not say "source". */
  begin(side: Side): void {
    const old = this.#known();
    if (old !== null && old.owner !== "source") {
      this.#throw("it is of a guest that was handed over, or may be: see `multifd handover`");
    }
    try {
      const owner = side === "source" ? "source" : "unknown";
      const note = { side, owner, runs: false, migration: null } as const;
      if (side === "destination") this.#tryLink(note);
      this.#replace(this.path, note);
      // Only now: whoever still decides for the migration before finds out that it is not his.
      rmSync(this.#decision, { force: true });
      this.#own = null;
    } catch (error) {
      this.#throw(reasonOf(error));
    }
  }

  /** Both ends have met: what the record says is of this migration. */
  identify(migration: string): void {
    const begun = this.#begun() ?? this.#throw("there is no such record");
    this.#checkOwn();
    this.#replace(this.path, { ...begun, migration });
    this.#own = migration;
  }

  /**
   * The source's word, which changes. Throws CONFIGURATION_INVALID where another migration has begun
   * in the same record: what one of them says must not be taken for the other's.
   */
  write(word: HandoverWord): void {
    this.#checkOwn();
    this.#replace(this.path, { ...word, migration: this.#migration });
  }

  /**
   * Decides at the destination, unless that was done. Returns what holds. Throws
   * CONFIGURATION_INVALID where another migration has begun in the same record: a guest that was
   * taken back from this one must not be run by what the other has not decided yet.
   */
  decide(owner: Side): HandoverNote {
    this.#checkOwn();
    const { migration } = this.read();
    const draft = this.#draft({ side: "destination", owner, runs: false, migration });
    try {
      linkSync(draft, this.#decision);
      syncFolder(this.path);
    } catch (error) {
      if (errnoOf(error) !== "EEXIST") throw error;
    } finally {
      rmSync(draft, { force: true });
    }
    this.#checkOwn(); // It may have begun just now.
    return this.read();
  }

  /** It runs at the destination, by whose decision it is. */
  runs(): void {
    const word = { side: "destination", owner: "destination", runs: true } as const;
    this.#replace(this.#decision, { ...word, migration: this.#migration });
  }

  #checkOwn(): void {
    if (this.#own !== undefined && this.#own !== this.#migration) {
      this.#throw("another migration has begun in it");
    }
  }

  /** Which migration it is can become known after it was decided: that is in the record itself. */
  #known(): HandoverNote | null {
    const decided = noteIn(this.#decision);
    return decided === null ? this.#begun() : { ...decided, migration: this.#migration };
  }

  get #migration(): string | null {
    return this.#begun()?.migration ?? null;
  }

  #begun(): HandoverNote | null {
    return noteIn(this.path);
  }

  #replace(path: string, note: HandoverNote): void {
    renameSync(this.#draft(note), path);
    syncFolder(path);
  }

  /** As `decide` will: at COMMIT it would be too late to learn that it cannot. */
  #tryLink(note: HandoverNote): void {
    const draft = this.#draft(note);
    const trial = `${draft}.link`;
    try {
      linkSync(draft, trial);
    } catch (error) {
      const problem = `it must lie on a file system with hard links: ${reasonOf(error)}`;
      throw new Error(problem, { cause: error });
    } finally {
      for (const path of [trial, draft]) rmSync(path, { force: true });
    }
  }

  /** On disk before it has its name: a record must outlive the machine. */
  #draft(note: HandoverNote): string {
    const draft = `${this.path}.${process.pid}.draft`;
    const fd = openSync(draft, "w", 0o600);
    try {
      writeSync(fd, `${JSON.stringify(note)}\n`);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    return draft;
  }

  #throw(problem: string): never {
    throw unusable(this.path, problem);
  }
}

/** As `host`, and before COMMIT can be sent, the record says that it may be. */
export function recordedSource<H extends SourceHost>(
  host: H,
  record: Pick<HandoverRecord, "write">,
): H {
  return overridden(host, {
    saveDevices: async (terms) => {
      record.write({ side: "source", owner: "unknown", runs: false });
      return await host.saveDevices(terms);
    },
  });
}

/** As `host`, and it runs the guest only if nobody took it back to the source before. */
export function recordedDestination<H extends DestinationHost>(
  host: H,
  record: Pick<HandoverRecord, "decide" | "runs">,
): H {
  return overridden(host, {
    resume: async () => {
      if (record.decide("destination").owner !== "destination") {
        throw new Error("the guest was taken back to the source by `multifd handover`");
      }
      await host.resume();
      ifPossible(() => record.runs());
    },
  });
}

/** Notes at the source how it ended. HANDOVER_UNKNOWN was noted before it could come to that. */
export async function recordedOut<T>(
  record: Pick<HandoverRecord, "write"> | undefined,
  migrate: () => Promise<T>,
): Promise<T> {
  try {
    const report = await migrate();
    ifPossible(() => record?.write({ side: "source", owner: "destination", runs: false }));
    return report;
  } catch (error) {
    const code = error instanceof MigrationError ? error.code : "";
    // In post-copy it runs there, whatever it misses; and nobody may run it here.
    const owner = code === "POSTCOPY_INTERRUPTED" ? "destination" : "source";
    if (code !== "HANDOVER_UNKNOWN") {
      ifPossible(() => record?.write({ side: "source", owner, runs: false }));
    }
    throw error;
  }
}

/** At the destination: an attempt that failed before COMMIT will not run the guest any more. */
export async function recordedIn<T>(
  record: Pick<HandoverRecord, "decide"> | undefined,
  migrate: () => Promise<T>,
): Promise<T> {
  try {
    return await migrate();
  } catch (error) {
    ifPossible(() => record?.decide("source")); // Else it was decided.
    throw error;
  }
}

/** Notes the end of something. Where that fails, what was noted before is less exact, and as safe. */
export function ifPossible(note: () => void): void {
  try {
    note();
  } catch (error) {
    if (errnoOf(error) === undefined && !(error instanceof MigrationError)) throw error;
  }
}

/** Its getters and its private state stay the host's own. */
function overridden<H extends object, O extends Partial<SourceHost & DestinationHost>>(
  host: H,
  own: O,
): H {
  return new Proxy(host, {
    get(target, key) {
      if (Object.hasOwn(own, key)) return own[key as keyof O];
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** Null where there is none. Throws CONFIGURATION_INVALID for a file that is something else. */
function noteIn(path: string): HandoverNote | null {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return null;
    throw unusable(path, reasonOf(error));
  }
  let note: unknown;
  try {
    note = JSON.parse(text);
  } catch {
    throw unusable(path, "it is no hand-over record");
  }
  if (!isNote(note)) throw unusable(path, "it is no hand-over record");
  return note;
}

function isNote(note: unknown): note is HandoverNote {
  if (typeof note !== "object" || note === null) return false;
  const { side, owner, runs, migration } = note as Partial<Record<keyof HandoverNote, unknown>>;
  const isSide = (value: unknown): boolean => value === "source" || value === "destination";
  const isWord =
    isSide(side) && (isSide(owner) || owner === "unknown") && typeof runs === "boolean";
  return isWord && (migration === null || typeof migration === "string");
}

function unusable(path: string, reason: string): MigrationError {
  return new MigrationError("CONFIGURATION_INVALID", {
    problems: [`"${path}" cannot be used: ${reason}`],
  });
}

/** A new name is on disk when its folder is. */
function syncFolder(path: string): void {
  const fd = openSync(dirname(path), "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

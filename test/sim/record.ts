import type { HandoverNote, HandoverRecord, HandoverWord } from "../../hosts/handover-record.ts";

/** A `HandoverRecord` in memory, begun: it outlives its process, and not its machine. */
export class SimulatedRecord implements Omit<HandoverRecord, "path" | "begin"> {
  #begun: HandoverNote;
  #decision: HandoverWord | null = null;

  constructor(side: HandoverNote["side"]) {
    const owner = side === "source" ? "source" : "unknown";
    this.#begun = { side, owner, runs: false, migration: null };
  }

  read(): HandoverNote {
    return { ...(this.#decision ?? this.#begun), migration: this.#begun.migration };
  }

  identify(migration: string): void {
    this.#begun = { ...this.#begun, migration };
  }

  write(word: HandoverWord): void {
    this.#begun = { ...word, migration: this.#begun.migration };
  }

  decide(owner: "source" | "destination"): HandoverNote {
    this.#decision ??= { side: "destination", owner, runs: false };
    return this.read();
  }

  runs(): void {
    this.#decision = { side: "destination", owner: "destination", runs: true };
  }
}

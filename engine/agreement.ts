import { MigrationError } from "../base/errors.ts";
import type { Checksum } from "../channels/checksum.ts";
import type { AgreedParameter, Agreement, AnnouncedBlock } from "../channels/messages.ts";
import { MISSING_MAX } from "../workers/fault-door.ts";
import { type Block, wirePageBytes } from "./block.ts";
import type { DestinationHost } from "./host.ts";

/** xxHash64 of every `name=value` and a line feed, in order. */
export function fingerprintOf(parameters: readonly AgreedParameter[], checksum: Checksum): bigint {
  const text = parameters.map(({ name, value }) => `${name}=${value}\n`).join("");
  return checksum.of(new TextEncoder().encode(text));
}

/** Throws PARAMETER_MISMATCH with the first parameter that differs, in the destination's order. */
export function checkParameters(
  announced: Agreement,
  own: readonly AgreedParameter[],
  checksum: Checksum,
): void {
  if (announced.fingerprint === fingerprintOf(own, checksum)) return;
  const theirs = new Map(announced.parameters.map(({ name, value }) => [name, value]));
  const ours = new Map(own.map(({ name, value }) => [name, value]));
  for (const name of new Set([...ours.keys(), ...theirs.keys()])) {
    const source = theirs.get(name) ?? "unknown";
    const destination = ours.get(name) ?? "unknown";
    if (source !== destination) {
      throw new MigrationError("PARAMETER_MISMATCH", { parameter: name, source, destination });
    }
  }
  const facts = { channel: 0, field: "fingerprint", found: String(announced.fingerprint) };
  throw new MigrationError("FRAME_CORRUPT", facts);
}

/** Throws POSTCOPY_UNSUPPORTED where memory may follow the guest, and it cannot be waited for. */
export function checkPostcopy(
  host: DestinationHost,
  lanes: number,
  announced: readonly AnnouncedBlock[],
): void {
  if (lanes === 0) return;
  if (host.takeFaults === undefined) {
    const reason = "this host cannot let its guest wait for pages that are missing";
    throw new MigrationError("POSTCOPY_UNSUPPORTED", { reason });
  }
  const pages = announced.reduce((sum, block) => {
    return sum + block.sizeBytes / wirePageBytes(block.pageBytes);
  }, 0);
  if (pages > MISSING_MAX) {
    const reason = `it has ${pages} pages, and at most ${MISSING_MAX} may be missing`;
    throw new MigrationError("POSTCOPY_UNSUPPORTED", { reason });
  }
}

/**
 * The destination's blocks in the order of the announcement. Throws BLOCK_MISMATCH with the first
 * block that is missing, extra or of another size.
 */
export function matchBlocks(announced: readonly AnnouncedBlock[], own: readonly Block[]): Block[] {
  const byName = new Map(own.map((block) => [block.name, block]));
  const matched = announced.map(({ name, sizeBytes }) => {
    const block = byName.get(name);
    if (block === undefined) throw mismatch(name, "the destination lacks it");
    if (block.sizeBytes !== sizeBytes) {
      throw mismatch(
        name,
        `it has ${sizeBytes} bytes at the source and ${block.sizeBytes} at the destination`,
      );
    }
    byName.delete(name);
    return block;
  });
  for (const name of byName.keys()) throw mismatch(name, "the source lacks it");
  return matched;
}

function mismatch(block: string, problem: string): MigrationError {
  return new MigrationError("BLOCK_MISMATCH", { block, problem });
}

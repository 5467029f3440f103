import { existsSync, statfsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { must } from "../../base/assert.ts";
import { formatBytes, MIB } from "../../base/units.ts";
import type { PagePresence } from "../../engine/dirty-log.ts";
import type { SourceHost } from "../../engine/host.ts";
import type { Report } from "../../engine/statistics.ts";
import { fileGuestDestination } from "../../hosts/file-guest.ts";
import { migratePair } from "../harness/pair.ts";
import { bootLinux, type LinuxGuest } from "./linux-guest.ts";
import { missingPrograms } from "./programs.ts";
import { surveyRam } from "./ram-file.ts";

const GUEST_BYTES = 512 * MIB;
const MEMORY_FOLDER = "/dev/shm";

const missing = [...missingPrograms(), ...missingRoom()];
const isLocal = ["", "0", "false"].includes(process.env["CI"] ?? "");
const because = missing.length > 0 ? ` (SKIPPED, missing: ${missing.join("; ")})` : "";
if (because !== "") process.stderr.write(`\n*** No real Linux is scanned${because} ***\n\n`);

function missingRoom(): string[] {
  if (!existsSync(MEMORY_FOLDER)) return [`${MEMORY_FOLDER}`];
  const { bavail, bsize } = statfsSync(MEMORY_FOLDER);
  const room = `${formatBytes(2 * GUEST_BYTES)} of room in ${MEMORY_FOLDER}`;
  return bavail * bsize >= 2 * GUEST_BYTES ? [] : [room];
}

/** A QEMU that does not know that its guest is moved: its RAM is scanned while it runs. */
function scannedHost(guest: LinuxGuest, presence: PagePresence | null): SourceHost {
  const place = { kind: "file", path: guest.ramPath, offset: 0 } as const;
  const log = { kind: "scan", block: "ram", ...(presence && { presence }) } as const;
  return {
    blocks: [{ name: "ram", sizeBytes: GUEST_BYTES, pageBytes: 4096, place }],
    dirtyLog: "scan",
    startDirtyLog: async () => [log],
    stopDirtyLog: async () => {},
    pause: async () => await guest.stop(),
    resume: async () => {},
    saveDevices: async () => [],
  };
}

/** Guest memory that was read in all rounds, and what the page maps told. */
function scannedBytes({ channels }: Report): number {
  return channels.reduce((sum, { scan }) => sum + scan.readBytes, 0);
}

test.skipIf(missing.length > 0 && isLocal)(`this machine can boot Linux${because}`, () => {
  expect(missing).toEqual([]);
});

describe.skipIf(missing.length > 0)(`the RAM of a Linux that runs${because}`, () => {
  for (const isTold of [true, false]) {
    const how = isTold ? "QEMU's page table tells what is in use" : "nobody tells what is in use";
    test(`arrives as it was when the guest stopped: ${how}`, async () => {
      const folder = await mkdtemp(join(MEMORY_FOLDER, "multifd-scan-"));
      try {
        const ramPath = join(folder, "source.ram");
        await using guest = await bootLinux({ ramPath, sizeBytes: GUEST_BYTES, folder });
        await guest.waitForBeat(2);
        const presence = isTold ? { pids: [guest.processId] } : null;
        const path = join(folder, "destination.ram");
        const outcome = await migratePair({
          source: scannedHost(guest, presence),
          destination: fileGuestDestination([{ name: "ram", path, offset: 0 }]),
          out: { channels: 2, downtimeLimitMs: 2000 },
        });
        const report = must(outcome.source.report, `it moved: ${outcome.source.failure?.message}`);
        const [left, arrived] = [await surveyRam(ramPath), await surveyRam(path)];
        expect(arrived.sha256).toBe(left.sha256);
        const again = scannedBytes(report) - GUEST_BYTES;
        const scans = report.rounds.length - 1;
        expect(scans).toBeGreaterThanOrEqual(2);
        // What is in use is all that the file holds, and what it never held was not read again.
        if (isTold) expect(again).toBeLessThan(scans * (left.allocatedBytes + 2 * MIB));
        else expect(again).toBe(scans * GUEST_BYTES);
        expect(left.allocatedBytes).toBeLessThan(0.9 * GUEST_BYTES);
      } finally {
        await rm(folder, { recursive: true, force: true });
      }
    });
  }
});

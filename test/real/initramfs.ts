import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { CHARACTER_DEVICE_MODE, FOLDER_MODE, PROGRAM_MODE, writeArchive } from "./archive.ts";

/** What the guest says on its serial console when its memory is filled. */
export const READY_LINE = "multifd-guest: ready";

/** What it says, followed by a number from 1 up, each time it has rewritten some of its memory. */
export const BEAT_LINE = "multifd-guest: beat ";

/** Random bytes that the guest keeps: at least so many bytes of its memory cannot be compressed. */
export const RANDOM_MIB = 32;

/** A guest with less cannot hold its files, its kernel and this archive. */
export const GUEST_MIB_MIN = 256;

/**
 * The guest's whole user space. It leaves memory as a used machine has it: incompressible, text,
 * compressed, pages that were written and are zero, and pages that were freed with their content.
 * Whatever fails in it powers the machine off, under the complaint that is then the last line.
 */
const INIT = `#!/bin/busybox sh
set -e
export PATH=/bin
trap 'poweroff -f' EXIT
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=75% tmp /tmp
dmesg -n 1
cd /tmp
dd if=/dev/urandom of=random bs=1M count=${RANDOM_MIB} status=none
awk 'BEGIN { for (i = 0; i < 50000; i++) print i, "the quick brown fox jumps over dog", i * i }' > text
for copy in 1 2 3 4 5 6 7; do cat text > text.$copy; done
head -c 1048576 text | gzip -1 > text.gz
dd if=/dev/zero of=zero bs=1M count=16 status=none
dd if=/dev/urandom of=freed bs=1M count=4 status=none
rm freed
echo "${READY_LINE}"
beat=0
while true; do
  beat=$((beat + 1))
  awk -v beat=$beat 'BEGIN { for (i = 0; i < 5000; i++) print "beat", beat, "line", i }' > beating
  echo "${BEAT_LINE}$beat"
  sleep 0.1
done
`;

/** Writes the initramfs with this (static) busybox into a folder and returns its path. */
export async function buildInitramfs(folder: string, busyboxPath: string): Promise<string> {
  const folders = ["bin", "dev", "proc", "sys", "tmp"];
  const archive = writeArchive([
    ...folders.map((path) => ({ path, mode: FOLDER_MODE })),
    { path: "dev/console", mode: CHARACTER_DEVICE_MODE, device: [5, 1] },
    { path: "bin/busybox", mode: PROGRAM_MODE, bytes: await readFile(busyboxPath) },
    { path: "init", mode: PROGRAM_MODE, bytes: Buffer.from(INIT) },
  ]);
  const path = join(folder, "initramfs.cpio.gz");
  await writeFile(path, gzipSync(archive, { level: 1 }));
  return path;
}

import { tmpdir } from "node:os";
import { parseArgs } from "node:util";
import { formatBytes, formatMs, parseSize } from "../../base/units.ts";
import { bootLinux } from "./linux-guest.ts";
import { type RamSurvey, surveyRam } from "./ram-file.ts";

const USAGE = `usage: node test/real/boot-linux.ts RAM_FILE [--size 512MiB] [--beats 5]

Boots Linux under QEMU with its RAM in RAM_FILE (a new file, best in /dev/shm), lets it work until
it has rewritten some of its memory so many times, stops it and leaves the file to be moved.
`;

interface Request {
  readonly ramPath: string;
  readonly sizeBytes: number;
  readonly beats: number;
}

function readArguments(): Request {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      size: { type: "string", default: "512MiB" },
      beats: { type: "string", default: "5" },
    },
  });
  const [ramPath, ...others] = positionals;
  if (ramPath === undefined || others.length > 0) throw new RangeError("Name one file for the RAM");
  if (!/^\d{1,6}$/.test(values.beats)) throw new RangeError(`"${values.beats}" is not a count`);
  return { ramPath, sizeBytes: parseSize(values.size), beats: Number(values.beats) };
}

async function leaveStoppedGuest(request: Request, signal: AbortSignal): Promise<void> {
  const size = formatBytes(request.sizeBytes);
  say(`Booting Linux in an emulated machine with ${size} of RAM in ${request.ramPath} ...`);
  {
    await using guest = await bootLinux({ ...request, folder: tmpdir(), signal });
    say(
      `It was ready after ${formatMs(guest.bootMs)}; now it works, for ${request.beats} beats ...`,
    );
    await guest.waitForBeat(request.beats);
    await guest.stop();
    say(`Stopped it after beat ${guest.beats}.`);
  }
  say(nextSteps(request.ramPath, await surveyRam(request.ramPath)));
}

function nextSteps(ramPath: string, survey: RamSurvey): string {
  const movedPath = `${ramPath}.moved`;
  return `QEMU has ended. Its RAM stays in ${ramPath}: ${formatBytes(survey.nonzeroBytes)} are not zero
sha256 ${survey.sha256}

Move it, with this in one terminal
  npx multifd receive tcp:127.0.0.1:4444 --memory ram=file:${movedPath}
and this in another:
  npx multifd send tcp:127.0.0.1:4444 --memory ram=file:${ramPath} --channels 2
then see that nothing was lost and that zero pages take no memory:
  sha256sum ${ramPath} ${movedPath}; du ${ramPath} ${movedPath}
`;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function wordsOf(failure: unknown): string {
  return failure instanceof Error ? failure.message : String(failure);
}

async function main(): Promise<number> {
  const interrupt = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => interrupt.abort());
  let request: Request;
  try {
    request = readArguments();
  } catch (failure) {
    process.stderr.write(`${wordsOf(failure)}\n${USAGE}`);
    return 2;
  }
  try {
    await leaveStoppedGuest(request, interrupt.signal);
    return 0;
  } catch (failure) {
    const reason = interrupt.signal.aborted ? "Interrupted: nothing is left" : wordsOf(failure);
    process.stderr.write(`${reason}\n`);
    return 1;
  }
}

process.exitCode = await main();

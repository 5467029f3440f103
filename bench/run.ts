import { parseArgs } from "node:util";
import { BENCHMARKS } from "./list.ts";
import { currentCommit, describeMachine } from "./machine.ts";
import { type Benchmark, CannotMeasure, isMet, type Parameters } from "./measure.ts";
import { formatResult } from "./table.ts";

const USAGE = `npm run bench -- [NAME…] [PARAMETER=NUMBER…] [--smoke] [--json]

Without names all of them run. --smoke takes the small parameters of the test suite, --json prints
a line of JSON for each result. Goals are judged, never enforced: a busy machine misses them. What
this machine cannot measure is said on standard error, and the exit status is then 3; it is 1 where
parameters left a benchmark nothing to measure.

`;

process.exitCode = await main(process.argv.slice(2));

async function main(argv: readonly string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { smoke: { type: "boolean" }, json: { type: "boolean" }, help: { type: "boolean" } },
  });
  const names = positionals.filter((word) => !word.includes("="));
  const chosen = BENCHMARKS.filter(({ name }) => names.length === 0 || names.includes(name));
  const unknown = names.filter((name) => !BENCHMARKS.some((benchmark) => benchmark.name === name));
  const changes = changesOf(positionals, chosen);
  if (values.help || unknown.length > 0 || changes === null) {
    const list = BENCHMARKS.map(
      ({ name, about, real }) => `  ${name.padEnd(12)} ${about} (${Object.keys(real).join(", ")})`,
    );
    process.stdout.write(`${USAGE}${list.join("\n")}\n`);
    return values.help ? 0 : 2;
  }
  let status = 0;
  for (const benchmark of chosen) {
    const base = values.smoke ? benchmark.smoke : benchmark.real;
    const own = Object.entries(changes).filter(([name]) => Object.hasOwn(base, name));
    try {
      const parameters = { ...base, ...Object.fromEntries(own) };
      const results = await show(benchmark, parameters, values.json === true);
      if (results > 0) continue;
      process.stderr.write(`NOTHING MEASURED: ${benchmark.name} has nothing of such parameters\n`);
      status = 1;
    } catch (error) {
      if (!(error instanceof CannotMeasure)) throw error;
      process.stderr.write(`NOT MEASURED: ${benchmark.name}, because ${error.message}\n`);
      if (status === 0) status = 3;
    }
  }
  return status;
}

/** The `PARAMETER=NUMBER` words, or null when one is wrong or no chosen benchmark has it. */
function changesOf(words: readonly string[], chosen: readonly Benchmark[]): Parameters | null {
  const changes: Record<string, number> = {};
  for (const word of words.filter((text) => text.includes("="))) {
    const [name = "", value = ""] = word.split("=");
    if (!chosen.some(({ real }) => Object.hasOwn(real, name)) || !/^\d+$/.test(value)) return null;
    changes[name] = Number(value);
  }
  return changes;
}

/** Returns how many results there are. */
async function show(
  benchmark: Benchmark,
  parameters: Parameters,
  isJson: boolean,
): Promise<number> {
  const { name, about } = benchmark;
  const common = { bench: name, parameters, machine: describeMachine(), commit: currentCommit() };
  if (!isJson) {
    const settings = Object.entries(parameters).map(([key, value]) => `${key}=${value}`);
    process.stdout.write(`${name}: ${about}\n  ${settings.join(" ")}\n`);
  }
  let results = 0;
  await benchmark.run((result) => {
    results += 1;
    const line = isJson
      ? JSON.stringify({ ...result, met: isMet(result), ...common })
      : formatResult(result);
    process.stdout.write(`${line}\n`);
  }, parameters);
  return results;
}

import { expect, test } from "vitest";
import { FAILURES } from "../base/errors.ts";
import { ALL_FEATURES, FEATURE_FLAGS, RULES } from "../cli/rules.ts";
import { printFailures, printLegality, printParameters } from "../cli/tables.ts";
import { FEATURES, FREE_FEATURES } from "../engine/features.ts";
import { LEGALITY } from "../engine/legality.ts";
import { flagOf, PARAMETER_KEYS, type PARAMETERS, rowOf } from "../engine/parameters.ts";

type Rows = Readonly<Record<string, unknown>>[];

const PRINTS = { printParameters, printLegality, printFailures };

test("a manager gets every field of every parameter", () => {
  const rows = JSON.parse(printParameters({ json: true })) as Rows;
  expect(rows.map((row) => row["name"])).toEqual(PARAMETER_KEYS);
  for (const row of rows) {
    const { name, flag, unit, ...rest } = row;
    const key = name as keyof typeof PARAMETERS;
    expect({ ...rowOf(key), flag }).toEqual({ ...rest, flag: `--${flagOf(key)}` });
    expect(unit).not.toBe(undefined);
  }
});

interface Matrix {
  readonly rules: Rows;
  readonly features: Rows;
  readonly parameters: Rows;
}

const matrix = JSON.parse(printLegality({ json: true })) as Matrix;

test("a manager gets the rules as the engine itself and the commands judge by them", () => {
  const data = matrix.rules.map(({ rule: _inWords, ...row }) => row);
  expect(data).toEqual(RULES);
  expect(data).toEqual(expect.arrayContaining([...LEGALITY]));
  for (const row of matrix.rules) expect(row["rule"]).toMatch(/ must (?:not )?be /);
  expect(new Set(RULES.map(({ id }) => id)).size).toBe(RULES.length);
});

test("a manager gets every parameter and every feature, with the rules that speak of it", () => {
  expect(matrix.parameters.map(({ name }) => name)).toEqual(PARAMETER_KEYS);
  expect(matrix.features.map(({ name }) => name)).toEqual(Object.keys(ALL_FEATURES));
  for (const { name, meaning, values, flag, call } of matrix.features) {
    const told = FEATURE_FLAGS[name as keyof typeof ALL_FEATURES];
    expect({ meaning, values, flag, call }).toEqual({
      ...ALL_FEATURES[name as keyof typeof ALL_FEATURES],
      flag: told,
    });
  }
  // Whoever is named anywhere in a rule's data is named with the rule, and nobody else.
  const named = [...matrix.parameters, ...matrix.features].flatMap(({ name, rules }) =>
    (rules as string[]).map((rule) => `${rule}: ${name}`),
  );
  const inData = RULES.flatMap(({ id, when, claim }) => {
    const text = JSON.stringify([when, claim]);
    const names = [...text.matchAll(/"(?:parameter|feature|given)":"(\w+)"/g)].map(
      ([, name]) => name,
    );
    return [...new Set(names)].map((name) => `${id}: ${name}`);
  });
  expect(named.sort()).toEqual(inData.sort());
  const free = matrix.features.filter(({ rules }) => (rules as string[]).length === 0);
  expect(free.map(({ name }) => name)).toEqual([...Object.keys(FREE_FEATURES), "record"]);
});

test("a manager gets every failure with its remedy", () => {
  const rows = JSON.parse(printFailures({ json: true })) as Rows;
  expect(rows.map(({ code, remedy }) => [code, remedy])).toEqual(
    Object.entries(FAILURES).map(([code, { remedy }]) => [code, remedy]),
  );
});

for (const [name, print] of Object.entries(PRINTS)) {
  test(`${name} is a table for people, as wide as they want it`, () => {
    for (const columns of [100, 140]) {
      const lines = print({ columns }).split("\n");
      expect(lines.at(-1)).toBe("");
      expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(columns);
      for (const line of lines) expect(line).toBe(line.trimEnd());
    }
    expect(print({ columns: 10 })).not.toBe("");
    expect(print()).not.toMatch(/undefined|\[object/);
  });
}

test("every row of a table for people begins a line with its name", () => {
  const begins = (text: string) => text.split("\n").map((line) => line.split(" ")[0]);
  expect(begins(printParameters())).toEqual(
    expect.arrayContaining(PARAMETER_KEYS.map((key) => `--${flagOf(key)}`)),
  );
  expect(begins(printLegality())).toEqual(
    expect.arrayContaining([...RULES.map(({ id }) => id), ...Object.keys(FEATURES)]),
  );
  expect(begins(printFailures())).toEqual(expect.arrayContaining(Object.keys(FAILURES)));
});

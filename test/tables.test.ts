import { expect, test } from "vitest";
import { FAILURES } from "../base/errors.ts";
import { printFailures, printLegality, printParameters } from "../cli/tables.ts";
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

test("a manager gets the rules as the engine itself judges by them", () => {
  const rows = JSON.parse(printLegality({ json: true })) as Rows;
  expect(rows.map(({ rule: _inWords, ...data }) => data)).toEqual(LEGALITY);
  for (const row of rows) expect(row["rule"]).toMatch(/ must (?:not )?be /);
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
  expect(begins(printLegality())).toEqual(expect.arrayContaining(LEGALITY.map(({ id }) => id)));
  expect(begins(printFailures())).toEqual(expect.arrayContaining(Object.keys(FAILURES)));
});

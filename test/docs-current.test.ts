import { expect, test } from "vitest";
import { ALL_FEATURES, RULES } from "../cli/rules.ts";
import { generatedPages, stalePages } from "../docs/generate.ts";
import { PARAMETER_KEYS } from "../engine/parameters.ts";

test("the reference in docs/ is what the tables say (else: npm run docs)", () => {
  expect(stalePages()).toEqual([]);
});

test("the reference has a row for every parameter, rule and feature", () => {
  const pages = generatedPages();
  for (const key of PARAMETER_KEYS)
    expect(pages.get("docs/reference/parameters.md")).toContain(`| \`${key}\` |`);
  for (const name of [...RULES.map(({ id }) => id), ...Object.keys(ALL_FEATURES)])
    expect(pages.get("docs/reference/legality.md")).toContain(`| \`${name}\` |`);
});

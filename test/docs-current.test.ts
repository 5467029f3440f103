import { expect, test } from "vitest";
import { generatedPages, stalePages } from "../docs/generate.ts";
import { LEGALITY } from "../engine/legality.ts";
import { PARAMETER_KEYS } from "../engine/parameters.ts";

test("the reference in docs/ is what the tables say (else: npm run docs)", () => {
  expect(stalePages()).toEqual([]);
});

test("the reference has a row for every parameter and every rule", () => {
  const pages = generatedPages();
  for (const key of PARAMETER_KEYS)
    expect(pages.get("docs/reference/parameters.md")).toContain(`| \`${key}\` |`);
  for (const { id } of LEGALITY)
    expect(pages.get("docs/reference/legality.md")).toContain(`| \`${id}\` |`);
});

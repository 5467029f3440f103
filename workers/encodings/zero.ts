import type { PageEncoding } from "./encoding.ts";

export const zero: PageEncoding = {
  number: 1,
  name: "zero",
  meaning: "Every byte of the pages is zero; there is no payload.",
  counter: "zero",
  isPayload: (bytes) => bytes === 0,
  decode(_payload, run, target) {
    target.clear(run.firstPage, run.pages);
  },
};

import type { PageEncoding } from "./encoding.ts";

export const raw: PageEncoding = {
  number: 2,
  name: "raw",
  meaning: "The payload is the pages as they are.",
  counter: "raw",
  isPayload: (bytes, { pages, pageBytes }) => bytes === pages * pageBytes,
  decode(payload, run, target) {
    target.write(run.firstPage, run.pages, payload);
  },
};

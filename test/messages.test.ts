import { expect, test } from "vitest";
import { FAILURES, type FailureCode, MigrationError } from "../base/errors.ts";
import { FRAMES } from "../channels/frame.ts";
import {
  type Agreement,
  chooseVersion,
  decodeAgreement,
  decodeFailure,
  decodeHello,
  encodeAgreement,
  encodeFailure,
  encodeHello,
  VERSION,
} from "../channels/messages.ts";
import { WireWriter } from "../channels/wire-bytes.ts";
import { corruptFacts } from "./fixtures/corrupt-facts.ts";
import { MESSAGES, MIGRATION_ID, TOKEN } from "./fixtures/wire-messages.ts";

const CHANNEL = 3;

for (const { frame, samples, golden, encode, decode } of MESSAGES) {
  const first = encode(samples[0]);

  test(`the body of "${frame}" is pinned, byte for byte`, () => {
    expect(Buffer.from(first).toString("hex")).toBe(golden);
  });

  test(`the body of "${frame}" survives the wire at its bounds, and fits its frame`, () => {
    for (const sample of samples) {
      const body = encode(sample);
      expect(body.length).toBeLessThanOrEqual(FRAMES[frame].bodyBytesMax);
      expect(decode(body, CHANNEL)).toEqual(sample);
    }
  });

  test(`the body of "${frame}" is FRAME_CORRUPT where it is cut off or goes on`, () => {
    for (let length = 0; length < first.length; length += 1) {
      expect(corruptFacts(() => decode(first.subarray(0, length), CHANNEL))).toMatchObject({
        channel: CHANNEL,
        field: expect.stringMatching(/^body too short for /),
      });
    }
    const longer = new Uint8Array(first.length + 1);
    longer.set(first);
    const facts = corruptFacts(() => decode(longer, CHANNEL));
    expect(facts).toEqual({ channel: CHANNEL, field: "body length", found: longer.length });
  });
}

test("every frame whose body has fields is in the table of messages", () => {
  // Bits of pages are checked against blocks: see postcopy-hostile.test.ts and recovery.test.ts.
  const withoutFields = new Set(["pages", "piece", "discard", "missing"]);
  const wanted = Object.entries(FRAMES)
    .filter(([name, { bodyBytesMax }]) => bodyBytesMax > 0 && !withoutFields.has(name))
    .map(([name]) => name);
  expect(MESSAGES.map(({ frame }) => frame).sort()).toEqual(wanted.sort());
});

/** Single bytes of the golden body put out of order: what is found, and what the field is called. */
const GARBAGE: readonly (readonly [
  frame: string,
  field: string,
  found: number | string,
  offset: number,
  bytes: readonly number[],
])[] = [
  ["hello", "versionMin", 3, 0, [3, 0]],
  ["hello", "channel", 65, 20, [65, 0]],
  ["hello", "channel", 0xffff, 20, [255, 255]],
  ["hello", "lane", 0, 22, [0]],
  ["hello", "lane", 4, 22, [4]],
  ["hello", "reserved", 1, 23, [1]],
  ["hello", "channel of its lane", 0, 20, [0, 0]],
  ["hello", "channel of its lane", 3, 22, [1]],
  ["welcome", "version", 0, 0, [0, 0]],
  ["welcome", "version", 2, 0, [2, 0]],
  ["welcome", "reserved", 7, 3, [7]],
  ["agree", "channels", 0, 8, [0, 0]],
  ["agree", "channels", 65, 8, [65, 0]],
  ["agree", "parameters", 65, 10, [65, 0]],
  ["agree", "length of parameter name", 256, 12, [0, 1]],
  ["agree", "parameter name", "not UTF-8", 14, [0xff]],
  ["agree", "length of parameter value", 256, 22, [0, 1]],
  ["agree", "blocks", 1025, 34, [1, 4, 0, 0]],
  ["agree", "blocks", 0xffff_ffff, 34, [255, 255, 255, 255]],
  ["agree", "length of block name", 256, 38, [0, 1]],
  ["agree", "block size", 0, 43, [0, 0, 0, 0]],
  ["agree", "block size", 2 ** 30 + 1, 43, [1]],
  ["agree", "block size", "18446744073709551615", 43, [255, 255, 255, 255, 255, 255, 255, 255]],
  ["agree", "block size", 2 ** 44 + 4096, 43, [0, 16, 0, 0, 0, 16, 0, 0]],
  ["agree", "block page size", 0, 51, [0, 0, 0, 0]],
  ["agree", "block page size", 2048, 51, [0, 8, 0, 0]],
  ["agree", "block page size", 4097, 51, [1, 16, 0, 0]],
  ["agree", "block page size", 12_288, 51, [0, 48, 0, 0]],
  ["agree", "block page size", 2 ** 31, 51, [0, 0, 0, 128]],
  ["agree", "block page size", 0xffff_ffff, 51, [255, 255, 255, 255]],
  ["agree", "block names", "not unique", 57, [0x72, 0x61, 0x6d]],
  ["round", "reserved", 1, 4, [1]],
  ["round", "dirtyPages", "18446744073709551615", 8, [255, 255, 255, 255, 255, 255, 255, 255]],
  ["round", "sentPages", "9007199254740992", 16, [0, 0, 0, 0, 0, 0, 32, 0]],
  ["round", "sentBytes", "9007199254740992", 24, [0, 0, 0, 0, 0, 0, 32, 0]],
  ["round", "elapsedMs", "NaN", 38, [0xf8, 0x7f]],
  ["round", "elapsedMs", "-1.5", 39, [0xbf]],
  ["devices", "reserved", 1, 7, [1]],
  ["devices", "device bytes", "9007199254740992", 8, [0, 0, 0, 0, 0, 0, 32, 0]],
  ["section", "section bytes", "9007199254740992", 0, [0, 0, 0, 0, 0, 0, 32, 0]],
  ["section", "length of section name", 259, 9, [1]],
  ["section", "section name", "not UTF-8", 10, [0x80]],
  ["running", "untouchedPages", "9007199254740992", 0, [0, 0, 0, 0, 0, 0, 32, 0]],
  ["done", "totalMs", "Infinity", 6, [0xf0, 0x7f]],
  ["done", "handoverMs", "-4", 47, [0xc0]],
  ["done", "known figures", 2, 48, [2]],
  ["done", "unknown stopMs", 1, 48, [0]],
  ["running", "known figures", 257, 8, [1, 1]],
  ["running", "unknown runningForMs", 1, 8, [0]],
  ["running", "reserved", 1, 12, [1]],
  ["failure", "length of failure code", 265, 1, [1]],
  ["failure", "failure code", "unknown", 2, [0x44]],
  ["failure", "failure code", "not UTF-8", 2, [0xff]],
  ["failure", "length of failure facts", 0x2113, 12, [0x21]],
  ["failure", "failure facts", "unreadable", 13, [0x5b]],
  ["failure", "failure facts", "unreadable", 15, [0x71]],
];

for (const [frame, field, found, offset, bytes] of GARBAGE) {
  test(`a "${frame}" whose ${field} is ${found} is FRAME_CORRUPT`, () => {
    const message = MESSAGES.find((each) => each.frame === frame);
    if (message === undefined) throw new RangeError(`no message "${frame}"`);
    const body = message.encode(message.samples[0]).slice();
    body.set(bytes, offset);
    const facts = corruptFacts(() => message.decode(body, CHANNEL));
    expect(facts).toEqual({ channel: CHANNEL, field, found });
  });
}

const AGREEMENT: Agreement = {
  fingerprint: 1n,
  channels: 1,
  parameters: [],
  blocks: [{ name: "ram", sizeBytes: 4096, pageBytes: 4096 }],
  description: "",
};

test("a parameter that is announced twice is FRAME_CORRUPT", () => {
  const parameters = [
    { name: "checksum", value: "true" },
    { name: "checksum", value: "false" },
  ];
  const body = encodeAgreement({ ...AGREEMENT, parameters });
  const facts = corruptFacts(() => decodeAgreement(body, 0));
  expect(facts).toEqual({ channel: 0, field: "parameter names", found: "not unique" });
});

test("a block without a name is FRAME_CORRUPT", () => {
  const body = encodeAgreement({
    ...AGREEMENT,
    blocks: [{ name: "", sizeBytes: 4096, pageBytes: 4096 }],
  });
  const facts = corruptFacts(() => decodeAgreement(body, 0));
  expect(facts).toEqual({ channel: 0, field: "block name", found: "empty" });
});

test("names that differ only in a byte order mark are two names", () => {
  const blocks = ["ram", "\uFEFFram"].map((name) => ({ name, sizeBytes: 4096, pageBytes: 4096 }));
  const body = encodeAgreement({ ...AGREEMENT, blocks });
  expect(decodeAgreement(body, 0).blocks).toEqual(blocks);
});

test("what was decoded does not change when the receive buffer is used again", () => {
  const hello = encodeHello({
    versionMin: 1,
    versionMax: 1,
    migrationId: MIGRATION_ID,
    channel: 1,
    lane: "bulk",
    token: TOKEN,
  }).slice();
  const decoded = decodeHello(hello, 1);
  hello.fill(0);
  expect(decoded.migrationId).toEqual(MIGRATION_ID);
  expect(decoded.token).toEqual(TOKEN);
});

test("the newest version that both ends speak is chosen", () => {
  expect(chooseVersion({ versionMin: VERSION.max, versionMax: VERSION.max })).toBe(VERSION.max);
  expect(chooseVersion({ versionMin: 0, versionMax: 0xffff })).toBe(VERSION.max);
  expect(chooseVersion({ versionMin: 0, versionMax: VERSION.min })).toBe(VERSION.min);
});

test("versions that do not meet are VERSION_UNSUPPORTED, with both ranges", () => {
  for (const [versionMin, versionMax] of [
    [VERSION.max + 1, 0xffff],
    [0, VERSION.min - 1],
  ] as const) {
    const offered = `${versionMin} to ${versionMax}`;
    expect(() => chooseVersion({ versionMin, versionMax })).toThrow(
      expect.objectContaining({
        code: "VERSION_UNSUPPORTED",
        facts: { offered, supported: `${VERSION.min} to ${VERSION.max}` },
      }),
    );
  }
});

function failureBody(code: string, facts: string): Uint8Array {
  return new WireWriter().str(code).str(facts).finish();
}

test("a failure comes back with its code and facts, noticed at the peer", () => {
  const told = new MigrationError("HOST_TIMEOUT", { action: "pause the guest", limitMs: 5 });
  const read = decodeFailure(encodeFailure(told), 0, "destination");
  expect(read).toMatchObject({ code: told.code, facts: told.facts, at: "destination" });
  expect(read.message).toBe(told.message);
});

/** What a hostile peer may write into facts: nothing of it may pass for a message. */
const HOSTILE_FACTS = [
  "",
  "null",
  "5",
  '"text"',
  "[]",
  "{}",
  "{",
  '{"phase":null}',
  '{"phase":true}',
  '{"phase":{}}',
  '{"phase":[{}]}',
  '{"phase":{"toString":1}}',
  '{"__proto__":{"phase":"inherited"}}',
  '{"other":"precopy"}',
  "[".repeat(8000),
  `{"phase":${"[".repeat(4000)}`,
];

for (const facts of HOSTILE_FACTS) {
  const name = facts.length > 40 ? `${facts.slice(0, 20)}… of ${facts.length} bytes` : facts;
  test(`a failure whose facts are '${name}' is FRAME_CORRUPT`, () => {
    const body = failureBody("CANCELLED", facts);
    expect(corruptFacts(() => decodeFailure(body, CHANNEL, "source"))).toEqual({
      channel: CHANNEL,
      field: "failure facts",
      found: "unreadable",
    });
  });
}

test("of a failure's facts only such go further as any thread can hand to another", () => {
  const deep = "[".repeat(4000) + "]".repeat(4000);
  const body = failureBody(
    "CANCELLED",
    `{"phase":"agree","deep":${deep},"list":["a",1],"no":null}`,
  );
  const { facts } = decodeFailure(body, CHANNEL, "source");
  expect(structuredClone(facts)).toEqual({ phase: "agree", list: ["a", 1] });
});

test("a failure's code must be one of the table's own", () => {
  for (const code of ["", "cancelled", "toString", "__proto__", "constructor", "CANCELLED "]) {
    const facts = corruptFacts(() => decodeFailure(failureBody(code, "{}"), CHANNEL, "source"));
    expect(facts).toEqual({ channel: CHANNEL, field: "failure code", found: "unknown" });
  }
});

test("no peer can tell this end who owns the guest", () => {
  const codes = (Object.keys(FAILURES) as FailureCode[]).filter(
    (code) => FAILURES[code].remedy === "settle",
  );
  expect(codes).toEqual(["HANDOVER_UNKNOWN", "POSTCOPY_INTERRUPTED", "GUEST_NOT_RESTORED"]);
  for (const code of codes) {
    const body = failureBody(code, '{"reason":"x","action":"x","after":"x"}');
    const facts = corruptFacts(() => decodeFailure(body, CHANNEL, "destination"));
    expect(facts).toEqual({ channel: CHANNEL, field: "failure code", found: code });
  }
});

test("facts that are too long are cut, not lost", () => {
  const long = [
    { action: "load devices", reason: "x".repeat(100_000) },
    { action: "\u0000".repeat(10_000), reason: "\ud800".repeat(10_000) },
  ];
  for (const facts of long) {
    const body = encodeFailure(new MigrationError("HOST_FAILED", facts));
    expect(body.length).toBeLessThanOrEqual(FRAMES.failure.bodyBytesMax);
    const read = decodeFailure(body, 0, "destination") as MigrationError<"HOST_FAILED">;
    expect(facts.action.startsWith(read.facts.action)).toBe(true);
    expect(facts.reason.startsWith(read.facts.reason)).toBe(true);
    expect(read.facts.reason.length).toBeGreaterThan(100);
  }
  const problems = Array.from({ length: 5000 }, (_, index) => `problem ${index}`);
  const body = encodeFailure(new MigrationError("CONFIGURATION_INVALID", { problems }));
  expect(decodeFailure(body, 0, "source").message).toContain("problem 0; problem 1");
});

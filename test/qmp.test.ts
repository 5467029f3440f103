import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { nowMs } from "../base/clock.ts";
import { MIB } from "../base/units.ts";
import { LINE_BYTES_MAX, Lines } from "../hosts/qemu/lines.ts";
import { Qmp, type QmpEvent } from "../hosts/qemu/qmp.ts";
import { type Behaviour, FakeQmp, GREETING } from "./harness/fake-qmp.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

/** Answers every command with nothing. */
const polite: Behaviour = (asked, monitor) => monitor.answer(asked);

/** Negotiates, then does as the test says. */
function afterNegotiation(behave: Behaviour): Behaviour {
  return (asked, monitor) =>
    asked.execute === "qmp_capabilities" ? monitor.answer(asked) : behave(asked, monitor);
}

test("out-of-band commands are asked for where they are offered, and only there", async () => {
  await using monitor = await FakeQmp.start(polite);
  const qmp = await Qmp.connect(monitor.path);
  expect(qmp.hasOutOfBand).toBe(true);
  await qmp.execute("yank", { instances: [] }, { outOfBand: true });
  expect(monitor.asked).toEqual([
    { execute: "qmp_capabilities", arguments: { enable: ["oob"] }, id: 1 },
    { "exec-oob": "yank", arguments: { instances: [] }, id: 2 },
  ]);
  qmp.close();

  const old = `${JSON.stringify({ QMP: { ...GREETING.QMP, capabilities: [] } })}\n`;
  await using other = await FakeQmp.start(polite, old);
  const plain = await Qmp.connect(other.path);
  expect(plain.hasOutOfBand).toBe(false);
  expect(other.asked).toEqual([{ execute: "qmp_capabilities", arguments: {}, id: 1 }]);
  plain.close();
});

test("answers find who asked, in any order; those that nobody waits for are passed over", async () => {
  const first = Promise.withResolvers<() => void>();
  await using monitor = await FakeQmp.start(
    afterNegotiation((asked, fake) => {
      if (asked.execute === "first") first.resolve(() => fake.answer(asked, "one"));
      else {
        fake.say({ return: "nobody's", id: 999 });
        fake.say({ return: "nobody's" });
        fake.say({ error: { desc: "nobody's" }, id: "2" });
        fake.answer(asked, "two");
      }
    }),
  );
  const qmp = await Qmp.connect(monitor.path);
  const one = qmp.execute("first");
  expect(await qmp.execute("second")).toBe("two");
  (await first.promise)();
  expect(await one).toBe("one");
  qmp.close();
});

test("an error of QEMU is HYPERVISOR_REFUSED, in its words", async () => {
  await using monitor = await FakeQmp.start(
    afterNegotiation((asked, fake) => {
      if (asked.execute === "cont") fake.refuse(asked, "Resetting is required");
      else fake.say({ error: 7, id: asked.id });
    }),
  );
  const qmp = await Qmp.connect(monitor.path);
  await expect(qmp.execute("cont")).rejects.toMatchObject({
    code: "HYPERVISOR_REFUSED",
    facts: { command: "cont", reason: "Resetting is required" },
  });
  await expect(qmp.execute("stop")).rejects.toMatchObject({
    facts: { command: "stop", reason: "it does not say why" },
  });
  qmp.close();
});

test("a silent QEMU is HYPERVISOR_SILENT, and its late answer harms nothing", async () => {
  const late = Promise.withResolvers<() => void>();
  await using monitor = await FakeQmp.start(
    afterNegotiation((asked, fake) => {
      if (asked.execute === "stop") late.resolve(() => fake.answer(asked, "late"));
      else fake.answer(asked, "in time");
    }),
  );
  const qmp = await Qmp.connect(monitor.path);
  await expect(qmp.execute("stop", {}, { limitMs: 50 })).rejects.toMatchObject({
    code: "HYPERVISOR_SILENT",
    facts: { waitingFor: "answer to stop", limitMs: 50 },
  });
  (await late.promise)();
  expect(await qmp.execute("query-status")).toBe("in time");
  qmp.close();
});

test("a QEMU that goes is HYPERVISOR_LOST for all who wait, and for all who come", async () => {
  await using monitor = await FakeQmp.start(
    afterNegotiation((asked, fake) => asked.execute === "second" && fake.hangUp()),
  );
  const qmp = await Qmp.connect(monitor.path);
  const lost = { code: "HYPERVISOR_LOST", facts: { reason: "it closed its monitor" } };
  const first = qmp.execute("first");
  const second = qmp.execute("second");
  await expect(first).rejects.toMatchObject(lost);
  await expect(second).rejects.toMatchObject(lost);
  expect(await qmp.lost).toMatchObject(lost);
  expect(qmp.isLost).toBe(true);
  await expect(qmp.execute("third")).rejects.toMatchObject(lost);
  qmp.close();
});

const NONSENSE: readonly (readonly [what: string, bytes: string | Buffer, reason: RegExp])[] = [
  ["no JSON", "hello\n", /a line that is not QMP/],
  ["half of an object", '{"return": \n', /a line that is not QMP/],
  ["a list", "[]\n", /a line that is not QMP/],
  ["bytes", Buffer.from([0xff, 0x00, 0x0a]), /a line that is not QMP/],
  ["a line without end", Buffer.alloc(LINE_BYTES_MAX + 1, "x"), /a line of more than 4096 KiB/],
];

for (const [what, bytes, reason] of NONSENSE) {
  test(`a QEMU that sends ${what} is given up`, async () => {
    await using monitor = await FakeQmp.start(afterNegotiation((_, fake) => fake.write(bytes)));
    const qmp = await Qmp.connect(monitor.path);
    const failure = { code: "HYPERVISOR_LOST", facts: { reason: expect.stringMatching(reason) } };
    await expect(qmp.execute("query-status")).rejects.toMatchObject(failure);
    qmp.close();
  });

  test(`what greets with ${what} is no QEMU`, async () => {
    await using monitor = await FakeQmp.start((_, fake) => fake.hangUp(), bytes.toString("latin1"));
    const connected = Qmp.connect(monitor.path, { limitMs: 5000 });
    await expect(connected).rejects.toMatchObject({
      code: "HYPERVISOR_UNREACHABLE",
      facts: { path: monitor.path, reason: expect.stringMatching(/^it sent/) },
    });
  });
}

test("a path of digits is a path, and no port", async () => {
  for (const path of ["99999", "1"]) {
    await expect(Qmp.connect(path)).rejects.toMatchObject({
      code: "HYPERVISOR_UNREACHABLE",
      facts: { path, reason: `connect ENOENT ${path}` },
    });
  }
});

test("where no monitor is, or another client was first, it is HYPERVISOR_UNREACHABLE", async () => {
  await using silent = await FakeQmp.start(polite, "");
  await expect(Qmp.connect(silent.path, { limitMs: 50 })).rejects.toMatchObject({
    code: "HYPERVISOR_UNREACHABLE",
    facts: { reason: expect.stringContaining("is another client connected?") },
  });
  await using refusing = await FakeQmp.start((asked, fake) => fake.refuse(asked, "not you"));
  await expect(Qmp.connect(refusing.path)).rejects.toMatchObject({ facts: { reason: "not you" } });
  const file = join(silent.folder, "file");
  writeFileSync(file, "");
  for (const [path, reason] of [
    [join(silent.folder, "nothing"), /ENOENT/],
    [file, /ECONNREFUSED|ENOTSOCK/],
  ] as const) {
    const unreachable = { code: "HYPERVISOR_UNREACHABLE" };
    const connected = Qmp.connect(path);
    await expect(connected).rejects.toMatchObject(unreachable);
    await expect(connected).rejects.toThrow(reason);
  }
});

test("events are told with the time at which QEMU saw them", async () => {
  await using monitor = await FakeQmp.start(
    afterNegotiation((asked, fake) => {
      const past = Date.now() - 5000;
      const timestamp = { seconds: Math.floor(past / 1000), microseconds: (past % 1000) * 1000 };
      fake.say({ event: "STOP", timestamp });
      fake.say({ event: "MIGRATION", data: { status: "active" }, timestamp: "never" });
      fake.say({ event: "RESUME", data: 7, timestamp: { seconds: 1e12, microseconds: 0 } });
      fake.answer(asked);
    }),
  );
  const qmp = await Qmp.connect(monitor.path);
  const events: QmpEvent[] = [];
  const unlisten = qmp.listen((event) => events.push(event));
  const beforeMs = nowMs();
  await qmp.execute("stop");
  unlisten();
  await qmp.execute("stop");
  expect(events.map(({ name, data }) => [name, data])).toEqual([
    ["STOP", {}],
    ["MIGRATION", { status: "active" }],
    ["RESUME", {}],
  ]);
  const [stop, migration, resume] = events.map(({ atMs }) => atMs - beforeMs);
  expect(stop).toBeGreaterThan(-5100);
  expect(stop).toBeLessThan(-3000);
  // A time that cannot be, or one that is to come, is the moment at which it was heard.
  for (const atMs of [migration, resume]) expect(atMs).toBeGreaterThanOrEqual(0);
  qmp.close();
});

test(`lines are the same however they are cut on the way (SEED=${seed})`, () => {
  const prng = new Prng(seed);
  for (let round = 0; round < 200; round += 1) {
    const wanted = Array.from({ length: prng.below(6) }, () => 'ä"{}€😀 '.repeat(prng.below(20)));
    const end = prng.below(2) === 0 ? "\n" : "\r\n";
    const bytes = Buffer.from(wanted.map((line) => line + end).join(""));
    const lines = new Lines();
    const found: string[] = [];
    for (let at = 0; at < bytes.length; ) {
      const next = at + 1 + prng.below(prng.below(4) === 0 ? 40 : 3);
      found.push(...lines.push(bytes.subarray(at, next)));
      at = next;
    }
    expect(found).toEqual(wanted);
  }
});

test("a line may be as long as the limit and no longer, in one piece or in many", () => {
  expect(new Lines(4).push(Buffer.from("abcd\nabcd\n"))).toEqual(["abcd", "abcd"]);
  expect(() => new Lines(4).push(Buffer.from("abcde"))).toThrow(RangeError);
  const lines = new Lines(1 * MIB);
  const piece = Buffer.alloc(MIB / 4, "x");
  for (let count = 0; count < 4; count += 1) lines.push(piece);
  expect(() => lines.push(Buffer.from("y"))).toThrow("it sent a line of more than 1024 KiB");
});

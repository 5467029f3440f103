import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { describe, expect, test } from "vitest";
import type { MigrationError, Origin } from "../base/errors.ts";
import { asMigrationError } from "../base/errors.ts";
import { type MigrateInOptions, migrateIn } from "../engine/destination.ts";
import { type MigrateOutOptions, migrateOut } from "../engine/source.ts";
import type { HypervisorFigures, Progress, Report } from "../engine/statistics.ts";
import { encodeRunState } from "../hosts/qemu/run-state.ts";
import { DEVICES_SECTION, RUN_STATE_SECTION } from "../hosts/qemu/source.ts";
import { QemuDestination, QemuSource } from "../hosts/qemu.ts";
import { FakeQemu, type FakeQemuOptions } from "./harness/fake-qemu.ts";
import { LeakCheck } from "./harness/leaks.ts";
import { Prng, seedFromEnvironment } from "./prng.ts";

const seed = seedFromEnvironment();

type End = { readonly report: Report } | { readonly failure: MigrationError };

interface Ends {
  readonly source: End;
  readonly destination: End;
}

interface PairOptions {
  readonly out?: MigrateOutOptions;
  readonly in?: MigrateInOptions;
}

/** Moves the guest of one fake QEMU to another, by the engine itself. */
async function move(
  source: QemuSource,
  destination: QemuDestination,
  options: PairOptions = {},
): Promise<Ends> {
  const listening = Promise.withResolvers<string>();
  const arriving = end(
    migrateIn(destination, "tcp:127.0.0.1:0", { ...options.in, onListening: listening.resolve }),
  );
  const out = { channels: 1, ...options.out };
  const leaving = end(listening.promise.then((address) => migrateOut(source, address, out)));
  return { source: await leaving, destination: await arriving };
}

async function end(work: Promise<Report>): Promise<End> {
  try {
    return { report: await work };
  } catch (error) {
    return { failure: asMigrationError(error) };
  }
}

function failureOf(end: End): MigrationError {
  if ("failure" in end) return end.failure;
  throw new Error("it completed");
}

/** Two QEMUs with memory, and both hosts; gone with the test. */
async function pair(
  options: { source?: FakeQemuOptions; destination?: FakeQemuOptions } = {},
): Promise<Pair> {
  const from = await FakeQemu.start(options.source);
  const to = await FakeQemu.start({ runState: "inmigrate", ...options.destination });
  for (const { id, sizeBytes } of from.backends) {
    const memory = Buffer.alloc(sizeBytes);
    new Prng(seed).bytes(memory.subarray(sizeBytes / 2));
    writeFileSync(from.ramPath(id), memory);
  }
  for (const { id, sizeBytes } of to.backends) {
    // It is not pristine: QEMU copied ROMs there.
    writeFileSync(to.ramPath(id), romOf(sizeBytes));
  }
  const source = await QemuSource.open(from.path);
  const destination = await QemuDestination.open(to.path);
  return {
    from,
    to,
    source,
    destination,
    async [Symbol.asyncDispose]() {
      await source.close();
      await destination.close();
      await from[Symbol.asyncDispose]();
      await to[Symbol.asyncDispose]();
    },
  };
}

/** What the destination's memory holds before anything came. */
function romOf(sizeBytes: number): Buffer {
  return Buffer.alloc(sizeBytes, "ROM");
}

interface Pair extends AsyncDisposable {
  readonly from: FakeQemu;
  readonly to: FakeQemu;
  readonly source: QemuSource;
  readonly destination: QemuDestination;
}

/** The guest is at the source as if nothing had been. */
function expectUnharmed({ from }: Pair, runState: "running" | "paused" = "running"): void {
  expect(from.runState).toBe(runState);
  expect(from.enabled).toEqual([]);
}

/** Commands that a QEMU got which do more than look. */
function touchesOf(fake: FakeQemu): string[] {
  const isLook = /^(qmp_capabilities|query-.*|qom-.*|x-query-.*)$/;
  return fake.qmp.commands.filter((command) => !isLook.test(command));
}

/** A fresh destination takes it in. */
async function expectRetry(at: Pair): Promise<void> {
  await using to = await FakeQemu.start({ runState: "inmigrate" });
  const destination = await QemuDestination.open(to.path);
  const { source } = await move(at.source, destination);
  expect(source).toHaveProperty("report");
  expect(to.runState).toBe("running");
  await destination.close();
}

/** Folders of local sockets, of which none may stay. */
function socketFolders(at: Pair): string[] {
  return [at.from.qmp.folder, at.to.qmp.folder, tmpdir()].flatMap((folder) =>
    readdirSync(folder).filter((name) => /^multifd-\w{6}$/.test(name)),
  );
}

test(`a guest moves with its devices, and runs there only (SEED=${seed})`, async () => {
  const backends = [
    { id: "low", sizeBytes: 2 ** 20 },
    { id: "high", sizeBytes: 2 ** 21, address: 2 ** 20 },
    { id: "spare", sizeBytes: 4096, isUnused: true },
  ];
  await using at = await pair({ source: { backends }, destination: { backends } });
  const { from, to } = at;
  const { source, destination } = await move(at.source, at.destination);
  expect(source).toHaveProperty("report.hypervisor");
  expect(destination).toHaveProperty("report");
  expect(from.runState).toBe("postmigrate");
  expect(to.runState).toBe("running");
  expect(to.loaded).toEqual(Buffer.concat([from.early, from.devices]));
  for (const id of ["low", "high"]) {
    expect(readFileSync(to.ramPath(id)).equals(readFileSync(from.ramPath(id)))).toBe(true);
  }
  await at.source.close();
  await at.destination.close();
  expect([from.enabled, to.enabled]).toEqual([[], []]);
  expect(socketFolders(at)).toEqual([]);
});

test("both ends tell the hypervisors' downtime, in parts that add up", async () => {
  await using at = await pair();
  const ends = await move(at.source, at.destination);
  if (!("report" in ends.source && "report" in ends.destination)) throw new Error("it failed");
  const { hypervisor, downtimeMs } = ends.source.report;
  if (hypervisor === undefined) throw new Error("QEMU told nothing");
  const { downtimeMs: wholeMs, ...parts } = hypervisor;
  expect(Object.values(parts).reduce((sum, part) => sum + part, 0)).toBeCloseTo(wholeMs, 6);
  expect(wholeMs).toBeGreaterThan(0);
  // QEMU stops the guest after it was asked to; events tell the time in milliseconds here.
  expect(wholeMs).toBeLessThan(downtimeMs + 2);
  expect(ends.destination.report.hypervisor).toEqual(hypervisor);
});

const LINGER_MS = 300;
/** Of that what surely shows: timers and events are of milliseconds. */
const LINGERED_MS = 290;

const later = (step: () => void): void => void setTimeout(step, LINGER_MS);

function block(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

test.for<[keyof HypervisorFigures, what: string, (at: Pair) => void, out?: MigrateOutOptions]>([
  [
    "stopMs",
    "QEMU lingers when it has stopped the guest",
    ({ from }) => {
      from.staysIn = "active";
      void from.staying.then(() => later(() => from.goOn()));
    },
  ],
  [
    "pagesMs",
    "the source lingers before it sends the rest",
    () => {},
    { onPhase: (phase) => phase === "rest" && block(LINGER_MS) },
  ],
  [
    "saveMs",
    "QEMU lingers while it saves its devices",
    ({ from }) => {
      from.staysIn = "device";
      void from.staying.then(() => later(() => from.goOn()));
    },
  ],
  [
    "loadMs",
    "the destination's QEMU lingers before it loads them",
    ({ to }) => to.on.set("migrate-incoming", (asked) => later(() => to.obey(asked))),
  ],
  [
    "resumeMs",
    "the destination's QEMU lingers before it runs the guest",
    ({ to }) => to.on.set("cont", (asked) => later(() => to.obey(asked))),
  ],
])("the downtime's %s shows that %s", async ([part, , make, out = {}]) => {
  await using at = await pair();
  make(at);
  const { source } = await move(at.source, at.destination, { out });
  if (!("report" in source)) throw source.failure;
  expect(source.report.hypervisor?.[part]).toBeGreaterThan(LINGERED_MS);
});

test("progress rises while QEMU saves its devices, piece by piece", async () => {
  await using at = await pair();
  const early = at.from.early.length;
  const part = Buffer.alloc(1000);
  let steps: (() => void)[] = [];
  at.from.on.set("migrate-continue", (asked) => {
    const savePart = () => at.from.savePart(part);
    steps = [savePart, savePart, () => at.from.obey(asked)];
  });
  const told: number[] = [];
  // Nothing more comes before the progress has told what came.
  const onProgress = ({ deviceBytes }: Progress): void => {
    if (steps.length === 0 || deviceBytes <= (told.at(-1) ?? 0)) return;
    told.push(deviceBytes);
    steps.shift()?.();
  };
  const { source } = await move(at.source, at.destination, { out: { onProgress } });
  expect(source).toHaveProperty("report");
  expect(told).toEqual([early, early + 1000, early + 2000]);
  expect(at.to.loaded).toEqual(Buffer.concat([at.from.early, part, part, at.from.devices]));
});

test("the destination's progress tells the devices that came, before QEMU has loaded them", async () => {
  await using at = await pair();
  const runState = encodeRunState({ hasRun: true });
  let goOn: (() => void) | null = null;
  at.from.on.set("migrate-continue", (asked) => {
    goOn = () => at.from.obey(asked);
  });
  at.to.on.set("migrate-incoming", (asked) => {
    at.to.on.clear();
    goOn = () => at.to.obey(asked);
  });
  const told: number[] = [];
  const onProgress = ({ deviceBytes }: Progress): void => {
    if (goOn === null) return;
    told.push(deviceBytes);
    goOn();
    goOn = null;
  };
  const { destination } = await move(at.source, at.destination, { in: { onProgress } });
  expect(destination).toHaveProperty("report");
  const deviceBytes = at.from.early.length + at.from.devices.length;
  expect(told).toEqual([0, deviceBytes + runState.length]);
});

test("capabilities and TLS that are in the way are off meanwhile, and as before afterwards", async () => {
  await using at = await pair();
  const found = ["multifd", "validate-uuid", "xbzrle"];
  for (const name of found) at.from.capabilities.set(name, true);
  at.from.tlsCredentials = "secret";
  const during: unknown[] = [];
  at.from.on.set("migrate", (asked) => {
    during.push(at.from.enabled, at.from.tlsCredentials);
    at.from.obey(asked);
  });
  expect((await move(at.source, at.destination)).source).toHaveProperty("report");
  await at.source.close();
  expect(during).toEqual([
    ["events", "pause-before-switchover", "validate-uuid", "x-ignore-shared"],
    "",
  ]);
  expect(at.from.enabled).toEqual(found);
  expect(at.from.tlsCredentials).toBe("secret");
});

test("a guest that was paused arrives paused", async () => {
  await using at = await pair({ source: { runState: "paused" } });
  const { source } = await move(at.source, at.destination);
  expect(source).toHaveProperty("report");
  expect(source).not.toHaveProperty("report.hypervisor");
  expect(at.to.runState).toBe("paused");
});

test("a guest that was paused is paused again after a failure, and can be moved then", async () => {
  await using at = await pair({ source: { runState: "paused" } });
  at.to.failsToLoad = true;
  failureOf((await move(at.source, at.destination)).source);
  expectUnharmed(at, "paused");
  await using to = await FakeQemu.start({ runState: "inmigrate" });
  const destination = await QemuDestination.open(to.path);
  expect((await move(at.source, destination)).source).toHaveProperty("report");
  expect(to.runState).toBe("paused");
  await destination.close();
});

interface Trouble {
  readonly what: string;
  readonly make: (at: Pair) => void;
  readonly options?: PairOptions;
  readonly failure: object;
  readonly leftover?: RegExp;
}

const TROUBLES: readonly Trouble[] = [
  {
    what: "a QEMU that refuses to migrate",
    make: ({ from }) => from.on.set("migrate", (asked, fake) => fake.refuse(asked, "no")),
    failure: { code: "HYPERVISOR_REFUSED", facts: { command: "migrate", reason: "no" } },
  },
  {
    what: "a QEMU that never connects",
    make: ({ from }) => from.on.set("migrate", (asked, fake) => fake.answer(asked)),
    // Every other step is done within that, however busy the machine is.
    options: { out: { stepTimeoutMs: 3000 } },
    failure: { code: expect.stringMatching(/HOST_TIMEOUT|HYPERVISOR_SILENT/) },
  },
  {
    what: "a QEMU that does not set capabilities",
    make: ({ from }) => {
      from.on.set("migrate-set-capabilities", (asked, fake) => fake.refuse(asked, "no"));
    },
    failure: { code: "HYPERVISOR_REFUSED", facts: { command: "migrate-set-capabilities" } },
  },
  {
    what: "a QEMU that refuses to go on from where it waits",
    make: ({ from }) => from.on.set("migrate-continue", (asked, fake) => fake.refuse(asked, "no")),
    failure: { code: "HYPERVISOR_REFUSED", facts: { command: "migrate-continue" } },
  },
  {
    what: "devices beyond the limit while they are saved",
    make: ({ from }) => {
      from.devices = Buffer.alloc(300_000);
    },
    options: { out: { deviceLimitBytes: 1000 }, in: { deviceLimitBytes: 1000 } },
    failure: { code: "DEVICES_TOO_LARGE", facts: { limitBytes: 1000 } },
  },
  {
    what: "memory of QEMU's own beyond the limit before the guest stops",
    make: ({ from }) => {
      from.early = Buffer.alloc(300_000);
    },
    options: { out: { deviceLimitBytes: 1000 } },
    failure: { code: "DEVICES_TOO_LARGE", facts: { limitBytes: 1000 } },
  },
  {
    what: "a QEMU at the destination that ends when it loads",
    make: ({ to }) => {
      to.failsToLoad = true;
    },
    failure: { code: "HYPERVISOR_LOST", at: "destination" },
    leftover: /^The destination's QEMU has ended/,
  },
  {
    what: "a QEMU at the destination that refuses to listen",
    make: ({ to }) => to.on.set("migrate-incoming", (asked, fake) => fake.refuse(asked, "no")),
    failure: { code: "HYPERVISOR_REFUSED", facts: { command: "migrate-incoming" } },
    leftover: /stopped \(inmigrate\)/,
  },
  {
    what: "a QEMU at the destination that runs the guest too early",
    make: ({ to }) => to.on.set("stop", (asked, fake) => fake.answer(asked)),
    failure: { code: "HOST_FAILED", at: "destination" },
  },
];

describe.for(TROUBLES)("$what", ({ make, options = {}, failure, leftover }) => {
  test("fails in its words, harms nothing, and a second attempt succeeds", async () => {
    await using at = await pair();
    make(at);
    const ends = await move(at.source, at.destination, options);
    expect(failureOf(ends.source)).toMatchObject(failure);
    if (leftover !== undefined) expect(failureOf(ends.destination).leftover).toMatch(leftover);
    at.from.on.clear();
    at.from.devices = at.from.early = Buffer.from("small");
    expectUnharmed(at);
    expect(socketFolders(at)).toEqual([]);
    await expectRetry(at);
  });
});

/** Commands at which the source's QEMU hangs, and a cancel meets it. */
const STEPS = ["query-status", "migrate-set-capabilities", "migrate", "migrate-continue"];

test.for(STEPS)("a cancel while QEMU is at %s ends with the guest running", async (step) => {
  await using at = await pair();
  const controller = new AbortController();
  at.from.on.set(step, (asked) => {
    // Once the guest is to be paused; before, its state is only looked at.
    if (step === "query-status" && phase !== "pause") return at.from.obey(asked);
    controller.abort();
    setImmediate(() => at.from.obey(asked));
  });
  let phase = "";
  const onPhase = (next: string): void => {
    phase = next;
  };
  const out = { signal: controller.signal, onPhase };
  const ends = await move(at.source, at.destination, { out });
  expect(failureOf(ends.source).code).toBe("CANCELLED");
  at.from.on.clear();
  expectUnharmed(at);
  await expectRetry(at);
});

test.for(["stop", "migrate-set-capabilities"])(
  "a guest that is discarded while QEMU is at %s is not loaded after that",
  async (step) => {
    await using at = await pair();
    const discarded = Promise.withResolvers<void>();
    at.to.on.set(step, (asked) => {
      at.to.on.clear();
      discarded.resolve(at.destination.discard());
      at.to.obey(asked);
    });
    const loading = at.destination.loadDevices([
      { name: DEVICES_SECTION, bytes: at.from.devices },
      { name: RUN_STATE_SECTION, bytes: encodeRunState({ hasRun: true }) },
    ]);
    await expect(loading).rejects.toThrow("the guest was discarded");
    await discarded.promise;
    expect(at.to.qmp.commands).not.toContain("migrate-incoming");
    expect([at.to.enabled, at.to.loaded]).toEqual([[], null]);
  },
);

test("a QEMU that hangs in its last stage is yanked out of band", async () => {
  await using at = await pair();
  at.from.on.set("migrate-continue", () => {});
  at.from.on.set("migrate_cancel", () => {});
  const ends = await move(at.source, at.destination, { out: { stepTimeoutMs: 5000 } });
  expect(failureOf(ends.source).code).toMatch(/HOST_TIMEOUT|HYPERVISOR_SILENT/);
  expect(at.from.qmp.commands).toContain("oob yank");
  at.from.on.clear();
  expectUnharmed(at);
});

test("a source whose QEMU dies says so, and that it could not be restored", async () => {
  await using at = await pair();
  at.from.on.set("migrate-continue", () => at.from.die());
  const failure = failureOf((await move(at.source, at.destination)).source);
  expect(failure).toMatchObject({
    code: "GUEST_NOT_RESTORED",
    facts: { after: "HYPERVISOR_LOST" },
  });
});

test("a QEMU at the destination that ends while pages come is missed at once", async () => {
  await using at = await pair();
  const onPhase = (phase: string): void => {
    if (phase === "receive") at.to.die();
  };
  const ends = await move(at.source, at.destination, { in: { onPhase } });
  for (const failure of [failureOf(ends.source), failureOf(ends.destination)]) {
    expect(failure).toMatchObject({ code: "HYPERVISOR_LOST", at: "destination" });
  }
  expect(at.from.qmp.commands).not.toContain("migrate");
  expectUnharmed(at);
});

test("a destination that cannot run it leaves it unknown who has the guest", async () => {
  await using at = await pair();
  at.to.on.set("cont", (asked, fake) => fake.refuse(asked, "a disk is locked"));
  const ends = await move(at.source, at.destination);
  expect(failureOf(ends.source)).toMatchObject({ code: "HANDOVER_UNKNOWN" });
  expect(failureOf(ends.destination).message).toContain("a disk is locked");
  expect(failureOf(ends.destination).leftover).toBe(undefined);
  expect(at.from.runState).toBe("postmigrate");
});

test.for(["migrate", "migrate-continue"])(
  "nothing is left of ten migrations that failed when QEMU refused %s",
  async (command) => {
    await using at = await pair();
    at.from.on.set(command, (asked, fake) => fake.refuse(asked, "no"));
    failureOf((await move(at.source, at.destination)).source);
    const leaks = new LeakCheck();
    for (let count = 0; count < 10; count += 1) {
      failureOf((await move(at.source, at.destination)).source);
    }
    await leaks.settled();
  },
);

describe("a source refuses, before it touches anything,", () => {
  test.for<[what: string, FakeQemuOptions, (fake: FakeQemu) => void, problem: RegExp]>([
    [
      "RAM without a file",
      { backends: [{ id: "pc.ram", sizeBytes: 4096, path: null, kind: "memory-backend-ram" }] },
      () => {},
      /"pc.ram" \(memory-backend-ram\) has no file: make it a memory-backend-file,share=on/,
    ],
    [
      "private RAM",
      { backends: [{ id: "ram", sizeBytes: 4096, isShared: false }] },
      () => {},
      /"ram" is private to QEMU: add share=on/,
    ],
    [
      "a file without a name",
      { backends: [{ id: "ram", sizeBytes: 4096, path: tmpdir() }] },
      () => {},
      /"ram" has a nameless file in ".*": name a file in mem-path/,
    ],
    [
      "a file that is not there",
      { backends: [{ id: "ram", sizeBytes: 4096, path: "/nowhere/ram" }] },
      () => {},
      /"ram" cannot be opened here: ENOENT/,
    ],
    [
      "a file that is too short",
      {},
      (fake) => writeFileSync(fake.ramPath("ram"), "short"),
      /"ram" lies in ".*", which is too short/,
    ],
    ["no RAM at all", { backends: [] }, () => {}, /no RAM was found/],
    [
      "a device that blocks migration",
      {},
      (fake) => {
        fake.blockedReasons = ["non-migratable device: nvme"];
      },
      /non-migratable device: nvme: remove that device/,
    ],
    [
      "a QEMU that waits for a guest itself",
      { runState: "inmigrate" },
      () => {},
      /waits for a guest itself/,
    ],
    [
      "a guest that has left",
      {},
      (fake) => {
        fake.runState = "postmigrate";
      },
      /stopped by a migration before/,
    ],
    [
      "a guest that is being migrated",
      {},
      (fake) => {
        fake.migration = "active";
      },
      /being migrated already \(active\)/,
    ],
    [
      "a QEMU that is too old",
      { capabilities: ["events"] },
      () => {},
      /lacks migration capability "x-ignore-shared"/,
    ],
  ])("%s", async ([, options, make, problem]) => {
    await using fake = await FakeQemu.start(options);
    make(fake);
    const opened = QemuSource.open(fake.path);
    await expect(opened).rejects.toMatchObject({ code: "GUEST_UNSUITABLE" });
    await expect(opened).rejects.toThrow(problem);
    expect(touchesOf(fake)).toEqual([]);
  });
});

describe("a destination refuses, before anything is touched,", () => {
  test.for<[what: string, FakeQemuOptions, problem: RegExp]>([
    [
      "another machine",
      { machine: "pc-q35-7.2" },
      /pc-i440fx-7.2 at the source and pc-q35-7.2 at the destination: start it with -machine pc-i440fx-7.2/,
    ],
    [
      "another number of processors",
      { cpus: 4 },
      /the source has 1 processors .* start it with -smp 1/,
    ],
    [
      "RAM of another size",
      { backends: [{ id: "ram", sizeBytes: 2 ** 21 }] },
      /"ram" has 1.00 MiB at the source and 2.00 MiB at the destination/,
    ],
    [
      "RAM of another name",
      { backends: [{ id: "memory", sizeBytes: 2 ** 20 }] },
      /"ram" is missing at the destination.*"memory" is missing at the source/,
    ],
    [
      "RAM elsewhere",
      { backends: [{ id: "ram", sizeBytes: 2 ** 20, address: 4096 }] },
      /"ram" lies elsewhere/,
    ],
    ["a missing device", { ownBlocks: ["pc.rom"] }, /memory of "pc.bios" is missing/],
  ])("%s", async ([, options, problem]) => {
    await using at = await pair({ destination: options });
    const { source } = await move(at.source, at.destination);
    const failure = failureOf(source);
    expect(failure).toMatchObject({ code: "GUEST_MISMATCH", at: "destination" });
    expect(failure.message).toMatch(problem);
    expectUnharmed(at);
    expect(at.from.qmp.commands).not.toContain("migrate");
    expect(at.to.runState).toBe("inmigrate");
    expect(touchesOf(at.to)).toEqual([]);
    for (const { id, sizeBytes } of at.to.backends) {
      expect(readFileSync(at.to.ramPath(id)).equals(romOf(sizeBytes))).toBe(true);
    }
    await expectRetry(at);
  });

  test("the source's own file", async () => {
    await using from = await FakeQemu.start();
    const backends = [{ id: "ram", sizeBytes: 2 ** 20, path: from.ramPath("ram") }];
    await using to = await FakeQemu.start({ runState: "inmigrate", backends });
    const source = await QemuSource.open(from.path);
    const destination = await QemuDestination.open(to.path);
    const failure = failureOf((await move(source, destination)).source);
    expect(failure.code).toBe("GUEST_MISMATCH");
    expect(failure.message).toMatch(/in the source's own file/);
    expect(touchesOf(to)).toEqual([]);
    expect(readFileSync(from.ramPath("ram")).every((byte) => byte === 0)).toBe(true);
    await Promise.all([source.close(), destination.close()]);
  });

  test.for<[what: string, FakeQemuOptions, (fake: FakeQemu) => void, problem: RegExp]>([
    [
      "a QEMU that runs a guest",
      { runState: "running" },
      () => {},
      /\(it is running\): start it afresh, with -incoming defer/,
    ],
    [
      "a QEMU that was used up by a load",
      { runState: "paused" },
      (fake) => {
        fake.migration = "failed";
      },
      /\(it is paused\): start it afresh/,
    ],
    [
      "a QEMU that waits for somebody else's guest",
      {},
      (fake) => {
        fake.migration = "setup";
      },
      /\(its migration is in state setup\): start it afresh/,
    ],
    [
      "a QEMU that is too old",
      { capabilities: ["events", "x-ignore-shared"] },
      () => {},
      /lacks migration capability "late-block-activate"/,
    ],
  ])("%s", async ([, options, make, problem]) => {
    await using fake = await FakeQemu.start({ runState: "inmigrate", ...options });
    make(fake);
    const opened = QemuDestination.open(fake.path);
    await expect(opened).rejects.toMatchObject({ code: "GUEST_UNSUITABLE" });
    await expect(opened).rejects.toThrow(problem);
    expect(touchesOf(fake)).toEqual([]);
  });
});

describe("what has changed since a QEMU was opened", () => {
  test.for<[what: string, (at: Pair) => void, at: Origin, problem: RegExp]>([
    [
      "a guest that is being migrated by now",
      ({ from }) => {
        from.migration = "active";
      },
      "source",
      /being migrated already \(active\)/,
    ],
    [
      "a QEMU that runs a guest by now",
      ({ to }) => {
        to.runState = "running";
      },
      "destination",
      /\(it is running\)/,
    ],
  ])("is seen when the migration begins: %s", async ([, make, side, problem]) => {
    await using at = await pair();
    make(at);
    const { source } = await move(at.source, at.destination);
    const failure = failureOf(source);
    expect(failure).toMatchObject({ code: "GUEST_UNSUITABLE", at: side });
    expect(failure.message).toMatch(problem);
    expect([touchesOf(at.from), touchesOf(at.to)]).toEqual([[], []]);
  });
});

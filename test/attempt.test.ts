import { expect, test } from "vitest";
import { MigrationError } from "../base/errors.ts";
import { Attempt, callHost } from "../engine/attempt.ts";
import { Hold } from "../engine/hold.ts";
import { Delay, hangs } from "./harness/misbehaviour.ts";

const NEVER_MS = 2 ** 31;
const LOST = new MigrationError("CHANNEL_LOST", { channel: 1, reason: "cut" });
const SILENT = new MigrationError("PEER_SILENT", { waitingFor: "ready", limitMs: 1 });

type Phase = "first" | "second";

function newAttempt(
  options: { signal?: AbortSignal; onPhase?: (phase: Phase) => void } = {},
): Attempt<Phase> {
  return new Attempt<Phase>({ side: "source", first: "first", ...options });
}

async function failureOf(work: Promise<unknown>): Promise<MigrationError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof MigrationError) return error;
    throw error;
  }
  throw new Error("Cannot give the failure: there was none");
}

function forever(): Promise<never> {
  return new Promise(() => {});
}

test("phases are run and told in order, and give what their work gives", async () => {
  const told: Phase[] = [];
  const attempt = newAttempt({ onPhase: (phase) => told.push(phase) });
  expect(await attempt.run("first", async () => 1)).toBe(1);
  expect(await attempt.run("second", async () => told.slice())).toEqual(["first", "second"]);
  expect(attempt.phase).toBe("second");
  expect(attempt.failure).toBe(null);
});

test("the first failure is the attempt's, whatever follows", async () => {
  const attempt = newAttempt();
  attempt.fail(LOST);
  attempt.fail(SILENT);
  expect(attempt.failure).toBe(LOST);
  expect(await failureOf(attempt.guard(forever()))).toBe(LOST);
  expect(await failureOf(attempt.run("second", async () => {}))).toBe(LOST);
  expect(attempt.phase).toBe("first");
});

test("a failure ends every wait at once", async () => {
  const attempt = newAttempt();
  const waits = [
    attempt.run("first", forever),
    attempt.guard(forever()),
    attempt.askHost({ action: "wait", limitMs: NEVER_MS, call: forever }),
  ].map(failureOf);
  attempt.fail(LOST);
  expect(await Promise.all(waits)).toEqual([LOST, LOST, LOST]);
});

test("what a phase throws is the failure, and what is no MigrationError is INTERNAL", async () => {
  const attempt = newAttempt();
  const failure = await failureOf(
    attempt.run("second", async () => {
      throw new TypeError("a bug");
    }),
  );
  expect(failure).toMatchObject({ code: "INTERNAL", facts: { reason: "TypeError: a bug" } });
  expect(attempt.failure).toBe(failure);
});

test("a phase that fails because the attempt did has the attempt's failure", async () => {
  const attempt = newAttempt();
  const failure = await failureOf(
    attempt.run("first", async () => {
      attempt.fail(LOST);
      throw SILENT;
    }),
  );
  expect(failure).toBe(LOST);
});

test("those who react to a failure are called once, also when they come after it", () => {
  const attempt = newAttempt();
  const reactions: string[] = [];
  attempt.onFailure(() => reactions.push("before"));
  attempt.fail(LOST);
  attempt.fail(SILENT);
  attempt.onFailure(() => reactions.push("after"));
  expect(reactions).toEqual(["before", "after"]);
});

test("a signal cancels, and names the phase", async () => {
  const controller = new AbortController();
  const attempt = newAttempt({ signal: controller.signal });
  const waiting = failureOf(attempt.run("second", forever));
  controller.abort();
  expect(await waiting).toMatchObject({ code: "CANCELLED", facts: { phase: "second" } });
});

test("a signal that was given before cancels before anything is begun", async () => {
  const attempt = newAttempt({ signal: AbortSignal.abort() });
  let isBegun = false;
  const work = async () => {
    isBegun = true;
  };
  expect(await failureOf(attempt.run("first", work))).toMatchObject({ code: "CANCELLED" });
  expect(isBegun).toBe(false);
});

test("a cancel while a phase is told of keeps the phase from beginning", async () => {
  const controller = new AbortController();
  const attempt = newAttempt({
    signal: controller.signal,
    onPhase: () => controller.abort(),
  });
  let isBegun = false;
  const work = async () => {
    isBegun = true;
  };
  expect(await failureOf(attempt.run("second", work))).toMatchObject({
    facts: { phase: "second" },
  });
  expect(isBegun).toBe(false);
});

test("after COMMIT a cancel and an embedder's error change nothing, a failure does", async () => {
  const controller = new AbortController();
  const attempt = newAttempt({
    signal: controller.signal,
    onPhase: () => {
      throw new Error("a bug of the embedder");
    },
  });
  attempt.commit();
  controller.abort();
  attempt.callBack(() => {
    throw new Error("another bug");
  });
  expect(await attempt.run("second", async () => "done")).toBe("done");
  expect(attempt.isCommitted).toBe(true);
  attempt.fail(LOST);
  expect(attempt.failure).toBe(LOST);
});

test("an attempt that failed cannot commit", () => {
  const attempt = newAttempt();
  attempt.fail(LOST);
  expect(() => attempt.commit()).toThrow(LOST);
  expect(attempt.isCommitted).toBe(false);
});

test("after success nothing fails any more, and before it a failure prevents it", async () => {
  const attempt = newAttempt();
  attempt.commit();
  attempt.succeed();
  attempt.fail(LOST);
  expect(attempt.failure).toBe(null);

  const failed = newAttempt();
  failed.fail(LOST);
  expect(() => failed.succeed()).toThrow(LOST);
});

test("an attempt that is over lets go of its signal", () => {
  const controller = new AbortController();
  const attempt = newAttempt({ signal: controller.signal });
  attempt.end();
  controller.abort();
  expect(attempt.failure).toBe(null);
});

test("a host that throws is HOST_FAILED, before or after its promise", async () => {
  const wanted = { code: "HOST_FAILED", facts: { action: "pause", reason: "no" } };
  const sync = (): Promise<never> => {
    throw new Error("no");
  };
  const async = () => Promise.reject(new Error("no"));
  expect(await failureOf(callHost("pause", NEVER_MS, sync))).toMatchObject(wanted);
  expect(await failureOf(callHost("pause", NEVER_MS, async))).toMatchObject(wanted);
  expect(await failureOf(callHost("pause", NEVER_MS, () => Promise.reject(LOST)))).toBe(LOST);
});

test("a host that does not return is HOST_TIMEOUT", async () => {
  expect(await failureOf(callHost("pause", 10, () => hangs(async () => {})))).toMatchObject({
    code: "HOST_TIMEOUT",
    facts: { action: "pause", limitMs: 10 },
  });
});

test("a host is not asked on behalf of an attempt that failed", async () => {
  const attempt = newAttempt();
  attempt.fail(LOST);
  let isAsked = false;
  const call = async () => {
    isAsked = true;
  };
  const asked = attempt.askHost({ action: "pause", limitMs: NEVER_MS, call });
  expect(await failureOf(asked)).toBe(LOST);
  expect(isAsked).toBe(false);
});

/** Attempts at one host, each of which asks it for something that lasts. */
class Lasting {
  readonly host = {};
  readonly undone: string[] = [];

  ask(
    name: string,
    delay: Delay | null,
  ): { attempt: Attempt<Phase>; hold: Hold; asked: Promise<unknown> } {
    const attempt = newAttempt();
    const hold = new Hold(this.host, "pause");
    const asked = attempt.askHost({
      action: "pause",
      limitMs: NEVER_MS,
      call: async () => await delay?.misbehaviour(async () => {}),
      lasting: { hold, undo: async () => this.undone.push(name) },
    });
    asked.catch(() => {});
    return { attempt, hold, asked };
  }
}

test("what takes effect in time is not taken back, whatever happens later", async () => {
  const lasting = new Lasting();
  const { attempt, asked } = lasting.ask("first", null);
  await asked;
  attempt.fail(LOST);
  expect(lasting.undone).toEqual([]);
});

test("what takes effect after the attempt failed is taken back", async () => {
  const lasting = new Lasting();
  const delay = new Delay();
  const { attempt, hold, asked } = lasting.ask("first", delay);
  expect(hold.isAsked).toBe(true);
  attempt.fail(LOST);
  expect(await failureOf(asked)).toBe(LOST);
  hold.release();
  await delay.end();
  expect(lasting.undone).toEqual(["first"]);
});

test("what a later attempt has asked for is not taken back for an earlier one", async () => {
  const lasting = new Lasting();
  const delay = new Delay();
  const first = lasting.ask("first", delay);
  first.attempt.fail(LOST);
  first.hold.release();
  const second = lasting.ask("second", null);
  await second.asked;
  await delay.end();
  expect(first.hold.isSuperseded).toBe(true);
  expect(second.hold.isSuperseded).toBe(false);
  expect(lasting.undone).toEqual([]);
});

test("what a later attempt has given back itself is taken back for an earlier one", async () => {
  const lasting = new Lasting();
  const delay = new Delay();
  const first = lasting.ask("first", delay);
  first.attempt.fail(LOST);
  first.hold.release();
  const second = lasting.ask("second", null);
  await second.asked;
  first.hold.release(); // Not its to give back: the second one holds it.
  expect(first.hold.isSuperseded).toBe(true);
  second.hold.release();
  await delay.end();
  expect(lasting.undone).toEqual(["first"]);
});

test("holds on different hosts, or of different things, do not know of each other", () => {
  const host = {};
  const pause = new Hold(host, "pause");
  pause.take();
  new Hold(host, "throttle").take();
  new Hold({}, "pause").take();
  expect(pause.isSuperseded).toBe(false);
  expect(new Hold(host, "pause").isAsked).toBe(false);
});

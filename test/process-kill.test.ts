import { describe, expect, test } from "vitest";
import { nowMs } from "../base/clock.ts";
import { SECOND_MS } from "../base/units.ts";
import type { DestinationPhase } from "../engine/destination.ts";
import type { ParameterOptions } from "../engine/parameters.ts";
import type { PostcopyPhase } from "../engine/source.ts";
import {
  addressOf,
  destinationStateOf,
  expectRetry,
  sourceStateOf,
  startGuestDestination,
  startGuestSource,
  untilPhase,
} from "./fixtures/cli-live-pair.ts";
import { failureIn, failureOf } from "./fixtures/cli-outcome.ts";
import {
  attemptWith,
  ORDINARY,
  passStep,
  relayTo,
  SLOWLY,
  SOURCE_STOPS,
  type Stop,
  stopAt,
} from "./fixtures/cli-phase-stops.ts";
import { seedFromEnvironment } from "./prng.ts";

const SEED = seedFromEnvironment();

const DESTINATION_STOPS: Readonly<
  Record<Exclude<DestinationPhase, "listen" | "resume" | PostcopyPhase>, Stop>
> = {
  agree: { frame: "agree" },
  receive: { parameters: SLOWLY },
  devices: { frame: "section" },
  load: { frame: "end" },
  commit: { frame: "commit" },
};

describe(`a destination that is killed (SEED=${SEED})`, () => {
  for (const [phase, stop] of Object.entries(SOURCE_STOPS)) {
    test(`in phase ${phase} leaves the guest running and whole at the source`, async () => {
      await using destination = startGuestDestination();
      const target = await addressOf(destination);
      await using relay = await stopAt(stop, target);
      const { step } = stop;
      const options = { seed: SEED, ...attemptWith(stop) };
      await using source = startGuestSource(relay?.address ?? target, options);
      if (step !== undefined) await source.waitFor("holding");
      passStep(stop, relay, source);
      await untilPhase(source, phase);
      await relay?.holding;
      destination.kill("SIGKILL");

      const failure = failureIn(await source.waitFor("failed"));
      expect(failure).toMatchObject({ code: "CHANNEL_LOST", remedy: "retry", at: "source" });
      if (step !== undefined) source.tell("go on");
      expect(await sourceStateOf(source)).toMatchObject({
        running: true,
        tracking: false,
        runsOn: true,
        problems: [],
      });
      await expectRetry(source);
    });
  }

  test("after COMMIT leaves the guest paused and whole at the source, which is unsure", async () => {
    await using destination = startGuestDestination();
    await using relay = await relayTo(await addressOf(destination), "running");
    const options = { seed: SEED, parameters: ORDINARY };
    await using source = startGuestSource(relay.address, options);
    await untilPhase(source, "commit");
    await relay.holding;
    destination.kill("SIGKILL");

    const failure = failureIn(await source.waitFor("failed"));
    expect(failure).toMatchObject({ code: "HANDOVER_UNKNOWN", remedy: "settle", at: "source" });
    expect(await sourceStateOf(source)).toMatchObject({
      running: false,
      runsOn: false,
      problems: [],
    });
  });
});

describe(`a source that is killed (SEED=${SEED})`, () => {
  for (const [phase, stop] of Object.entries(DESTINATION_STOPS)) {
    test(`in phase ${phase} leaves no guest at the destination, and nothing else`, async () => {
      await using destination = startGuestDestination();
      const target = await addressOf(destination);
      await using relay = await stopAt(stop, target);
      const { parameters = ORDINARY } = stop;
      await using source = startGuestSource(relay?.address ?? target, { seed: SEED, parameters });
      await untilPhase(destination, phase);
      await relay?.holding;
      source.kill("SIGKILL");

      // It ends by itself: no thread and no connection is left that would keep it alive.
      const arrived = await destination.exit;
      expect(failureOf(arrived)).toMatchObject({ code: "CHANNEL_LOST", at: "destination" });
      const { resumes, discards } = destinationStateOf(arrived);
      expect(resumes).toBe(0);
      // Once more, should a step have come to its end late: docs/embedding.md.
      expect([1, 2]).toContain(discards);
      expect(arrived.status).toBe(1);
      expect(arrived.stderr).toBe("");
    });
  }

  test("before it said who it is does not keep others from coming", async () => {
    await using destination = startGuestDestination();
    const target = await addressOf(destination);
    await using relay = await relayTo(target, "hello");
    await using killed = startGuestSource(relay.address, { seed: SEED, parameters: ORDINARY });
    await relay.holding;
    killed.kill("SIGKILL");
    await killed.exit;

    await using source = startGuestSource(target, { seed: SEED, parameters: ORDINARY });
    const arrived = await destination.exit;
    expect(destinationStateOf(arrived)).toMatchObject({ resumes: 1, runsOn: true, problems: [] });
    await source.waitFor("completed");
  });

  test("after COMMIT arrived leaves the guest running and whole at the destination", async () => {
    await using destination = startGuestDestination();
    await using relay = await relayTo(await addressOf(destination), "running");
    const options = { seed: SEED, parameters: ORDINARY };
    await using source = startGuestSource(relay.address, options);
    await untilPhase(destination, "resume");
    source.kill("SIGKILL");

    const arrived = await destination.exit;
    expect(destinationStateOf(arrived)).toEqual({
      resumes: 1,
      discards: 0,
      runsOn: true,
      problems: [],
    });
    expect(arrived.status).toBe(0);
  });
});

/** How long both ends bear silence; the default is ten times as long. */
const IMPATIENT: ParameterOptions = { channelTimeoutMs: 1000 };

/** Far beyond what is borne, for a machine that is busy, and far below the default. */
const NOTICED_MS = 6 * SECOND_MS;

const SILENT = /^(?:PEER_SILENT|CHANNEL_STALLED)$/;

describe(`a process that stops (SEED=${SEED})`, () => {
  const stops: Readonly<Record<string, Stop>> = {
    precopy: { parameters: { ...SLOWLY, ...IMPATIENT } },
    devices: { parameters: { ...ORDINARY, ...IMPATIENT }, step: "saveDevices" },
  };
  for (const [phase, stop] of Object.entries(stops)) {
    const { step } = stop;
    test(`is missed soon by the source in phase ${phase}, where the guest runs on`, async () => {
      await using destination = startGuestDestination(IMPATIENT);
      const options = { seed: SEED, ...attemptWith(stop) };
      await using source = startGuestSource(await addressOf(destination), options);
      await untilPhase(source, phase);
      if (step !== undefined) await source.waitFor("holding");
      const stoppedMs = nowMs();
      destination.kill("SIGSTOP");

      const failure = failureIn(await source.waitFor("failed"));
      expect(nowMs() - stoppedMs).toBeLessThan(NOTICED_MS);
      expect(failure.code).toMatch(SILENT);
      expect(failure.at).toBe("source");
      if (step !== undefined) source.tell("go on");
      expect(await sourceStateOf(source)).toMatchObject({ runsOn: true, problems: [] });
      await expectRetry(source);

      // It wakes up, finds its peer gone, and gives up as well.
      destination.kill("SIGCONT");
      const arrived = await destination.exit;
      expect(failureOf(arrived).at).toBeDefined();
      expect(destinationStateOf(arrived)).toEqual({ resumes: 0, discards: 1 });
    });
  }

  test("is missed soon by the destination, and its guest runs on when it wakes up", async () => {
    await using destination = startGuestDestination(IMPATIENT);
    const options = { seed: SEED, parameters: { ...SLOWLY, ...IMPATIENT } };
    await using source = startGuestSource(await addressOf(destination), options);
    await untilPhase(destination, "receive");
    const stoppedMs = nowMs();
    source.kill("SIGSTOP");

    const arrived = await destination.exit;
    expect(nowMs() - stoppedMs).toBeLessThan(NOTICED_MS);
    const failure = failureOf(arrived);
    expect(failure.code).toMatch(SILENT);
    expect(failure.at).toBe("destination");
    expect(destinationStateOf(arrived)).toEqual({ resumes: 0, discards: 1 });

    source.kill("SIGCONT");
    await source.waitFor("failed");
    expect(await sourceStateOf(source)).toMatchObject({
      running: true,
      tracking: false,
      runsOn: true,
      problems: [],
    });
    await expectRetry(source);
  });
});

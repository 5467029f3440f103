import type { PairOptions } from "./pair.ts";
import type { RecordingDestination } from "./recording-destination.ts";
import type { RecordingSource } from "./recording-source.ts";
import { Relay } from "./relay.ts";
import { StuckDisk } from "./stuck-disk.ts";

/** A stage that hangs until this is disposed of. */
export interface Hang extends AsyncDisposable {
  /** How the attempt is made in which it hangs. */
  readonly options: Pick<PairOptions, "relay" | "sourceSurroundings" | "destinationSurroundings">;
  /** Resolves when it hangs. */
  readonly begun: Promise<void>;
}

type Ends = { readonly source: RecordingSource; readonly destination: RecordingDestination };

function nothingReturns(host: RecordingSource, step: "pause" | "saveDevices"): Hang;
function nothingReturns(host: RecordingDestination, step: "loadDevices"): Hang;
function nothingReturns(
  host: { misbehave(step: never, how: () => Promise<never>): void },
  step: string,
): Hang {
  const begun = Promise.withResolvers<void>();
  host.misbehave(step as never, () => {
    begun.resolve();
    return new Promise<never>(() => {});
  });
  return { options: {}, begun: begun.promise, async [Symbol.asyncDispose]() {} };
}

async function stalled(channel: number, frame: "section" | "ready" | "fence" | "fenced", nth = 1) {
  const relay = await Relay.start();
  const begun = Promise.withResolvers<void>();
  relay.onDeed = begun.resolve;
  relay.at({ channel, frame, nth, where: "before" }, "stall link");
  return {
    options: { relay },
    begun: begun.promise,
    [Symbol.asyncDispose]: () => relay[Symbol.asyncDispose](),
  };
}

/** Every way in which the last stages can hang, each by what does not answer. */
export const HANGS: Readonly<Record<string, (ends: Ends) => Promise<Hang> | Hang>> = {
  "a guest that does not come to rest": ({ source }) => nothingReturns(source, "pause"),
  "a device that is never saved": ({ source }) => nothingReturns(source, "saveDevices"),
  "a device that is never loaded": ({ destination }) => nothingReturns(destination, "loadDevices"),
  "a peer that does not read": () => stalled(0, "section"),
  "a peer that does not acknowledge pages": () => stalled(1, "fenced", 3),
  "a peer that is never ready": () => stalled(0, "ready"),
  "a disk at the source, as rounds are sent": ({ source }) => {
    const disk = new StuckDisk("send");
    source.onLook = () => {
      disk.block();
      source.writePages(2);
    };
    return stuck(disk, "sourceSurroundings");
  },
  "a disk at the source, as the rest is sent": ({ source }) => {
    const disk = new StuckDisk("send");
    source.onPause = () => {
      source.writePages(40);
      disk.block();
    };
    return stuck(disk, "sourceSurroundings");
  },
  "a disk at the destination": () => {
    const disk = new StuckDisk("receive");
    disk.block();
    return stuck(disk, "destinationSurroundings");
  },
};

function stuck(disk: StuckDisk, end: "sourceSurroundings" | "destinationSurroundings"): Hang {
  return {
    options: { [end]: disk.surroundings },
    begun: disk.reached(),
    async [Symbol.asyncDispose]() {
      disk[Symbol.dispose]();
    },
  };
}

import type { FeatureRow, Features } from "../engine/features.ts";
import type { Condition, LegalityRule } from "../engine/legality.ts";

/** Whether a flag was given. */
type Flag = "given" | "left out";

/** What commands know beside what the engine asks about: which guest it is, and by what flags. */
export interface GuestFeatures extends Features {
  readonly host?: "files" | "qemu" | "memory-guest";
  readonly memory?: Flag;
  readonly qemu?: Flag;
  readonly pauseCommand?: Flag;
  readonly resumeCommand?: Flag;
  readonly memoryGuest?: Flag;
  readonly shape?: Flag;
  readonly vcpus?: Flag;
  readonly runFor?: Flag;
}

export type GuestFeatureName = keyof GuestFeatures;

const FLAG_VALUES = ["given", "left out"] as const;

export const GUEST_FEATURES: Readonly<
  Record<Exclude<GuestFeatureName, keyof Features>, FeatureRow>
> = {
  host: {
    meaning:
      "whose guest it is: RAM in files, an unmodified QEMU's, or multifd's own, which `demo` moves",
    values: ["files", "qemu", "memory-guest"],
    call: "the host",
  },
  memory: { meaning: "files that hold the guest's RAM", values: FLAG_VALUES, call: null },
  qemu: { meaning: "the socket of QEMU's monitor", values: FLAG_VALUES, call: null },
  pauseCommand: {
    meaning: "a command that stops whoever writes the files",
    values: FLAG_VALUES,
    call: "FileGuestOptions.commands",
  },
  resumeCommand: {
    meaning: "a command that lets him go on after a failure",
    values: FLAG_VALUES,
    call: "FileGuestOptions.commands",
  },
  memoryGuest: { meaning: "whether it is multifd's own guest", values: FLAG_VALUES, call: null },
  shape: {
    meaning: "how large multifd's own guest is, and how it writes",
    values: FLAG_VALUES,
    call: "MemoryGuest.create",
  },
  vcpus: {
    meaning: "how many vCPUs multifd's own guest has",
    values: FLAG_VALUES,
    call: "MemoryGuestDestinationOptions.vcpuThreads",
  },
  runFor: {
    meaning: "how long multifd's own guest runs on before it is checked",
    values: FLAG_VALUES,
    call: null,
  },
};

/** What goes with everything: no rule asks about it. */
export const FREE_GUEST_FEATURES = {
  record: {
    meaning: "whether it is kept on disk who owns the guest",
    values: FLAG_VALUES,
    call: null,
  },
} as const satisfies Readonly<Record<string, FeatureRow>>;

/** Which flags of a guest go together. A row is the whole change. */
export const FLAG_RULES: readonly LegalityRule<GuestFeatureName>[] = [
  {
    id: "memory-is-for-files",
    kind: "requires",
    when: { feature: "memory", is: "given" },
    claim: { feature: "host", is: "files" },
    reason: "Another host knows itself where its RAM is.",
  },
  {
    id: "monitor-is-for-qemu",
    kind: "requires",
    when: { feature: "qemu", is: "given" },
    claim: { feature: "host", is: "qemu" },
    reason: "Nothing else has a monitor.",
  },
  {
    id: "own-guest-is-memory-guest",
    kind: "requires",
    when: { feature: "memoryGuest", is: "given" },
    claim: { feature: "host", is: "memory-guest" },
    reason: "It is one guest that moves.",
  },
  {
    id: "shape-is-for-own-guest",
    kind: "requires",
    when: { feature: "shape", is: "given" },
    claim: { feature: "host", is: "memory-guest" },
    reason: "Every other guest is there already, and as it is.",
  },
  {
    id: "shape-is-for-the-source",
    kind: "requires",
    when: { feature: "shape", is: "given" },
    claim: { feature: "side", is: "source" },
    reason: "The guest that arrives is as it was.",
  },
  {
    id: "vcpus-are-for-own-guest",
    kind: "requires",
    when: { feature: "vcpus", is: "given" },
    claim: { feature: "host", is: "memory-guest" },
    reason: "Every other guest has its own, which nobody starts here.",
  },
  {
    id: "run-for-is-for-own-guest",
    kind: "requires",
    when: { feature: "runFor", is: "given" },
    claim: { feature: "host", is: "memory-guest" },
    reason: "No other guest can be checked.",
  },
  {
    id: "run-for-is-for-the-destination",
    kind: "requires",
    when: { feature: "runFor", is: "given" },
    claim: { feature: "side", is: "destination" },
    reason: "The guest is checked where it has arrived.",
  },
  {
    id: "pause-command-is-for-files",
    kind: "requires",
    when: { feature: "pauseCommand", is: "given" },
    claim: { feature: "host", is: "files" },
    reason: "Other hosts stop their guests themselves.",
  },
  {
    id: "pause-command-needs-scan",
    kind: "requires",
    when: {
      all: [
        { feature: "host", is: "files" },
        { feature: "pauseCommand", is: "given" },
      ],
    },
    claim: { feature: "dirtyLog", is: "scan" },
    reason: "Without it nobody writes the files, and there is nobody to stop.",
  },
  {
    id: "pause-command-is-for-the-source",
    kind: "requires",
    when: { feature: "pauseCommand", is: "given" },
    claim: { feature: "side", is: "source" },
    reason: "At the destination nobody writes before the guest has arrived.",
  },
  {
    id: "pause-command-needs-resume-command",
    kind: "requires",
    when: { feature: "pauseCommand", is: "given" },
    claim: { feature: "resumeCommand", is: "given" },
    reason: "A failure undoes a pause.",
  },
  {
    id: "resume-command-needs-pause-command",
    kind: "requires",
    when: { feature: "resumeCommand", is: "given" },
    claim: { feature: "pauseCommand", is: "given" },
    reason: "It undoes nothing else.",
  },
];

/** A host at one end: the other end has nothing to do with what it can. */
function hostAt(
  host: "files" | "qemu",
  side: "source" | "destination",
): Condition<GuestFeatureName> {
  return {
    all: [
      { feature: "host", is: host },
      { feature: "side", is: side },
    ],
  };
}

/** What each host can do: who knows the host knows these features, too. */
export const HOST_RULES: readonly LegalityRule<GuestFeatureName>[] = [
  {
    id: "files-are-not-marked",
    kind: "excludes",
    when: hostAt("files", "source"),
    claim: { feature: "dirtyLog", is: "bitmap" },
    reason: "Nobody marks what is written to a file.",
  },
  {
    id: "files-are-not-throttled",
    kind: "requires",
    when: hostAt("files", "source"),
    claim: { feature: "throttle", is: false },
    reason: "Whoever writes the files is not known, and cannot be slowed down.",
  },
  {
    id: "files-have-no-faults",
    kind: "requires",
    when: hostAt("files", "destination"),
    claim: { feature: "faults", is: false },
    reason: "Nobody who reads a file waits for what it does not hold yet.",
  },
  {
    id: "qemu-is-scanned",
    kind: "requires",
    when: hostAt("qemu", "source"),
    claim: { feature: "dirtyLog", is: "scan" },
    reason: "Unmodified, it tells nobody what its guest writes.",
  },
  {
    id: "qemu-has-no-faults",
    kind: "requires",
    when: { feature: "host", is: "qemu" },
    claim: { feature: "faults", is: false },
    reason: "An unmodified QEMU waits for no page that somebody else brings.",
  },
  {
    id: "memory-guest-marks",
    kind: "requires",
    when: { feature: "host", is: "memory-guest" },
    claim: { feature: "dirtyLog", is: "bitmap" },
    reason: "Its vCPUs mark what they write.",
  },
  {
    id: "memory-guest-is-throttled",
    kind: "requires",
    when: { feature: "host", is: "memory-guest" },
    claim: { feature: "throttle", is: true },
    reason: "Its vCPUs run as much as they are told.",
  },
  {
    id: "memory-guest-has-faults",
    kind: "requires",
    when: { feature: "host", is: "memory-guest" },
    claim: { feature: "faults", is: true },
    reason: "Its vCPUs wait for pages that they touch.",
  },
];

import { FrameStream } from "../../channels/frame-stream.ts";
import { settle } from "../../cli/handover.ts";
import { migrateIn } from "../../engine/destination.ts";
import { Doorman } from "../../engine/doorman.ts";
import { SendChannel } from "../../engine/send-channel.ts";
import { Sender } from "../../engine/sender.ts";
import { migrateOut } from "../../engine/source.ts";
import { REAL_SURROUNDINGS } from "../../engine/surroundings.ts";
import { popcount } from "../../workers/dirty-words.ts";
import { discardPages } from "../../workers/fault-door.ts";
import type { ReceiveSetup } from "../../workers/protocol.ts";
import type { Engine } from "./simulation.ts";

/** Each is what of an engine has a flaw; the rest of it is as it is. */
type Flaw = Partial<Engine>;

/** Another method or getter in the place of a real one, which it is made of, until it is disposed. */
function replaced<C extends object>(
  prototype: C,
  name: keyof C,
  make: (real: PropertyDescriptor) => PropertyDescriptor,
): Disposable {
  const real = Object.getOwnPropertyDescriptor(prototype, name);
  if (real === undefined) throw new Error(`there is no "${String(name)}" to be replaced`);
  Object.defineProperty(prototype, name, { ...real, ...make(real) });
  return { [Symbol.dispose]: () => void Object.defineProperty(prototype, name, real) };
}

/** The destination forgets what it has when the link of a post-copy breaks. */
export const FORGETS_WHAT_CAME: Flaw = {
  migrateIn: (host, address, options, surroundings = REAL_SURROUNDINGS) => {
    let legs = 0;
    return migrateIn(host, address, options, {
      ...surroundings,
      startThreads: (terms) => {
        const { door } = terms.setup as ReceiveSetup;
        legs += 1;
        for (const [index, { pageCount }] of (legs > 1 ? (door?.blocks ?? []) : []).entries()) {
          if (door === undefined) break;
          for (let page = 0; page < pageCount; page += 1) {
            discardPages(door, index, page >>> 5, 1 << (page & 31));
          }
        }
        return surroundings.startThreads(terms);
      },
    });
  },
};

/** The source sends after a recovery what it had not sent before, whatever the destination misses. */
export const TRUSTS_ITS_BITMAP: Flaw = {
  spoil: () => {
    let last: Sender | null = null;
    const noting = replaced(Sender.prototype, "sendRound", ({ value: real }) => ({
      value(this: Sender) {
        last = this;
        return real.call(this);
      },
    }));
    const marking = replaced(Sender.prototype, "markDirty", ({ value: real }) => ({
      value(this: Sender, block: number, firstPage: number, bits: Int32Array) {
        const known = [...(last?.dirtyWords() ?? [])].find((each) => each.block === block)?.words;
        const own = bits.map((word, index) => word & (known?.[firstPage / 32 + index] ?? 0));
        real.call(this, block, firstPage, own);
        return bits.reduce((sum, word) => sum + popcount(word), 0);
      },
    }));
    return {
      [Symbol.dispose]: () => {
        for (const each of [marking, noting]) each[Symbol.dispose]();
      },
    };
  },
};

/** What a channel that is lost had sent since its last fence is held to have arrived. */
export const FORGETS_WHAT_IS_UNFENCED: Flaw = {
  spoil: () =>
    replaced(SendChannel.prototype, "lose", ({ value: real }) => ({
      value(this: SendChannel, ...terms: unknown[]) {
        real.apply(this, terms);
        this.unfenced.length = 0;
      },
    })),
};

/** Who says that it is the source is believed. */
export const ADMITS_ANY_TOKEN: Flaw = {
  spoil: () => replaced(Doorman.prototype, "isOfMigration", () => ({ value: () => true })),
};

/** An end that is joined again says that it has one frame more than it has. */
export const SKIPS_A_FRAME: Flaw = {
  spoil: () =>
    replaced(FrameStream.prototype, "lastingReceived", ({ get }) => ({
      get(this: FrameStream): number {
        return get?.call(this) + 1;
      },
    })),
};

/** Who gives a paused post-copy up at the source has the guest back there. */
export const RESUMES_WHEN_GIVEN_UP: Flaw = {
  migrateOut: (host, address, options = {}, surroundings = REAL_SURROUNDINGS) => {
    const { recovery } = options;
    const attach = recovery?.attach.bind(recovery);
    if (recovery !== undefined && attach !== undefined) {
      recovery.attach = (end) =>
        attach({
          ...end,
          giveUp: () => {
            end.giveUp();
            void host.resume();
          },
        });
    }
    return migrateOut(host, address, options, surroundings);
  },
};

/** The destination runs what COMMIT gives it, without asking whether it was taken back. */
export const ASKS_NO_RECORD: Flaw = { recordedDestination: (host) => host };

/** The operator believes that a source which does not know has the guest. */
export const ASKS_NO_DESTINATION: Flaw = {
  settle: ({ source }, _, resume) =>
    settle(source === undefined ? {} : { source }, "source", resume),
};

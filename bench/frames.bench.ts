import { closeSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert } from "../base/assert.ts";
import { MIB } from "../base/units.ts";
import { type Checksum, loadChecksum } from "../channels/checksum.ts";
import { decodeHeader, encodeHeader, HEADER_BYTES } from "../channels/frame.ts";
import {
  decodeAgreement,
  decodeRound,
  encodeAgreement,
  encodeRound,
  type RoundMessage,
} from "../channels/messages.ts";
import { geometryOf } from "../engine/block.ts";
import { DirtyBitmap } from "../engine/dirty-bitmap.ts";
import { agreedParameters, resolveParameters } from "../engine/parameters.ts";
import { createControl } from "../workers/control.ts";
import { createSentRecord, wordCountFor } from "../workers/dirty-words.ts";
import { PageReceiver } from "../workers/page-receiver.ts";
import { PageSender } from "../workers/page-sender.ts";
import type { ChannelPlace, SendBlock, SendSetup } from "../workers/protocol.ts";
import type { Benchmark } from "./measure.ts";
import { type Task, timeTasks } from "./tasks.ts";
import { PAGE_BYTES } from "./workloads.ts";

const SMOKE = { timeMs: 1, guestBytes: 2 * MIB };

/** So many in one timing: a clock costs as much as a header. */
const TIMES = 1000;
const CHUNK_BYTES = 2 * MIB;
const LIMIT_MS = 1000;

/** What a frame costs beside its bytes: headers, control messages, and tables of pages. */
export const frames: Benchmark<typeof SMOKE> = {
  name: "frames",
  about: "headers, control messages and tables of pages, without a link",
  smoke: SMOKE,
  real: { timeMs: 500, guestBytes: 64 * MIB },

  async run(report, { timeMs, guestBytes }) {
    await timeTasks([...headerTasks(), ...messageTasks()], timeMs, report);
    const folder = mkdtempSync(join(tmpdir(), "multifd-bench-"));
    try {
      const tables = pageTasks(join(folder, "frames"), guestBytes, await loadChecksum());
      await timeTasks(tables, timeMs, report);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};

function* headerTasks(): Generator<Task> {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  const header = { name: "pages", sequence: 7, length: 4096, hasChecksum: true } as const;
  yield {
    name: "header, encode",
    times: TIMES,
    work() {
      for (let i = 0; i < TIMES; i += 1) encodeHeader(view, 0, header);
    },
  };
  const wanted = { channel: 1, sequence: header.sequence };
  yield {
    name: "header, decode",
    times: TIMES,
    work() {
      let bytes = 0;
      for (let i = 0; i < TIMES; i += 1) bytes += decodeHeader(view, 0, wanted).length;
      assert(bytes === TIMES * header.length, "a header says what was written");
    },
  };
}

function* messageTasks(): Generator<Task> {
  const round: RoundMessage = {
    round: 1,
    dirtyPages: 2 ** 20,
    sentPages: 2 ** 20,
    sentBytes: 2 ** 32,
    elapsedMs: 1234.5,
  };
  yield {
    name: "round, encode and decode",
    times: TIMES,
    work() {
      let pages = 0;
      for (let i = 0; i < TIMES; i += 1) pages += decodeRound(encodeRound(round), 0).sentPages;
      assert(pages === TIMES * round.sentPages, "a message says what was written");
    },
  };
  const blocks = Array.from({ length: 8 }, (_, index) => ({
    name: `block-${index}`,
    sizeBytes: 64 * MIB,
    pageBytes: PAGE_BYTES,
  }));
  const parameters = agreedParameters(resolveParameters());
  const agreement = { fingerprint: 1n, channels: 4, parameters, blocks, description: "" };
  yield {
    name: "agreement on 8 blocks, encode and decode",
    work() {
      const arrived = decodeAgreement(encodeAgreement(agreement), 0);
      assert(arrived.blocks.length === blocks.length, "a message says what was written");
    },
  };
}

/** Real senders and receivers of pages whose channel is a file, and whose link costs nothing. */
function* pageTasks(path: string, guestBytes: number, checksum: Checksum): Generator<Task> {
  for (const [name, zeroEvery] of [
    ["raw", 0],
    ["zero", 1],
    ["every other page zero", 2],
  ] as const) {
    const { block, setup, dirty } = guestOf(guestBytes, zeroEvery);
    const chunks = Array.from({ length: guestBytes / CHUNK_BYTES }, (_, index) => index);
    for (const target of ["/dev/null", path]) {
      const fd = openSync(target, "w");
      const sender = new PageSender(setup, placeOf(fd), null);
      const send = (): void => {
        assert(sender.send(0, chunks, 1) === block.pageCount, "every page goes");
      };
      dirty.fill();
      if (target === path) {
        send();
        sender.end();
      } else {
        const fill = () => dirty.fill();
        yield { name: `pages, send, ${name}`, bytes: guestBytes, prepare: fill, work: send };
      }
      sender.close();
      closeSync(fd);
    }
    const received = new Int32Array(new SharedArrayBuffer(wordCountFor(block.pageCount) * 4));
    const generations = new Uint32Array(new SharedArrayBuffer(block.pageCount * 4));
    yield {
      name: `pages, receive, ${name}`,
      bytes: guestBytes,
      work() {
        const fd = openSync(path, "r");
        const blocks = [{ ...block, isPristine: false, received, generations }];
        const receiver = new PageReceiver({ ...setup, blocks }, placeOf(fd), checksum);
        receiver.receive();
        receiver.close();
        closeSync(fd);
      },
    };
  }
}

function guestOf(
  guestBytes: number,
  zeroEvery: number,
): { block: SendBlock; setup: SendSetup; dirty: DirtyBitmap } {
  const buffer = new SharedArrayBuffer(guestBytes);
  const bytes = new Uint8Array(buffer).fill(0xa5);
  for (let page = 0; zeroEvery > 0 && page * PAGE_BYTES < guestBytes; page += zeroEvery) {
    bytes.fill(0, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }
  const announced = { name: "ram", sizeBytes: guestBytes, pageBytes: PAGE_BYTES };
  const geometry = geometryOf(announced, CHUNK_BYTES);
  const dirty = new DirtyBitmap(geometry);
  const place = { kind: "shared", buffer } as const;
  const record = { dirty: dirty.words, ...createSentRecord(geometry) };
  const block: SendBlock = { ...announced, ...geometry, place, ...record, firstKey: 0 };
  const setup: SendSetup = {
    control: createControl(1),
    blocks: [block],
    hasChecksum: false,
    channelTimeoutMs: LIMIT_MS,
    fenceTimeoutMs: LIMIT_MS,
    cacheBytes: 0,
    xbzrle: false,
    channels: 1,
  };
  return { block, setup, dirty };
}

function placeOf(fd: number): ChannelPlace {
  return { channel: 1, readFd: fd, writeFd: fd, readSequence: 0, writeSequence: 0 };
}

import { Bench } from "tinybench";
import { assert } from "../base/assert.ts";
import { loadChecksum } from "../channels/checksum.ts";
import {
  decodeHeader,
  encodeHeader,
  HEADER_BYTES,
  PAGES_HEAD_BYTES,
  RUN_BYTES,
} from "../channels/frame.ts";
import { decodeAgreement, decodeRound, encodeAgreement, encodeRound } from "../channels/messages.ts";
import { agreedParameters, resolveParameters } from "../engine/parameters.ts";
import { CounterRow, createControl } from "../workers/control.ts";
import type { Benchmark } from "./measure.ts";
import { reportTasks } from "./tasks.ts";

const SMOKE = { timeMs: 1 };

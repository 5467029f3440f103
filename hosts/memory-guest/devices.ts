import { must } from "../../base/assert.ts";
import { reasonOf } from "../../base/errors.ts";
import { KIB } from "../../base/units.ts";
import type { DeviceSection } from "../../engine/host.ts";
import { checkShape, type GuestShape, isInteger, isRecord } from "./shape.ts";
import { type SweepState, sweepsOf, type VcpuState } from "./sweep.ts";

/** All of the guest that is not RAM. */
export interface GuestDevices {
  readonly shape: GuestShape;
  /** One for each vCPU of the shape. */
  readonly states: readonly VcpuState[];
}

/** By which both ends know that they mean the same kind of guest, before anything is touched. */
export const DESCRIPTION = "memory-guest";

const SHAPE_SECTION = "memory-guest/shape";
const ROUND_MAX = 2 ** 32 - 1;

/** The largest shape there can be (256 blocks and 64 vCPUs with long names) is half of this. */
const SHAPE_BYTES_MAX = 256 * KIB;

/** Two sweeps with numbers of any length are 150 bytes. */
const VCPU_BYTES_MAX = KIB;

function vcpuSection(index: number): string {
  return `memory-guest/vcpu-${index}`;
}

export function encodeDevices({ shape, states }: GuestDevices): readonly DeviceSection[] {
  return [
    { name: SHAPE_SECTION, bytes: toJson(shape) },
    ...states.map((state, index) => ({ name: vcpuSection(index), bytes: toJson(state) })),
  ];
}

/** The sections come from the other host: throws Error that names the first that is not right. */
export function decodeDevices(sections: readonly DeviceSection[]): GuestDevices {
  const byName = new Map(sections.map((section) => [section.name, section.bytes]));
  if (byName.size !== sections.length) throw cannotLoad("two sections have the same name");
  const take = (name: string, bytesMax: number): unknown => {
    const bytes = byName.get(name);
    if (bytes === undefined) throw cannotLoad(`section "${name}" is missing`);
    byName.delete(name);
    return fromJson(name, bytes, bytesMax);
  };
  const shape = shapeFrom(take(SHAPE_SECTION, SHAPE_BYTES_MAX));
  const states = shape.vcpus.map((_, index) => {
    const name = vcpuSection(index);
    return stateFrom(name, take(name, VCPU_BYTES_MAX), { shape, index });
  });
  const [extra] = byName.keys();
  if (extra !== undefined) throw cannotLoad(`section ${JSON.stringify(extra)} is unknown`);
  return { shape, states };
}

/** What a destination says of device state that it does not accept. */
export function cannotLoad(reason: string, cause?: unknown): Error {
  return new Error(`Cannot load the guest's devices: ${reason}`, { cause });
}

function toJson(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

function fromJson(name: string, bytes: Uint8Array, bytesMax: number): unknown {
  if (bytes.length > bytesMax) {
    throw cannotLoad(`section "${name}" has ${bytes.length} bytes, the limit is ${bytesMax}`);
  }
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw cannotLoad(`section "${name}" is not JSON`, error);
  }
}

function shapeFrom(value: unknown): GuestShape {
  try {
    return checkShape(value);
  } catch (error) {
    throw cannotLoad(`section "${SHAPE_SECTION}": ${reasonOf(error)}`, error);
  }
}

function stateFrom(
  name: string,
  value: unknown,
  { shape, index }: { shape: GuestShape; index: number },
): VcpuState {
  const sweeps = sweepsOf(must(shape.vcpus[index], "a state belongs to a vCPU"));
  const wrong = (what: string) => cannotLoad(`section "${name}" has ${what}`);
  if (!isRecord(value)) throw wrong("no state");
  const { turn, sweeps: found } = value;
  if (!isInteger(turn, 0, sweeps.length - 1)) throw wrong("a turn that does not exist");
  if (!Array.isArray(found) || found.length !== sweeps.length) {
    throw wrong(`not the ${sweeps.length} sweeps of its pattern`);
  }
  return {
    turn,
    sweeps: sweeps.map(({ pageCount }, number): SweepState => {
      const sweep: unknown = found[number];
      const { position, round } = isRecord(sweep) ? sweep : {};
      if (!isInteger(position, 0, pageCount - 1)) throw wrong(`no position in sweep ${number}`);
      if (!isInteger(round, 0, ROUND_MAX)) throw wrong(`no round in sweep ${number}`);
      return { position, round };
    }),
  };
}

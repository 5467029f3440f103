import { assert } from "../base/assert.ts";
import { corrupt } from "./frame.ts";

/** Builds a frame body field by field, little-endian. */
export class WireWriter {
  #bytes = new Uint8Array(64);
  #length = 0;

  u8(value: number): this {
    return this.#put(1, (view, at) => view.setUint8(at, value));
  }
  u16(value: number): this {
    assert(value >= 0 && value <= 0xffff, "a u16 fits");
    return this.#put(2, (view, at) => view.setUint16(at, value, true));
  }
  u32(value: number): this {
    assert(value >= 0 && value <= 0xffff_ffff, "a u32 fits");
    return this.#put(4, (view, at) => view.setUint32(at, value, true));
  }
  u64(value: number): this {
    assert(Number.isSafeInteger(value) && value >= 0, "a u64 of ours is a safe integer");
    return this.bigU64(BigInt(value));
  }
  bigU64(value: bigint): this {
    return this.#put(8, (view, at) => view.setBigUint64(at, value, true));
  }
  f64(value: number): this {
    return this.#put(8, (view, at) => view.setFloat64(at, value, true));
  }
  bytes(source: Uint8Array): this {
    return this.#put(source.length, (_, at) => this.#bytes.set(source, at));
  }
  str(text: string): this {
    const encoded = new TextEncoder().encode(text);
    return this.u16(encoded.length).bytes(encoded);
  }

  finish(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  #put(size: number, write: (view: DataView, at: number) => void): this {
    if (this.#length + size > this.#bytes.length) {
      const larger = new Uint8Array(2 * (this.#length + size));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    write(new DataView(this.#bytes.buffer), this.#length);
    this.#length += size;
    return this;
  }
}

/** Takes a frame body apart; whatever does not fit is FRAME_CORRUPT, never anything else. */
export class WireReader {
  readonly #view: DataView;
  readonly #source: Uint8Array;
  readonly #channel: number;
  #at = 0;

  constructor(source: Uint8Array, channel: number) {
    this.#source = source;
    this.#view = new DataView(source.buffer, source.byteOffset, source.byteLength);
    this.#channel = channel;
  }

  u8(field: string): number {
    return this.#view.getUint8(this.#advance(1, field));
  }
  u16(field: string): number {
    return this.#view.getUint16(this.#advance(2, field), true);
  }
  u32(field: string): number {
    return this.#view.getUint32(this.#advance(4, field), true);
  }
  /** A count or size: beyond 2^53 is corrupt. */
  u64(field: string): number {
    const value = this.bigU64(field);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw this.corrupt(field, String(value));
    return Number(value);
  }
  bigU64(field: string): bigint {
    return this.#view.getBigUint64(this.#advance(8, field), true);
  }
  /** A measured figure: finite and not negative. */
  f64(field: string): number {
    const value = this.#view.getFloat64(this.#advance(8, field), true);
    if (!Number.isFinite(value) || value < 0) throw this.corrupt(field, String(value));
    return value;
  }
  bytes(size: number, field: string): Uint8Array {
    const at = this.#advance(size, field);
    return this.#source.subarray(at, at + size);
  }
  str(bytesMax: number, field: string): string {
    const size = this.u16(field);
    if (size > bytesMax) throw this.corrupt(`length of ${field}`, size);
    const source = this.bytes(size, field).slice();
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(source);
    } catch {
      throw this.corrupt(field, "not UTF-8");
    }
  }
  zero(size: number): void {
    for (const byte of this.bytes(size, "reserved")) {
      if (byte !== 0) throw this.corrupt("reserved", byte);
    }
  }
  /** Nothing may be left over. */
  end(): void {
    if (this.#at !== this.#source.length) throw this.corrupt("body length", this.#source.length);
  }

  corrupt(field: string, found: number | string): Error {
    return corrupt(this.#channel, field, found);
  }

  #advance(size: number, field: string): number {
    const at = this.#at;
    if (at + size > this.#source.length) throw this.corrupt(`body too short for ${field}`, size);
    this.#at = at + size;
    return at;
  }
}

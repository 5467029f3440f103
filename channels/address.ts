/** Where a peer is, as QEMU writes it. */
export type Address =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string }
  /** Inherited descriptors: the first is the main channel, one more for each other channel. */
  | { readonly kind: "fd"; readonly descriptors: readonly number[] }
  /** A shell command, started once for each channel; its pipes are the channel. */
  | { readonly kind: "exec"; readonly command: string };

export type AddressKind = Address["kind"];

const FORMS = "tcp:HOST:PORT, unix:PATH, fd:N[,N…] or exec:COMMAND";

/** Throws RangeError with what would be right. */
export function parseAddress(text: string): Address {
  const colon = text.indexOf(":");
  const rest = text.slice(colon + 1);
  switch (colon < 0 ? "" : text.slice(0, colon)) {
    case "tcp":
      return parseTcp(text, rest);
    case "unix":
      return { kind: "unix", path: nonEmpty(text, rest, "a path") };
    case "fd":
      return { kind: "fd", descriptors: parseDescriptors(text, rest) };
    case "exec":
      return { kind: "exec", command: nonEmpty(text, rest, "a command") };
    case "file":
      throw new RangeError(
        `address "${text}" is for snapshots, which this version does not have; use ${FORMS}`,
      );
    default:
      throw new RangeError(`address "${text}" must be ${FORMS}`);
  }
}

export function formatAddress(address: Address): string {
  switch (address.kind) {
    case "tcp":
      return `tcp:${address.host.includes(":") ? `[${address.host}]` : address.host}:${address.port}`;
    case "unix":
      return `unix:${address.path}`;
    case "fd":
      return `fd:${address.descriptors.join(",")}`;
    case "exec":
      return `exec:${address.command}`;
  }
}

function parseTcp(text: string, rest: string): Address {
  const match = /^(\[[0-9A-Fa-f:.]+\]|[^:[\]]+):(\d{1,5})$/.exec(rest);
  const port = Number(match?.[2]);
  if (match === null || port > 65_535) {
    throw new RangeError(`address "${text}" must be tcp:HOST:PORT with a port in 0..65535`);
  }
  return { kind: "tcp", host: (match[1] ?? "").replace(/^\[|\]$/g, ""), port };
}

function parseDescriptors(text: string, rest: string): number[] {
  if (!/^\d+(,\d+)*$/.test(rest)) {
    throw new RangeError(`address "${text}" must be fd:N or fd:N,N… with inherited descriptors`);
  }
  const descriptors = rest.split(",").map(Number);
  if (new Set(descriptors).size !== descriptors.length) {
    throw new RangeError(`address "${text}" must name each descriptor once`);
  }
  return descriptors;
}

function nonEmpty(text: string, rest: string, what: string): string {
  if (rest === "") throw new RangeError(`address "${text}" lacks ${what}`);
  return rest;
}

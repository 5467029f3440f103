import { once } from "node:events";
import type { Socket } from "node:net";
import { within } from "../base/clock.ts";
import { parseAddress } from "./address.ts";
import { type Connection, connector, descriptorOf, listen, stopReading } from "./connection.ts";

/** Both ends of a connection, for one thread that plays both. */
export interface OwnPair {
  readonly nearFd: number;
  readonly farFd: number;
  /** Returns when the descriptors are closed. */
  close(): Promise<void>;
}

/** Connects the calling thread with itself. Throws where nobody may listen, or somebody else came first. */
export async function openOwnPair(limitMs: number): Promise<OwnPair> {
  const listener = await listen(parseAddress("tcp:127.0.0.1:0"));
  const ends: Connection[] = [];
  const close = async (): Promise<void> => {
    const closed = ends.map(({ reader }) => once(reader, "close"));
    for (const end of ends) end.close();
    await within(limitMs, Promise.all(closed), () => new Error("a connection does not close"));
  };
  try {
    const arriving = listener.next(limitMs);
    arriving.catch(() => {}); // It may be too late before anybody waits for it.
    const near = await connector(parseAddress(listener.address)).connect(0, limitMs);
    ends.push(near);
    const far = await arriving;
    ends.push(far);
    if (near.reader.localPort !== far.reader.remotePort)
      throw new Error("somebody else came first");
    const [nearFd, farFd] = [near, far].map(({ reader }) => threadDescriptor(reader));
    return { nearFd: nearFd as number, farFd: farFd as number, close };
  } catch (error) {
    await close();
    throw error;
  } finally {
    listener.close();
  }
}

function threadDescriptor(socket: Socket): number {
  stopReading(socket);
  return descriptorOf(socket);
}

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** Frees at once what nobody can reach; buffers may take a turn of the event loop and another call. */
export function collectGarbage(): void {
  collect();
}

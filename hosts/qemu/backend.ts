import { isObject } from "../../base/object.ts";
import { askList, property } from "./answer.ts";
import type { Qmp } from "./qmp.ts";

/** A memory backend of QEMU that is part of the guest's RAM, as QMP tells of it. */
export interface Backend {
  readonly id: string;
  readonly sizeBytes: number;
  readonly isShared: boolean;
  /** What it is made of: `memory-backend-file`, say. */
  readonly kind: string;
  /** As it was given to QEMU; undefined for memory without a file. */
  readonly path: string | undefined;
  /** Where in the file it begins; newer QEMUs can tell. */
  readonly offset: number;
  /** Where it lies in the memory that it is part of: both ends must have it alike. */
  readonly address: number;
}

/**
 * All backends that the guest uses, be it as its whole RAM (`-machine memory-backend=`), as a part
 * (`-numa node,memdev=`) or as a plugged module. One that was made and never used is left out.
 */
export async function findBackends(qmp: Qmp): Promise<Backend[]> {
  const whole = await property(qmp, "/machine", "memory-backend");
  const found: Backend[] = [];
  for (const memdev of await askList(qmp, "query-memdev")) {
    const id = memdev.optionalText("id");
    if (id === undefined) continue; // Not made by the user: no part of the RAM.
    const path = `/objects/${id}`;
    const { container, address } = await placeOf(qmp, path);
    if (container === "" && whole !== path && whole !== id) continue;
    const [kind, file, offset] = [
      await property(qmp, path, "type"),
      await property(qmp, path, "mem-path"),
      await property(qmp, path, "offset"),
    ];
    found.push({
      id,
      sizeBytes: memdev.number("size"),
      isShared: memdev.flag("share"),
      kind: typeof kind === "string" ? kind : "unknown",
      path: typeof file === "string" && file !== "" ? file : undefined,
      offset: typeof offset === "number" ? offset : 0,
      address,
    });
  }
  return found.sort((a, b) => a.id.localeCompare(b.id, "en"));
}

/** Of its memory region: QEMU names a container for what is plugged in somewhere. */
async function placeOf(qmp: Qmp, path: string): Promise<{ container: string; address: number }> {
  const children = await qmp.execute("qom-list", { path });
  const region = (Array.isArray(children) ? children : []).find(isRegion);
  if (region === undefined) return { container: "", address: 0 };
  const container = await property(qmp, `${path}/${region.name}`, "container");
  const address = await property(qmp, `${path}/${region.name}`, "addr");
  return {
    container: typeof container === "string" ? container : "",
    address: typeof address === "number" ? address : 0,
  };
}

function isRegion(child: unknown): child is { readonly name: string } {
  if (!isObject(child)) return false;
  const { name, type } = child;
  return (
    typeof name === "string" && typeof type === "string" && /^child<.*memory-region>$/.test(type)
  );
}

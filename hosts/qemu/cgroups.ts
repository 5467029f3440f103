/** Where a hierarchy of cgroups can be seen. */
export interface CgroupMount {
  readonly version: 1 | 2;
  readonly mountPoint: string;
  /** The cgroup that is seen there: not the topmost one in many containers. */
  readonly root: string;
  /** What version 1 names when it is mounted; version 2 says it elsewhere. */
  readonly controllers: readonly string[];
}

/** The cgroup that a thread is in, in one of the hierarchies. */
export interface Membership {
  readonly version: 1 | 2;
  readonly controllers: readonly string[];
  readonly path: string;
}

/** The folder whose cgroup decides how much processor time a thread gets. */
export interface CpuCgroup {
  readonly version: 1 | 2;
  readonly folder: string;
  /** Nothing above it is ours to look at. */
  readonly mountPoint: string;
}

export type CpuCgroupSearch =
  | ({ readonly kind: "found" } & CpuCgroup)
  | { readonly kind: "missing"; readonly reason: string };

/** Reads the text of a `mountinfo`, as proc(5) describes it, and keeps what is about cgroups. */
export function parseMounts(mountinfo: string): CgroupMount[] {
  return mountinfo.split("\n").flatMap((line): CgroupMount[] => {
    // A varying number of optional fields ends with the dash.
    const [before = "", after = ""] = line.split(" - ");
    const [, , , root = "", mountPoint = ""] = before.split(" ");
    const [type, , options = ""] = after.split(" ");
    if (type !== "cgroup" && type !== "cgroup2") return [];
    const paths = { mountPoint: unescaped(mountPoint), root: unescaped(root) };
    return type === "cgroup"
      ? [{ version: 1, ...paths, controllers: options.split(",") }]
      : [{ version: 2, ...paths, controllers: [] }];
  });
}

/** Reads the text of `/proc/PID/task/TID/cgroup`, as cgroups(7) describes it. */
export function parseMemberships(text: string): Membership[] {
  return text.split("\n").flatMap((line) => {
    const fields = /^(\d+):([^:]*):(.*)$/.exec(line);
    if (fields === null) return [];
    const [, hierarchy, controllers = "", path = ""] = fields;
    const version = hierarchy === "0" ? 2 : 1;
    return [{ version, controllers: controllers.split(",").filter((name) => name !== ""), path }];
  });
}

/**
 * Finds the cgroup that a processor quota must be put under. A controller belongs to one hierarchy
 * at a time: where version 1 has `cpu`, version 2 is there for something else.
 */
export function findCpuCgroup(
  memberships: readonly Membership[],
  mounts: readonly CgroupMount[],
): CpuCgroupSearch {
  const hasCpu = ({ controllers }: { controllers: readonly string[] }) =>
    controllers.includes("cpu");
  const membership = memberships.find(hasCpu) ?? memberships.find(({ version }) => version === 2);
  if (membership === undefined) return missing("this system has no cgroups for processor time");
  const { version, path } = membership;
  const candidates = mounts.filter((mount) =>
    version === 1 ? mount.version === 1 && hasCpu(mount) : mount.version === 2,
  );
  if (candidates.length === 0) {
    return missing(`the cgroups for processor time (version ${version}) are not mounted here`);
  }
  for (const { mountPoint, root } of candidates) {
    const below = pathBelow(root, path);
    if (below !== null) return { kind: "found", version, folder: mountPoint + below, mountPoint };
  }
  return missing(`the guest's cgroup "${path}" cannot be seen from here`);
}

function missing(reason: string): CpuCgroupSearch {
  return { kind: "missing", reason };
}

/** The rest of a path under a root: empty, or a slash and more. Null: it is not under it. */
function pathBelow(root: string, path: string): string | null {
  // A cgroup outside of our namespace is named by its way up from what we take for the root.
  if (path.split("/").includes("..")) return null;
  const top = root === "/" ? "" : root;
  if (path === "/") return top === "" ? "" : null;
  if (path !== top && !path.startsWith(`${top}/`)) return null;
  return path.slice(top.length);
}

/** Spaces and the like are written as three octal digits. */
function unescaped(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

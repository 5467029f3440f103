/**
 * The URL of a sibling module that a thread is started from. Sources run as `.ts` (Node strips the
 * types); inside `node_modules` Node does not, so the published package holds `.js` beside it.
 */
export function siblingModule(name: string, from: string): URL {
  return new URL(from.endsWith(".ts") ? `${name}.ts` : `${name}.js`, from);
}

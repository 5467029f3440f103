#!/usr/bin/env node
// The command as npm installs it. In a checkout Node runs the sources as they are; in the package,
// where Node does not strip types, the built modules stand in ../dist.
import { existsSync } from "node:fs";
// As a whole: an older Node lacks some of it, and shall get as far as being told so.
import module from "node:module";

const [major = 0] = process.versions.node.split(".").map(Number);
if (major < 24) {
  process.stderr.write(`multifd needs Node 24 or newer: this is ${process.version}\n`);
  process.exit(2);
}
// Without the cache a start takes a quarter of a second, most of it to strip and compile.
module.enableCompileCache();
// Threads keep and use one only where the environment says so. Without it each of them strips and
// compiles anew: two take 0.7 s of processor time to start instead of 0.4.
const cache = module.getCompileCacheDir();
if (cache !== undefined) process.env["NODE_COMPILE_CACHE"] ??= cache;
const source = new URL("./main.ts", import.meta.url);
const built = new URL("../dist/cli/main.js", import.meta.url);
const { main } = await import((existsSync(source) ? source : built).href);
await main(process.argv.slice(2));

import { must } from "../base/assert.ts";
import { codecNamed } from "../workers/codecs/list.ts";
import { type Control, setBandwidthLimit, setCodecSettings } from "../workers/control.ts";
import { CACHE_BYTES_MAX } from "../workers/workbench.ts";
import type { Parameters } from "./parameters.ts";

/** The codec that `auto` uses: the only one that is fast enough to pay on a fast link. */
const AUTO_CODEC = "zstd";

/** Puts the parameters that workers look at frame by frame where they look. */
export function applySettings(control: Control, parameters: Parameters): void {
  const { compression, channels, zstdLevel, deflateLevel, cpuLimitCores, autoExtraTimePercent } =
    parameters;
  setBandwidthLimit(control, parameters.maxBandwidthBytesPerSecond);
  const isAuto = compression === "auto";
  const name = isAuto ? AUTO_CODEC : compression;
  const codec = name === "none" ? 0 : must(codecNamed(name), "every choice is a codec").number;
  setCodecSettings(control, {
    codec,
    level: name === "deflate" ? deflateLevel : zstdLevel,
    isAuto,
    cpuShare: cpuLimitCores / channels,
    extraTime: autoExtraTimePercent / 100,
  });
}

/** What each channel's cache takes: its part of the total, but no more than it has to remember. */
export function cacheBytesOf(parameters: Parameters, shardBytes: number): number {
  const { xbzrle, compression, xbzrleCacheBytes, channels } = parameters;
  if (!xbzrle && compression !== "auto") return 0;
  return Math.min(Math.floor(xbzrleCacheBytes / channels), shardBytes, CACHE_BYTES_MAX);
}

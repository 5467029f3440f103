import { PostcopySwitch } from "../engine/postcopy-switch.ts";

/** SIGUSR1 begins post-copy, where the parameter allows it. */
export function switchOnSignal(): Disposable & { readonly postcopySwitch: PostcopySwitch } {
  const postcopySwitch = new PostcopySwitch();
  const start = (): void => postcopySwitch.start();
  process.on("SIGUSR1", start);
  return { postcopySwitch, [Symbol.dispose]: () => void process.off("SIGUSR1", start) };
}

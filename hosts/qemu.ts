/** What a program imports from "multifd/qemu-host". */
export { QemuDestination } from "./qemu/destination.ts";
export { QemuSource } from "./qemu/source.ts";

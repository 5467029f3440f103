/**
 * Holds Node's parser of types for as long as a test process lives.
 *
 * Node strips types with a WebAssembly module of its own. Where only worker threads load it, as in
 * a process of Vitest, which transforms the tests itself, V8 frees its machine code whenever the
 * last of them ends, and Node 24.21 then dies now and then in `Runtime_TierUpWasmToJSWrapper`: of
 * SIGSEGV, or of `Check failed: jit_page.has_value()` (https://github.com/nodejs/node/issues/64500
 * collects the like). Used once in the main thread, the code is never freed. The published package
 * holds no types, and its own kernels call nothing outside, so that they have no such wrapper.
 */
import { stripTypeScriptTypes } from "node:module";

stripTypeScriptTypes("");

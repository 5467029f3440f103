import { MigrationError } from "../base/errors.ts";
import { isObject } from "../base/object.ts";
import type { Features } from "./features.ts";
import { changeParameters, type ParameterOptions, type Parameters } from "./parameters.ts";

/**
 * Lets an embedder change parameters while a migration runs: give it to `migrateOut` as `live`.
 * Throws CONFIGURATION_INVALID, and changes nothing, for parameters that are not live.
 */
export class LiveParameters {
  #current: Parameters | null = null;
  #features: Features = {};
  #onChange: (parameters: Parameters) => void = () => {};

  /** Takes effect at once, or with the next round where it is asked once a round. */
  change(patch: ParameterOptions): void {
    if (this.#current === null) throw new RangeError("Cannot change parameters: no migration runs");
    if (!isObject(patch)) {
      const problems = [`a change must be an object: it is ${patch}`];
      throw new MigrationError("CONFIGURATION_INVALID", { problems });
    }
    this.#current = changeParameters(this.#current, patch, this.#features);
    this.#onChange(this.#current);
  }

  /** For the engine: the migration that it belongs to has begun. */
  attach(
    { parameters, features }: { parameters: Parameters; features: Features },
    onChange: (parameters: Parameters) => void,
  ): void {
    this.#current = parameters;
    this.#features = features;
    this.#onChange = onChange;
  }

  /** For the engine: the migration is over. */
  detach(): void {
    this.#current = null;
    this.#onChange = () => {};
  }
}

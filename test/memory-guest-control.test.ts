import { expect, test } from "vitest";
import {
  createControl,
  packOrders,
  readState,
  unpackOrders,
  writeState,
} from "../hosts/memory-guest/control.ts";

test("orders survive their word unchanged", () => {
  for (const run of [true, false]) {
    for (const track of [true, false]) {
      for (const throttlePercent of [0, 1, 50, 99]) {
        for (const sequence of [1, 2, 2 ** 22 - 1, 2 ** 22, 2 ** 40 + 5]) {
          const orders = { run, track, throttlePercent };
          expect(unpackOrders(packOrders(orders, sequence))).toEqual(orders);
        }
      }
    }
  }
});

test("equal orders that follow each other are different words", () => {
  const orders = { run: true, track: false, throttlePercent: 99 };
  for (const sequence of [1, 2 ** 22 - 1, 2 ** 22]) {
    expect(packOrders(orders, sequence)).not.toBe(packOrders(orders, sequence + 1));
  }
});

test("a word that nobody wrote orders to stand still", () => {
  expect(unpackOrders(0)).toEqual({ run: false, track: false, throttlePercent: 0 });
});

test("a state survives the control words unchanged", () => {
  const control = createControl();
  const one = { turn: 0, sweeps: [{ position: 2 ** 26 - 1, round: 2 ** 32 - 1 }] };
  const two = {
    turn: 1,
    sweeps: [
      { position: 1, round: 2 },
      { position: 3, round: 4 },
    ],
  };
  writeState(control, one);
  expect(readState(control, 1)).toEqual(one);
  writeState(control, two);
  expect(readState(control, 2)).toEqual(two);
  expect(control.written[0]).toBe(0);
});

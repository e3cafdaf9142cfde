"""Checkers of lesson 02, low-rank updates."""

from typing import Any

import numpy as np

from ..evidence.gradcheck import central_differences
from ..lora import lora_forward
from . import ask, checker, expect, same


@checker
def lora_gradients(answer: Any) -> None:
    """A function (dy, x, A, B, scale) -> (dA, dB)."""
    rng = np.random.default_rng(0)
    shapes = {"x": (5, 4), "W0": (3, 4), "A": (2, 4), "B": (3, 2)}
    a = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    dy = rng.normal(size=(5, 3))
    dA, dB = ask(answer, dy, a["x"], a["A"], a["B"], 0.7)
    moved = {"A": a["A"], "B": a["B"]}

    def y(A, B):
        return lora_forward(a["x"], a["W0"], A, B, 0.7)[0]

    right = central_differences(y, moved, dy)
    expect(np.shape(dA) == (2, 4), f"dA has shape {np.shape(dA)}, A has (2, 4)")
    expect(np.shape(dB) == (3, 2), f"dB has shape {np.shape(dB)}, B has (3, 2)")
    for name, got in (("dA", dA), ("dB", dB)):
        for factor, why in ((0.7, "the scale is missing"), (5, "dy already holds any averaging")):
            forgotten = np.allclose(np.multiply(got, factor), right[name])
            expect(not forgotten, f"{name} is off by a factor: {why}")
        same(got, right[name], f"{name} differs from its finite difference", 1e-6)


@checker
def right_angle_growth(answer: Any) -> None:
    """A function (m, dD) -> how much longer w gets by an update at a right angle to it."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=6)
    d = rng.normal(size=6)
    d -= w * (d @ w) / (w @ w)
    m, longer = np.linalg.norm(w), np.linalg.norm(w + d)
    got = ask(answer, m, 1 - w @ (w + d) / (m * longer))
    expect(not np.isclose(got, longer), "that is the new length; the growth is what it gained")
    expect(not np.isclose(got, np.linalg.norm(d)), "that is the length of the update itself")
    same(got, longer - m, "a right triangle: w is the leg next to the angle, w + d the hypotenuse")


@checker
def largest_rank(answer: Any) -> None:
    """The largest rank at which LoRA on a (128, 64) matrix trains fewer numbers than the matrix."""
    expect(answer != 64, "at rank 64 A and B together hold more numbers than the matrix")
    expect(answer == (128 * 64 - 1) // (128 + 64), "count A and B: r * (128 + 64) < 128 * 64")

"""Checkers of lesson 02, low-rank updates."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._boundary import Array
from ..decomposition import norms
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
def turn_only(answer: Any) -> None:
    """A function (w, across, dD) -> the update that turns w towards across and keeps its length."""
    rng = np.random.default_rng(1)
    w, across = rng.normal(size=6), 3 * rng.normal(size=6)
    across -= w * (across @ w) / (w @ w)
    update = ask(answer, w, across, 0.3)
    expect(np.shape(update) == (6,), f"the update has shape {np.shape(update)}, w has (6,)")
    m, turned = np.linalg.norm(w), w + update
    lengths = np.linalg.norm(turned)
    expect(not np.isclose(np.linalg.norm(update), m), "that is the new vector; give the update")
    right_angle = np.isclose(update @ w, 0)
    expect(not right_angle, "an update at a right angle makes w longer; a part along w is missing")
    expect(np.isclose(lengths, m), f"w + update is {lengths / m:.3g} times as long as w")
    turn = 1 - turned @ w / (m * lengths)
    expect(np.isclose(turn, 0.3), f"w turned by {turn:.3g}, not by dD = 0.3")
    unit = across / np.linalg.norm(across)
    expect(turned @ unit > 0, "it turns away from `across`")
    same(turned, 0.7 * w + m * np.sqrt(1 - 0.7**2) * unit, "it leaves the plane of w and across")


@checker
def largest_rank(answer: Any) -> None:
    """The largest rank at which LoRA on a (128, 64) matrix trains fewer numbers than the matrix."""
    expect(answer != 64, "at rank 64 A and B together hold more numbers than the matrix")
    expect(answer == (128 * 64 - 1) // (128 + 64), "count A and B: r * (128 + 64) < 128 * 64")


def with_decay(W0: Array, without_lora: Array, without_full: Array) -> Callable[[Any], Any]:
    """A checker of (W of LoRA, W of full fine-tuning, whose rows grew), trained with decay."""

    @checker
    def check(answer: Any) -> None:
        W_lora, W_full, grew = ask(lambda: tuple(answer))
        for name, W, without in (("LoRA", W_lora, without_lora), ("full", W_full, without_full)):
            expect(np.shape(W) == W0.shape, f"{name}: expected W, of shape {W0.shape}")
            rank = np.linalg.matrix_rank(W - W0, tol=1e-8)
            expect((rank <= 4) == (name == "LoRA"), f"{name}: its update has rank {rank}")
            expect(not np.allclose(W, without), f"{name}: that is the W trained without decay")
        expect(not isinstance(grew, str), "give a tuple of names; with one it needs a comma")
        before = norms(W0, "per_output").mean()
        growth = {
            name: norms(W, "per_output").mean() - before
            for name, W in (("LoRA", W_lora), ("full", W_full))
        }
        said = " and ".join(f"{name} by {value:+.2f}" for name, value in growth.items())
        right = {name for name, value in growth.items() if value > 0}
        expect(set(grew) == right, f"your rows changed their length on average: {said}")

    return check

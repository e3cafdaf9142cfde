"""Checkers of lesson 04, gradients."""

from typing import Any

import numpy as np

from ..dora import dora_backward, dora_forward
from . import ask, checker, expect, same


def _layer() -> tuple:
    rng = np.random.default_rng(0)
    W0, A, B, x = (rng.normal(size=shape) for shape in ((4, 6), (2, 6), (4, 2), (5, 6)))
    return x, W0, A, B, rng.normal(size=6), 0.7


@checker
def dm_and_dB(answer: Any) -> None:
    """A function (G, V, A, m, scale) -> (dm, dB), per input."""
    x, W0, A, B, m, scale = _layer()
    _, cache = dora_forward(x, W0, A, B, m, scale, norm_axis="per_input")
    dy = np.random.default_rng(1).normal(size=(5, 4))
    right, detached = (
        dora_backward(dy, cache, norm_grad=norm_grad) for norm_grad in ("exact", "detached")
    )
    result = ask(answer, dy.T @ x, W0 + scale * B @ A, A, m, scale)
    expect(isinstance(result, tuple) and len(result) == 2, "return two arrays, dm and dB")
    dm, dB = result
    expect(np.shape(dm) != (4,), "dm has one entry for each row; per input m belongs to columns")
    expect(np.shape(dm) != (1, 6), "dm has shape (1, 6); it should be like m, (6,)")
    same(dm, right.dm, "dm is not the part of G along the unit columns of V")
    expect(not np.allclose(np.multiply(dB, scale), right.dB), "the scale is missing in dB")
    closed = np.allclose(dB, detached.dB)
    expect(not closed, "dB is Eq. 11's: the road through the norm is missing")
    same(dB, right.dB, "dB is not scale * dV @ A.T with the dV of Eq. 6, column by column")


@checker
def wrong_terms(answer: Any) -> None:
    """The wrong terms of the three broken backward passes."""
    answer = ask(lambda: tuple(answer))
    names = ("scale in dA", "projection in dV", "1 / c in dm", "m / c in dV", "W in dx")
    right = ("projection in dV", "1 / c in dm", "W in dx")
    expect(len(answer) == 3, "give three names")
    expect(all(name in names for name in answer), f"choose among {names}")
    off = [f"broken_{i + 1}" for i in range(3) if answer[i] != right[i]]
    expect(not off, f"{', '.join(off)}: compare its gradients one by one with the right ones")


def _errors_in_float32(h: np.ndarray) -> np.ndarray:
    """The relative error of a central difference in float32 at each step h, over 20 directions."""
    x, W0, A, B, m, scale = _layer()
    rng = np.random.default_rng(2)
    dy, directions = rng.normal(size=(5, 4)), rng.normal(size=(20, 4, 2))

    def loss(B: np.ndarray) -> float:
        x32, W0_32, A32, B32, m32 = (a.astype(np.float32) for a in (x, W0, A, B, m))
        y, _ = dora_forward(x32, W0_32, A32, B32, m32, scale, norm_axis="per_input")
        return float((dy * y).sum())

    dB = dora_backward(dy, dora_forward(x, W0, A, B, m, scale, norm_axis="per_input")[1]).dB
    right = (dB * directions).sum((1, 2))
    found = [[(loss(B + s * D) - loss(B - s * D)) / (2 * s) for D in directions] for s in h]
    return np.abs(np.subtract(found, right)).max(1) / np.abs(right).max()


@checker
def float32_step(answer: Any) -> None:
    """The best step of a central difference in float32, and the error there."""
    best, error = (float(number) for number in ask(lambda: tuple(answer)))
    h = 10.0 ** -np.arange(0.5, 8, 0.5)
    errors = _errors_in_float32(h)
    ours, least = h[errors.argmin()], errors.min()
    expect(error > least / 100, "so small an error needs float64: is every array float32?")
    expect(best > ours / 30, "so small a step is float64's: in float32 rounding drowns it")
    expect(best < ours * 30, "at so large a step the curve bends; try smaller ones")
    expect(error < 1e-4, "the error can be smaller: one-sided? and is `slope` the right one?")

"""Checkers of lesson 03, the DoRA layer."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._boundary import Array
from ..decomposition import norms
from ..dora import dora_forward, dora_weight, recover_magnitude
from . import ask, checker, expect, same, steps


def layer(
    x: Array, W0: Array, A: Array, B: Array, m: Array, scale: float, bias: Array
) -> Callable[..., Any]:
    """The check for the steps of the layer: V, c, W, y, and what merging adds to W0."""
    V = W0 + scale * B @ A
    W = dora_weight(W0, A, B, m, scale)
    y, _ = dora_forward(x, W0, A, B, m, scale, bias=bias)
    return steps({"V": V, "c": norms(V, "per_output"), "W": W, "y": y, "added": W - W0})


@checker
def block_weight(answer: Any) -> None:
    """A function (W0, A, B, m, scale, k) -> W of Eq. 5, one magnitude for each block of k rows."""
    rng, scale, k = np.random.default_rng(0), 0.7, 2
    W0, A, B, m = (rng.normal(size=shape) for shape in ((6, 7), (2, 7), (6, 2), 3))
    W = ask(answer, W0, A, B, m, scale, k)
    expect(np.shape(W) == W0.shape, f"W has shape {np.shape(W)}, W0 has {W0.shape}")

    def by_block(V: Array, divided: Array) -> Array:
        c = norms(divided.reshape(3, -1), "per_output")
        return np.repeat(m / c, k)[:, None] * V

    V, rows = W0 + scale * B @ A, np.repeat(m, k)[:, None]
    for other, why in (
        (by_block(V, W0), "you divide by the norms of W0; Eq. 5 divides by V's own"),
        (by_block(V, W0 + B @ A), "the scale is missing in the norm"),
        (by_block(W0 + B @ A, W0 + B @ A), "the scale is missing in V"),
        (rows * V / norms(V, "per_output")[:, None], "each row is m long; each block should be"),
    ):
        expect(not np.allclose(W, other), why)
    same(W, by_block(V, V), "block i, rows i * k to (i + 1) * k, should be m[i] long, along V's")


def magnitudes_of_pixels(base: Array, images: Array, labels: Array) -> Callable[[Any], Any]:
    """A checker of (W, accuracy): from base, trained by the magnitudes of the columns alone."""

    @checker
    def check(answer: Any) -> None:
        W, accuracy = ask(lambda: tuple(answer))
        expect(np.shape(W) == base.shape, f"W has shape {np.shape(W)}, base has {base.shape}")
        along_columns, along_rows = (
            np.allclose(abs((W * base).sum(axis)), norms(W, name) * norms(base, name))
            for axis, name in ((0, "per_input"), (1, "per_output"))
        )
        expect(not along_rows, "the rows kept their directions: that is one magnitude per output")
        expect(along_columns, "some columns have turned; train m alone, not A and B")
        hits = ((images @ W.T).argmax(1) == labels).mean()
        before = ((images @ base.T).argmax(1) == labels).mean()
        expect(abs(accuracy - hits) < 1e-9, f"the accuracy of this W is {hits:.4f}")
        expect(hits > before + 0.2, "hardly better than base yet; train longer, or faster")

    return check


@checker
def magnitude_back(answer: Any) -> None:
    """A function (W, W0, A, B, scale) -> m, whatever its sign."""
    rng, scale = np.random.default_rng(0), 0.7
    W0, A, B, m = (rng.normal(size=shape) for shape in ((5, 7), (2, 7), (5, 2), 5))
    W = dora_weight(W0, A, B, m, scale)
    got = ask(answer, W, W0, A, B, scale)
    expect(not np.allclose(got, np.abs(m)), "a norm is never negative, but a magnitude may be")
    same(got, recover_magnitude(W, W0, A, B, scale), "project the rows of W on V's unit rows")
    # V = (-2, 0) points against W0 = (1, 0), and with m = 1 so does W
    turned = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), np.array([[-3.0]])
    got = ask(answer, np.array([[-1.0, 0.0]]), *turned, 1.0)
    same(got, [1.0], "V may have turned by more than 90°: the sign of W · W0 is not the one of m")


def mystery(W0: Array, A: Array, B: Array, m: Array, scale: float) -> Array:
    """A DoRA weight with one bug. Which?"""
    return m[:, None] * W0 / norms(W0, "per_output")[:, None] + scale * B @ A


@checker
def which_bug(answer: Any) -> None:
    """The name of the bug in `mystery`."""
    reason = {
        "norm of W0": "then doubling m would double W; does it?",
        "no scale in the norm": "then its rows would be m long at scale = 1; are they?",
        "B A subtracted": "then its rows would be m long at any B; are they?",
        "m squared": "then its rows would not be m long even where B = 0; are they?",
    }
    names = sorted((*reason, "added after the norm"))
    expect(answer in names, f"choose one of {names}")
    expect(answer not in reason, reason.get(answer, ""))

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


def _arrays(m_size: int) -> tuple:
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((5, 7), (2, 7), (5, 2)))
    return W0, A, B, rng.normal(size=m_size), 0.7


@checker
def per_input_weight(answer: Any) -> None:
    """A function (W0, A, B, m, scale) -> W of Eq. 5, per input."""
    W0, A, B, m, scale = _arrays(7)
    W = ask(answer, W0, A, B, m, scale)
    expect(np.shape(W) == W0.shape, f"W has shape {np.shape(W)}, W0 has {W0.shape}")
    V = W0 + scale * B @ A
    for divisor, why in (
        (norms(W0, "per_input"), "you divide by the norms of W0; Eq. 5 divides by V's own"),
        (norms(W0 + B @ A, "per_input"), "the scale is missing in the norm"),
        (norms(V, "per_output")[:, None], "you divide by the norms of the rows"),
    ):
        expect(not np.allclose(W, m * V / divisor), why)
    unscaled = dora_weight(W0, A, B, m, 1.0, norm_axis="per_input")
    expect(not np.allclose(W, unscaled), "the scale is missing in V")
    right = dora_weight(W0, A, B, m, scale, norm_axis="per_input")
    same(W, right, "columns of W should be m times unit vectors along V's columns")


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
    W0, A, B, m, scale = _arrays(5)
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
    expect(answer in (*reason, "added after the norm"), f"choose one of {(*reason,)} or the other")
    expect(answer not in reason, reason.get(answer, ""))

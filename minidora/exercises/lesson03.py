"""Checkers of lesson 03, the DoRA layer."""

from typing import Any

import numpy as np

from .._boundary import Array
from ..decomposition import norms
from ..dora import dora_weight, recover_magnitude
from . import ask, checker, expect, same


def _layer() -> tuple:
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((5, 7), (2, 7), (5, 2)))
    return W0, A, B, rng.normal(size=5), 0.7


@checker
def merged_weight(answer: Any) -> None:
    """A function (W0, A, B, m, scale) -> W of Eq. 5, per output."""
    W0, A, B, m, scale = _layer()
    W = ask(answer, W0, A, B, m, scale)
    expect(np.shape(W) == W0.shape, f"W has shape {np.shape(W)}, W0 has {W0.shape}")
    V = W0 + scale * B @ A
    expect(not np.allclose(W, V), "that is V; it still has to be divided by its norms, times m")
    unscaled = W0 + B @ A
    for norm_of, why in (
        (W0, "you divide by the norms of W0; Eq. 5 divides by V's own"),
        (unscaled, "the scale is missing in the norm"),
    ):
        divided = m[:, None] * V / norms(norm_of, "per_output")[:, None]
        expect(not np.allclose(W, divided), why)
    expect(not np.allclose(W, dora_weight(W0, A, B, m, 1.0)), "the scale is missing in V")
    same(W, dora_weight(W0, A, B, m, scale), "rows of W should be m times unit vectors along V")


@checker
def extra_parameters(answer: Any) -> None:
    """A function (d_out, d_in, norm_axis) -> how many numbers DoRA trains beyond LoRA."""
    per_output = ask(answer, 3072, 768, "per_output")
    per_input = ask(answer, 3072, 768, "per_input")
    expect((per_output, per_input) != (768, 3072), "the other way round")
    expect((per_output, per_input) == (3072, 768), "DoRA adds m, one number for each weight vector")


@checker
def magnitude_back(answer: Any) -> None:
    """A function (W, W0, A, B, scale) -> m, whatever its sign."""
    W0, A, B, m, scale = _layer()
    W = dora_weight(W0, A, B, m, scale)
    got = ask(answer, W, W0, A, B, scale)
    expect(not np.allclose(got, np.abs(m)), "a norm is never negative, but a magnitude may be")
    same(got, recover_magnitude(W, W0, A, B, scale), "project the rows of W on V's unit rows")


def mystery(W0: Array, A: Array, B: Array, m: Array, scale: float) -> Array:
    """A DoRA weight with one bug. Which?"""
    V = W0 + scale * B @ A
    return m[:, None] * V / norms(W0 + B @ A, "per_output")[:, None]


@checker
def which_bug(answer: Any) -> None:
    """The name of the bug in `mystery`."""
    names = ("wrong axis", "norm of W0", "no scale in the norm", "bias scaled")
    expect(answer in names, f"choose one of {names}")
    reason = {
        "wrong axis": "at scale = 1 its rows are m long, which a wrong axis cannot give",
        "norm of W0": "at scale = 1 its rows are m long, which dividing by W0's norms cannot give",
        "bias scaled": "a weight alone has no bias",
    }
    expect(answer == "no scale in the norm", reason.get(answer, ""))

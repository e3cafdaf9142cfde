"""Checkers of lesson 06, cost."""

from typing import Any

import numpy as np

from ..decomposition import norms
from . import ask, checker, expect, same


@checker
def factored_norms(answer: Any) -> None:
    """A function (W0_sq, WA, A, B, scale) -> the norms of the rows of V, V never formed."""
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((5, 7), (2, 7), (5, 2)))
    right = norms(W0 + 0.7 * B @ A, "per_output")
    got = ask(answer, (W0**2).sum(1), W0 @ A.T, A, B, 0.7)
    expect(np.shape(got) == (5,), f"one norm for each row, shape (5,); got shape {np.shape(got)}")
    expect(not np.allclose(got, right**2), "these are the squares; take the root")
    expect(not np.allclose(got, norms(W0, "per_output")), "these are the norms of W0 alone")
    no_cross = np.sqrt((W0**2).sum(1) + ((0.7 * B @ A) ** 2).sum(1))
    expect(not np.allclose(got, no_cross), "the cross term 2 <w0, s b A> is missing")
    same(got, right, "expand ||w0 + s b A||^2 and mind the powers of s")


@checker
def magnitude_gradient(answer: Any) -> None:
    """A function (dy, z, c) -> dm, G never formed."""
    rng = np.random.default_rng(1)
    x, V, dy = rng.normal(size=(9, 7)), rng.normal(size=(5, 7)), rng.normal(size=(9, 5))
    c = norms(V, "per_output")
    got = ask(answer, dy, x @ V.T, c)
    right = ((dy.T @ x) * V).sum(1) / c
    expect(np.shape(got) == (5,), f"one number for each output, shape (5,); got {np.shape(got)}")
    expect(not np.allclose(got, right * c), "divide by the norm")
    expect(not np.allclose(got, right / 9), "a sum over the batch, not a mean")
    same(got, right, "dm_i = sum over the batch of dy_i * z_i / c_i")


@checker
def dense_bytes(answer: Any) -> None:
    """Bytes of V, W, G and dV of a float32 layer with d_in = d_out = 4096."""
    each = 4096 * 4096 * 4
    expect(answer not in (4096**2, 4 * 256), "in bytes, please; a float32 has four")
    expect(answer not in (256, 64), "in bytes, not MiB")
    # four matrices of one byte a number, or one matrix of four: the same wrong count
    expect(answer != each, "four matrices, and four bytes to a number; one of the fours is missing")
    expect(answer == 4 * each, "four matrices of 4096 * 4096 numbers of 4 bytes")

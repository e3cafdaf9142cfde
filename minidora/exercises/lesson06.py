"""Checkers of lesson 06, cost."""

import tracemalloc
from typing import Any

import numpy as np

from .. import factored
from ..decomposition import norms, squared_norms
from ..dora import init
from . import ask, checker, expect, same


@checker
def column_norms(answer: Any) -> None:
    """A function (W0, W0_sq, A, B, scale) -> the norms of V's columns, V never made."""
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((60, 70), (2, 70), (60, 2)))
    right = norms(W0 + 0.7 * B @ A, "per_input")
    got = ask(answer, W0, (W0**2).sum(0), A, B, 0.7)
    expect(np.shape(got) == (70,), f"one norm for each column, shape (70,); got {np.shape(got)}")
    expect(not np.allclose(got, right**2), "these are the squares; take the root")
    expect(not np.allclose(got, norms(W0, "per_input")), "these are the norms of W0 alone")
    no_cross = np.sqrt((W0**2).sum(0) + ((0.7 * B @ A) ** 2).sum(0))
    expect(not np.allclose(got, no_cross), "the cross term 2 <w0, s B a> is missing")
    same(got, right, "expand ||w0 + s B a||^2 and mind the powers of s")
    W0_sq = (W0**2).sum(0)
    peak = _peak(lambda: answer(W0, W0_sq, A, B, 0.7))
    expect(peak < W0.nbytes, "right, but a matrix as large as W0 was made on the way")


@checker
def tokens(answer: Any) -> None:
    """From how many tokens on r / 2n is at most a hundredth, r = 16."""
    expect(answer != 1600, "the floor is two products with W0, forward and backward")
    expect(answer not in (8, 0.08), "one percent is 0.01")
    same(answer, 800.0, "d * d * r over 2 * n * d * d is to be 0.01; d drops out")


@checker
def fat_rank(answer: Any) -> None:
    """The first rank in 4, 8, ..., 512 at which a factored exact step peaks above one W0."""
    ranks = [2**i for i in range(2, 10)]
    expect(answer in ranks, f"choose among {ranks}")
    if (peak := _step_peak(answer)) <= 1:
        expect(False, f"at rank {answer} the step peaks at {peak:.2f} of W0 only")
    if answer > 4 and (lower := _step_peak(answer // 2)) > 1:
        expect(False, f"at rank {answer // 2} it peaks at {lower:.2f} of W0 already")


def _step_peak(rank: int) -> float:
    """Peak of an exact factored step of the lesson's layer, in units of W0."""
    d, n, rng = 1024, 64, np.random.default_rng(0)
    W0, x, dy = (rng.normal(size=(k, d)).astype("float32") for k in (d, n, n))
    A, B, m = init(W0, rank, rng)
    W0_sq = squared_norms(W0, "per_output")

    def step() -> None:
        _, cache = factored.dora_forward(x, W0, A, B, m, 2.0, W0_sq=W0_sq)
        factored.dora_backward(dy, cache)

    return _peak(step) / W0.nbytes


def _peak(run: Any) -> int:
    """Bytes in use at the peak of `run()`, beyond what was there before."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

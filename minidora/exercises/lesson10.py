"""Checkers of lesson 10, rank, granularity, data and learning rate."""

from typing import Any

import numpy as np

from . import ask, checker, expect, same


@checker
def choose(answer: Any) -> None:
    """A function (losses (seeds, rates)) -> the index of the rate to take."""
    nan = np.nan
    cases = [
        (np.array([[3.0, 2.0, 2.5], [3.0, 2.2, 2.6]]), 1, "the least mean loss over the seeds"),
        (
            np.array([[3.0, 2.0, 2.1], [3.0, 2.6, 2.1]]),
            2,
            "the mean over seeds, not the luckiest seed",
        ),
        (
            np.array([[2.0, 2.1, 3.0], [2.0, 2.1, 3.0], [2.9, 2.1, 3.0]]),
            1,
            "the mean over seeds, not the median",
        ),
        (
            np.array([[3.0, 2.0, 1.0], [3.0, 2.2, nan]]),
            1,
            "one seed diverged at the last rate: that rate is out, however well the other went",
        ),
    ]
    for losses, right, why in cases:
        got = ask(answer, losses.copy())
        expect(np.ndim(got) == 0 and 0 <= got < 3, f"an index from 0 to 2, got {got!r}")
        expect(int(got) == right, why)


@checker
def mixed_count(answer: Any) -> None:
    """A function (d, r) -> numbers trained in one block of the mixed setting."""
    for d, r in ((32, 4), (10, 1)):
        got = ask(answer, d, r)
        low = 3 * 2 * d * r
        expect(got != low, "that is A and B alone; the magnitudes are missing")
        expect(got != low + 3 * d, "o, up and down have magnitudes too")
        expect(
            got != low + 6 * d,
            "some m are missing: q, k and v have one too, and up has 4 d outputs",
        )
        expect(got != low + 8 * d, "o has magnitudes too")
        expect(got != low + 12 * d, "down has d outputs, not 4 d")
        expect(
            got == low + 9 * d,
            "3 (r (d + d) + d) for q, k, v, and an m for each output of o, up, down",
        )


@checker
def paired(answer: Any) -> None:
    """A function (ours, theirs) -> (mean difference, its standard error) within seeds."""
    rng = np.random.default_rng(0)
    theirs = 2 + 0.3 * rng.normal(size=5)
    ours = theirs - 0.02 + 0.01 * rng.normal(size=5)
    result = ask(answer, ours.copy(), theirs.copy())
    expect(np.shape(result) == (2,), "two numbers: the mean, its standard error")
    mean, error = result
    gaps = ours - theirs
    expect(not np.isclose(mean, -gaps.mean()), "the other way round: ours less theirs")
    same(mean, gaps.mean(), "the mean over seeds of ours less theirs")
    across = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 5)
    expect(
        not np.isclose(error, across), "that is for seeds that differ; take the differences first"
    )
    expect(not np.isclose(error, gaps.std(ddof=1)), "of the mean: divide by the root of n")
    expect(not np.isclose(error, gaps.std() / np.sqrt(5)), "the sample deviation has n - 1 below")
    same(error, gaps.std(ddof=1) / np.sqrt(5), "the deviation of the differences over sqrt(n)")

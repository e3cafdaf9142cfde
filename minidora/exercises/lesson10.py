"""Checkers of lesson 10, learning rate, rank, granularity, data and decay."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from . import ask, checker, expect, same, show


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


def _interval(gaps: ArrayLike, comparisons: int, level: float = 0.05) -> tuple[float, float]:
    values = np.asarray(gaps, float)
    n = len(values)
    half = stdtrit(n - 1, 1 - level / 2 / comparisons) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


@checker
def _asked(answer: Any) -> None:
    gaps = np.random.default_rng(0).normal(-0.02, 0.01, size=6)
    n, mean, comparisons = len(gaps), gaps.mean(), 10
    low, high = _interval(gaps, comparisons)
    got = ask(answer, gaps.copy(), comparisons)
    expect(np.shape(got) == (2,), "two numbers: low and high")

    def is_interval(half: float) -> bool:
        return np.allclose(sorted(got), [mean - half, mean + half])

    right = high - mean
    expect(got[0] <= got[1], "the low end first, then the high one")
    single = _interval(gaps, 1)[1] - mean
    expect(not is_interval(single), "that is right for one comparison; share the 5 % among them")
    one_tail = _interval(gaps, comparisons, 0.1)[1] - mean
    expect(not is_interval(one_tail), "an interval misses on two sides: half of 5 % / K on each")
    expect(not is_interval(right * np.sqrt(n)), "of the mean: divide by the root of n")
    smaller = np.sqrt((n - 1) / n)
    expect(not is_interval(right * smaller), "the sample's deviation has n - 1 below: ddof=1")
    wide = single * comparisons
    expect(not is_interval(wide), "K goes into the quantile's tail; it does not multiply the width")
    normal = 2.807034 * gaps.std(ddof=1) / np.sqrt(n)
    expect(not is_interval(normal), "Student's t with n - 1 degrees of freedom, not the normal one")
    same(got, (low, high), "mean ± t s / sqrt(n), t at 1 - 0.05 / 2 / K with n - 1 degrees")


def interval(mine: Callable[..., Any]) -> Callable[..., tuple[float, float]]:
    """Show what the learner's (gaps, comparisons) -> (low, high) gets; the one to go on with."""
    mark = _asked(mine)
    show(mark)
    return mine if mark == "right" else _interval


@checker
def breaking(answer: Any, tuned: Callable[[str, float], tuple]) -> None:
    """A rate that costs DoRA more than 0.1 nats against 0.04, a quarter of which does not."""
    rate = float(answer)
    expect(0 < rate < np.inf, f"a rate above zero; got {answer}")
    best = tuned("dora", 0.04)[1]

    def cost(rate: float) -> float:
        with np.errstate(all="ignore"):
            return np.nan_to_num(tuned("dora", rate)[1] - best, nan=np.inf)

    lost = cost(rate)
    expect(lost > 0.1, f"at {rate:g} DoRA loses {lost:+.3f} nats: a higher one")
    lost = cost(rate / 4)
    expect(lost <= 0.1, f"a quarter of it, {rate / 4:g}, costs {lost:.3f} already: a lower one")

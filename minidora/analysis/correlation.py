"""Correlations of ΔM with ΔD: how large, over what, and how sure.

The paper gives one number for each method, pooled over layers and checkpoints. `correlations` gives
that one and four others, because points that share a layer, or a step, are not independent.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .._boundary import Array, finite, floating, number, positive_int, shaped

WAYS = ("pooled", "late", "within step", "within layer", "within matrix")
"""What a correlation of ΔM with ΔD can be over."""


class Correlation(NamedTuple):
    """How y goes with x over n points, and the line y = slope * x + intercept of least squares.

    low, high: 95 % for Pearson's r by Fisher's transformation, as if the points were independent;
    NaN below four points. All but n are NaN where x or y does not vary.
    """

    r: float
    low: float
    high: float
    n: int
    spearman: float
    slope: float
    intercept: float


class Interval(NamedTuple):
    """A mean over seeds, its 95 % interval, the standard deviation and the number of seeds."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


def correlate(x: Array, y: Array) -> Correlation:
    """Pearson's and Spearman's correlation of two arrays (n,), n >= 2.

    Raises ValueError for NaN or infinity, different shapes, or fewer than two points.

    >>> line = correlate(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0, 7.0]))
    >>> round(line.r, 6), round(line.slope, 6), round(line.intercept, 6)
    (1.0, 2.0, 1.0)
    """
    x = finite("x", floating("x", x, ndim=1)).astype(np.float64)
    y = finite("y", shaped("y", y, x.shape, "the shape of x")).astype(np.float64)
    n = len(x)
    if n < 2:
        raise ValueError(f"x: expected two points or more, got {n}")
    # scaled to about 1, so that no square overflows or vanishes
    (unit_x, size_x), (unit_y, size_y) = _scaled(x), _scaled(y)
    dx, dy = unit_x - unit_x.mean(), unit_y - unit_y.mean()
    length_x, length_y = float(np.linalg.norm(dx)), float(np.linalg.norm(dy))
    tiny, nan = 1e-14, math.nan
    if length_x <= tiny * np.abs(unit_x).max() or length_y <= tiny * np.abs(unit_y).max():
        return Correlation(nan, nan, nan, n, nan, nan, nan)
    r = min(1.0, max(-1.0, float(dx / length_x @ (dy / length_y))))
    slope = r * (length_y / length_x) * size_y / size_x
    intercept = float(unit_y.mean()) * size_y - slope * (float(unit_x.mean()) * size_x)
    return Correlation(r, *_fisher(r, n), n, spearman(x, y), slope, intercept)


def _scaled(x: Array) -> tuple[Array, float]:
    """x over the power of two below its largest entry, and that power: no digit is lost."""
    size = 2.0 ** float(np.frexp(np.abs(x).max())[1] - 1)
    return x / size, size


def _fisher(r: float, n: int) -> tuple[float, float]:
    if n < 4:
        return math.nan, math.nan
    if abs(r) == 1:
        return r, r
    z, half = math.atanh(r), 1.959964 / math.sqrt(n - 3)
    return math.tanh(z - half), math.tanh(z + half)


def least_significant(n: int) -> float:
    """The |r| that n independent points must exceed for zero to lie outside the 95 % interval.

    >>> round(least_significant(6), 2), round(least_significant(24), 2)
    (0.81, 0.4)
    """
    return math.tanh(1.959964 / math.sqrt(positive_int("n", n) - 3)) if n > 3 else math.nan


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two arrays (n,), finite; ties share their mean rank.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([-5.0, 0.0, 0.1]))
    1.0
    """
    a = finite("a", floating("a", a, ndim=1))
    b = finite("b", shaped("b", b, a.shape, "the shape of a"))
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1].round(12))


def _ranks(values: Array) -> Array:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def bootstrap_mean(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean over seeds, its interval the middle 95 % of the means of `draws` resamplings of them.

    NaN values are left out and not counted.

    >>> bootstrap_mean([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, sd=0.0, n=3)
    """
    counted, nan = _counted(values), math.nan
    n = len(counted)
    if n == 0:
        return Interval(nan, nan, nan, nan, 0)
    chosen = np.random.default_rng(seed).integers(n, size=(positive_int("draws", draws), n))
    low, high = np.quantile(counted[chosen].mean(1), [0.025, 0.975])
    sd = counted.std(ddof=1) if n > 1 else 0.0
    return Interval(float(counted.mean()), float(low), float(high), float(sd), n)


def student_mean(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's 95 % interval, for few seeds and about normal values.

    A bootstrap over five values covers the mean in some 83 % of cases instead of 95. NaN values are
    left out and not counted; needs SciPy.
    """
    from scipy.special import stdtrit

    counted, nan = _counted(values), math.nan
    n = len(counted)
    mean = float(counted.mean()) if n else nan
    if n < 2:
        return Interval(mean, nan, nan, nan, n)
    sd = float(counted.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def _counted(values: Sequence[float]) -> Array:
    """The values that are numbers."""
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def correlations(
    steps: Sequence[int], dM: Array, dD: Array, *, checkpoints: int = 4, late: float = 0.75
) -> dict[str, list[Correlation]]:
    """ΔM against ΔD, both (steps, layers), in four ways.

    - "pooled": over all layers and `checkpoints` evenly spaced steps up to the last, one figure, as
      in the paper's figure 2 (four checkpoints).
    - "late": the same over the checkpoints from the share `late` of the steps on.
    - "within step": over the layers, a figure for each checkpoint.
    - "within layer": over all recorded steps, a figure for each layer.

    The fifth, within a matrix over its vectors, is `Changes.correlation`. Raises ValueError where a
    checkpoint is missing from the steps.
    """
    steps = [int(step) for step in steps]
    dD = floating("dD", dD, ndim=2)
    dM = shaped("dM", dM, dD.shape, "the shape of dD")
    if len(steps) != len(dD):
        raise ValueError(f"steps: expected {len(dD)}, one for each row of dD, got {len(steps)}")
    last, count = steps[-1], positive_int("checkpoints", checkpoints)
    at = [last * (k + 1) / count for k in range(count)]
    if missing := [step for step in at if step not in steps]:
        raise ValueError(f"steps: expected {at} among them, got none at {missing}")

    def over(checkpoints: Sequence[float]) -> Correlation:
        rows = [steps.index(int(step)) for step in checkpoints]
        return correlate(dD[rows].ravel(), dM[rows].ravel())

    layers = dD.shape[1]
    return {
        "pooled": [over(at)],
        "late": [over([step for step in at if step >= number("late", late) * last])],
        "within step": [over([step]) for step in at] if layers > 1 else [],
        "within layer": [correlate(dD[:, i], dM[:, i]) for i in range(layers)],
    }

"""Checkers of lesson 09, how magnitude and direction move."""

from typing import Any

import numpy as np

from . import ask, checker, expect, same


@checker
def delta(answer: Any) -> None:
    """A function (W0, W) -> (ΔM, ΔD) of one matrix, a vector for each column."""
    rng = np.random.default_rng(0)
    W0, W = rng.normal(size=(2, 5, 3))
    W[:, 1] *= 0.2  # one column shrinks, so that a sign shows
    result = ask(answer, W0.copy(), W.copy())
    expect(np.shape(result) == (2,), "return two numbers, ΔM and ΔD, each a mean over the columns")
    dM, dD = result
    m0, m = np.linalg.norm(W0, axis=0), np.linalg.norm(W, axis=0)
    n0, n = np.linalg.norm(W0, axis=1), np.linalg.norm(W, axis=1)
    cos, cos_rows = (W0 * W).sum(0) / m0 / m, (W0 * W).sum(1) / n0 / n
    expect(not np.isclose(dM, 1 - cos.mean()), "ΔM first, then ΔD")
    expect(not np.isclose(dM, (m - m0).mean()), "growth and shrinkage cancel: take |m - m0| first")
    expect(not np.isclose(dM, np.abs(n - n0).mean()), "ΔM: these are rows; columns were asked for")
    expect(not np.isclose(dD, 1 - cos_rows.mean()), "ΔD: these are rows; columns were asked for")
    expect(not np.isclose(dD, np.arccos(cos).mean()), "that is the angle; ΔD is 1 - its cosine")
    long = np.linalg.norm(W - W0, axis=0).mean()
    expect(not np.isclose(dM, long), "that is the length of the update, not the change of length")
    same(dM, np.abs(m - m0).mean(), "ΔM is the mean of | ‖w‖ - ‖w0‖ |")
    expect(not np.isclose(dD, cos.mean()), "that is the cosine; ΔD is 1 - cos")
    whole = (W0 * W).sum() / np.linalg.norm(W0) / np.linalg.norm(W)
    expect(not np.isclose(dD, 1 - whole), "one cosine for each column, then the mean")
    same(dD, 1 - cos.mean(), "ΔD is the mean over columns of 1 - cos(w, w0)")


@checker
def equalised(answer: Any) -> None:
    """A function (W0, W) -> W with all updates of rows as long as the mean one."""
    rng = np.random.default_rng(1)
    W0 = rng.normal(size=(5, 3))
    W = W0 + rng.normal(size=(5, 3)) * np.array([0.1, 0.5, 1, 2, 3])[:, None]
    update = W - W0
    lengths = np.linalg.norm(update, axis=1, keepdims=True)
    got = np.asarray(ask(answer, W0.copy(), W.copy()), float)
    expect(got.shape == W.shape, f"expected shape {W.shape}, got shape {got.shape}")
    equal = update / lengths * lengths.mean()
    expect(not np.allclose(got, equal), "that is the update alone; add it to W0")
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    expect(
        not np.allclose(got, W / norms * norms.mean()),
        "the updates are to be of one length, not the rows",
    )
    expect(not np.allclose(got, W0 + update / lengths), "of length 1; make them of the mean length")
    columns = np.linalg.norm(update, axis=0)
    expect(
        not np.allclose(got, W0 + update / columns * columns.mean()),
        "a vector is a row, not a column",
    )
    same(got, W0 + equal, "W0 plus each row's update, scaled to the mean length")


@checker
def fisher_interval(answer: Any) -> None:
    """The 95 % interval of r = -0.5 over 12 points."""
    got = np.asarray(answer, float)
    expect(got.shape == (2,), f"two numbers, low and high; got shape {got.shape}")
    low, high = np.sort(got)
    z, half = np.arctanh(-0.5), 1.96 / 3

    def near(a, b):
        return np.allclose([low, high], np.sort([a, b]), atol=0.01)

    expect(not near(z - half, z + half), "these are values of atanh r; go back by tanh")
    expect(not near(-0.5 - half, -0.5 + half), "add and subtract in atanh r, not in r")
    wrong = 1.96 / np.sqrt(12)
    expect(not near(np.tanh(z - wrong), np.tanh(z + wrong)), "n - 3, not n")
    single = 1 / 3
    expect(not near(np.tanh(z - single), np.tanh(z + single)), "95 % is 1.96 standard deviations")
    ninety = 1.645 / 3
    expect(not near(np.tanh(z - ninety), np.tanh(z + ninety)), "that is the 90 % interval")
    expect(not near(np.tanh(-z - half), np.tanh(-z + half)), "r is negative")
    steep = 1.96 / 9
    expect(not near(np.tanh(z - steep), np.tanh(z + steep)), "the root of n - 3 is missing")
    expect(near(np.tanh(z - half), np.tanh(z + half)), "tanh(atanh(r) ± 1.96 / sqrt(n - 3))")

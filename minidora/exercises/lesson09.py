"""Checkers of lesson 09, how magnitude and direction move."""

from typing import Any

import numpy as np

from ..analysis import correlate
from ..analysis.predictions import correlations_of
from ..analysis.predictions import untrained as untrained_moves
from . import ask, checker, expect, same


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
    low, high = got
    expect(low <= high, "the low end first, then the high one")
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


@checker
def untrained(answer: Any) -> None:
    """A function (norms, u, pull, rng) -> r over the layers of random vectors."""
    norms, u, draws = np.geomspace(0.5, 2, 6), 0.5, 40
    r = {}
    for pull in (0, 0.3):
        rng = np.random.default_rng(0)
        drawn = [ask(answer, norms.copy(), u, pull, rng) for _ in range(draws)]
        expect(np.shape(drawn) == (draws,), "return one number, the correlation over six layers")
        expect(len(set(map(float, drawn))) > 1, "draw the directions from `rng`")
        rng = np.random.default_rng(1)
        layers = np.repeat(norms[:, None], 32, 1)
        right = [
            correlations_of(untrained_moves(layers, [u], [pull], 32, rng)).last
            for _ in range(draws)
        ]
        r[pull] = np.mean(drawn), np.mean(right)
    (without, right_without), (decayed, right_decayed) = r[0], r[0.3]
    expect(
        abs(without - right_without) < 0.05,
        f"without decay r is {without:+.2f}, not about {right_without:+.2f}: six points, ΔM and ΔD"
        " means over a layer's vectors, u the length of each update",
    )
    expect(abs(decayed - without) > 1e-9, "decay changes nothing: w = (1 - pull) * w0 + ...")
    expect(decayed < 0, "with decay r is positive: is ΔM the mean of the *absolute* growth?")
    expect(
        abs(decayed - right_decayed) < 0.08,
        f"with decay r is {decayed:+.2f}, not about {right_decayed:+.2f}",
    )


@checker
def between(answer: Any, tune: Any) -> None:
    """A Λ at which k's slope is negative and o's positive, run by the lesson's `tune`."""
    pull = float(answer)
    expect(0 <= pull <= 1, f"Λ is a share, from 0 to 1; got {pull:g}")
    run = tune("FT of q and v", rate=3e-3, spread=2, targets=("k", "o"), pull=pull)
    moves = {layer: run.rows.only(f"attn.{layer}") for layer in ("k", "o")}
    r = {layer: correlate(rows.dD[-1], rows.dM[-1]).r for layer, rows in moves.items()}
    ran = f"at Λ = {pull:.3g} k's r is {r['k']:+.2f}, o's {r['o']:+.2f}"
    expect(r["k"] < 0, f"{ran}: k has not turned; is Λ above k's ΔD?")
    expect(r["o"] > 0, f"{ran}: o has turned too; is Λ below o's ΔD?")

"""Checkers of lesson 08, a transformer that fine-tunes."""

from typing import Any

import numpy as np

from .. import nn
from ..training import data
from . import ask, checker, expect, same


@checker
def causal(answer: Any) -> None:
    """A function (scores) -> attention weights: softmax of each row over itself and before."""
    scores = np.random.default_rng(0).normal(size=(4, 4))
    got = np.asarray(ask(answer, scores.copy()), float)
    expect(got.shape == (4, 4), f"expected shape (4, 4), got shape {got.shape}")
    e, seen = np.exp(scores), np.tril(np.ones((4, 4)))
    right = e * seen / (e * seen).sum(1, keepdims=True)
    guesses = {
        "position 0 sees position 3, which comes later": e / e.sum(1, keepdims=True),
        "mask first, then normalise: rows must sum to 1": np.tril(e / e.sum(1, keepdims=True)),
        "the other way round: rows attend, columns are seen": right.T,
        "these see the future and not the past: keep the lower triangle": (
            e * seen.T / (e * seen.T).sum(1, keepdims=True)
        ),
        "a score of 0 still has exp(0) = 1: hide after the exp, or with minus infinity": (
            np.exp(scores * seen) / np.exp(scores * seen).sum(1, keepdims=True)
        ),
        "each row is to sum to 1, not each column": e * seen / (e * seen).sum(0, keepdims=True),
    }
    for why, wrong in guesses.items():
        expect(not np.allclose(got, wrong, atol=1e-5), why)
    same(got, right, "each row should be a softmax over the positions up to its own", 1e-5)
    # the largest score of all comes later than what the first row may see
    large = np.array([[-2000.0, 3000.0], [1000.0, 1000.0]])
    got = np.asarray(ask(answer, large.copy()), float)
    why = "scores in the thousands break it: take off, row by row, the largest the row may see"
    expect(bool(np.isfinite(got).all()), why)
    same(got, np.array([[1, 0], [0.5, 0.5]]), why, 1e-5)


@checker
def temperature(answer: Any) -> None:
    """A function (logits, temperature) -> probabilities to draw the next token from."""
    logits = np.array([2.0, 1.0, -1.0])
    got = ask(answer, logits.copy(), 0.5)
    e = np.exp(logits / 0.5)
    sharpened, flat, plain = e / e.sum(), np.exp(logits * 0.5), np.exp(logits)
    guesses = {
        "a low temperature should sharpen, not flatten": flat / flat.sum(),
        "the temperature changes nothing": plain / plain.sum(),
        "probabilities sum to 1": e,
        "these are scores; a softmax is missing": logits / 0.5,
        "the temperature goes inside the softmax": plain / plain.sum() / 0.5,
    }
    for why, wrong in guesses.items():
        expect(not np.allclose(got, wrong, atol=1e-5), why)
    same(got, sharpened, "not the probabilities from which to draw", 1e-5)
    got = np.asarray(ask(answer, np.array([5.0, 5.0, -3.0]), 1e-3), float)
    expect(bool(np.isfinite(got).all()), "it overflows at a temperature of 1e-3")
    same(got, [0.5, 0.5, 0.0], "at a temperature near 0 the largest logits share everything", 1e-5)


@checker
def elsewhere(answer: Any) -> None:
    """A function (model, seed) -> the model with DoRA trained in up and down, at the fair rank."""
    rng = np.random.default_rng(7)
    model: Any = nn.Transformer.init(data.VOCABULARY, 32, 4, 2, 13, rng)
    fair = nn.adapt(model, "dora", ("q", "v"), rank=4, rng=rng)
    network = ask(answer, model, 7)
    expect(hasattr(network, "blocks"), "return the trained network")
    names = {name.rsplit(".", 1)[0] for name in nn.trained(network)}
    wanted = {f"blocks.{i}.{layer}" for i in range(2) for layer in ("up", "down")}
    expect(names == wanted, f"{sorted(wanted)} should train, not {sorted(names)}")
    arrays = {name.rsplit(".", 1)[1] for name in nn.trained(network)}
    expect(arrays == {"A", "B", "m"}, f"DoRA trains A, B and m, not {sorted(arrays)}")
    count, most = (sum(a.size for a in nn.trained(n).values()) for n in (network, fair))
    expect(count <= most, f"of two blocks it trains {count} numbers, q and v at rank 4 {most}")
    more = sum(sum(b.up.weight.shape) + sum(b.down.weight.shape) for b in model.blocks)
    expect(count + more > most, "a larger rank is possible with no more numbers than q and v")
    moved = [np.abs(array).max() for name, array in nn.trained(network).items() if name[-1] == "B"]
    expect(min(moved) > 0, "B is zero: train the network")
    words = data.encode(data.names("female")[:300], 13)
    losses = [
        nn.cross_entropy(n.forward(words.tokens, padding=words.padding)[0], words.targets)[0]
        for n in (model, network)
    ]
    expect(losses[1] < losses[0], f"the loss went from {losses[0]:.2f} to {losses[1]:.2f}")

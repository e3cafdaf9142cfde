"""Checkers of lesson 08, a transformer that fine-tunes."""

from typing import Any

import numpy as np

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

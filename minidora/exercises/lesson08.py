"""Checkers of lesson 08, a transformer that fine-tunes."""

import numpy as np

from . import ask, checker, expect, same


@checker
def causal(answer):
    """A function (scores) -> attention weights: softmax of each row over itself and before."""
    scores = np.random.default_rng(0).normal(size=(4, 4))
    got = np.asarray(ask(answer, scores.copy()), float)
    expect(got.shape == (4, 4), f"expected shape (4, 4), got shape {got.shape}")
    right = np.exp(scores) * np.tril(np.ones((4, 4)))
    right /= right.sum(1, keepdims=True)
    future = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expect(not np.allclose(got, future), "position 0 sees position 3, which comes later")
    expect(not np.allclose(got, np.tril(future)), "mask first, then normalise: rows must sum to 1")
    expect(not np.allclose(got, right.T), "the other way round: rows attend, columns are seen")
    same(got, right, "each row should be a softmax over the positions up to its own")


@checker
def temperature(answer):
    """A function (logits, temperature) -> probabilities to draw the next token from."""
    logits = np.array([2.0, 1.0, -1.0])
    got = ask(answer, logits, 0.5)
    right = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
    wrong = np.exp(logits * 0.5) / np.exp(logits * 0.5).sum()
    expect(not np.allclose(got, wrong), "a low temperature should sharpen, not flatten")
    same(got, right, "softmax of logits / temperature")

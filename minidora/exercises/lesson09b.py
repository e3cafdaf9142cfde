"""Checkers of lesson 09b, two explanations put to the test."""

from typing import Any

import numpy as np

from . import ask, checker, expect


@checker
def best_row(answer: Any) -> None:
    """A function (C) -> the direction w whose removal rounds the covariance C most."""
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(64, 64)) * 0.8 ** np.arange(64)
    C = factor @ factor.T
    w = np.asarray(ask(answer, C.copy()), float)
    expect(w.shape == (64,), f"return 64 numbers; got shape {w.shape}")
    expect(float(np.linalg.norm(w)) > 0, "w is zero, and has no direction")
    vectors = np.linalg.eigh(C)[1].T  # the largest eigenvalue's last
    along = np.abs(vectors @ w) / np.linalg.norm(w)
    expect(along[0] < 0.99, "that is where the gradients vary least")
    expect(along[-1] > 1 - 1e-6, "some other direction holds more of the variance")


@checker
def correlation_at(answer: Any) -> None:
    """A function (sigma) -> Spearman's correlation of |dm| with the turn, lengths spread by it."""
    bounds = {0.0: (-1.0, -0.97), 0.01: (-0.7, -0.4), 0.1: (-0.25, 0.05), 0.5: (-0.15, 0.15)}
    for sigma, (low, high) in bounds.items():
        got = float(ask(answer, sigma))
        expect(
            low <= got <= high, f"at sigma = {sigma} it should be {low} to {high}, not {got:.2f}"
        )

"""Checkers of lesson 05, projection."""

from typing import Any

import numpy as np

from ..projection import project, split
from . import ask, checker, expect, same


def _gradient() -> tuple:
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 8)), rng.normal(size=(5, 8)) * 3


@checker
def my_project(answer: Any) -> None:
    """A function (G, V) -> the tangential part of each row, no (d, d) matrix built."""
    G, V = _gradient()
    got = ask(answer, G, V)
    expect(np.shape(got) == G.shape, f"expected shape {G.shape}, got {np.shape(got)}")
    radial, tangential = split(G, V, "per_output")
    expect(not np.allclose(got, radial), "that is the part along V; keep the rest")
    once = G - V * (G * V).sum(1, keepdims=True) / np.linalg.norm(V, axis=1, keepdims=True)
    expect(not np.allclose(got, once), "divide by the norm twice: v v^T / ||v||^2")
    never = G - V * (G * V).sum(1, keepdims=True)
    expect(not np.allclose(got, never), "divide by the squared norm: v v^T / ||v||^2")
    literal = G - G @ V.T @ V / np.linalg.norm(V, axis=1).max() ** 2
    by_frobenius = G - G @ V.T @ V / (V * V).sum()
    one_number = G - V * (G * V).sum() / (V * V).sum()
    for whole in (literal, by_frobenius, one_number):
        expect(not np.allclose(got, whole), "one projector for each row, not one for all of V")
    same(got, tangential, "some of G along the rows of V is left")


@checker
def norm_after(answer: Any) -> None:
    """A function (c, t, rate) -> the norm of v after a tangential step of length rate * t."""
    got = ask(answer, 3.0, 8.0, 0.5)
    expect(not np.isclose(got, 7.0), "the step stands at a right angle; lengths do not add up")
    expect(not np.isclose(got, np.sqrt(73.0)), "the step is rate times as long as the gradient")
    same(got, 5.0, "think of the right triangle")


@checker
def radial_share(answer: Any) -> None:
    """A function (G, V) -> the share of each row's squared length that lies along V."""
    G, V = _gradient()
    got = ask(answer, G, V)
    right = 1 - (project(G, V, "per_output") ** 2).sum(1) / (G**2).sum(1)
    expect(not np.allclose(got, np.sqrt(right)), "the share of the squared length, please")
    expect(not np.allclose(got, 1 - right), "that is the tangential share")
    same(got, right, "cos(g, v) squared, row by row")

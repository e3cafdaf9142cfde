"""Checkers of lesson 05, projection."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .._boundary import Array
from ..analysis import changes
from ..decomposition import norms
from ..projection import project
from . import ask, checker, expect, same


@checker
def project_columns(answer: Any) -> None:
    """A function (G, V) -> the tangential part of each column, no square matrix built."""
    rng = np.random.default_rng(0)
    G, V = rng.normal(size=(5, 8)), rng.normal(size=(5, 8)) * 3
    got = ask(answer, G, V)
    expect(np.shape(got) == G.shape, f"expected shape {G.shape}, got {np.shape(got)}")
    right = project(G, V, "per_input")
    expect(not np.allclose(got, G - right), "that is the part along V; keep the rest")
    expect(not np.allclose(got, project(G, V, "per_output")), "those are rows; take columns")
    for power in (0, 1):
        once = G - V * (G * V).sum(0) / norms(V, "per_input") ** power
        expect(not np.allclose(got, once), "divide by the squared norm: v v^T / ||v||^2")
    one_number = G - V * (G * V).sum() / (V * V).sum()
    expect(not np.allclose(got, one_number), "one projector for each column, not one for all of V")
    same(got, right, "some of G along the columns of V is left")


@checker
def angle_after(answer: Any) -> None:
    """A function (c, t, rate) -> the angle by which a tangential step turns a vector of norm c."""
    got = ask(answer, 3.0, 8.0, 0.5)
    expect(not np.isclose(got, 4 / 3), "that is its tangent; for small steps it is almost the same")
    expect(not np.isclose(got, np.arctan(8 / 3)), "the step is rate times as long as the gradient")
    expect(not np.isclose(got, np.degrees(np.arctan(4 / 3))), "in radians, please")
    expect(not np.isclose(got, np.arctan(3 / 4)), "the angle at the other end of the triangle")
    same(got, np.arctan(4 / 3), "think of the right triangle: legs c and rate * t")


def descend_held(start: Array) -> Callable[[Any], Any]:
    """A checker of (norm_grad) -> V after each step from start, its rows held at their lengths."""

    @checker
    def check(answer: Any) -> None:
        exact, detached = (np.asarray(ask(answer, kind), float) for kind in ("exact", "detached"))
        for V in (exact, detached):
            shape = (200, *start.shape)
            expect(V.shape == shape, f"return V after each step, {shape}; got shape {V.shape}")
        expect(not np.array_equal(exact, detached), "both gradients gave the same V; did V move?")
        lengths = np.array([[norms(V, "per_output") for V in of] for of in (exact, detached)])
        apart = np.abs(lengths / norms(start, "per_output") - 1).max()
        expect(apart < 1e-9, f"off the lengths of the start by up to {apart:.0%}; hold each step")
        turn = changes(exact[-1], detached[-1], "per_output").dD
        expect(turn < 0.01, f"the two V stand {turn:.2f} apart in ΔD; use the same steps and rate")

    return check

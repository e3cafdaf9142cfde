"""Checkers of lesson 01, decomposition."""

from typing import Any

import numpy as np

from ..decomposition import decompose
from . import ask, checker, expect, same


@checker
def split_rows(answer: Any) -> None:
    """A function W -> (m, V_unit), per output, that survives a zero row."""
    W = np.random.default_rng(0).normal(size=(4, 6))
    W[2] = 0
    result = ask(answer, W)
    expect(isinstance(result, tuple) and len(result) == 2, "return two arrays, m and V_unit")
    m, V_unit = result
    right_m, right_unit = decompose(W, "per_output")
    expect(np.shape(m) != (6,), "one magnitude for each row: sum over the columns, axis 1")
    expect(np.isfinite(m).all() and np.isfinite(V_unit).all(), "a zero row gives nan: mind eps")
    linear = np.sqrt((W**2).sum(1) + 1e-12)
    expect(not np.array_equal(m, linear), "inside the root it is eps squared, 1e-24")
    same(m, right_m, "these are not the lengths of the rows")
    same(V_unit, right_unit, "the rows of V_unit are not W's rows scaled to length 1")


@checker
def louder(answer: Any) -> None:
    """A function (W, row, factor) -> W with one row speaking louder."""
    W = np.random.default_rng(1).normal(size=(5, 7))
    before = W.copy()
    W_new = ask(answer, W, 3, 2.0)
    expect(np.array_equal(W, before), "the W passed in has changed; work on a copy")
    (m0, U0), (m1, U1) = decompose(W, "per_output"), decompose(np.asarray(W_new), "per_output")
    same(U1, U0, "a direction has changed; only a magnitude should")
    same(m1, m0 * np.where(np.arange(5) == 3, 2.0, 1.0), "only row 3 should be twice as long")


@checker
def shapes(answer: Any) -> None:
    """The shapes of m for W (3072, 768): (per_output, per_input)."""
    answer = ask(lambda: tuple(answer))
    expect(len(answer) == 2, "give two shapes: per_output, then per_input")
    tuples = all(isinstance(shape, tuple) for shape in answer)
    expect(tuples, "a shape is a tuple; with one entry it needs a comma, as in (5,)")
    expect(answer != ((768,), (3072,)), "the other way round: W is (d_out, d_in)")
    expect(answer == ((3072,), (768,)), "one number for each weight vector")

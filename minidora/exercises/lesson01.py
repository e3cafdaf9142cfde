"""Checkers of lesson 01, decomposition."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._boundary import Array
from ..decomposition import decompose
from . import ask, checker, expect, same


@checker
def split_blocks(answer: Any) -> None:
    """A function (W, k) -> (m, V_unit), a magnitude for each k rows, that survives zeros."""
    W = np.random.default_rng(0).normal(size=(6, 5))
    W[2:4] = 0
    result = ask(answer, W, 2)
    expect(isinstance(result, tuple) and len(result) == 2, "return two arrays, m and V_unit")
    m, V_unit = result
    rows_m, _ = decompose(W, "per_output")
    expect(np.shape(m) != (6,), "one magnitude for each block of k rows, not for each row")
    expect(np.isfinite(m).all() and np.isfinite(V_unit).all(), "zeros give nan: mind eps")
    plain = (W**2).sum(1).reshape(3, 2).sum(1)
    expect(not np.array_equal(m, np.sqrt(plain + 1e-12)), "inside the root it is eps², 1e-24")
    summed = np.allclose(m, rows_m.reshape(3, 2).sum(1))
    expect(not summed, "lengths do not add up; their squares do")
    strided = (W**2).sum(1).reshape(2, 3).sum(0)
    expect(not np.allclose(m, np.sqrt(strided)), "a block is k rows that follow one another")
    right_m = np.sqrt(plain + 1e-24)
    same(m, right_m, "these are not the lengths of the blocks")
    right_unit = W / np.repeat(right_m, 2)[:, None]
    same(V_unit, right_unit, "the blocks of V_unit are not W's blocks scaled to length 1")


def one_loud_row(W: Array, images: Array) -> Callable[[Any], Any]:
    """A checker of ten counts: how many images are called k with row k three times as loud."""

    def calls(factors: ArrayLike) -> NDArray:
        """How many images are called by each digit's name, its rows multiplied by factors."""
        return np.bincount(
            (images @ (np.reshape(factors, (-1, 1)) * W).T).argmax(1), minlength=len(W)
        )

    def one_at_a_time(factor: float) -> list[int]:
        return [calls(1 + (factor - 1) * row)[k] for k, row in enumerate(np.eye(len(W)))]

    @checker
    def check(answer: Any) -> None:
        called = np.asarray(answer)
        expect(called.shape == (len(W),), f"give {len(W)} numbers, got shape {called.shape}")
        unmoved = np.array_equal(called, calls(np.ones(len(W))))
        expect(not unmoved, "those are the counts with no row louder than another")
        expect(not np.array_equal(called, one_at_a_time(2)), "three times as loud, not twice")
        piled = [calls(3.0 ** (np.arange(len(W)) <= k))[k] for k in range(len(W))]
        expect(not np.array_equal(called, piled), "only one row at a time is to be louder")
        right = np.array_equal(called, one_at_a_time(3))
        expect(right, "entry k counts the images whose largest score is row k's, that row tripled")

    return check


@checker
def shapes(answer: Any) -> None:
    """The shapes of m for W (3072, 768): per_output, per_input, blocks of 64 rows."""
    answer = ask(lambda: tuple(answer))
    expect(len(answer) == 3, "give three shapes: per_output, per_input, blocks")
    tuples = all(isinstance(shape, tuple) for shape in answer)
    expect(tuples, "a shape is a tuple; with one entry it needs a comma, as in (5,)")
    expect(answer[:2] != ((768,), (3072,)), "the other way round: W is (d_out, d_in)")
    expect(answer[:2] == ((3072,), (768,)), "per axis: one number for each weight vector")
    expect(answer[2] == (48,), "one number for each block of 64 of the 3,072 rows")

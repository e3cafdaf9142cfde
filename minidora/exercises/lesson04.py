"""Checkers of lesson 04, gradients."""

from typing import Any

import numpy as np

from ..dora import dora_backward, dora_forward
from . import ask, checker, expect, same


@checker
def dm_and_dB(answer: Any) -> None:
    """A function (G, V, A, m, scale) -> (dm, dB)."""
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((4, 6), (2, 6), (4, 2)))
    m, G = rng.normal(size=4), rng.normal(size=(4, 6))
    # With x = I the gradient of W is dy.T
    _, cache = dora_forward(np.eye(6), W0, A, B, m, 0.7)
    right, detached = (
        dora_backward(G.T.copy(), cache, norm_grad=norm_grad) for norm_grad in ("exact", "detached")
    )
    result = ask(answer, G, W0 + 0.7 * B @ A, A, m, 0.7)
    expect(isinstance(result, tuple) and len(result) == 2, "return two arrays, dm and dB")
    dm, dB = result
    expect(np.shape(dm) != (4, 1), "dm has shape (4, 1); it should be like m, (4,)")
    same(dm, right.dm, "dm is not the part of G along the unit rows of V")
    expect(not np.allclose(np.multiply(dB, 0.7), right.dB), "the scale is missing in dB")
    closed = np.allclose(dB, detached.dB)
    expect(not closed, "dB is Eq. 11's: the road through the norm is missing")
    same(dB, right.dB, "dB is not scale * dV @ A.T with the dV of Eq. 6")


@checker
def wrong_terms(answer: Any) -> None:
    """The wrong terms of the three broken backward passes."""
    answer = ask(lambda: tuple(answer))
    names = ("scale in dA", "projection in dV", "1 / c in dm", "m / c in dV", "W in dx")
    right = ("projection in dV", "1 / c in dm", "W in dx")
    expect(len(answer) == 3, "give three names")
    expect(all(name in names for name in answer), f"choose among {names}")
    off = [f"broken_{i + 1}" for i in range(3) if answer[i] != right[i]]
    expect(not off, f"{', '.join(off)}: compare its gradients one by one with the right ones")

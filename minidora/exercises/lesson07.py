"""Checkers of lesson 07, an MLP that fine-tunes."""

from typing import Any

import numpy as np

from .. import nn
from . import ask, checker, expect


@checker
def count_trained(answer: Any) -> None:
    """A function (d_out, d_in, rank, method) -> how many numbers train in one layer."""
    rng = np.random.default_rng(0)
    base = nn.Linear.init(64, 128, rng)
    for method in ("full", "lora", "dora", "magnitude"):
        model = nn.adapt(base, method, rank=3, rng=rng)
        right = sum(a.size for a in nn.trained(model).values())
        got = ask(answer, 128, 64, 3, method)
        biased = abs(got - right) == 128
        hint = " (mind the bias, which only full fine-tuning trains)" if biased else ""
        expect(got == right, f"{method!r} trains {right} numbers, you say {got}{hint}")


@checker
def half_strength(answer: Any) -> None:
    """A function (base, adapted) -> the layer half way from the base to the adapted one."""
    rng = np.random.default_rng(1)
    base = nn.Linear.init(6, 4, rng)
    adapted: Any = nn.adapt(base, "dora", rank=2, rng=rng)
    for array in nn.trained(adapted).values():
        array += 0.5
    x = rng.normal(size=(5, 6)).astype(np.float32)
    got = ask(answer, base, adapted)
    expect(hasattr(got, "forward"), "return a layer")
    (low, _), (high, _), (y, _) = (layer.forward(x) for layer in (base, adapted, got))
    full: Any = nn.set_strength(adapted, 1.0)
    expect(
        np.allclose(high, full.forward(x)[0], atol=1e-5),
        "the layer passed in has changed; make a new one",
    )
    expect(not np.allclose(y, high, atol=1e-5), "that is the adapted layer at full strength")
    expect(np.allclose(y, (low + high) / 2, atol=1e-5), "its output should be the mean of the two")

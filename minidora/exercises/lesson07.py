"""Checkers of lesson 07, an MLP that fine-tunes."""

from typing import Any

import numpy as np

from .. import nn, training
from ..analysis import changes
from ..training import data
from . import ask, checker, expect


@checker
def count_trained(answer: Any) -> None:
    """A function (d_out, d_in, rank, method) -> how many numbers train in one layer."""
    rng = np.random.default_rng(0)
    for d_out, d_in, rank in ((128, 64, 3), (5, 90, 2), (30, 30, 8)):
        base = nn.Linear.init(d_in, d_out, rng)
        for method in ("full", "lora", "dora", "magnitude"):
            model = nn.adapt(base, method, rank=rank, rng=rng)
            right = sum(a.size for a in nn.trained(model).values())
            got = ask(answer, d_out, d_in, rank, method)
            biased = abs(got - right) == d_out
            hint = " (mind the bias, which only full fine-tuning trains)" if biased else ""
            shape = f"({d_out}, {d_in}) at rank {rank}"
            expect(got == right, f"{method!r} trains {right} numbers of {shape}, not {got}{hint}")


@checker
def half_strength(answer: Any) -> None:
    """A function (base, adapted) -> the layer half way from the base to the adapted one."""
    rng = np.random.default_rng(1)
    base = nn.Linear.init(6, 4, rng)
    adapted: Any = nn.adapt(base, "dora", rank=2, rng=rng)
    for array in nn.trained(adapted).values():
        array += 0.5
    x = rng.normal(size=(5, 6)).astype(np.float32)
    before = [layer.forward(x)[0].copy() for layer in (base, adapted)]
    got = ask(answer, base, adapted)
    expect(hasattr(got, "forward"), "return a layer")
    for name, layer, y in zip(("base", "adapted"), (base, adapted), before, strict=True):
        expect(
            np.array_equal(layer.forward(x)[0], y),
            f"{name}, which was passed in, has changed; make a new layer",
        )
    y, (low, high) = got.forward(x)[0], before
    expect(not np.allclose(y, high, atol=1e-5), "that is the adapted layer at full strength")
    expect(np.allclose(y, (low + high) / 2, atol=1e-5), "its output should be the mean of the two")


@checker
def directions_alone(answer: Any) -> None:
    """A function (base, seed) -> a trained network whose rows turned and kept their norms."""
    digits, turned = data.digits(), data.digits("rotated", angle=90)
    rng = np.random.default_rng(20)
    base: Any = nn.MLP.init((64, 128, 10), rng)
    batches = data.batches((digits.x, digits.y), 64, rng)
    training.fit(base, nn.classification, batches, steps=300, rate=3e-3, progress=False)
    model = ask(answer, base, 20)
    expect(hasattr(model, "layers"), "return the trained network")
    expect(not any(layer.weight.flags.writeable for layer in base.layers), "adapt the base")
    merged: Any = nn.merge(model)
    pairs = zip(base.layers, merged.layers, strict=True)
    moved = [changes(before.weight, after.weight, "per_output") for before, after in pairs]
    expect(all(c.dD > 1e-3 for c in moved), "the directions are those of the base; train them")
    kept = all(np.allclose(c.growth, 0, atol=1e-3 * c.before.mean()) for c in moved)
    expect(kept, "the norms of the rows have changed; m is not to train")
    reads = (model.forward(turned.x_test)[0].argmax(1) == turned.y_test).mean()
    expect(reads > 0.5, f"it reads {reads:.0%} of the turned digits; train longer or faster")

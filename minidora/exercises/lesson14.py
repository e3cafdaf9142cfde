"""Checkers of lesson 14, a real pretrained network."""

from typing import Any

import numpy as np

from .. import nn
from ..experiments.minilm import judge
from ..nn.linear import DoRALinear
from . import checker, expect

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)


@checker
def best_strength(answer: Any, model: Any, part: tuple) -> None:
    """The strength among STRENGTHS that gives the least loss on part of the data."""
    expect(answer in STRENGTHS, f"expected one of {STRENGTHS}, got {answer!r}")
    scaled: list[Any] = [nn.set_strength(model, t) for t in STRENGTHS]
    losses = [judge(each, part)["loss"] for each in scaled]
    least = STRENGTHS[int(np.argmin(losses))]
    gap = losses[STRENGTHS.index(answer)] - min(losses)
    expect(answer == least, f"at {answer} the loss is {gap:.4f} above the least")


@checker
def magnitude_alone(answer: Any, base: Any) -> None:
    """A tuned model of which m, in every q and v, and the head trained, and nothing else."""
    expect(isinstance(answer, nn.SentenceClassifier), "give the tuned model")
    layers = {p: la for p, la in nn.walk(answer) if isinstance(la, DoRALinear)}
    expect(bool(layers), "no layer has a magnitude; adapt with method 'magnitude'")
    names = sorted({path.rpartition(".")[2] for path in layers})
    expect(names == ["q", "v"], f"adapt q and v; yours are {names}")
    extra = sorted(name for name in nn.trained(answer) if not name.endswith(".m"))
    expect(
        extra == ["head.bias", "head.weight"],
        f"beside m only the head trains; yours trains {len(extra)} more, such as {extra[:3]}",
    )
    plain = nn.parameters(base)
    moved = max(
        float(np.abs(la.m - np.linalg.norm(plain[f"{path}.weight"], axis=1)).max())
        for path, la in layers.items()
    )
    expect(moved > 1e-3, "m is where it started; train the model")

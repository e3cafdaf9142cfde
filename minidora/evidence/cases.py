"""Awkward arguments for the layers, where the bugs of a gradient cannot hide.

Not square, B not zero, m not the norm, scale not 1, bias, both axes, and then the edges: ranks
above both dimensions, no rows, single vectors, zero vectors, a large eps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import granularity
from ..decomposition import norms

Array = NDArray[Any]  # most of them floating, some tokens or padding


@dataclass(frozen=True)
class Case:
    """One awkward set of arguments: `forward(**inputs, **settings)`, and the cotangent dy."""

    name: str
    inputs: dict[str, Array]
    settings: dict[str, Any]
    dy: Array
    smooth: bool = True  # False where the function bends within a central difference's step
    frozen: tuple[str, ...] = ("W0",)  # inputs that have no gradient
    vanishing: tuple[str, ...] = ()  # gradients that are zero but for rounding

    @property
    def trained(self) -> dict[str, Array]:
        """The inputs that have a gradient."""
        return {name: a for name, a in self.inputs.items() if name not in self.frozen}

    def astype(self, dtype: DTypeLike) -> "Case":
        """The same case with every array rounded to `dtype`."""

        def cast(value):
            if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
                return value.astype(dtype)
            return value

        settings = {name: cast(value) for name, value in self.settings.items()}
        inputs = {name: cast(a) for name, a in self.inputs.items()}
        return replace(self, inputs=inputs, settings=settings, dy=cast(self.dy))


SHAPES = [
    # name, leading dimensions of x, d_out, d_in, rank, scale, bias, mask
    ("plain", (5,), 6, 9, 2, 0.7, True, False),
    ("masked, two leading dimensions", (2, 3), 9, 4, 3, -1.3, True, True),
    ("rank above both dimensions", (4,), 3, 4, 6, 0.5, False, False),
    ("a single vector", (), 5, 7, 1, 2.0, True, True),
    ("one output", (3,), 1, 6, 2, 0.9, True, False),
    ("one input", (3,), 6, 1, 1, 1.1, False, True),
    ("no rows of x", (0,), 4, 5, 2, 0.8, True, False),
    ("scale 0", (4,), 5, 6, 2, 0.0, True, True),
]


def lora_cases(rng: np.random.Generator, _: None = None) -> Iterator[Case]:
    """Cases for y = x @ (W0 + scale * B @ A).T + bias."""
    for name, lead, d_out, d_in, rank, scale, has_bias, masked in SHAPES:
        inputs = {
            "x": rng.normal(size=(*lead, d_in)),
            "W0": rng.normal(size=(d_out, d_in)),
            "A": rng.normal(size=(rank, d_in)),
            "B": rng.normal(size=(d_out, rank)),
        }
        if has_bias:
            inputs["bias"] = rng.normal(size=d_out)
        settings: dict[str, Any] = {"scale": scale}
        if masked:
            settings["mask"] = (rng.random((*lead, d_in)) < 0.7) / 0.7
        yield Case(name, inputs, settings, rng.normal(size=(*lead, d_out)))


def dora_cases(rng: np.random.Generator, norm_axis: str) -> Iterator[Case]:
    """The same with a magnitude that is not the norm, partly negative or zero, and odd vectors."""

    def magnitude(W0):
        m = rng.normal(size=norms(W0, norm_axis).shape)
        m[len(m) // 2 :: 5] = 0.0
        return m

    def with_m(case, m, name=None, smooth=True, **settings):
        settings = {**case.settings, "norm_axis": norm_axis, **settings}
        inputs = {**case.inputs, "m": m}
        return Case(name or case.name, inputs, settings, case.dy, smooth)

    cases = list(lora_cases(rng))
    for case in cases:
        # A vector of one entry has no direction to change: exact dA and dB are zero but for eps
        length = case.inputs["W0"].shape[1 if norm_axis == "per_output" else 0]
        eps = {"eps": 0.8} if length == 1 else {}
        yield with_m(case, magnitude(case.inputs["W0"]), **eps)
    plain = cases[0]
    yield with_m(plain, magnitude(plain.inputs["W0"]), "a large eps", eps=0.8)
    W0, A, B = (plain.inputs[name] for name in ("W0", "A", "B"))
    start = Case("at init", {**plain.inputs, "B": 0 * B}, plain.settings, plain.dy)
    yield with_m(start, norms(W0, norm_axis))
    dead = {"W0": W0.copy(), "A": A.copy(), "B": B.copy()}
    index = (2, slice(None)) if norm_axis == "per_output" else (slice(None), 2)
    dead["W0"][index] = 0
    dead["B" if norm_axis == "per_output" else "A"][index] = 0
    zero = Case("a zero vector", {**plain.inputs, **dead}, plain.settings, plain.dy)
    yield with_m(zero, norms(dead["W0"], norm_axis), smooth=False)


AT_NORMS = ("at init", "a zero vector")
"""Cases whose magnitudes are the norms."""

GROUPINGS = ("per_output", "per_input", "rows", "columns", "whole")
"""What shares a magnitude; "rows" and "columns" in blocks of the least number that divides."""


def grouped_cases(rng: np.random.Generator, kind: str) -> Iterator[Case]:
    """The cases of `dora_cases`, with an m for each group."""
    norm_axis = "per_input" if kind in ("per_input", "columns") else "per_output"
    for case in dora_cases(rng, norm_axis):
        W0 = case.inputs["W0"]
        count = W0.shape[0 if norm_axis == "per_output" else 1]
        block = next((k for k in range(2, count + 1) if count % k == 0), 1)
        groups = (kind, block) if kind in ("rows", "columns") else kind
        settings = {**case.settings, "groups": groups}
        del settings["norm_axis"]
        m = granularity.norms(W0, groups)
        if case.name not in AT_NORMS:
            m = rng.normal(size=m.shape) * (np.arange(len(m)) % 5 != 1)  # some zero
        yield replace(case, inputs={**case.inputs, "m": m}, settings=settings)


def factored_groups(rng: np.random.Generator, kind: str) -> Iterator[Case]:
    """The same for the fast layer, which is told its axis too; "whole" goes with either."""
    kind, _, axis = kind.partition(" ")
    for case in grouped_cases(rng, kind):
        norm_axis = axis or ("per_input" if kind in ("per_input", "columns") else "per_output")
        yield replace(case, settings={**case.settings, "norm_axis": norm_axis})


def bora_cases(rng: np.random.Generator, _: None = None) -> Iterator[Case]:
    """The same with magnitudes for both axes; a vector of one entry gets a large eps."""
    for case in dora_cases(rng, "per_output"):
        W0 = case.inputs["W0"]
        inputs = {name: a for name, a in case.inputs.items() if name != "m"}
        settings = dict(case.settings)
        del settings["norm_axis"]
        if 1 in W0.shape:
            settings["eps"] = 0.8
        inputs["m_in"], inputs["m_out"] = (norms(W0, axis) for axis in ("per_input", "per_output"))
        if case.name not in AT_NORMS:
            inputs["m_in"] = inputs["m_in"] * (1 + rng.random(W0.shape[1]))
            inputs["m_out"] = rng.normal(size=len(W0))
        yield replace(case, inputs=inputs, settings=settings)

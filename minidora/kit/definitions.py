"""What the kit's cases are: their inputs and what each is for. `generate` adds what they give.

Most inputs are multiples of 1/32 of at most 8 binary digits, the same number in
bfloat16, float16, float32 and float64, so that one set of expected values serves every dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import draw, linear, mask

Inputs = dict[str, NDArray]
Tolerances = dict[str, float | None]  # None: finite is enough

AXES = ("per_output", "per_input")
WIDE = ("float64", "float32")
DTYPES = (*WIDE, "bfloat16", "float16")
TOLERANCES: Tolerances = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}
"""Relative, in the max-norm: some hundred thousand roundings in float64, some 4 to 100 below."""


@dataclass
class Definition:
    """One case before its expected values."""

    name: str
    clauses: tuple[str, ...]
    level: str  # must, should, may
    flags: tuple[str, ...]  # the known bugs it catches
    requires: dict[str, str]  # the alternatives it is for
    scale: float | None
    inputs: Inputs
    kind: str = "linear"
    gives: tuple[str, ...] = ("forward", "merge", "backward")
    settings: dict = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    tolerances: Tolerances = field(default_factory=lambda: TOLERANCES)
    wrong: bool = False  # whether wrong answers are stored beside the right ones


FORWARD = ("F1", "D1", "D2", "D3", "D4", "B1", "M1")
BACKWARD = ("G1", "G2", "G3", "G4", "G5")


def definitions() -> list[Definition]:
    """Every case, in the order of the report."""
    cases = []
    for axis in AXES:
        cases += (
            plain(axis)
            + special(axis)
            + cancelling(axis)
            + masked(axis)
            + zero_vectors(axis)
            + steps(axis)
        )
        cases += optional(axis)
    return cases + scalings() + embeddings() + convolutions() + long_rows()


def case_of(
    axis: str,
    name: str,
    clauses: tuple[str, ...],
    flags: tuple[str, ...],
    *,
    scale: float | None = 0.75,
    level: str = "must",
    shape: dict[str, Any] | None = None,
    change: Callable[[Inputs], Inputs] | None = None,
    **options: Any,
) -> Definition:
    """One linear case; `change` makes new values of some inputs out of all."""
    name = f"{name}.{axis}"
    inputs = linear(name, axis=axis, **(shape or {}))
    inputs.update(change(inputs) if change else {})
    return Definition(name, clauses, level, flags, {"norm_axis": axis}, scale, inputs, **options)


def plain(axis: str) -> list[Definition]:
    """Shapes and scales."""
    case = partial(case_of, axis)
    common = ("norm-of-W0", "bias-scaled", "scale-in-norm", "norm-gradient")
    shaped = ("norm-axis", "transposed-weight")
    both = FORWARD + BACKWARD
    wide, tall = {"d_out": 3, "d_in": 8}, {"d_out": 7, "d_in": 3, "rank": 1}
    return [
        case("plain", both, common, wrong=True),
        case("square", both, shaped, scale=1.5, shape={"d_out": 4, "d_in": 4}, wrong=True),
        case("wide", (*both, "S1"), (*shaped, "norm-gradient"), scale=-1.25, shape=wide),
        case("tall", both, (*shaped, "scale-in-norm"), scale=0.5, shape=tall),
        case("large_scale", ("D1", "D3", "G3"), ("scale-in-norm",), scale=4.0, dtypes=WIDE),
        case("high_rank", FORWARD, shaped, scale=0.25, shape={"d_out": 4, "d_in": 4, "rank": 6}),
        case("no_bias", both, (), scale=1.25, shape={"bias": False, "d_out": 5}),
        case("two_leading", ("F1", "G5", "G6"), (), shape={"lead": (2, 3)}),
        case("one_vector", ("F2",), (), scale=-0.5, level="should", shape={"lead": ()}),
        case("no_rows", ("F2",), (), level="should", shape={"lead": (0,)}),
    ]


def special(axis: str) -> list[Definition]:
    """Values where bugs hide or show: B = 0, m of any sign, one entry."""
    case = partial(case_of, axis)

    def start(inputs):
        W0 = np.array([[2, 3, 6], [1, 4, 8], [4, 4, 7], [2, 6, 9], [6, 6, 7]]) / 4.0
        norms = np.array([7, 9, 9, 11, 11]) / 4.0  # whole multiples of 1/4: exact in every dtype
        W0 = W0 if axis == "per_output" else W0.T
        return {"W0": W0, "m": norms, "B": 0 * inputs["B"]}

    def signs(inputs):
        m = inputs["m"].copy()
        m[0], m[-1] = 0.0, -m[-1]
        return {"m": m}

    of_start = {"d_out": 5, "d_in": 3} if axis == "per_output" else {"d_out": 3, "d_in": 5}
    single = {"d_in": 1, "rank": 1} if axis == "per_output" else {"d_out": 1, "rank": 1}
    init: dict[str, Any] = {
        "shape": of_start,
        "change": start,
        "gives": ("init", "forward", "merge", "backward"),
    }
    larger = ("bias-scaled", "magnitude-not-trained")
    return [
        case("b_zero", ("G2", "G3"), ("norm-gradient",), change=lambda p: {"B": 0 * p["B"]}),
        case("at_init", ("I1",), ("norm-axis", "magnitude-not-trained"), **init),
        case("m_signs", ("D4", "G1"), ("dm-over-m",), change=signs, wrong=axis == AXES[0]),
        case("m_large", ("D4", "G1"), larger, change=lambda p: {"m": p["m"] + 4}),
        case("scale_zero", ("S1", "D4"), ("strength",), scale=0.0),
        case("one_entry", ("G2",), ("norm-gradient",), shape=single, dtypes=WIDE),
    ]


def cancelling(axis: str) -> list[Definition]:
    """A V that nearly cancels W0, and one that leaves hardly anything."""
    case = partial(case_of, axis)

    def nearly(inputs):
        # rank one: W0 = -scale B A but for one entry of each vector
        W0 = -0.5 * inputs["B"] @ inputs["A"]
        flat = W0 if axis == "per_output" else W0.T
        flat[np.arange(len(flat)), np.arange(len(flat)) % flat.shape[1]] += 0.125
        return {"W0": W0}

    def cancelled(inputs):
        # V is 2^-30 in one entry of each vector and 0 elsewhere
        index = (slice(None), 1) if axis == "per_output" else (1, slice(None))
        inputs["A" if axis == "per_output" else "B"][index] = 0
        W0 = -0.5 * inputs["B"] @ inputs["A"]
        W0[index] = 2.0**-30
        return {"W0": W0}

    shared: dict[str, Any] = {"scale": 0.5, "shape": {"rank": 1}, "dtypes": WIDE}
    loose, finite = {"float64": 1e-8, "float32": 1e-3}, {"float64": None, "float32": None}
    close: dict[str, Any] = {"change": nearly, "tolerances": loose, "level": "should"}
    return [
        case("cancels", ("D6",), ("cancellation",), change=cancelled, tolerances=finite, **shared),
        case("nearly_cancels", ("D5",), ("cancellation",), **close, **shared),
    ]


def masked(axis: str) -> list[Definition]:
    """Dropout by an explicit mask, in both of its alternatives."""
    cases = []
    for dropout in ("both", "low_rank"):
        for name, shape in (("dropout", {"lead": (4,)}), ("dropout_leading", {"lead": (2, 2)})):
            full = f"{name}.{dropout}.{axis}"
            inputs = linear(full, d_out=5, d_in=4, axis=axis, **shape)
            inputs["mask"] = mask(full, inputs["x"].shape)
            requires = {"norm_axis": axis, "dropout": dropout}
            fields = ("must", ("dropout-terms",), requires, 1.5, inputs)
            cases.append(
                Definition(full, ("P1", "P2"), *fields, wrong=name == "dropout" and axis == AXES[0])
            )
    return cases


def zero_vectors(axis: str) -> list[Definition]:
    """A zero vector of W0 that has moved, and one that has not."""

    def zeroed(name, both):
        inputs = linear(f"{name}.{axis}", axis=axis)  # unit and dead have the same
        index = (1, slice(None)) if axis == "per_output" else (slice(None), 1)
        inputs["W0"][index] = 0
        if both:
            inputs["B" if axis == "per_output" else "A"][index] = 0
            del inputs["m"]  # the implementation's own init_magnitude(W0)
        return inputs

    name, flags = f"zero_moved.{axis}", ("zero-vector-nan",)
    fields = ("must", flags, {"norm_axis": axis}, 0.75, zeroed("zero_moved", False))
    moved = Definition(name, ("Z1",), *fields)
    still = []
    for zero in ("unit", "dead"):
        name, requires = f"zero_still.{zero}.{axis}", {"norm_axis": axis, "zero_vector": zero}
        inputs = zeroed("zero_still", True)
        fields = ("must", flags, requires, 0.75, inputs)
        bounds = TOLERANCES | {"float64": 1e-6}  # m is the implementation's own, perhaps float32
        still.append(Definition(name, ("Z2", "Z3"), *fields, tolerances=bounds))
    return [moved, *still]


def steps(axis: str) -> list[Definition]:
    """Two steps of an optimizer down 1/2 sum((y - target)²)."""
    adamw = {"name": "adamw", "rate": 0.03125, "betas": [0.9, 0.999], "eps": 1e-8}
    cases = []
    for optimizer in ({"name": "sgd", "rate": 0.0078125}, {**adamw, "weight_decay": 0.0625}):
        name = f"steps_{optimizer['name']}.{axis}"
        inputs = linear(name, axis=axis)
        inputs["target"] = inputs.pop("dy")
        flags = ("magnitude-not-trained", "stale-norm")
        fields = ("must", flags, {"norm_axis": axis}, 0.75, inputs)
        given: dict[str, Any] = {"gives": ("steps",), "settings": {"optimizer": optimizer}}
        given |= {"dtypes": WIDE, "tolerances": {"float64": 1e-9, "float32": 1e-4}}
        cases.append(Definition(name, ("T1", "T2"), *fields, **given))
    return cases


def optional(axis: str) -> list[Definition]:
    """Transposed storage, and a strength between the base and the adapted layer."""
    name = f"transposed.{axis}"
    requires = {"norm_axis": axis, "layout": "in_out"}
    inputs = linear(name, d_out=3, d_in=5, axis=axis)
    inputs["W0"] = np.ascontiguousarray(inputs["W0"].T)
    cases = [Definition(name, ("L1",), "may", ("transposed-weight",), requires, 0.75, inputs)]
    for strength in (0.0, 0.5):
        name = f"strength_{'zero' if strength == 0 else 'half'}.{axis}"
        requires = {"norm_axis": axis, "strength": "interpolated"}
        fields = ("may", ("strength",), requires, 0.75, linear(name, axis=axis))
        cases.append(Definition(name, ("S3",), *fields, settings={"strength": strength}))
    return cases


def scalings() -> list[Definition]:
    """alpha and r instead of the scale."""
    cases = []
    for scaling in ("alpha_over_r", "alpha_over_sqrt_r"):
        requires = {"norm_axis": "per_output", "scaling": scaling}
        inputs = linear(scaling, rank=3)  # no other size is 3
        fields = ("must", ("scale-in-norm",), requires, None, inputs)
        options: dict[str, Any] = {"settings": {"alpha": 7.0}, "wrong": scaling == "alpha_over_r"}
        cases.append(Definition(scaling, ("S2",), *fields, **options))
    return cases


def embeddings() -> list[Definition]:
    """A table W0 (vocabulary, dimensions) whose rows are looked up."""
    cases = []
    for embedding, size in (("per_dimension", 4), ("per_token", 6)):
        name = f"embedding.{embedding}"
        inputs = {
            "tokens": np.array([[5, 0, 2], [2, 2, 1]]),
            "W0": draw(name, "W0", (6, 4)),
            "A": draw(name, "A", (2, 6)),
            "B": draw(name, "B", (4, 2)),
            "m": draw(name, "m", (size,), 16, 112),
            "dy": draw(name, "dy", (2, 3, 4)),
        }
        fields = ("may", ("norm-axis",), {"embedding": embedding}, 1.5, inputs)
        cases.append(Definition(name, ("E1", "E2"), *fields, kind="embedding"))
    return cases


def convolutions() -> list[Definition]:
    """Images (n, channels, height, width) through a kernel W0 (d_out, d_in, kh, kw)."""
    cases = []
    for name, stride, padding, kernel in (("plain", 1, 0, (2, 3)), ("strided", 2, 1, (3, 3))):
        name = f"convolution.{name}"
        height, width = ((4 + 2 * padding - k) // stride + 1 for k in kernel)
        inputs = {
            "x": draw(name, "x", (2, 2, 4, 4)),
            "W0": draw(name, "W0", (3, 2, *kernel)),
            "A": draw(name, "A", (2, 2, *kernel)),
            "B": draw(name, "B", (3, 2, 1, 1)),
            "m": draw(name, "m", (3,), 16, 112),
            "bias": draw(name, "bias", (3,)),
            "dy": draw(name, "dy", (2, 3, height, width)),
        }
        fields = ("may", (), {"convolution": "per_output"}, 0.75, inputs)
        settings = {"stride": stride, "padding": padding}
        cases.append(Definition(name, ("C1",), *fields, kind="convolution", settings=settings))
    return cases


def long_rows() -> list[Definition]:
    """Long vectors, whose squares a 16-bit sum cannot hold."""
    cases = []
    for name, axis, value, dtypes in (
        ("overflow", "per_output", 8.0, ("float16",)),  # 2048 × 64 is above 65504
        ("vanish", "per_output", 2.0**-13, ("float16",)),  # 2**-26 is below 2**-24
        ("stagnate", "per_output", 1.0, ("bfloat16",)),  # a sum of ones stops at 256
        ("overflow", "per_input", 8.0, ("float16",)),
    ):
        name = f"long_{name}.{axis}"
        length = 2048
        vectors = value * np.stack([np.ones(length), draw(name, "W0", (length,), 16, 48)])
        W0 = vectors if axis == "per_output" else vectors.T
        d_out, d_in = W0.shape
        x = np.zeros((1, d_in))
        x[:, :: max(1, d_in // 4)] = draw(name, "x", x[:, :: max(1, d_in // 4)].shape)
        near = value if value < 1 else 1.0  # the update is small beside W0, as it is in training
        inputs = {
            "x": x,
            "W0": W0,
            "A": draw(name, "A", (1, d_in), -4, 4) * (near if axis == "per_output" else 1),
            "B": draw(name, "B", (d_out, 1), -4, 4),
            "m": np.array([96 * value, 72 * value]),  # the norms are some 46 times value
        }
        bounds = TOLERANCES | {"float64": 1e-8}  # an eps may show beside so small a norm
        fields = ("must", ("low-precision-norm",), {"norm_axis": axis}, 0.5, inputs)
        given: dict[str, Any] = {"gives": ("forward", "merge"), "dtypes": (*WIDE, *dtypes)}
        cases.append(Definition(name, ("Q1",), *fields, tolerances=bounds, **given))
    return cases

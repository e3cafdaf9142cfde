"""What the kit's cases are: their inputs and what each is for. `generate` adds what they give."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .files import DTYPES, TOLERANCES, WIDE, KitCase
from .inputs import Inputs, draw, drawn, linear

Options = dict[str, Any]
AXES = ("per_output", "per_input")


def definitions() -> list[KitCase]:
    """Every case, in the order of the report."""
    families = (plain, special, cancelling, masked, zero_vectors, steps, optional)
    of_axes = [case for axis in AXES for family in families for case in family(axis)]
    return of_axes + scalings() + others() + long_rows()


def case_of(
    axis: str,
    name: str,
    clauses: str,
    flags: str = "",
    requires: dict[str, str] | None = None,
    *,
    scale: float | None = 0.75,
    level: str = "must",
    change: Callable[[Inputs], Inputs] | None = None,
    options: Options | None = None,
    **shape: Any,
) -> KitCase:
    """One linear case of a shape; `change` makes new values of some inputs out of all."""
    name = f"{name}.{axis}"
    inputs = linear(name, axis=axis, **shape)
    inputs.update(change(inputs) if change else {})
    choice = {"norm_axis": axis} | (requires or {})
    words = tuple(clauses.split()), level, tuple(flags.split())
    return KitCase(name, *words, choice, scale, inputs, **(options or {}))


NEW: Options = {"since": "1.1"}
FORWARD_ALONE = {"gives": ("forward", "merge"), **NEW}
FORWARD, BACKWARD = "F1 D1 D2 D3 D4 B1 M1", " G1 G2 G3 G4 G5"


def plain(axis: str) -> list[KitCase]:
    """Shapes and scales."""
    case, both = partial(case_of, axis), FORWARD + BACKWARD
    common = "norm-of-W0 bias-scaled scale-in-norm norm-gradient"
    shaped, scaled = "norm-axis transposed-weight", "norm-axis transposed-weight scale-in-norm"
    return [
        case("plain", both, common),
        case("square", f"{both} D7", shaped, scale=1.5, d_in=4),
        case("wide", f"{both} S1", f"{shaped} norm-gradient", scale=-1.25, d_out=3, d_in=8),
        case("tall", both, scaled, scale=0.5, d_out=7, d_in=3, rank=1),
        case("large_scale", "D1 D3 G3", "scale-in-norm", scale=4.0, options={"dtypes": WIDE}),
        case("high_rank", f"{FORWARD} D7", shaped, scale=0.25, d_in=4, rank=6),
        case("no_bias", both, scale=1.25, bias=False, d_out=5),
        case("two_leading", "F1 G5 G6", lead=(2, 3)),
        case("three_leading", "F1 G5 G6", lead=(2, 1, 3), options=NEW),
        case("one_vector", "F2", scale=-0.5, level="should", lead=()),
        case("no_rows", "F2", level="should", lead=(0,)),
    ]


def special(axis: str) -> list[KitCase]:
    """Values where bugs hide or show: B = 0, m of any sign, one entry, a tiny norm."""

    def start(inputs):
        W0 = np.array([[2, 3, 6], [1, 4, 8], [4, 4, 7], [2, 6, 9], [6, 6, 7]]) / 4.0
        norms = np.array([7, 9, 9, 11, 11]) / 4.0  # whole multiples of 1/4: exact in every dtype
        W0 = W0 if axis == "per_output" else W0.T
        return {"W0": W0, "m": norms, "B": 0 * inputs["B"]}

    def signs(inputs):
        m = inputs["m"].copy()
        m[0], m[-1] = 0.0, -m[-1]
        return {"m": m}

    case, by_rows = partial(case_of, axis), axis == "per_output"
    of_start: Options = {"d_out": 5, "d_in": 3} if by_rows else {"d_out": 3, "d_in": 5}
    single: Options = {"d_in": 1, "rank": 1} if by_rows else {"d_out": 1, "rank": 1}
    initial: Options = {"gives": ("init", "forward", "merge", "backward")}
    room = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 3e-2}  # for an eps of 1e-11
    tiny: Options = {"change": lambda p: {n: p[n] / 2**20 for n in ("W0", "B")}, "bias": False}
    tiny["options"] = {"dtypes": tuple(room), "tolerances": room, **NEW}
    larger, start_flags = "bias-scaled magnitude-not-trained", "norm-axis magnitude-not-trained"
    return [
        case("b_zero", "G2 G3", "norm-gradient", change=lambda p: {"B": 0 * p["B"]}),
        case("at_init", "I1 I2", start_flags, change=start, options=initial, **of_start),
        case("m_signs", "D4 G1", "dm-over-m", change=signs),
        case("m_large", "D4 G1", larger, change=lambda p: {"m": p["m"] + 4}),
        case("scale_zero", "S1 D4", "strength", scale=0.0),
        case("one_entry", "G2", "norm-gradient", options={"dtypes": WIDE}, **single),
        case("tiny_norm", "D3", "norm-clamped", **tiny),
    ]


def cancelling(axis: str) -> list[KitCase]:
    """A V that nearly cancels W0, and one that leaves hardly anything."""

    def nearly(inputs):  # W0 = -scale B A but for one entry of each vector
        W0 = -0.5 * inputs["B"] @ inputs["A"]
        flat = W0 if axis == "per_output" else W0.T
        flat[np.arange(len(flat)), np.arange(len(flat)) % flat.shape[1]] += 0.125
        return {"W0": W0}

    def closely(inputs):  # in numbers of 24 digits, V some 1e-3 of W0
        name = f"cancels_closely.{axis} digits"
        full = {n: 1 + draw(name, n, inputs[n].shape, 1, 2**23) / 2**18 for n in "AB"}
        full = {n: np.sign(inputs[n]) * full[n] for n in "AB"}
        W0 = -0.5 * full["B"] @ full["A"] + inputs["W0"] * 2.0**-11
        return full | {"W0": W0.astype(np.float32).astype(np.float64)}

    def cancelled(inputs, least=2.0**-30):  # what V is in one entry of each vector; else 0
        index = (slice(None), 1) if axis == "per_output" else (1, slice(None))
        inputs["A" if axis == "per_output" else "B"][index] = 0
        W0 = -0.5 * inputs["B"] @ inputs["A"]
        W0[index] = least
        return {"W0": W0}

    def shortly(inputs):  # in powers of 2, of which W0 is exact in 16 bits
        short = {n: np.sign(inputs[n]) * 2 ** np.rint(np.log2(abs(inputs[n]))) for n in "AB"}
        return short | cancelled(inputs | short, 2.0**-8)

    def case(name, clause, change, bounds, level="should", **options):
        tolerances = dict(zip(DTYPES, bounds, strict=False))
        options |= {"dtypes": tuple(tolerances), "tolerances": tolerances}
        rest: Options = {"level": level, "options": options}
        return case_of(axis, name, clause, "cancellation", scale=0.5, change=change, rank=1, **rest)

    return [
        case("cancels", "D6", cancelled, (None, None), "must"),
        case("cancels_16_bits", "D6", shortly, (None,) * 4, "must", **FORWARD_ALONE),
        case("nearly_cancels", "D5", nearly, (1e-8, 1e-3)),
        case("cancels_closely", "D5", closely, (3e-12, 2e-3), **NEW),
    ]


def masked(axis: str) -> list[KitCase]:
    """Dropout by an explicit mask of rate 1/5, inverted: 0 or 1.25, and surely both."""
    cases = []
    for dropout in ("both", "low_rank"):
        for stem, lead in (("dropout", (4,)), ("dropout_leading", (2, 2))):
            name, requires = f"{stem}.{dropout}", {"dropout": dropout}
            of_mask = draw(f"{name}.{axis}", "mask", (*lead, 4), 1, 100)
            mask = np.where(of_mask * 32 <= 30, 0.0, 1.25)
            mask.reshape(-1)[:2] = 0.0, 1.25
            rest: Options = {"scale": 1.5, "lead": lead, "d_out": 5, "d_in": 4}
            cases.append(case_of(axis, name, "P1 P2", "dropout-terms", requires, **rest))
            cases[-1].inputs["mask"] = mask
    return cases


def zero_vectors(axis: str) -> list[KitCase]:
    """A zero vector of W0 that has moved, and one that has not."""

    def case(name, clauses, zero, *requires, **options):
        made = case_of(axis, name, clauses, "zero-vector-nan", *requires, options=options)
        made.inputs = linear(f"{name.partition('.')[0]}.{axis}", axis=axis)  # unit's and dead's
        for array in zero:
            made.inputs[array][(1, slice(None)) if axis == "per_output" else (slice(None), 1)] = 0
        return made

    cases, update = [case("zero_moved", "Z1", ["W0"])], "B" if axis == "per_output" else "A"
    bounds = TOLERANCES | {"float64": 1e-6}  # m is the implementation's own, perhaps a float32
    for zero in ("unit", "dead"):
        words = f"zero_still.{zero}", "Z2 Z3", ["W0", update], {"zero_vector": zero}
        cases.append(case(*words, tolerances=bounds))
        del cases[-1].inputs["m"]
    return cases


def steps(axis: str) -> list[KitCase]:
    """Two steps of an optimizer down 1/2 sum((y - target)²)."""
    adamw = {"name": "adamw", "rate": 0.03125, "betas": [0.9, 0.999], "eps": 1e-8}
    wide = {"float64": 1e-9, "float32": 1e-4}
    cases = []
    for name, optimizer, bounds in (
        ("steps_sgd", {"name": "sgd", "rate": 0.0078125}, wide),
        ("steps_adamw", adamw | {"weight_decay": 0.0625}, wide),
        ("steps_16_bits", {"name": "sgd", "rate": 0.03125}, {**TOLERANCES, **wide}),
    ):
        options: Options = {"gives": ("steps",), "settings": {"optimizer": optimizer}}
        options |= {"dtypes": tuple(bounds), "tolerances": bounds}
        options |= NEW if name == "steps_16_bits" else {}
        flags = "magnitude-not-trained stale-norm"
        cases.append(case_of(axis, name, "T1 T2", flags, options=options))
        cases[-1].inputs["target"] = cases[-1].inputs.pop("dy")
    return cases


def optional(axis: str) -> list[KitCase]:
    """What an implementation may have beside the plain layer."""

    def case(name, clause, flag, key, value, options=NEW, **rest):
        rest |= {"level": "may", "options": options}
        return case_of(axis, name, clause, flag, {key: value}, **rest)

    def strength(name, t, **since):
        options = {"settings": {"strength": t}, **since}
        return case(f"strength_{name}", "S3", "strength", "strength", "interpolated", options)

    def two(how):
        made = case(f"adapters.{how}", "A1", "stale-norm", "adapters", how, FORWARD_ALONE)
        more = drawn(f"{made.name} 2", A=(2, 5), B=(4, 2), m=made.inputs["m"].shape)
        made.inputs |= {f"{name}2": array for name, array in more.items()}
        return made

    layout = ("transposed", "L1", "transposed-weight", "layout", "in_out")
    begun = NEW | {"gives": ("init", "forward", "merge")}
    of_V = case("nonzero_start", "I3", "magnitude-not-trained", "init", "norm_of_V", begun)
    del of_V.inputs["m"]
    off = case("disabled", "S4", "strength", "disabling", "base", NEW | {"gives": ("forward",)})
    more = [strength("two", 2.0, **NEW), strength("below_zero", -0.5, **NEW), off, of_V]
    more += [two("in_turn"), two("summed")]
    ranks: Options = {"options": {"settings": {"ranks": 2}, **NEW}, "d_out": 6, "d_in": 4}
    for side in ("d_in", "d_out"):
        more.append(case(f"sharded.{side}", "R1", "norm-axis", "shards", side, **ranks))
    turned = case(*layout, {}, change=lambda p: {"W0": np.ascontiguousarray(p["W0"].T)}, d_out=3)
    return [turned, strength("zero", 0.0), strength("half", 0.5), *more]


def scalings() -> list[KitCase]:
    """alpha and r instead of the scale."""
    cases = []
    for scaling in ("alpha_over_r", "alpha_over_sqrt_r"):
        requires = {"norm_axis": "per_output", "scaling": scaling}
        inputs = linear(scaling, rank=3)  # no other size is 3
        words = ("S2",), "must", ("scale-in-norm",)
        cases.append(KitCase(scaling, *words, requires, None, inputs, settings={"alpha": 7.0}))
    return cases


OTHERS = """
embedding per_dimension | E1 E2 | norm-axis | W0 6 4, A 2 6, B 4 2, m 4, dy 2 3 4
embedding per_token | E1 E2 | norm-axis | W0 6 4, A 2 6, B 4 2, m 6, dy 2 3 4
convolution plain | C1 | | x 2 2 4 4, W0 3 2 2 3, A 2 2 2 3, B 3 2 1 1, m 3, bias 3, dy 2 3 3 2
convolution strided | C1 | | x 2 2 4 4, W0 3 2 3 3, A 2 2 3 3, B 3 2 1 1, m 3, bias 3, dy 2 3 2 2
packed slices | K1 | scale-in-norm | x 3 5, W0 8 5, A 6 5, B 8 2, m 8, bias 8, dy 3 8
experts per_output | X1 | norm-axis | x 3 2 5, W0 3 4 5, A 3 2 5, B 3 4 2, m 3 4, dy 3 2 4
"""


def others() -> list[KitCase]:
    """Tables that are looked up, one row of them three times; images; slices; experts."""
    settings: Options = {"plain": {"stride": 1, "padding": 0}}
    settings |= {"strided": {"stride": 2, "padding": 1}, "slices": {"slices": [4, 2, 2]}}
    cases = []
    for row in OTHERS.strip().splitlines():
        name, clauses, flags, shapes = (cell.strip() for cell in row.split("|"))
        choice, what = name.split()
        name = f"{choice}.{what}"
        sizes = {array: map(int, size) for array, *size in map(str.split, shapes.split(","))}
        inputs = drawn(name, **{array: tuple(size) for array, size in sizes.items()})
        requires = {choice: "per_output" if choice == "convolution" else what}
        requires |= {"norm_axis": "per_output"} if choice == "packed" else {}
        if choice == "embedding":
            inputs["tokens"] = np.array([[5, 0, 2], [2, 2, 1]])
        words = tuple(clauses.split()), "may", tuple(flags.split()), requires
        rest: Options = dict(NEW) if clauses in ("K1", "X1") else {}
        rest |= {"kind": "linear" if choice == "packed" else choice}
        rest |= {"settings": settings.get(what, {})}
        cases.append(KitCase(name, *words, 1.5 if choice == "embedding" else 0.75, inputs, **rest))
    return cases


def long_rows() -> list[KitCase]:
    """Long vectors, whose squares a 16-bit sum cannot hold."""
    cases = []
    for name, axis, value, dtypes in (
        ("overflow", "per_output", 8.0, ("float16",)),  # 2048 × 64 is above 65504
        ("vanish", "per_output", 2.0**-13, ("float16",)),  # 2**-26 is below 2**-24
        ("stagnate", "per_output", 1.0, ("bfloat16",)),  # a sum of ones stops at 256
        ("overflow", "per_input", 8.0, ("float16",)),
    ):
        name, length = f"long_{name}.{axis}", 2048
        vectors = value * np.stack([np.ones(length), draw(name, "W0", (length,), 16, 48)])
        W0 = vectors if axis == "per_output" else vectors.T
        d_out, d_in = W0.shape
        x = np.zeros((1, d_in))
        x[:, :: max(1, d_in // 4)] = draw(name, "x", x[:, :: max(1, d_in // 4)].shape)
        near = value if value < 1 else 1.0  # the update is small beside W0, as it is in training
        A = draw(name, "A", (1, d_in), -4, 4) * (near if axis == "per_output" else 1)
        inputs = {"x": x, "W0": W0, "A": A, "B": draw(name, "B", (d_out, 1), -4, 4)}
        inputs["m"] = np.array([96 * value, 72 * value])  # the norms are some 46 times value
        words = ("Q1",), "must", ("low-precision-norm",), {"norm_axis": axis}
        given: dict[str, Any] = {"gives": ("forward", "merge"), "dtypes": (*WIDE, *dtypes)}
        given["tolerances"] = TOLERANCES | {"float64": 1e-8}  # an eps may show beside such norms
        cases.append(KitCase(name, *words, 0.5, inputs, **given))
    return cases

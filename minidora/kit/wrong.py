"""What well-known mistakes give, so that a wrong output can be told by its name.

DoRA's formulas stand here as a sheet of cells, each a function of the others; a mistake is a
sheet with one cell changed. The right answers of the kit do not come from here (see `generate`).
Works on float64 and on arrays of mpmath's numbers alike.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..evidence.gradcheck import relative_error
from .optimizer import update

LEAST = 1e-9  # a stored wrong answer differs from the right one by more than this


def _sum(a, axis):
    return a.sum(axis=axis, keepdims=True)


def _beside(vector, axis):
    return np.expand_dims(vector, axis)


def _there(array):
    if array is None:
        raise TypeError("the case has none")
    return array


def _quotient(a, b):
    """a / b, NaN where b is 0, whatever the numbers are."""
    divided = np.frompyfunc(lambda a, b: a / b if b else a * float("nan"), 2, 1)(a, b)
    return np.asarray(divided, a.dtype)


CELLS: dict[str, Callable] = {
    # forward
    "delta": lambda p: p.scale * (p.B @ p.A),
    "V": lambda p: p.W0 + p.delta,
    "norm": lambda p: lambda M: _sum(M * M, p.axis) ** 0.5,
    "normed": lambda p: p.V,
    "c": lambda p: p.norm(p.normed),
    "g": lambda p: _beside(p.m, p.axis) / p.c,
    "adapted": lambda p: p.g * p.V,
    "W": lambda p: p.adapted if p.strength == 1 else p.W0 + p.strength * (p.adapted - p.W0),
    "xm": lambda p: p.x if p.mask is None else p.x * p.mask,
    "through_W0": lambda p: p.x,  # what of x meets W0 itself
    "y_both": lambda p: p.through_W0 @ p.W0.T + p.xm @ (p.W - p.W0).T,
    "y_low_rank": lambda p: p.through_W0 @ (p.W - p.g * p.delta).T + p.xm @ (p.g * p.delta).T,
    "b": lambda p: 0 if p.bias is None else p.bias,
    "y": lambda p: (p.y_low_rank if p.dropout == "low_rank" else p.y_both) + p.b,
    "m0": lambda p: p.norm(p.W0),
    # backward; G is the gradient of W, or of its two parts where they see x differently
    "G": lambda p: p.strength * (p.dy.T @ p.xm),
    "G0": lambda p: p.dy.T @ p.x if p.dropout == "low_rank" else p.G,
    "along": lambda p: _sum(p.G0 * p.W0 + p.G * p.delta, p.axis),  # sum(G V)
    "dm": lambda p: p.along / p.c,
    "scaled_G": lambda p: p.g * p.G,
    "radial": lambda p: p.g * (p.along / (p.c * p.c)) * p.V,  # what the norm's own gradient takes
    "exact": lambda p: p.norm_grad == "exact",
    "dV": lambda p: p.scaled_G - p.radial if p.exact else p.scaled_G,
    "dA": lambda p: p.scale * (p.B.T @ p.dV),
    "dB": lambda p: p.scale * (p.dV @ p.A.T),
    "dxm": lambda p: p.dy @ (p.g * p.delta if p.dropout == "low_rank" else p.W - p.W0),
    "dx0": lambda p: p.dy @ (p.g * p.W0 if p.dropout == "low_rank" else p.W0),
    "dx": lambda p: p.dx0 + (p.dxm if p.mask is None else p.dxm * p.mask),
    "dbias": lambda p: p.dy.sum(axis=0),
}

Cells = dict[str, Callable]

HALF = "norm summed in float16, which overflows or vanishes"

FORWARD: dict[str, Cells] = {
    # outputs "y", "W" and, at initialisation, "m"
    "norm of W0 instead of V": {"normed": lambda p: p.W0},
    "norm over the other axis": {"norm": lambda p: lambda M: _sum(M * M, 1 - p.axis) ** 0.5},
    "norm and magnitude over the other axis": {
        "norm": lambda p: lambda M: _sum(M * M, 1 - p.axis) ** 0.5,
        "g": lambda p: _beside(p.m, 1 - p.axis) / p.c,
    },
    "one norm for the whole matrix": {"norm": lambda p: lambda M: _sum(M * M, (0, 1)) ** 0.5},
    "squared norm, the root is missing": {"norm": lambda p: lambda M: _sum(M * M, p.axis)},
    "root mean square for a norm": {
        "norm": lambda p: lambda M: (_sum(M * M, p.axis) / M.shape[p.axis]) ** 0.5,
    },
    "sum of absolute values for a norm": {"norm": lambda p: lambda M: _sum(abs(M), p.axis)},
    "scale missing inside the norm": {"normed": lambda p: p.W0 + p.B @ p.A},
    "scale missing": {"delta": lambda p: p.B @ p.A},
    "scale applied twice": {"delta": lambda p: p.scale * p.scale * (p.B @ p.A)},
    "scale applied to the norm's update twice": {"normed": lambda p: p.V + (p.scale - 1) * p.delta},
    "scale is alpha, not divided by r": {
        "delta": lambda p: p.alpha * (p.B @ p.A),
    },
    "scale divided by r where the root of r was asked, or the other way": {
        "delta": lambda p: p.other_scale * (p.B @ p.A),
    },
    "B A subtracted": {"delta": lambda p: -p.scale * (p.B @ p.A)},
    "not divided by the norm": {"g": lambda p: _beside(p.m, p.axis)},
    "magnitude missing": {"g": lambda p: 1 / p.c},
    "magnitude without its sign": {"g": lambda p: abs(_beside(p.m, p.axis)) / p.c},
    "plain LoRA": {"adapted": lambda p: p.V, "g": lambda p: 1 + 0 * p.c},
    "update added after the normalisation": {
        "adapted": lambda p: _beside(p.m, p.axis) / p.norm(p.W0) * p.W0 + p.delta,
        "g": lambda p: 1 + 0 * p.c,
    },
    "the base alone, nothing is adapted": {
        "adapted": lambda p: p.W0,
        "g": lambda p: 0 * p.c,
    },
    "m starts at 1": {"m0": lambda p: 1 + 0 * p.norm(p.W0)},
    "magnitude and norm act on the update alone": {"adapted": lambda p: p.W0 + p.g * p.delta},
    "W0 used transposed": {"W0": lambda p: p.given["W0"].T},
    "bias was scaled by m/c": {
        "b": lambda p: 0 if p.bias is None else p.g.reshape(p.bias.shape) * p.bias,
        "dm": lambda p: (p.along + _beside(p.bias * p.dy.sum(axis=0), p.axis)) / p.c,
        "dbias": lambda p: p.g.reshape(p.bias.shape) * p.dy.sum(axis=0),
    },
    "bias missing": {"b": lambda p: 0 * p.bias},
    "bias added twice": {"b": lambda p: 2 * p.bias},
    "mask ignored": {"xm": lambda p: p.x},
    "mask applied to everything, W0's own term too": {"through_W0": lambda p: p.xm},
    "dropout of the other alternative": {
        "dropout": lambda p: "low_rank" if p.given["dropout"] == "both" else "both",
    },
    "strength ignored": {"W": lambda p: p.adapted},
    "strength moves m/c towards 1, so that 0 leaves W0 + scale B A": {
        "W": lambda p: p.V + p.strength * (p.adapted - p.V),
    },
    "strength multiplies B A, inside the norm": {
        "delta": lambda p: p.strength * p.scale * (p.B @ p.A),
        "W": lambda p: p.adapted,
    },
    HALF: {
        "norm": lambda p: (
            lambda M: (_sum(M.astype("f2") ** 2, p.axis) ** np.float16(0.5)).astype("f8")
        ),
    },
}

GRADIENT: dict[str, Cells] = {
    # outputs "dx", "dA", "dB", "dm", "dbias"
    "gradient is the detached one": {"exact": lambda p: False},
    "gradient is the exact one": {"exact": lambda p: True},
    "dm: not divided by c": {"dm": lambda p: p.along},
    "dm: divided by c twice": {"dm": lambda p: p.along / (p.c * p.c)},
    "dm: divided by m, 0/0 where m is 0": {
        "dm": lambda p: _quotient(p.along * p.g, _beside(p.m, p.axis)),
    },
    "dm: multiplied by the scale": {"dm": lambda p: p.scale * p.along / p.c},
    "dm: multiplied by m/c": {"dm": lambda p: p.g * p.along / p.c},
    "dm: taken along W0, not V": {"dm": lambda p: _sum(p.G0 * p.W0, p.axis) / p.c},
    "dm: zero, the magnitude does not train": {"dm": lambda p: 0 * p.along},
    "dm: a mean over the vector, not a sum": {
        "dm": lambda p: p.along / p.c / p.W0.shape[p.axis],
    },
    "dV: m/c missing": {
        "scaled_G": lambda p: p.G,
        "radial": lambda p: p.along / (p.c * p.c) * p.V,
    },
    "dV: m missing": {
        "scaled_G": lambda p: p.G / p.c,
        "radial": lambda p: p.along / p.c**3 * p.V,
    },
    "dV: not divided by c": {
        "scaled_G": lambda p: _beside(p.m, p.axis) * p.G,
        "radial": lambda p: _beside(p.m, p.axis) * p.along / (p.c * p.c) * p.V,
    },
    "dV: projection added, not subtracted": {"dV": lambda p: p.scaled_G + p.radial},
    "dV: projection without m/c": {"radial": lambda p: p.along / (p.c * p.c) * p.V},
    "dV: projection not divided by c²": {"radial": lambda p: p.g * p.along * p.V},
    "dV: projection divided by c, not c²": {"radial": lambda p: p.g * p.along / p.c * p.V},
    "dV: projected away from W0, not V": {
        "radial": lambda p: p.g * _sum(p.G * p.W0, p.axis) / _sum(p.W0 * p.W0, p.axis) * p.W0,
    },
    "dV: one projection for the whole matrix": {
        "radial": lambda p: p.g * _sum(p.G * p.V, (0, 1)) / _sum(p.V * p.V, (0, 1)) * p.V,
    },
    "dA: scale missing": {"dA": lambda p: p.B.T @ p.dV},
    "dB: scale missing": {"dB": lambda p: p.dV @ p.A.T},
    "dA and dB: scale missing": {"dA": lambda p: p.B.T @ p.dV, "dB": lambda p: p.dV @ p.A.T},
    "dx: through V, not W": {"dx": lambda p: p.dy @ p.V},
    "dx: through W0 alone": {"dx": lambda p: p.dy @ p.W0},
    "dx: W0's term missing": {"dx": lambda p: p.dxm if p.mask is None else p.dxm * p.mask},
    "dx: mask ignored": {"dx": lambda p: p.dx0 + p.dxm},
    "dx: mask applied to everything": {"dx": lambda p: (p.dx0 + p.dxm) * _there(p.mask)},
    "dA, dB and dm: mask ignored": {"G": lambda p: p.strength * (p.dy.T @ p.x)},
    "dA, dB and dm: strength missing": {"G": lambda p: p.dy.T @ p.xm},
    "dA, dB, dm and dbias: means over rows, not sums": {
        "G": lambda p: p.strength * (p.dy.T @ p.xm) / len(p.dy),
        "G0": lambda p: p.dy.T @ p.x / len(p.dy) if p.dropout == "low_rank" else p.G,
        "dbias": lambda p: p.dy.sum(axis=0) / len(p.dy),
    },
    "dA: of the wrong sign": {"dA": lambda p: -p.scale * (p.B.T @ p.dV)},
    "dB: of the wrong sign": {"dB": lambda p: -p.scale * (p.dV @ p.A.T)},
    "dbias: multiplied by m/c": {"dbias": lambda p: p.g.reshape(-1) * p.dy.sum(axis=0)},
    "dbias: a mean, not a sum": {"dbias": lambda p: p.dy.sum(axis=0) / len(p.dy)},
    "all gradients: a mean over rows, not a sum": {
        "dy": lambda p: p.given["dy"] / len(p.given["dy"]),
    },
    "dm: of the wrong sign": {"dm": lambda p: -p.along / p.c},
}

OUTPUTS = {"forward": ("m", "y", "W"), "gradient": ("dx", "dA", "dB", "dm", "dbias")}


class Sheet:
    """The cells' values, each computed when it is asked for; `changed` replaces some."""

    def __init__(self, given: dict, changed: Cells) -> None:
        self.given = given
        self._cells = CELLS | changed
        known = {name: value for name, value in given.items() if name not in changed}
        self.__dict__.update(known)

    def __getattr__(self, name):
        if name.startswith("__") or name not in self._cells:
            raise AttributeError(name)
        value = self._cells[name](self)
        self.__dict__[name] = value
        return value


def given(case: Any, arrays: dict, norm_grad: str) -> dict:
    """What a sheet starts from: x and dy as rows, W0 as (d_out, d_in), the settings."""
    if case.kind == "embedding":
        arrays = arrays | {"x": np.eye(len(arrays["W0"]))[arrays["tokens"]]}
    rank, alpha = len(arrays["A"]), case.settings.get("alpha")
    scale, other = case.scale, None
    if alpha is not None:
        scale, other = alpha / rank, alpha / rank**0.5
        if case.requires["scaling"] == "alpha_over_sqrt_r":
            scale, other = other, scale
    vectors = case.requires.get("norm_axis") or case.requires["embedding"]
    axis = 1 if vectors in ("per_output", "per_dimension") else 0
    W0 = arrays["W0"].T if _transposed(case) else arrays["W0"]
    rows = {
        name: arrays[name].reshape(-1, arrays[name].shape[-1]) if name in arrays else None
        for name in ("x", "dy", "mask")
    }
    settings = {"scale": scale, "other_scale": other, "alpha": alpha, "norm_grad": norm_grad}
    settings |= {"axis": axis, "dropout": case.requires.get("dropout", "both")}
    settings["strength"] = case.settings.get("strength", 1.0)
    rest = {"A": arrays["A"], "B": arrays["B"], "m": arrays.get("m"), "bias": arrays.get("bias")}
    return rows | settings | rest | {"W0": W0}


def answers(case: Any, arrays: dict, changed: Cells, outputs: Iterable, norm_grad: str) -> dict:
    """Those `outputs` that the sheet gives; those that it cannot, for this case, are left out."""
    sheet, values = Sheet(given(case, arrays, norm_grad), changed), {}
    with np.errstate(all="ignore"):
        for name in outputs:
            try:
                value = getattr(sheet, "m0" if name == "m" else name)
            except (TypeError, ValueError):
                continue  # no bias, no mask, or shapes that do not fit: the mistake cannot be made
            values[name] = _as_answered(case, arrays, name, value)
    return values


def _as_answered(case, arrays, name, value):
    """A cell in the shape of the output it stands for."""
    if name in ("m", "dm"):
        return value.reshape(-1)
    if name in ("y", "dx"):
        lead = arrays["tokens"].shape if case.kind == "embedding" else arrays["x"].shape[:-1]
        return value.reshape(*lead, value.shape[-1])
    return value.T if name == "W" and _transposed(case) else value


def _transposed(case) -> bool:
    """Whether W0 is stored as (d_in, d_out); an embedding is a linear layer of one-hot rows."""
    return case.kind == "embedding" or case.requires.get("layout") == "in_out"


def after_steps(
    case: Any, arrays: dict, changed: Cells, norm_grad: str, stale: bool = False
) -> dict:
    """A, B and m after each of the case's two steps; `stale` keeps the first step's norm."""
    p, state = dict(arrays), {name: dict[str, Any]() for name in "ABm"}
    after: dict[str, list] = {name: [] for name in "ABm"}
    for step in (1, 2):
        sheet = Sheet(given(case, p, norm_grad), changed)
        if stale and step == 1:
            changed = changed | {"c": lambda _, c=sheet.c: c}
        p["dy"] = sheet.y - p["target"]
        sheet = Sheet(given(case, p, norm_grad), changed)
        for name, values in after.items():
            gradient = getattr(sheet, "d" + name).reshape(p[name].shape)
            p[name] = update(p[name], gradient, state[name], step, case.settings["optimizer"])
            values.append(p[name])
    return {name: np.stack(values) for name, values in after.items()}


def wrong_answers(case: Any, arrays: dict) -> dict:
    """What each mistake gives in a linear case: {mistake: {output: array}}, where it differs.

    Of the outputs asked of the case. dA and dB are {"exact": array, "detached": array}.
    """
    stored = {}
    for mistakes, outputs in ((FORWARD, OUTPUTS["forward"]), (GRADIENT, OUTPUTS["gradient"])):
        asked = [name for name in outputs if name != "m" or "init" in case.gives]
        right = {mode: answers(case, arrays, {}, asked, mode) for mode in ("exact", "detached")}
        for mistake, changed in mistakes.items():
            if mistake == HALF:  # a matter of the dtype, not of the case
                continue
            made = {mode: answers(case, arrays, changed, asked, mode) for mode in right}
            differ = {}
            for name in made["exact"]:
                error = {m: relative_error(made[m][name], right[m][name]) for m in made}
                pair = {m: made[m][name] for m in made if error[m] >= LEAST}
                if pair:
                    differ[name] = pair if name in ("dA", "dB") else made["exact"][name]
            if differ:
                stored[mistake] = differ
    return stored

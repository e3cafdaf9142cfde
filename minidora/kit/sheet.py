"""DoRA's formulas as a sheet of cells, each in terms of others: a mistake changes a few of them.

The right answers of the kit do not come from here (see `generate`).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import KitCase
from .optimizer import update

CELLS = {
    # the weight
    "product": "B @ A",
    "delta": "scale * product",
    "V": "W0 + delta",
    "over": "axis",
    "power": "2",
    "count": "1",
    "root": "1 / 2",
    "norm": "norm_of(over, power, count, root)",
    "normed": "V",
    "length": "norm(normed)",
    "c": "length",
    "g": "beside(m, axis) / c",
    "adapted": "g * V",
    "m0": "norm(V) if init else norm(W0)",
    # a second adapter, a strength, and no adapter at all
    "delta2": "scale * (B2 @ A2)",
    "base2": "W0",
    "g2": "beside(m2, axis) / norm(base2 + delta2)",
    "in_turn": "g2 * (adapted + delta2)",
    "summed": "adapted + g2 * (W0 + delta2) - W0",
    "all": "adapted if adapters is None else in_turn if adapters == 'in_turn' else summed",
    "off": "W0",
    "merged": "W",
    "W": "off if disabling else all if strength == 1 else W0 + strength * (all - W0)",
    # the output
    "pad": "'constant'",
    "x": "patches(images, kernel, stride, padding, pad)",  # of a convolution; else it is given
    "xm": "x if mask is None else x * mask",
    "through_W0": "x",  # what of x meets W0 itself
    "used": "W",
    "y_both": "through_W0 @ W0.T + xm @ (used - W0).T",
    "y_low_rank": "through_W0 @ (W - g * delta).T + xm @ (g * delta).T",
    "b": "0 if bias is None else bias",
    "y": "(y_low_rank if dropout == 'low_rank' else y_both) + b",
    # backward; G is the gradient of W, or of its two parts where they see x differently
    "G": "strength * (dy.T @ xm)",
    "G0": "dy.T @ x if dropout == 'low_rank' else G",
    "along": "total(G0 * W0 + G * delta, axis)",  # sum(G V)
    "dm": "along / c",
    "scaled_G": "g * G",
    "radial": "g * (along / (c * c)) * V",  # what the norm's own gradient takes
    "exact": "norm_grad == 'exact'",
    "dV": "scaled_G - radial if exact else scaled_G",
    "dA": "scale * (B.T @ dV)",
    "dB": "scale * (dV @ A.T)",
    "dxm": "dy @ (g * delta if dropout == 'low_rank' else W - W0)",
    "dx0": "dy @ (g * W0 if dropout == 'low_rank' else W0)",
    "masked_dx": "dxm if mask is None else dxm * mask",
    "dx": "dx0 + masked_dx",
    "dbias": "dy.sum(0)",
}
Norm = Callable[[NDArray], NDArray]
OUTPUTS = {"forward": ("m", "y", "W"), "gradient": ("dx", "dA", "dB", "dm", "dbias")}


def total(M: NDArray, axis: Any) -> NDArray:
    """The sum over each vector, kept beside it."""
    return M.sum(axis=axis, keepdims=True)


def beside(vector: NDArray, axis: int) -> NDArray:
    """A number for each vector, laid beside it."""
    return np.expand_dims(vector, axis)


def quotient(a: NDArray, b: NDArray) -> NDArray:
    """a / b, NaN where b is 0."""
    return np.where(b == 0, np.nan, a / np.where(b == 0, 1, b))


def norm_of(over: Any, power: float, count: int, root: float) -> Norm:
    """A function that takes the norms of vectors."""
    return lambda M: (total(abs(M) ** power, over) / count) ** root


def largest(axis: int) -> Norm:
    """Their largest entries in place of norms."""
    return lambda M: abs(M).max(axis, keepdims=True)


def in_half(axis: int) -> Norm:
    """The norm, summed in float16."""
    return lambda M: (total(M.astype("f2") ** 2, axis) ** np.float16(0.5)).astype("f8")


def in_kernel(axes: tuple[int, ...], kernel: tuple[int, ...]) -> Norm:
    """Norms over some dimensions of a kernel (d_out, channels, kh, kw) alone."""

    def norm(M):
        squares = total((M * M).reshape(kernel), axes)
        return np.broadcast_to(squares**0.5, kernel).reshape(M.shape)

    return norm


def own(M: NDArray, split: int, shards: str, ranks: int) -> NDArray:
    """1 where M belongs to the first rank, 0 elsewhere, where it is split along that dimension."""
    mine = np.ones(M.shape)
    if split == ("d_out", "d_in").index(shards):
        np.moveaxis(mine, split, 0)[M.shape[split] // ranks :] = 0
    return mine


def local(axis: int, shards: str, ranks: int) -> Norm:
    """Norms over the part that a rank has."""

    def norm(M):
        parts = np.split(M, ranks, axis) if axis == ("d_out", "d_in").index(shards) else [M]
        squares = [total(part * part, axis) + 0 * part for part in parts]
        return np.concatenate(squares, axis) ** 0.5

    return norm


def patches(
    images: NDArray, kernel: tuple[int, ...], stride: int, padding: int, pad: Any = "constant"
) -> NDArray:
    """What lies under the kernel at each place, as rows: (n places, channels kh kw)."""
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, around, mode=pad), kernel[2:], (2, 3)
    )[:, :, ::stride, ::stride]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, int(np.prod(kernel[1:])))


def turned(W: NDArray, kernel: tuple[int, ...]) -> NDArray:
    """A weight whose kernels are turned round."""
    return np.flip(W.reshape(kernel), (2, 3)).reshape(W.shape)


def last_of_each(x: NDArray) -> NDArray:
    """1 for the last of equal one-hot rows, 0 for those before it."""
    return 1 - np.triu(x @ x.T, 1).max(1, keepdims=True)


_TOOLS = (total, beside, quotient, norm_of, largest, in_half, in_kernel, own, local, patches)
TOOLS = {tool.__name__: tool for tool in (*_TOOLS, turned, last_of_each, np.maximum)}


@cache
def _compiled(formula: str) -> CodeType:
    return compile(formula, formula, "eval")


class Sheet(dict):
    """The cells' values, each computed when it is asked for; `changed` replaces some formulas."""

    def __init__(self, given: dict, changed: Mapping[str, str]) -> None:
        super().__init__({n: value for n, value in given.items() if n not in changed})
        self._formulas = CELLS | dict(changed)
        self["given"] = given

    def __missing__(self, name):
        if name in ("first", "previous"):  # the layer as it was at the first and last question
            self[name] = Sheet(self["given"], {})
        else:
            self[name] = eval(_compiled(self._formulas[name]), TOOLS, self)  # our own formulas
        return self[name]


def given(case: KitCase, arrays: dict, norm_grad: str) -> dict:
    """What a sheet starts from: x and dy as rows, W0 as (d_out, d_in), the settings."""
    optional = dict.fromkeys(("bias", "mask", "m", "tokens", "dy"))
    start: dict[str, Any] = optional | case.requires | case.settings | arrays
    for name in ("init", "disabling", "adapters"):
        start.setdefault(name, None)
    rank, alpha = len(arrays["A"]), case.settings.get("alpha")
    start |= {"scale": case.scale, "norm_grad": norm_grad, "strength": start.get("strength", 1.0)}
    start.setdefault("dropout", "both")
    if alpha is not None:
        scales = [alpha / rank, alpha / rank**0.5]
        start["scale"], start["other_scale"] = scales[
            :: 1 if case.requires["scaling"] == "alpha_over_r" else -1
        ]
    vectors = case.requires.get("norm_axis") or case.requires.get("embedding")
    start["axis"] = 0 if vectors in ("per_input", "per_token") else 1
    if case.kind == "embedding":
        start["x"] = np.eye(len(arrays["W0"]))[arrays["tokens"]]
    if case.kind == "convolution":
        start |= {"images": start.pop("x"), "kernel": arrays["W0"].shape}
        start |= {n: arrays[n].reshape(len(arrays[n]), -1) for n in ("W0", "A", "B")}
        start["dy"] = np.moveaxis(arrays["dy"], 1, -1)
    if transposed(case):
        start["W0"] = start["W0"].T
    for name in ("x", "dy", "mask"):
        if start.get(name) is not None:
            start[name] = start[name].reshape(-1, start[name].shape[-1])
    return start


def transposed(case: KitCase) -> bool:
    """Whether W0 is stored as (d_in, d_out); an embedding is a linear layer of one-hot rows."""
    return case.kind == "embedding" or case.requires.get("layout") == "in_out"


def in_parts(case: KitCase, arrays: dict) -> list[dict]:
    """The arrays of each layer that a case consists of: experts, slices, or the one."""
    if case.kind == "experts":
        return [{n: a[k] for n, a in arrays.items()} for k in range(len(arrays["W0"]))]
    sizes = case.settings.get("slices")
    if not sizes:
        return [arrays]
    ends = np.cumsum(sizes)[:-1]
    split = {n: np.split(a, ends) for n, a in arrays.items() if n not in ("x", "dy", "A")}
    split |= {"A": np.split(arrays["A"], len(sizes)), "x": [arrays["x"]] * len(sizes)}
    split["dy"] = np.split(arrays["dy"], ends, -1)
    return [{n: of_parts[k] for n, of_parts in split.items()} for k in range(len(sizes))]


def together(case: KitCase, name: str, values: list[np.ndarray]) -> np.ndarray:
    """One output of all parts."""
    if case.kind == "experts":
        return np.stack(values)
    if len(values) == 1:
        return values[0]
    return np.sum(values, 0) if name == "dx" else np.concatenate(values, -1 if name == "y" else 0)


def answers(
    case: KitCase, arrays: dict, changed: Mapping[str, str], outputs: Iterable[str], norm_grad: str
) -> dict:
    """Those `outputs` that the sheet gives; those that it cannot, for this case, are left out."""
    parts = in_parts(case, arrays)
    sheets = [Sheet(given(case, part, norm_grad) | {"parts": parts}, changed) for part in parts]
    values: dict[str, np.ndarray] = {}
    for sheet in sheets:
        sheet["sheets"] = sheets
    with np.errstate(all="ignore"):
        for name in outputs:
            try:
                pairs = zip(parts, sheets, strict=True)
                values[name] = together(
                    case, name, [_as_answered(case, part, name, sheet) for part, sheet in pairs]
                )
            except IMPOSSIBLE:
                continue  # no bias, no mask, or shapes that do not fit: the mistake cannot be made
    return values


IMPOSSIBLE = (TypeError, ValueError, KeyError, NameError, AttributeError, IndexError)


def _as_answered(case, arrays, name, sheet):
    """A cell in the shape of the output it stands for."""
    value = np.asarray(sheet[{"m": "m0", "W": "merged"}.get(name, name)], np.float64)
    if name in ("m", "dm", "dbias"):
        return value.reshape(-1)
    if case.kind == "convolution":
        if name == "y":
            n, _, *size = arrays["x"].shape
            size = [
                (s + 2 * sheet["padding"] - k) // sheet["stride"] + 1
                for s, k in zip(size, sheet["kernel"][2:], strict=True)
            ]
            return np.moveaxis(value.reshape(n, *size, -1), -1, 1)
        return (
            _folded(value, sheet)
            if name == "dx"
            else value.reshape(arrays[{"W": "W0"}.get(name, name[1:])].shape)
        )
    if name in ("y", "dx"):
        lead = arrays["tokens"].shape if case.kind == "embedding" else arrays["x"].shape[:-1]
        return value.reshape(*lead, value.shape[-1])
    return value.T if name == "W" and transposed(case) else value


def _folded(rows, sheet):
    """The gradient of images from that of their patches: each number gets back what it gave."""
    images = sheet["images"]
    numbers = np.arange(1.0, images.size + 1).reshape(images.shape)  # 0: the padding
    places = patches(numbers, sheet["kernel"], sheet["stride"], sheet["padding"]).astype(int)
    flat = np.zeros(images.size + 1)
    np.add.at(flat, places.reshape(-1), rows.reshape(-1))
    return flat[1:].reshape(images.shape)


def after_steps(
    case: KitCase, arrays: dict, changed: Mapping[str, str], norm_grad: str
) -> dict[str, np.ndarray]:
    """A, B and m after each of the case's two steps, and W after the second."""
    p, state = dict(arrays), {name: dict[str, Any]() for name in "ABm"}
    after: dict[str, list] = {name: [] for name in "ABm"}
    first = previous = Sheet(given(case, p, norm_grad), {})
    for step in (1, 2):
        start = given(case, p, norm_grad) | {"first": first, "previous": previous}
        previous = Sheet(given(case, p, norm_grad), {})
        start["dy"] = Sheet(start, changed)["y"] - p["target"]
        sheet = Sheet(start, changed)
        for name, values in after.items():
            gradient = sheet[f"d{name}"].reshape(p[name].shape)
            p[name] = update(p[name], gradient, state[name], step, case.settings["optimizer"])
            values.append(p[name])
    end = given(case, p, norm_grad) | {"first": first, "previous": previous}
    return {n: np.stack(values) for n, values in after.items()} | {
        "W": Sheet(end, changed)["merged"]
    }

"""Writes the kit's cases: `minidora kit generate`, the same bytes every time.

Expected values come straight from Eq. 5 with 60 digits, and gradients by differentiating that
numerically with as many digits: no formula of the library, nor of a backward pass, takes part.
Needs mpmath and safetensors.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

from .definitions import definitions
from .files import KitCase
from .optimizer import update
from .protocol import VERSION

DIGITS = 60
STEP = mpf(10) ** -25  # central differences: an error of 1e-50 times a third derivative
INLINE = 200  # a longer array goes to a safetensors file beside the case
TRAINED = ("x", "A", "B", "m", "bias")

_mpf = np.frompyfunc(lambda number: mpf(float(number)), 1, 1)
_sqrt = np.frompyfunc(mp.sqrt, 1, 1)
_over = np.frompyfunc(lambda a, b: a / b if b else mpf(0), 2, 1)  # 0 for a dead vector


def exact(inputs: dict) -> dict:
    """The inputs as arrays of 60-digit numbers; tokens stay as they are."""
    return {n: a if n == "tokens" else np.asarray(_mpf(a), object) for n, a in inputs.items()}


def scale_of(case: KitCase) -> Any:
    """The number that multiplies B A."""
    if case.scale is not None:
        return mpf(case.scale)
    rank, alpha = len(case.inputs["A"]), mpf(case.settings["alpha"])
    return alpha / (rank if case.requires["scaling"] == "alpha_over_r" else mp.sqrt(rank))


def matrix(case: KitCase, p: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """W0 and s B A with one weight vector along the axis that is returned."""
    W0, A, B, s = p["W0"], p["A"], p["B"], scale_of(case)
    if case.kind == "embedding":  # (vocabulary, dimensions)
        axis = 0 if case.requires["embedding"] == "per_dimension" else 1
        return W0, s * (B @ A).T, axis
    if case.kind == "convolution":  # (d_out, everything else)
        d_out, r = len(W0), len(A)
        return W0.reshape(d_out, -1), s * (B.reshape(d_out, r) @ A.reshape(r, -1)), 1
    if case.kind == "experts":  # (experts and d_out, d_in)
        delta = [b @ a for b, a in zip(B, A, strict=True)]
        return W0.reshape(-1, W0.shape[2]), s * np.concatenate(delta), 1
    if sizes := case.settings.get("slices"):
        rows, As = np.split(B, np.cumsum(sizes)[:-1]), np.split(A, len(sizes))
        return W0, s * np.concatenate([b @ a for b, a in zip(rows, As, strict=True)]), 1
    W0 = W0.T if case.requires.get("layout") == "in_out" else W0
    return W0, s * (B @ A), 1 if case.requires["norm_axis"] == "per_output" else 0


def norms(V: np.ndarray, axis: int, eps: Any = 0) -> np.ndarray:
    """Norms of the vectors of V, kept beside them."""
    return np.asarray(_sqrt((V * V).sum(axis=axis, keepdims=True) + eps * eps), object)


def magnitude(case: KitCase, p: dict) -> np.ndarray:
    """m at initialisation."""
    W0, delta, axis = matrix(case, p)
    V = W0 + delta if "init" in case.requires else W0
    return norms(V, axis, epsilon(case)).reshape(-1)


def epsilon(case: KitCase) -> Any:
    """What stands under the root beside the squares: nothing, unless a zero vector is to live."""
    return mpf("1e-12") if case.requires.get("zero_vector") == "unit" else mpf(0)


def factors(case: KitCase, p: dict, c: NDArray | None = None) -> tuple:
    """W0, s B A and m / c beside them (Eq. 5); c, if given, is a constant."""
    W0, delta, axis = matrix(case, p)
    c = norms(W0 + delta, axis, epsilon(case)) if c is None else c
    return W0, delta, _over(np.expand_dims(p["m"].reshape(-1), axis), c)


def merged(case: KitCase, p: dict, c: NDArray | None = None) -> np.ndarray:
    """The adapted weight, in the layout of W0."""
    if "disabling" in case.requires:
        return p["W0"]
    W0, delta, g = factors(case, p, c)
    W = g * (W0 + delta)
    if how := case.requires.get("adapters"):
        _, delta, g = factors(case, p | {name: p[f"{name}2"] for name in "ABm"})
        W = g * (W + delta) if how == "in_turn" else W + g * (W0 + delta) - W0
    t = case.settings.get("strength", 1.0)
    W = W if t == 1 else W0 + mpf(t) * (W - W0)
    if case.requires.get("layout") == "in_out":
        return W.T
    return W.reshape(p["W0"].shape)


def forward(case: KitCase, p: dict, c: NDArray | None = None) -> np.ndarray:
    """y of Eq. 5."""
    W = merged(case, p, c)
    if case.kind == "embedding":
        return W[p["tokens"]]
    if case.kind == "convolution":
        return convolve(p["x"], W, p["bias"], **case.settings)
    if case.kind == "experts":
        return np.stack([x @ each.T for x, each in zip(p["x"], W, strict=True)])
    W = W.T if case.requires.get("layout") == "in_out" else W
    x = p["x"]
    if "mask" not in p:
        y = x @ W.T
    elif case.requires["dropout"] == "both":
        y = x @ p["W0"].T + (x * p["mask"]) @ (W - p["W0"]).T
    else:
        W0, delta, g = factors(case, p, c)
        y = x @ (g * W0).T + (x * p["mask"]) @ (g * delta).T
    return y + p["bias"] if "bias" in p else y


def convolve(x: NDArray, W: NDArray, bias: NDArray, stride: int, padding: int) -> np.ndarray:
    """Cross-correlation: x (n, channels, h, w), W (d_out, channels, kh, kw)."""
    n, channels, height, width = x.shape
    padded = np.full((n, channels, height + 2 * padding, width + 2 * padding), mpf(0), object)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    (d_out, _, kh, kw), (full_h, full_w) = W.shape, padded.shape[2:]
    y = np.empty((n, d_out, (full_h - kh) // stride + 1, (full_w - kw) // stride + 1), object)
    for i, j in np.ndindex(y.shape[2:]):
        patch = padded[:, :, i * stride : i * stride + kh, j * stride : j * stride + kw]
        y[:, :, i, j] = patch.reshape(n, -1) @ W.reshape(d_out, -1).T + bias
    return y


def differentiate(f: Callable[[dict], Any], p: dict, name: str) -> np.ndarray:
    """Gradient of f at p for one array, entry by entry."""
    gradient = np.empty(p[name].shape, object)
    for i in np.ndindex(gradient.shape):
        moved = {**p, name: p[name].copy()}
        moved[name][i] = p[name][i] + STEP
        above = f(moved)
        moved[name][i] = p[name][i] - STEP
        gradient[i] = (above - f(moved)) / (2 * STEP)
    return gradient


def total(products: np.ndarray) -> Any:
    """The sum of all entries, 0 for none."""
    return sum(products.reshape(-1), mpf(0))


def gradients(case: KitCase, p: dict) -> dict:
    """Gradients of sum(dy y): dA and dB once exact and once with the norm held constant."""

    def loss(p, c=None):
        return total(p["dy"] * forward(case, p, c))

    W0, delta, axis = matrix(case, p)
    c = norms(W0 + delta, axis, epsilon(case))
    grads: dict[str, Any] = {"d" + n: differentiate(loss, p, n) for n in TRAINED if n in p}
    for name in ("A", "B"):
        detached = differentiate(lambda p: loss(p, c), p, name)
        grads["d" + name] = {"exact": grads["d" + name], "detached": detached}
    return grads


def two_steps(case: KitCase, p: dict, norm_grad: str) -> dict:
    """A, B and m after each of two steps down 1/2 sum((y - target)²)."""
    settings, p = numbers(case.settings["optimizer"]), dict(p)
    after: dict[str, list] = {name: [] for name in "ABm"}
    state: dict[str, dict] = {name: {} for name in "ABm"}
    for step in (1, 2):
        p["dy"] = forward(case, p) - p["target"]
        grads = gradients(case, p)
        for name in after:
            gradient = grads["d" + name]
            gradient = gradient[norm_grad] if name in "AB" else gradient
            p[name] = update(p[name], gradient, state[name], step, settings)
            after[name].append(p[name])
    return {n: np.stack(values) for n, values in after.items()} | {"W": merged(case, p)}


def numbers(settings: dict) -> dict:
    """An optimizer's settings in 60 digits, as the doubles that they are."""
    return {
        name: [mpf(b) for b in value]
        if name == "betas"
        else mpf(value)
        if name != "name"
        else value
        for name, value in settings.items()
    }


def expected(case: KitCase) -> dict:
    """What the implementation should answer, in 60 digits."""
    p, answers = exact(case.inputs), {}
    if "m" not in p or "init" in case.gives:
        answers["m"] = magnitude(case, p)
    p.setdefault("m", answers.get("m"))
    if case.requires.get("zero_vector"):
        del answers["m"]  # how small a unit vector's m is, is the implementation's affair
    if "forward" in case.gives:
        answers["y"] = forward(case, p)
    if "merge" in case.gives:
        answers["W"] = merged(case, p)
    if "backward" in case.gives:
        answers |= gradients(case, p)
    if "steps" in case.gives:
        by_mode = {mode: two_steps(case, p, mode) for mode in ("exact", "detached")}
        answers |= {
            name: {mode: by_mode[mode][name] for mode in by_mode} for name in by_mode["exact"]
        }
    return answers


def document(case: KitCase, large: dict[str, np.ndarray]) -> dict:
    """The case as it is written; arrays too long for JSON go to `large`."""

    def written(key, value):
        if isinstance(value, dict):
            return {k: written(f"{key}.{k}", v) for k, v in value.items()}
        if value.dtype.kind == "i":
            return value.tolist()
        value = np.array(value, np.float64, order="C")  # rounded once; safetensors needs rows
        if value.size <= INLINE:
            return (value + 0.0).tolist()  # no -0.0
        large[key] = value
        return {"file": f"{case.name}.safetensors", "key": key}

    case_wrong = {}
    if zero := case.requires.get("zero_vector"):
        other = "dead" if zero == "unit" else "unit"
        swapped = replace(case, requires=case.requires | {"zero_vector": other})
        case_wrong[f"the zero vector is {other}, not {zero}"] = expected(swapped)
    return {
        "kit": VERSION,
        "since": case.since,
        "name": case.name,
        "kind": case.kind,
        "clauses": list(case.clauses),
        "level": case.level,
        "flags": list(case.flags),
        "requires": case.requires,
        "dtypes": list(case.dtypes),
        "tolerances": {dtype: case.tolerances[dtype] for dtype in case.dtypes},
        "scale": case.scale,
        "settings": case.settings,
        "inputs": written("inputs", case.inputs),
        "expected": written("expected", expected(case)),
        **({"wrong": written("wrong", case_wrong)} if case_wrong else {}),
    }


def as_text(document: dict) -> str:
    """JSON with a line for each entry, and for each entry of an object in it."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            inner = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def files() -> dict[str, bytes]:
    """Every file of the folder by name, the manifest of checksums last."""
    from safetensors.numpy import save

    written = {}
    with mp.workdps(DIGITS):
        for case in definitions():
            large: dict[str, np.ndarray] = {}
            written[f"{case.name}.json"] = as_text(document(case, large)).encode()
            if large:
                written[f"{case.name}.safetensors"] = save(large)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in written.items()}
    manifest = {"kit": VERSION, "sha256": sums}
    return written | {"MANIFEST.json": as_text(manifest).encode()}

"""The first witness: every function again, forward only, differentiated by the autograd library.

Dense, unchecked, float64, and sharing no line with the modules it checks. The detached gradient
of section 4.3 comes from passing the norm as a constant, `norm=`. Needs `pip install autograd`.
"""

from collections.abc import Callable
from typing import Any

import autograd.numpy as np
from autograd import make_vjp
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]
Settings = dict[str, Any]

AXIS = {"per_output": 1, "per_input": 0}


def norms(W: Array, norm_axis: str, eps: float = 1e-12) -> Array:
    """Norm of each weight vector of W (d_out, d_in), as (d_out,) or (d_in,)."""
    return np.sqrt(np.sum(W**2, axis=AXIS[norm_axis]) + eps**2)


def decompose(W: Array, norm_axis: str) -> tuple[Array, Array]:
    """Magnitudes and unit directions of W (Eq. 2)."""
    m = norms(W, norm_axis)
    return m, (W / m[:, None] if norm_axis == "per_output" else W / m[None, :])


def recompose(m: Array, V_unit: Array, norm_axis: str) -> Array:
    """W from magnitudes and directions (Eq. 2)."""
    return m[:, None] * V_unit if norm_axis == "per_output" else m[None, :] * V_unit


def lora_delta(A: Array, B: Array, scale: float) -> Array:
    """The update of Eq. 1."""
    return scale * np.dot(B, A)


def lora_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    scale: float,
    *,
    bias: Array | None = None,
    mask: Array | None = None,
) -> Array:
    """y of Eq. 1 through the dense sum of weights."""
    return _affine(x, W0, W0 + lora_delta(A, B, scale), bias, mask)


def dora_weight(
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    scale: float,
    *,
    norm_axis: str = "per_output",
    eps: float = 1e-12,
    norm: Array | None = None,
) -> Array:
    """W of Eq. 5; `norm`, if given, stands in for ‖V‖ as a constant."""
    V = W0 + lora_delta(A, B, scale)
    c = norms(V, norm_axis, eps) if norm is None else norm
    return recompose(m / c, V, norm_axis)


def dora_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    scale: float,
    *,
    bias: Array | None = None,
    norm_axis: str = "per_output",
    mask: Array | None = None,
    eps: float = 1e-12,
    norm: Array | None = None,
) -> Array:
    """y of Eq. 5 through the dense weight."""
    W = dora_weight(W0, A, B, m, scale, norm_axis=norm_axis, eps=eps, norm=norm)
    return _affine(x, W0, W, bias, mask)


def recover_magnitude(
    W: Array, W0: Array, A: Array, B: Array, scale: float, *, norm_axis: str = "per_output"
) -> Array:
    """m from a merged W, sign included."""
    V = W0 + lora_delta(A, B, scale)
    return np.sum(W * V, axis=AXIS[norm_axis]) / norms(V, norm_axis)


def lora_gradients(dy: Array, inputs: Arrays, settings: Settings) -> Arrays:
    """Gradients of sum(dy * lora_forward) for x, A, B and bias, as {"dx": ..., ...}."""
    return gradients(lora_forward, dy, inputs, settings)


def dora_gradients(
    dy: Array, inputs: Arrays, settings: Settings, *, norm_grad: str = "exact"
) -> Arrays:
    """Gradients of sum(dy * dora_forward) for x, A, B, m and bias, as {"dx": ..., ...}."""
    if norm_grad == "detached":
        V = inputs["W0"] + lora_delta(inputs["A"], inputs["B"], settings["scale"])
        c = norms(V, settings["norm_axis"], settings.get("eps", 1e-12))
        settings = {**settings, "norm": c}
    return gradients(dora_forward, dy, inputs, settings)


def group_of(groups: Any, shape: tuple[int, ...]) -> Array:
    """The number of the group that each entry of a matrix belongs to."""
    row, column = np.indices(shape)
    if groups == "whole":
        return 0 * row
    kind, k = ("rows", 1) if groups == "per_output" else ("columns", 1)
    if not isinstance(groups, str):
        kind, k = groups
    return row // k if kind == "rows" else column // k


def grouped_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    m: Array,
    scale: float,
    *,
    groups: Any,
    bias: Array | None = None,
    mask: Array | None = None,
    eps: float = 1e-12,
    norm: Array | None = None,
) -> Array:
    """y where the entries of each group share a magnitude; `norm` as in `dora_weight`."""
    V = W0 + lora_delta(A, B, scale)
    W = grouped(V, m, groups, eps, norm)[0]
    return _affine(x, W0, W, bias, mask)


def grouped(
    V: Array, m: Array, groups: Any, eps: float = 1e-12, norm: Array | None = None
) -> tuple[Array, Array]:
    """The weight whose groups have norms m, and the norms of V."""
    member = group_of(groups, V.shape).ravel() == np.arange(len(m))[:, None]  # (groups, entries)
    member = member.astype(float)
    c = np.sqrt(np.dot(member, V.ravel() ** 2) + eps**2) if norm is None else norm
    return np.dot(m / c, member).reshape(V.shape) * V, c


def grouped_gradients(
    dy: Array, inputs: Arrays, settings: Settings, *, norm_grad: str = "exact"
) -> Arrays:
    """Gradients of sum(dy * grouped_forward) for x, A, B, m and bias."""
    settings = {name: value for name, value in settings.items() if name != "norm_axis"}
    if norm_grad == "detached":
        V = inputs["W0"] + lora_delta(inputs["A"], inputs["B"], settings["scale"])
        eps = settings.get("eps", 1e-12)
        settings["norm"] = grouped(V, inputs["m"], settings["groups"], eps, None)[1]
    return gradients(grouped_forward, dy, inputs, settings)


def bora_forward(
    x: Array,
    W0: Array,
    A: Array,
    B: Array,
    m_in: Array,
    m_out: Array,
    scale: float,
    *,
    bias: Array | None = None,
    mask: Array | None = None,
    eps: float = 1e-12,
    norm: tuple = (None, None),
) -> Array:
    """y of columns normalised first and rows of the result then; `norm`: of both, as constants."""
    V = W0 + lora_delta(A, B, scale)
    U = grouped(V, m_in, "per_input", eps, norm[0])[0]
    W = grouped(U, m_out, "per_output", eps, norm[1])[0]
    return _affine(x, W0, W, bias, mask)


def bora_gradients(
    dy: Array, inputs: Arrays, settings: Settings, *, norm_grad: str = "exact"
) -> Arrays:
    """Gradients of sum(dy * bora_forward) for x, A, B, m_in, m_out and bias."""
    if norm_grad == "detached":
        V = inputs["W0"] + lora_delta(inputs["A"], inputs["B"], settings["scale"])
        eps = settings.get("eps", 1e-12)
        U, inner = grouped(V, inputs["m_in"], "per_input", eps, None)
        outer = grouped(U, inputs["m_out"], "per_output", eps, None)[1]
        settings = {**settings, "norm": (inner, outer)}
    return gradients(bora_forward, dy, inputs, settings)


def gradients(
    forward: Callable[..., Array], dy: Array, inputs: Arrays, settings: Settings
) -> Arrays:
    """Gradients of sum(dy * forward(**inputs, **settings)) for every input except W0."""
    trained = {name: value for name, value in inputs.items() if name != "W0"}
    vjp, _ = make_vjp(lambda p: forward(W0=inputs["W0"], **p, **settings))(trained)
    return {"d" + name: grad for name, grad in vjp(dy).items()}


def _affine(x: Array, W0: Array, W: Array, bias: Array | None, mask: Array | None) -> Array:
    """x @ W.T + bias, where a mask on x acts on W - W0 alone."""
    y = np.dot(x, W.T) if mask is None else np.dot(x, W0.T) + np.dot(x * mask, (W - W0).T)
    return y if bias is None else y + bias

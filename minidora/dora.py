"""The DoRA layer as the paper writes it, dense, equation by equation (Liu et al. 2024).

V = W0 + scale * B @ A is the direction (scale = alpha / r), c = ‖V‖ its norms, m the trained
magnitudes, and W = m * V / c the adapted weight (Eq. 5). One weight vector is a row of V and W
(`norm_axis` "per_output": `axis`, the one summed over, is 1) or a column ("per_input": 0). Its norm
is sqrt(sum(v²) + eps²), eps = 1e-12, in `norms` too, so that a zero vector starts with m / c = 1.

Every formula of the method stands on this page. What is none happens at its edge: `enter` and
`Edge.rows` check shapes, flatten any leading dimensions of x and dy to n rows (none and zero rows
included), lay m beside V, (d_out, 1) or (1, d_in), and bring all to the widest dtype, float32 at
least; `Edge.leave` gives each result the shape and dtype of its own array (m float32 at least).

This module is for reading and for holding others against; `minidora.factored` computes the same
numbers without any dense temporary.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import lora
from ._boundary import (
    Array,
    Edge,
    Rows,
    Weights,
    cast,
    enter,
    finite,
    floating,
    one_of,
    shaped,
    weights,
)
from .decomposition import EPS, norms, sum_of_squares

__all__ = [
    "DoRAGrads",
    "dora_backward",
    "dora_forward",
    "dora_weight",
    "init",
    "recover_magnitude",
]


class DoRAGrads(NamedTuple):
    """Gradients of the loss, each shaped like its array; dbias is None without a bias."""

    dx: Array
    dA: Array
    dB: Array
    dm: Array
    dbias: Array | None


class DoRACache(NamedTuple):
    """What `dora_backward` needs of the forward pass."""

    rows: Rows
    weights: Weights
    V: Array  # (d_out, d_in)
    c: Array  # beside V, like m
    W: Array  # (d_out, d_in)
    edge: Edge


def dora_forward(
    x: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m: ArrayLike,
    scale: float,
    *,
    bias: ArrayLike | None = None,
    norm_axis: str = "per_output",
    mask: ArrayLike | None = None,
    eps: float = EPS,
) -> tuple[Array, DoRACache]:
    """y = x @ W.T + bias with W = m * V / ‖V‖ and V = W0 + scale * B @ A (Eq. 5).

    x: (..., d_in); W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); m: (d_out,) for "per_output",
    (d_in,) for "per_input"; bias: (d_out,), never scaled; mask: like x, an inverted-dropout mask
    on x in what DoRA adds: y = x @ W0.T + (x * mask) @ (W - W0).T + bias. Returns y: (..., d_out)
    in x's dtype, and the cache for `dora_backward`. Raises TypeError or ValueError that names
    the argument, what was expected and what came.
    """
    rows, layer, edge = enter(
        x, W0, A, B, scale, m=m, bias=bias, mask=mask, norm_axis=norm_axis, eps=eps
    )
    x, bias, mask = rows
    V, c, W = _adapted(layer)
    if mask is None:
        y = x @ W.T  # (n, d_out)
    else:
        y = x @ layer.W0.T + (x * mask) @ (W - layer.W0).T  # (n, d_out)
    if bias is not None:
        y += bias
    (y,) = edge.leave(y=y)
    return y, DoRACache(rows, layer, V, c, W, edge)


def _adapted(layer: Weights) -> tuple[Array, Array, Array]:
    """V, its norms and the adapted weight (Eq. 5)."""
    W0, A, B, m, scale, axis, eps = layer
    V = W0 + scale * B @ A  # (d_out, d_in)
    c = np.sqrt(sum_of_squares(V, axis) + eps**2)  # (d_out, 1) or (1, d_in); summed in float64
    c = c.astype(V.dtype)
    W = m / c * V  # (d_out, d_in)
    return V, c, W


def dora_backward(dy: ArrayLike, cache: DoRACache, *, norm_grad: str = "exact") -> DoRAGrads:
    """Gradients of `dora_forward`, given dy = dL/dy shaped like y. W0 is frozen and has none.

    norm_grad: "exact" is the derivative of Eq. 5; "detached" treats the norm c as a constant
    (Eq. 11, paper section 4.3), which changes dA and dB only.
    """
    one_of("norm_grad", norm_grad, ("exact", "detached"))
    (x, bias, mask), (W0, A, B, m, scale, axis, _), V, c, W, edge = cache
    dy = edge.rows(dy)  # (n, d_out)
    # y = x @ W.T + bias; with a mask, x @ W0.T + (x * mask) @ (W - W0).T + bias
    if mask is None:
        G = dy.T @ x  # (d_out, d_in), dL/dW
        dx = dy @ W  # (n, d_in)
    else:
        G = dy.T @ (x * mask)
        dx = dy @ W0 + mask * (dy @ (W - W0))
    dbias = None if bias is None else dy.sum(0)  # (d_out,)
    # W = m * V / c
    dm = (G * V).sum(axis, keepdims=True) / c  # like c, Eq. 7
    # c = sqrt(sum V² + eps²): of what lies along V, sum(G * V) / c² times each vector drops out
    if norm_grad == "exact":
        dV = m / c * (G - V * (dm / c))  # (d_out, d_in), Eq. 6
    else:  # c is taken as a constant
        dV = m / c * G  # (d_out, d_in), Eq. 11
    # V = W0 + scale * B @ A
    dA = scale * B.T @ dV  # (r, d_in)
    dB = scale * dV @ A.T  # (d_out, r)
    return DoRAGrads(*edge.leave(dx=dx, dA=dA, dB=dB, dm=dm, dbias=dbias))


def init(
    W0: ArrayLike,
    rank: int,
    rng: np.random.Generator,
    *,
    norm_axis: str = "per_output",
    eps: float = EPS,
) -> tuple[Array, Array, Array]:
    """Start a DoRA layer at its base: A Kaiming-uniform, B zero, m = ‖W0‖, hence W = W0.

    W0: (d_out, d_in), finite. Returns A: (rank, d_in), B: (d_out, rank) in W0's dtype, and
    m: (d_out,) or (d_in,), float32 at least. m uses the eps of the forward pass, so a zero vector
    of W0 starts with m / c = 1 and can learn. Raises ValueError for NaN or infinity in W0.
    """
    W0 = finite("W0", floating("W0", W0, ndim=2))
    d_out, d_in = W0.shape
    A, B = lora.init(d_out, d_in, rank, rng, W0.dtype)
    return A, B, norms(W0, norm_axis, eps)


def dora_weight(
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m: ArrayLike,
    scale: float,
    *,
    norm_axis: str = "per_output",
    eps: float = EPS,
) -> Array:
    """The merged weight W = m * V / ‖V‖ of Eq. 5, (d_out, d_in), in W0's dtype.

    >>> W0, A, B = np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]]), np.array([[-3.0]])
    >>> dora_weight(W0, A, B, np.array([10.0]), 1.0)
    array([[ 0., 10.]])
    """
    layer, edge = weights(W0, A, B, scale, m=m, norm_axis=norm_axis, eps=eps)
    _, _, W = _adapted(layer)
    return edge.leave(W0=W)[0]


def recover_magnitude(
    W: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scale: float,
    *,
    norm_axis: str = "per_output",
    eps: float = EPS,
) -> Array:
    """The m that `dora_weight` made W with: sum(W * V) / ‖V‖ per vector, sign included.

    W, W0: (d_out, d_in); A: (r, d_in); B: (d_out, r). Returns m: (d_out,) or (d_in,), float32 at
    least. Where V is zero, W says nothing of m and 0 comes back. A W that was not merged from
    these arrays gives the m of the nearest one that could have been.
    """
    (W0, A, B, _, scale, axis, _), _ = weights(W0, A, B, scale, norm_axis=norm_axis)
    W = shaped("W", W, W0.shape, "the shape of W0")
    V = W0 + scale * B @ A  # (d_out, d_in)
    along = (W * V).sum(axis, dtype=np.result_type(V, np.float64))  # (d_out,) or (d_in,)
    return cast(along / norms(V, norm_axis, eps), V.dtype)

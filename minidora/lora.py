"""LoRA, the low-rank update that DoRA's direction is made of (paper, Eq. 1; Hu et al. 2021).

y = x @ (W0 + scale * B @ A).T + bias, with W0 frozen. Forward stands directly above backward.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._boundary import (
    Array,
    Edge,
    Rows,
    Weights,
    cast,
    enter,
    floating,
    number,
    positive_int,
    shaped,
)

__all__ = ["LoRAGrads", "init", "lora_backward", "lora_delta", "lora_forward", "scaling"]


def init(
    d_out: int, d_in: int, rank: int, rng: np.random.Generator, dtype: DTypeLike = np.float64
) -> tuple[Array, Array]:
    """Start A Kaiming-uniform (a = sqrt 5, as PEFT does) and B at zero, so that B @ A = 0.

    Returns A: (rank, d_in), uniform within ±1/sqrt(d_in), and B: (d_out, rank). Raises
    ValueError for a dimension or rank below 1, TypeError for a dtype that is not floating.
    """
    d_out, d_in = positive_int("d_out", d_out), positive_int("d_in", d_in)
    rank = positive_int("rank", rank)
    if not np.issubdtype(dtype, np.floating):
        raise TypeError(f"dtype: expected a real floating dtype, got {np.dtype(dtype)}")
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    # Kaiming: gain sqrt(2 / (1 + a²)) = sqrt(1/3), bound gain * sqrt(3 / d_in) = 1 / sqrt(d_in)
    bound = 1 / np.sqrt(d_in)
    A = rng.uniform(-bound, bound, (rank, d_in)).astype(dtype)
    return A, np.zeros((d_out, rank), dtype)


def scaling(alpha: float, rank: int, *, rslora: bool = False) -> float:
    """What multiplies B @ A: alpha / rank, or alpha / sqrt(rank) for rsLoRA.

    >>> scaling(8, 4), scaling(8, 4, rslora=True)
    (2.0, 4.0)
    """
    rank = positive_int("rank", rank)
    return number("alpha", alpha) / (rank**0.5 if rslora else rank)


def lora_delta(A: ArrayLike, B: ArrayLike, scale: float) -> Array:
    """The update scale * B @ A that LoRA adds to W0 (Eq. 1).

    A: (r, d_in); B: (d_out, r). Returns (d_out, d_in) in B's dtype, computed in float32 at least.

    >>> lora_delta(np.array([[1.0, 2.0]]), np.array([[3.0], [0.5]]), 2.0)
    array([[ 6., 12.],
           [ 1.,  2.]])
    """
    A, B = floating("A", A, ndim=2), floating("B", B, ndim=2)
    shaped("B", B, (B.shape[0], A.shape[0]), f"(d_out, r) beside A of shape {A.shape}")
    compute = np.result_type(A, B, np.float32)
    delta = number("scale", scale) * (cast(B, compute) @ cast(A, compute))
    return cast(delta, B.dtype)


class LoRAGrads(NamedTuple):
    """Gradients of the loss, each shaped like its array; dbias is None without a bias."""

    dx: Array
    dA: Array
    dB: Array
    dbias: Array | None


class LoRACache(NamedTuple):
    """What `lora_backward` needs of the forward pass."""

    rows: Rows
    weights: Weights
    h: Array  # (n, r)
    edge: Edge


def lora_forward(
    x: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scale: float,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> tuple[Array, LoRACache]:
    """y = x @ W0.T + scale * (x * mask) @ A.T @ B.T + bias (Eq. 1).

    x: (..., d_in); W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); bias: (d_out,); mask: like x,
    an inverted-dropout mask on what the adapter sees. Returns y: (..., d_out) in x's dtype, and
    the cache for `lora_backward`. Raises TypeError or ValueError that names the argument.
    """
    rows, layer, edge = enter(x, W0, A, B, scale, bias=bias, mask=mask)
    (x, bias, mask), (W0, A, B, *_) = rows, layer
    h = (x if mask is None else x * mask) @ A.T  # (n, r)
    y = x @ W0.T + (layer.scale * h) @ B.T  # (n, d_out)
    if bias is not None:
        y += bias
    (y,) = edge.leave(y=y)
    return y, LoRACache(rows, layer, h, edge)


def lora_backward(dy: ArrayLike, cache: LoRACache) -> LoRAGrads:
    """Gradients of `lora_forward`, given dy = dL/dy shaped like y. W0 is frozen and has none."""
    (x, bias, mask), (W0, A, B, _, scale, *_), h, edge = cache
    dy = edge.rows(dy)  # (n, d_out)
    # y = x @ W0.T + scale * h @ B.T + bias
    dbias = None if bias is None else dy.sum(0)  # (d_out,)
    dB = dy.T @ (scale * h)  # (d_out, r)
    dh = dy @ (scale * B)  # (n, r)
    # h = (x * mask) @ A.T
    dA = dh.T @ (x if mask is None else x * mask)  # (r, d_in)
    dxm = dh @ A  # (n, d_in)
    dx = dy @ W0 + (dxm if mask is None else dxm * mask)  # (n, d_in)
    return LoRAGrads(*edge.leave(dx=dx, dA=dA, dB=dB, dbias=dbias))

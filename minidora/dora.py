"""The DoRA layer as the paper writes it, dense, equation by equation (Liu et al. 2024).

V = W0 + scale * B @ A is the direction, c = ‖V‖ its norms, m the trained magnitudes, and
W = m * V / c the adapted weight (Eq. 5). This module is for reading and for holding others
against; `minidora.factored` computes the same numbers without any dense temporary.
"""

from typing import NamedTuple

import numpy as np

from . import lora
from ._boundary import (
    Array,
    Inputs,
    Weights,
    cast,
    finite,
    floating,
    layer,
    one_of,
    shaped,
    weights,
)
from .decomposition import EPS, norms

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

    inputs: Inputs
    weights: Weights
    V: Array
    c: Array
    W: Array


def _adapted(p: Weights, eps: float) -> tuple[Array, Array, Array]:
    """Eq. 5: V, its norms beside it, and W = m * V / c."""
    V = p.W0 + p.scale * p.B @ p.A  # (d_out, d_in)
    c = p.beside(norms(V, p.norm_axis, eps))  # (d_out, 1) or (1, d_in)
    W = p.beside(p.m) / c * V  # (d_out, d_in)
    return V, c, W


def dora_forward(
    x, W0, A, B, m, scale, *, bias=None, norm_axis="per_output", mask=None, eps=EPS
) -> tuple[Array, DoRACache]:
    """y = x @ W.T + bias with W = m * V / ‖V‖ and V = W0 + scale * B @ A (Eq. 5).

    x: (..., d_in); W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); m: (d_out,) for "per_output",
    (d_in,) for "per_input"; bias: (d_out,), never scaled; mask: like x, an inverted-dropout mask
    on x in what DoRA adds: y = x @ W0.T + (x * mask) @ (W - W0).T + bias. Returns y: (..., d_out)
    in x's dtype, and the cache for `dora_backward`. Raises TypeError or ValueError that names
    the argument, what was expected and what came.
    """
    inputs, p = layer(x, W0, A, B, scale, m=m, bias=bias, mask=mask, norm_axis=norm_axis)
    V, c, W = _adapted(p, eps)
    if inputs.mask is None:
        y = inputs.x @ W.T  # (n, d_out)
    else:
        y = inputs.x @ p.W0.T + inputs.xm @ (W - p.W0).T  # (n, d_out)
    return inputs.output(y), DoRACache(inputs, p, V, c, W)


def dora_backward(dy: Array, cache: DoRACache, *, norm_grad: str = "exact") -> DoRAGrads:
    """Gradients of `dora_forward`, given dy = dL/dy shaped like y. W0 is frozen and has none.

    norm_grad: "exact" is the derivative of Eq. 5; "detached" treats the norm c as a constant
    (Eq. 11, paper section 4.3), which changes dA and dB only.
    """
    one_of("norm_grad", norm_grad, ("exact", "detached"))
    inputs, p, V, c, W = cache
    dy = inputs.cotangent(dy)  # (n, d_out)
    # y = x @ W.T + bias; with a mask, x @ W0.T + xm @ (W - W0).T + bias
    G = dy.T @ inputs.xm  # (d_out, d_in), dL/dW
    dx = inputs.through_mask(dy @ W, None if inputs.mask is None else dy @ p.W0)  # (n, d_in)
    # W = m * V / c
    dm = (G * V).sum(p.axis, keepdims=True) / c  # like c, Eq. 7
    dV = p.beside(p.m) / c * G  # (d_out, d_in), Eq. 11
    # c = ‖V‖: the part of dV along each vector of V drops out
    if norm_grad == "exact":
        dV -= p.beside(p.m) / c * (dm / c) * V  # Eq. 6
    # V = W0 + scale * B @ A
    dA = p.scale * p.B.T @ dV  # (r, d_in)
    dB = p.scale * dV @ p.A.T  # (d_out, r)
    dm = p.like("m", dm.reshape(-1))
    return DoRAGrads(inputs.dx(dx), p.like("A", dA), p.like("B", dB), dm, inputs.dbias(dy))


def init(
    W0: Array, rank: int, rng: np.random.Generator, *, norm_axis: str = "per_output", eps=EPS
) -> tuple[Array, Array, Array]:
    """Start a DoRA layer at its base: A Kaiming-uniform, B zero, m = ‖W0‖, hence W = W0.

    W0: (d_out, d_in), finite. Returns A: (rank, d_in), B: (d_out, rank) in W0's dtype, and
    m: (d_out,) or (d_in,), float32 at least. m uses the eps of the forward pass, so a zero vector
    of W0 starts with m / c = 1 and can learn. Raises ValueError for NaN or infinity in W0.
    """
    W0 = finite("W0", floating("W0", W0, ndim=2))
    A, B = lora.init(*W0.shape, rank, rng, W0.dtype)
    return A, B, norms(W0, norm_axis, eps)


def dora_weight(W0, A, B, m, scale, *, norm_axis="per_output", eps=EPS) -> Array:
    """The merged weight W = m * V / ‖V‖ of Eq. 5, (d_out, d_in), in W0's dtype.

    >>> W0, A, B = np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]]), np.array([[-3.0]])
    >>> dora_weight(W0, A, B, np.array([10.0]), 1.0)
    array([[ 0., 10.]])
    """
    p = weights(W0, A, B, scale, m=m, norm_axis=norm_axis)
    return p.like("W0", _adapted(p, eps)[2])


def recover_magnitude(W, W0, A, B, scale, *, norm_axis="per_output", eps=EPS) -> Array:
    """The m that `dora_weight` made W with: sum(W * V) / ‖V‖ per vector, sign included.

    W, W0: (d_out, d_in); A: (r, d_in); B: (d_out, r). Returns m: (d_out,) or (d_in,), float32 at
    least. Where V is zero, W says nothing of m and 0 comes back. A W that was not merged from
    these arrays gives the m of the nearest one that could have been.
    """
    p = weights(W0, A, B, scale, norm_axis=norm_axis)
    W = shaped("W", W, p.W0.shape, "the shape of W0")
    V = p.W0 + p.scale * p.B @ p.A  # (d_out, d_in)
    along = (W * V).sum(p.axis, dtype=np.result_type(V, np.float64))  # (d_out,) or (d_in,)
    return cast(along / norms(V, norm_axis, eps), V.dtype)

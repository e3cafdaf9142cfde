"""The fast DoRA layer: the answers of `minidora.dora` with nothing of shape (d_out, d_in) made.

V, W, G = dL/dW and dV of the textbook are never formed, and W0 is used where it lies. What takes
their place are products with the r rows of A or the r columns of B. Even the exact gradient needs
no more: what the norm adds to dV is k * V, one factor k for each vector, and its products with A
and B are products of V that the norm has already needed. So the exact gradient costs one small
product more than the detached one and no memory; `lessons/06_cost.ipynb` derives it.

There is one pair of forward and backward for each axis, in the paper's letters; s is the scale,
xm = x * mask (or x), and a matrix named VA is V @ A.T, computed as W0 @ A.T + s * B @ (A @ A.T).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._boundary import Array, Inputs, Weights, cast, layer, number, one_of, shaped
from .decomposition import EPS, squared_norms
from .dora import DoRAGrads

__all__ = ["GUARD", "dora_backward", "dora_forward"]

GUARD = 0.1
"""Vectors with ‖V‖² below this part of ‖W0‖² + ‖s B A‖² lost digits and are recomputed densely."""


class FactoredCache(NamedTuple):
    """What `dora_backward` needs of the forward pass."""

    inputs: Inputs
    weights: Weights
    c: Array  # norms of V, (d_out,) or (d_in,)
    g: Array  # m / c
    h: Array  # the input in the r dimensions of A, (n, r)
    kept: Array  # per_output: z = xm @ V.T, (n, d_out); per_input: xg = xm * g, (n, d_in)
    V_small: Array  # per_output: V @ A.T, (d_out, r); per_input: B.T @ V, (r, d_in)


def dora_forward(
    x, W0, A, B, m, scale, *, bias=None, norm_axis="per_output", mask=None, eps=EPS, W0_sq=None
) -> tuple[Array, FactoredCache]:
    """The same function as `dora.dora_forward` (Eq. 5), without a dense temporary.

    Arguments, shapes and errors as there, and W0_sq: (d_out,) or (d_in,), what
    `decomposition.squared_norms(W0, norm_axis)` gives, to compute it once for a frozen layer
    instead of at every call. Returns y: (..., d_out) in x's dtype, and the cache.
    """
    inputs, p = layer(x, W0, A, B, scale, m=m, bias=bias, mask=mask, norm_axis=norm_axis)
    eps = number("eps", eps, minimum=0)
    if W0_sq is None:
        W0_sq = squared_norms(p.W0, norm_axis)
    else:
        W0_sq = shaped("W0_sq", W0_sq, p.m.shape, f"one per vector, {norm_axis}")
    forward = _forward_per_output if norm_axis == "per_output" else _forward_per_input
    y, cache = forward(inputs, p, W0_sq, eps)
    return inputs.output(y), cache


def dora_backward(dy: Array, cache: FactoredCache, *, norm_grad: str = "exact") -> DoRAGrads:
    """The same gradients as `dora.dora_backward` (Eq. 6, 7, or 11), without a dense temporary."""
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    inputs, p = cache.inputs, cache.weights
    dy = inputs.cotangent(dy)  # (n, d_out)
    backward = _backward_per_output if p.norm_axis == "per_output" else _backward_per_input
    dx, dA, dB, dm = backward(dy, cache, exact)
    grads = p.like("A", dA), p.like("B", dB), p.like("m", dm)
    return DoRAGrads(inputs.dx(dx), *grads, inputs.dbias(dy))


# One magnitude for each row of W0. A row's norm and magnitude scale one output: y = (xm @ V.T) * g


def _forward_per_output(inputs: Inputs, p: Weights, W0_sq: Array, eps: float):
    W0, A, B, s = p.W0, p.A, p.B, p.scale
    n = len(inputs.x)
    if n < len(W0):  # x is small beside W0: one pass over W0 for both products
        both = np.concatenate([inputs.xm, A]) @ W0.T  # (n + r, d_out)
        z, WA = both[:n], both[n:].T  # (n, d_out), (d_out, r)
    else:
        z, WA = inputs.xm @ W0.T, W0 @ A.T
    # V @ A.T, where V = W0 + s * B @ A
    BAA = s * B @ (A @ A.T)  # (d_out, r)
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², row by row
    cross, update_sq = s * _sum("or,or->o", B, WA), s * _sum("or,or->o", B, BAA)
    c = _norms(p, eps, W0_sq, cross, update_sq, lambda rows: W0[rows] + s * B[rows] @ A)
    g = p.m / c  # (d_out,)
    # z = xm @ V.T
    h = inputs.xm @ A.T  # (n, r)
    y = (s * h) @ B.T  # (n, d_out), whose memory serves twice
    z += y
    np.multiply(z, g, out=y)
    if inputs.mask is not None:
        y += (inputs.x - inputs.xm) @ W0.T  # what the mask hides from the adapter, not from W0
    return y, FactoredCache(inputs, p, c, g, h, z, WA + BAA)


def _backward_per_output(dy: Array, cache: FactoredCache, exact: bool):
    inputs, p, c, g, h, z, VA = cache
    W0, A, B, s = p.W0, p.A, p.B, p.scale
    n, r = h.shape
    # y = z * g, with g = m / c
    dm = np.einsum("no,no->o", dy, z) / c  # (d_out,), Eq. 7
    stacked = np.empty((n + r if exact else n, len(B)), dy.dtype)
    dz = np.multiply(dy, g, out=stacked[:n])  # (n, d_out)
    # z = xm @ W0.T + s * h @ B.T, and h = xm @ A.T
    dh = dz @ (s * B)  # (n, r)
    dA = dh.T @ inputs.xm  # (r, d_in)
    dB = dz.T @ (s * h)  # (d_out, r)
    if exact:
        # g = m / ‖V‖ adds k * V to dV (the projection of Eq. 6), hence s * B.T @ (k * V) to dA
        # and s * (k * V) @ A.T to dB
        k = -g * dm / c  # (d_out,)
        kB = k[:, None] * B  # (d_out, r)
        dB += (s * k)[:, None] * VA
        dA += s * s * (B.T @ kB) @ A
        # its other part, s * kB.T @ W0, rides along with dz @ W0: r more rows, one pass over W0
        np.multiply(s, kB.T, out=stacked[n:])
    product = stacked @ W0  # (n + r, d_in)
    dA += product[n:] if exact else 0
    dxm = product[:n]  # (n, d_in)
    dxm += dh @ A
    dx = inputs.through_mask(dxm, None if inputs.mask is None else dy @ W0)
    return dx, dA, dB, dm


# One magnitude for each column of W0. It scales one input: y = (xm * g) @ V.T


def _forward_per_input(inputs: Inputs, p: Weights, W0_sq: Array, eps: float):
    W0, A, B, s = p.W0, p.A, p.B, p.scale
    # B.T @ V, where V = W0 + s * B @ A
    BW = B.T @ W0  # (r, d_in)
    BBA = s * (B.T @ B) @ A  # (r, d_in)
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², column by column
    cross, update_sq = s * _sum("ri,ri->i", A, BW), s * _sum("ri,ri->i", A, BBA)
    c = _norms(p, eps, W0_sq, cross, update_sq, lambda cols: W0[:, cols] + s * B @ A[:, cols])
    g = p.m / c  # (d_in,)
    # y = xg @ V.T
    xg = inputs.xm * g  # (n, d_in)
    h = xg @ A.T  # (n, r)
    past = 0 if inputs.mask is None else inputs.x - inputs.xm  # what W0 sees past the mask
    y = (xg + past) @ W0.T  # (n, d_out)
    y += (s * h) @ B.T
    return y, FactoredCache(inputs, p, c, g, h, xg, BW + BBA)


def _backward_per_input(dy: Array, cache: FactoredCache, exact: bool):
    inputs, p, c, g, h, xg, BV = cache
    W0, A, B, s = p.W0, p.A, p.B, p.scale
    # y = xg @ W0.T + s * h @ B.T, and h = xg @ A.T
    dh = dy @ (s * B)  # (n, r)
    dy_W0 = dy @ W0  # (n, d_in)
    dxg = dy_W0 + dh @ A  # (n, d_in)
    dA = dh.T @ xg  # (r, d_in)
    dB = dy.T @ (s * h)  # (d_out, r)
    # xg = xm * g, with g = m / c
    dm = np.einsum("ni,ni->i", inputs.xm, dxg) / c  # (d_in,), Eq. 7
    dx = inputs.through_mask(dxg * g, dy_W0)
    if exact:
        # g = m / ‖V‖ adds V * k to dV (the projection of Eq. 6), hence s * B.T @ (V * k) to dA
        # and s * (V * k) @ A.T to dB
        k = -g * dm / c  # (d_in,)
        kA = A * k  # (r, d_in)
        dA += s * BV * k
        dB += W0 @ (s * kA).T + s * s * B @ (kA @ A.T)
    return dx, dA, dB, dm


def _sum(subscripts: str, a: Array, b: Array) -> Array:
    """Sum of products of two small arrays along r, accumulated in float64."""
    return np.einsum(subscripts, a, b, dtype=np.result_type(a, np.float64))


def _norms(
    p: Weights,
    eps: float,
    W0_sq: Array,
    cross: Array,
    update_sq: Array,
    V_of: Callable[[Array], Array],
) -> Array:
    """Norms ‖V‖ from ‖W0‖², <W0, s B A> and ‖s B A‖²; densely where those cancel.

    V_of(chosen) forms the chosen vectors of V. The sum of squares may be far from exact, or even
    negative, where V is small beside W0: it is made of terms as large as ‖W0‖².
    """
    positive = W0_sq + update_sq
    squares = positive + 2 * cross
    chosen = squares < GUARD * positive
    if chosen.any():
        squares[chosen] = squared_norms(V_of(chosen), p.norm_axis)
    return cast(np.sqrt(squares + eps * eps), p.W0.dtype)

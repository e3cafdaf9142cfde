"""The DoRA layer without a dense temporary: the same function and gradients as `minidora.dora`.

Nothing of shape (d_out, d_in) is made: neither V nor W, nor the gradients of either. What the dense
layer does with V = W0 + s * B @ A is done with W0 @ A.T, or B.T @ W0, and products of A and B. So
the exact gradient costs one small product more than the detached one, and no memory. W0 is used
where it lies; only what the layer keeps for its backward pass is as large as y or x.

There is one pair, forward above backward, for each axis, in the letters of Eq. 5-7; s is the scale,
xm = x * mask (or x), and a matrix named VA is V @ A.T, computed as W0 @ A.T + s * B @ (A @ A.T).
Two places lose digits and are guarded: a V that nearly cancels W0 (`GUARD`), and a product B @ A
that cancels inside itself (`CANCELLED`).

Vectors in blocks may share a magnitude (`groups`; `minidora.granularity`): the squares of a group,
and its dm, are sums of its vectors'. All else stays, with one m and one c for each vector.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._boundary import Array, Edge, Groups, Rows, Weights, cast, enter, one_of, shaped
from .decomposition import EPS, squared_norms
from .dora import DoRAGrads

__all__ = ["CANCELLED", "GUARD", "dora_backward", "dora_forward", "update_products"]

GUARD = 0.1
"""Vectors with ‖V‖² below this part of ‖W0‖² + ‖s B A‖² lost digits and are recomputed densely."""

CANCELLED = 16.0
"""Where the squares of B @ A's own parts exceed ‖B A‖² so many times, it is factored anew."""

CHUNK = 64
"""So many vectors are recomputed densely at a time."""


class FactoredCache(NamedTuple):
    """What `dora_backward` needs of the forward pass."""

    rows: Rows
    weights: Weights
    c: Array  # norms of V, (d_out,) or (d_in,)
    g: Array  # m / c
    h: Array  # the input in the r dimensions of A, (n, r)
    kept: Array  # per_output: z = xm @ V.T, (n, d_out); per_input: xg = xm * g, (n, d_in)
    V_small: Array  # per_output: V @ A.T, (d_out, r); per_input: B.T @ V, (r, d_in)
    lengths: Array  # powers of two that A's rows were divided by and B's columns multiplied, (r,)
    block: int  # how many vectors share a magnitude
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
    W0_sq: ArrayLike | None = None,
    groups: Groups | None = None,
) -> tuple[Array, FactoredCache]:
    """The same function as `dora.dora_forward` (Eq. 5), without a dense temporary.

    Arguments, shapes and errors as there, and W0_sq: (d_out,) or (d_in,), what
    `decomposition.squared_norms(W0, norm_axis)` gives, to compute it once for a frozen layer
    instead of at every call. groups: of norm_axis's own vectors, ("rows", k) for "per_output",
    ("columns", k) for "per_input", or "whole"; m is then (groups,). Returns y: (..., d_out) in x's
    dtype, and the cache.
    """
    rows, layer, edge = enter(
        x, W0, A, B, scale, m=m, bias=bias, mask=mask, norm_axis=norm_axis, groups=groups, eps=eps
    )
    block = layer.m.size // max(edge.came["m"][0][0], 1)
    if W0_sq is None:
        W0_sq = squared_norms(layer.W0, norm_axis)
    else:
        W0_sq = shaped("W0_sq", W0_sq, (layer.m.size,), f"one per vector, {norm_axis}")
    lengths = _lengths(layer.A)
    if (lengths != 1).any():
        layer = layer._replace(A=layer.A / lengths[:, None], B=layer.B * lengths)
    forward = _forward_per_output if layer.axis == 1 else _forward_per_input
    y, c, g, h, kept, V_small = forward(rows, layer, W0_sq, block)
    if rows.bias is not None:
        y += rows.bias
    (y,) = edge.leave(y=y)
    return y, FactoredCache(rows, layer, c, g, h, kept, V_small, lengths, block, edge)


def dora_backward(dy: ArrayLike, cache: FactoredCache, *, norm_grad: str = "exact") -> DoRAGrads:
    """The same gradients as `dora.dora_backward` (Eq. 6, 7, or 11), without a dense temporary."""
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    dy = cache.edge.rows(dy)  # (n, d_out)
    backward = _backward_per_output if cache.weights.axis == 1 else _backward_per_input
    dx, dA, dB, dm = backward(dy, cache, exact)
    if (cache.lengths != 1).any():
        dA, dB = dA / cache.lengths[:, None], dB * cache.lengths
    dm = dm[:: cache.block]  # (groups,)
    dbias = None if cache.rows.bias is None else dy.sum(0)  # (d_out,)
    return DoRAGrads(*cache.edge.leave(dx=dx, dA=dA, dB=dB, dm=dm, dbias=dbias))


# One magnitude for each row of W0. A row's norm and magnitude scale one output: y = (xm @ V.T) * g


def _forward_per_output(rows: Rows, layer: Weights, W0_sq: Array, block: int) -> tuple[Array, ...]:
    (x, _, mask), (W0, A, B, m, s, _, eps) = rows, layer
    xm, n = x if mask is None else x * mask, len(x)
    if n < len(W0):  # x is small beside W0: one pass over W0 for both products
        both = np.concatenate([xm, A]) @ W0.T  # (n + r, d_out)
        z, WA = both[:n], both[n:].T  # (n, d_out), (d_out, r)
    else:
        z, WA = xm @ W0.T, W0 @ A.T
    # V @ A.T, where V = W0 + s * B @ A
    AA = A @ A.T  # (r, r)
    BAA: Array = s * B @ AA  # (d_out, r)
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², row by row
    cross, update_sq = s * _sum("or,or->o", B, WA), s * _sum("or,or->o", B, BAA)
    if _cancelled(s * s * (B * B) @ AA.diagonal(), update_sq):
        cross, update_sq, BAA = update_products(W0, A, B, s)
    squares = _squares(
        (W0_sq, cross, update_sq),
        block,
        lambda lost: squared_norms(W0[lost] + s * B[lost] @ A, "per_output"),
    )
    c = cast(np.sqrt(squares + eps**2), W0.dtype)  # (d_out,)
    g = m[:, 0] / c  # (d_out,)
    # z = xm @ V.T
    h = xm @ A.T  # (n, r)
    y = (s * h) @ B.T  # (n, d_out), whose memory serves twice
    z += y
    np.multiply(z, g, out=y)
    if mask is not None:
        y += (x - xm) @ W0.T  # what the mask hides from the adapter, not from W0
    return y, c, g, h, z, WA + BAA


def _backward_per_output(dy: Array, cache: FactoredCache, exact: bool) -> tuple[Array, ...]:
    (x, _, mask), (W0, A, B, _, s, *_), c, g, h, z, VA, _, block, _ = cache
    n, r = h.shape
    # y = z * g, with g = m / c
    dm = _totals(np.einsum("no,no->o", dy, z), block) / c  # (d_out,), Eq. 7
    stacked = np.empty((n + r if exact else n, len(B)), dy.dtype)
    dz = np.multiply(dy, g, out=stacked[:n])  # (n, d_out)
    # z = xm @ W0.T + s * h @ B.T, and h = xm @ A.T
    dh = dz @ (s * B)  # (n, r)
    dA = dh.T @ (x if mask is None else x * mask)  # (r, d_in)
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
    dx = product[:n]  # (n, d_in)
    dx += dh @ A
    if mask is not None:
        dx = mask * dx + (1 - mask) * (dy @ W0)
    return dx, dA, dB, dm


# One magnitude for each column of W0. It scales one input: y = (xm * g) @ V.T


def _forward_per_input(rows: Rows, layer: Weights, W0_sq: Array, block: int) -> tuple[Array, ...]:
    (x, _, mask), (W0, A, B, m, s, _, eps) = rows, layer
    xm = x if mask is None else x * mask
    # B.T @ V, where V = W0 + s * B @ A
    BW, BB = B.T @ W0, B.T @ B  # (r, d_in), (r, r)
    BBA: Array = s * BB @ A  # (r, d_in)
    # ‖V‖² = ‖W0‖² + 2 <W0, s B A> + ‖s B A‖², column by column
    cross, update_sq = s * _sum("ri,ri->i", A, BW), s * _sum("ri,ri->i", A, BBA)
    if _cancelled(s * s * BB.diagonal() @ (A * A), update_sq):
        cross, update_sq, ABB = update_products(W0.T, B.T, A.T, s)
        BBA = ABB.T
    squares = _squares(
        (W0_sq, cross, update_sq),
        block,
        lambda lost: squared_norms(W0[:, lost] + s * B @ A[:, lost], "per_input"),
    )
    c = cast(np.sqrt(squares + eps**2), W0.dtype)  # (d_in,)
    g = m[0] / c  # (d_in,)
    # y = xg @ V.T
    xg = xm * g  # (n, d_in)
    h = xg @ A.T  # (n, r)
    past = 0 if mask is None else x - xm  # what W0 sees past the mask
    y = (xg + past) @ W0.T  # (n, d_out)
    y += (s * h) @ B.T
    return y, c, g, h, xg, BW + BBA


def _backward_per_input(dy: Array, cache: FactoredCache, exact: bool) -> tuple[Array, ...]:
    (x, _, mask), (W0, A, B, _, s, *_), c, g, h, xg, BV, _, block, _ = cache
    # y = xg @ W0.T + s * h @ B.T, and h = xg @ A.T
    dh = dy @ (s * B)  # (n, r)
    dy_W0 = dy @ W0  # (n, d_in)
    dxg = dy_W0 + dh @ A  # (n, d_in)
    dA = dh.T @ xg  # (r, d_in)
    dB = dy.T @ (s * h)  # (d_out, r)
    # xg = xm * g, with g = m / c
    along = np.einsum("ni,ni->i", x if mask is None else x * mask, dxg)
    dm = _totals(along, block) / c  # (d_in,), Eq. 7
    dx = dxg * g  # (n, d_in)
    if mask is not None:
        dx = mask * dx + (1 - mask) * dy_W0
    if exact:
        # g = m / ‖V‖ adds V * k to dV (the projection of Eq. 6), hence s * B.T @ (V * k) to dA
        # and s * (V * k) @ A.T to dB
        k = -g * dm / c  # (d_in,)
        kA = A * k  # (r, d_in)
        dA += s * BV * k
        dB += W0 @ (s * kA).T + s * s * B @ (kA @ A.T)
    return dx, dA, dB, dm


# Groups, and digits: what keeps c right where W0 and s B A, or B and A, cancel


def _totals(values: Array, block: int) -> Array:
    """Of each vector its group's sum, (vectors,); the values themselves where it is alone."""
    if block == 1:
        return values
    return np.repeat(values.reshape(-1, block).sum(1), block)


def _squares(parts: tuple[Array, Array, Array], block: int, dense: Callable[[Any], Array]) -> Array:
    """‖V‖² of each vector's group from ‖W0‖², <W0, s B A> and ‖s B A‖², guarded.

    dense: the squares of some vectors anew, by making them.
    """
    W0_sq, cross, update_sq = parts
    squares = _totals(W0_sq + 2 * cross + update_sq, block)
    lost = np.flatnonzero(squares < GUARD * _totals(W0_sq + update_sq, block))
    if lost.size:  # whole groups
        for at in range(0, lost.size, CHUNK):
            some = lost[at : at + CHUNK]
            squares[some] = dense(some)
        squares[lost] = _totals(squares[lost], block)
    return squares


def _sum(subscripts: str, a: Array, b: Array) -> Array:
    """Sum of products of two small arrays along r, accumulated in float64."""
    return np.einsum(subscripts, a, b, dtype=np.result_type(a, np.float64))


def _lengths(A: Array) -> Array:
    """The power of two by which to divide each row of A, (r,): 1 unless it is beyond 2^±40.

    B @ A is the same where B's columns are multiplied by it; products of A with itself then
    neither overflow nor vanish.
    """
    _, exponents = np.frexp(np.abs(A).max(1, initial=0))
    exponents[np.abs(exponents) <= 40] = 0
    return np.ldexp(np.ones(len(A), A.dtype), exponents)


def _cancelled(parts_sq: Array, update_sq: Array) -> bool:
    """Whether some vector of B @ A is much shorter than what it is a sum of.

    parts_sq: the sum of ‖b_j a_j‖² over the ranks j. ‖B A‖², from a Gram matrix, loses the square
    of their ratio in digits, and may come out negative.
    """
    return not (parts_sq <= CANCELLED * update_sq).all()


def update_products(W0: Array, A: Array, B: Array, s: float) -> tuple[Array, Array, Array]:
    """<w0, s b A> and ‖s b A‖² of each row in float64, (d_out,), and s B A Aᵀ, (d_out, r).

    For a B @ A that cancels inside itself. With Aᵀ = Q R and orthonormal columns of Q, B A is
    (B Rᵀ) Qᵀ: what cancels does so once, in B Rᵀ, in float64, and ‖b A‖ = ‖b Rᵀ‖ is a sum of
    squares. For columns of V in place of rows: W0.T, B.T, A.T.
    """
    Q, R = np.linalg.qr(cast(A, np.float64).T)  # (d_in, k), (k, r), k the smaller dimension
    BR = s * (B @ R.T)  # (d_out, k)
    WQ = W0 @ cast(Q, W0.dtype)  # (d_out, k)
    return (BR * WQ).sum(1), (BR * BR).sum(1), cast(BR @ R, A.dtype)

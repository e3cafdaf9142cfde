"""DoRA where a magnitude belongs to any group of W's entries: a row, a head, the whole matrix.

`minidora.dora` gives each row or column of W a magnitude. Let a grouping put every entry of W into
one group g, and the page reads on unchanged, with sums over a group in place of sums over a vector:

    c_g = sqrt(sum of V² over g + eps²),    W = m_g V / c_g                                 (Eq. 5)
    dm_g = sum of G V over g / c_g                                                          (Eq. 7)
    dV = m_g / c_g (G - V dm_g / c_g),    detached  dV = m_g / c_g G                     (Eq. 6, 11)

`groups` says which: "per_output", "per_input" (as `norm_axis` does); ("rows", k) or ("columns", k),
blocks of k one after the other, which with k = d_head are the heads of q, k, v or of o; "whole". A
vector of gains is a matrix of one row.

Both axes at once, as in BoRA (arXiv 2412.06441): two normalisations one after the other, columns
first, then rows. We read "dual normalization" in its abstract so; the second one divides by the
norms of what the first one made:

    U = m_in V / ‖V‖_columns,    W = m_out U / ‖U‖_rows

A common factor of all of m_in drops out of W wholly, so one of its d_in numbers cannot be learned,
and the gradient of m_in has no part along m_in.

Dense and for reading, as `dora.py`; `minidora.factored` takes the groups of its own axis.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import lora
from ._boundary import (
    EPS,
    Array,
    Edge,
    Groups,
    Rows,
    Weights,
    axis_of,
    block_of,
    cast,
    enter,
    finite,
    floating,
    number,
    one_of,
    shaped,
    summed_axis,
    weights,
)
from .decomposition import sum_of_squares
from .dora import DoRAGrads

__all__ = [
    "BoRAGrads",
    "bora_backward",
    "bora_forward",
    "bora_weight",
    "dora_backward",
    "dora_forward",
    "dora_weight",
    "init",
    "norms",
    "normalise",
    "normalise_backward",
    "recover_magnitude",
]


class Normalised(NamedTuple):
    """What `normalise_backward` needs; m and c lie beside V, each vector with its group's."""

    V: Array  # (d_out, d_in)
    m: Array
    c: Array
    axis: int  # that a vector's entries are summed over
    block: int  # how many vectors make a group


def _totals(sums: Array, axis: int, block: int) -> Array:
    """Sums over vectors, beside V, as sums over groups, each vector with its group's."""
    if block == 1:
        return sums
    return np.expand_dims(np.repeat(sums.reshape(-1, block).sum(1), block), axis)


def normalise(V: Array, m: Array, axis: int, block: int, eps: float) -> tuple[Array, Normalised]:
    """W = m V / c with c each group's norm. m: beside V, (d_out, 1) for axis 1 or (1, d_in)."""
    c = np.sqrt(_totals(sum_of_squares(V, axis), axis, block) + eps**2)  # beside V
    c = c.astype(V.dtype)
    return m / c * V, Normalised(V, m, c, axis, block)


def normalise_backward(G: Array, cache: Normalised, exact: bool) -> tuple[Array, Array]:
    """dV, (d_out, d_in), and dm, (groups,), of `normalise`, given G = dL/dW."""
    V, m, c, axis, block = cache
    # W = m * V / c, one m for all entries of a group
    dm = _totals((G * V).sum(axis, keepdims=True), axis, block) / c  # beside V, Eq. 7
    # c = sqrt(sum of V² over the group + eps²): what lies along the group's V drops out
    if exact:
        dV = m / c * (G - V * (dm / c))  # (d_out, d_in), Eq. 6
    else:
        dV = m / c * G  # (d_out, d_in), Eq. 11
    return dV, dm.reshape(-1)[::block]


class GroupedCache(NamedTuple):
    """What `dora_backward` and `bora_backward` need of the forward pass."""

    rows: Rows
    weights: Weights
    W: Array  # (d_out, d_in)
    normalised: tuple[Normalised, ...]  # the first one first
    edge: Edge


def dora_forward(
    x: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m: ArrayLike,
    scale: float,
    *,
    groups: Groups,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    eps: float = EPS,
) -> tuple[Array, GroupedCache]:
    """y = x @ W.T + bias with W = m_g * V / c_g and V = W0 + scale * B @ A.

    m: (groups,), one for each group in the order of its rows or columns; all else as in
    `dora.dora_forward`, which this is for "per_output" and "per_input". Raises ValueError for
    groups of an unknown kind or a block size that does not divide.
    """
    axis = axis_of(groups)
    rows, layer, edge = enter(
        x, W0, A, B, scale, m=m, bias=bias, mask=mask, norm_axis=axis, groups=groups, eps=eps
    )
    W, normalised = _adapted(layer, groups)
    (y,) = edge.leave(y=_affine(rows, layer.W0, W))
    return y, GroupedCache(rows, layer, W, (normalised,), edge)


def dora_backward(dy: ArrayLike, cache: GroupedCache, *, norm_grad: str = "exact") -> DoRAGrads:
    """Gradients of `dora_forward`, given dy = dL/dy; norm_grad as in `dora.dora_backward`."""
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    # y = x @ W.T + bias
    dx, G, dbias = _affine_backward(cache.edge.rows(dy), cache)
    # W = m * V / c
    dV, dm = normalise_backward(G, cache.normalised[0], exact)
    dA, dB = _low_rank_backward(dV, cache.weights)
    return DoRAGrads(*cache.edge.leave(dx=dx, dA=dA, dB=dB, dm=dm, dbias=dbias))


def _adapted(layer: Weights, groups: Groups) -> tuple[Array, Normalised]:
    """The adapted weight, and what its gradient needs."""
    W0, A, B, m, scale, axis, eps = layer
    V = W0 + scale * B @ A  # (d_out, d_in)
    return normalise(V, m, axis, block_of(groups, W0.shape, axis_of(groups)), eps)


def _low_rank_backward(dV: Array, layer: Weights) -> tuple[Array, Array]:
    """dA and dB of V = W0 + scale * B @ A."""
    _, A, B, _, scale, *_ = layer
    return scale * B.T @ dV, scale * dV @ A.T  # (r, d_in), (d_out, r)


def _affine(rows: Rows, W0: Array, W: Array) -> Array:
    """y = x @ W.T + bias, where a mask acts on W - W0 alone."""
    x, bias, mask = rows
    y = x @ W.T if mask is None else x @ W0.T + (x * mask) @ (W - W0).T  # (n, d_out)
    return y if bias is None else y + bias


def _affine_backward(dy: Array, cache: GroupedCache) -> tuple[Array, Array, Array | None]:
    """dx (n, d_in), G = dL/dW (d_out, d_in) and dbias of `_affine`."""
    (x, bias, mask), W0, W = cache.rows, cache.weights.W0, cache.W
    dbias = None if bias is None else dy.sum(0)  # (d_out,)
    if mask is None:
        return dy @ W, dy.T @ x, dbias
    return dy @ W0 + mask * (dy @ (W - W0)), dy.T @ (x * mask), dbias


def norms(W: ArrayLike, groups: Groups, eps: float = EPS) -> Array:
    """Norm of each group of W, (d_out, d_in): (groups,), float32 at least, squares in float64.

    >>> W = np.array([[3.0, 4.0], [0.0, 12.0]])
    >>> norms(W, ("rows", 2)), norms(W, "whole"), norms(W, "per_output")
    (array([13.]), array([13.]), array([ 5., 12.]))
    """
    W = floating("W", W, ndim=2)
    axis, block = summed_axis(axis_of(groups)), block_of(groups, W.shape, axis_of(groups))
    squares = _totals(sum_of_squares(W, axis), axis, block).reshape(-1)[::block]
    c = np.sqrt(squares + number("eps", eps, minimum=0) ** 2)
    return cast(c, np.result_type(W, np.float32))


def init(
    W0: ArrayLike, rank: int, rng: np.random.Generator, *, groups: Groups, eps: float = EPS
) -> tuple[Array, Array, Array]:
    """Start at the base: A Kaiming-uniform, B zero, m the norm of each group, hence W = W0."""
    W0 = finite("W0", floating("W0", W0, ndim=2))
    A, B = lora.init(len(W0), W0.shape[1], rank, rng, W0.dtype)
    return A, B, norms(W0, groups, eps)


def dora_weight(
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m: ArrayLike,
    scale: float,
    *,
    groups: Groups,
    eps: float = EPS,
) -> Array:
    """The merged weight W = m_g * V / c_g, (d_out, d_in), in W0's dtype."""
    axis = axis_of(groups)
    layer, edge = weights(W0, A, B, scale, m=m, norm_axis=axis, groups=groups, eps=eps)
    return edge.leave(W0=_adapted(layer, groups)[0])[0]


def recover_magnitude(
    W: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scale: float,
    *,
    groups: Groups,
    eps: float = EPS,
) -> Array:
    """The m, (groups,), that `dora_weight` made W with: sum of W V over a group / c, with sign."""
    (W0, A, B, _, scale, axis, _), _ = weights(W0, A, B, scale, norm_axis=axis_of(groups))
    W = shaped("W", W, W0.shape, "the shape of W0")
    V = W0 + scale * B @ A  # (d_out, d_in)
    block = block_of(groups, W0.shape, axis_of(groups))
    along = (W * V).sum(axis, keepdims=True, dtype=np.result_type(V, np.float64))
    along = _totals(along, axis, block).reshape(-1)[::block]  # (groups,)
    return cast(along / norms(V, groups, eps), V.dtype)


# Both axes: columns first, then rows (BoRA)


class BoRAGrads(NamedTuple):
    """Gradients of the loss, each shaped like its array; dbias is None without a bias."""

    dx: Array
    dA: Array
    dB: Array
    dm_in: Array
    dm_out: Array
    dbias: Array | None


def bora_forward(
    x: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m_in: ArrayLike,
    m_out: ArrayLike,
    scale: float,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    eps: float = EPS,
) -> tuple[Array, GroupedCache]:
    """The same for both axes. m_in: (d_in,); m_out: (d_out,); else as `dora.dora_forward`."""
    rows, layer, edge = enter(
        x, W0, A, B, scale, m=m_in, bias=bias, mask=mask, norm_axis="per_input", eps=eps
    )
    inner, outer, came = _both(layer, m_out)
    edge.came.update(m_in=edge.came["m"], m_out=came)
    W = outer.m / outer.c * outer.V
    (y,) = edge.leave(y=_affine(rows, layer.W0, W))
    return y, GroupedCache(rows, layer, W, (inner, outer), edge)


def bora_backward(dy: ArrayLike, cache: GroupedCache, *, norm_grad: str = "exact") -> BoRAGrads:
    """Gradients of `bora_forward`; "detached" takes both norms as constants."""
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    dx, G, dbias = _affine_backward(cache.edge.rows(dy), cache)
    inner, outer = cache.normalised
    # W = m_out * U / ‖U‖
    dU, dm_out = normalise_backward(G, outer, exact)
    # U = m_in * V / ‖V‖
    dV, dm_in = normalise_backward(dU, inner, exact)
    dA, dB = _low_rank_backward(dV, cache.weights)
    return BoRAGrads(
        *cache.edge.leave(dx=dx, dA=dA, dB=dB, dm_in=dm_in, dm_out=dm_out, dbias=dbias)
    )


def bora_weight(
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    m_in: ArrayLike,
    m_out: ArrayLike,
    scale: float,
    *,
    eps: float = EPS,
) -> Array:
    """The merged weight of `bora_forward`, in W0's dtype; W0 itself where both m are its norms."""
    layer, edge = weights(W0, A, B, scale, m=m_in, norm_axis="per_input", eps=eps)
    _, outer, _ = _both(layer, m_out)
    return edge.leave(W0=outer.m / outer.c * outer.V)[0]


def _both(layer: Weights, m_out: ArrayLike) -> tuple[Normalised, Normalised, tuple]:
    """Both normalisations of a layer whose m is m_in, and what m_out came as."""
    W0, A, B, m_in, scale, _, eps = layer
    m_out = shaped("m_out", m_out, (len(W0),), "one per output")
    U, inner = normalise(W0 + scale * B @ A, m_in, 0, 1, eps)
    _, outer = normalise(U, cast(m_out, U.dtype)[:, None], 1, 1, eps)
    return inner, outer, (m_out.shape, np.result_type(m_out, np.float32))

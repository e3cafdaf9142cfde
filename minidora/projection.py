"""Eq. 6 as geometry: what normalising V does to the gradient that reaches it.

With W = m * V / c the gradient of V is (m / c) times G = dL/dW, less the part of G along V, weight
vector by weight vector: one projector I - v vᵀ / c² for each vector v. (Read literally, as one
matrix for the whole of V, Eq. 6 would be wrong.) The part along a vector of V is called radial, the
rest tangential. As everywhere, c² = ‖v‖² + eps², so a zero vector has no radial part.
"""

from typing import NamedTuple

import numpy as np

from ._boundary import EPS, Array, floating, number, one_of, shaped, summed_axis
from .decomposition import norms

__all__ = ["Step", "direction_gradient", "project", "projector", "split", "step"]


def projector(v: Array, eps: float = EPS) -> Array:
    """The matrix I - v vᵀ / c² for one weight vector v: (d,), as (d, d); to look at, not to use.

    >>> projector(np.array([3.0, 4.0])).round(2)
    array([[ 0.64, -0.48],
           [-0.48,  0.36]])
    """
    v = floating("v", v, ndim=1)
    c = norms(v[None, :], "per_output", eps)[0]
    unit = v / c  # (d,)
    return np.eye(len(v), dtype=unit.dtype) - np.outer(unit, unit)


def split(G: Array, V: Array, norm_axis: str, eps: float = EPS) -> tuple[Array, Array]:
    """G as (radial, tangential): its part along each vector of V, and the rest at right angles.

    G, V: (d_out, d_in). Each projector is applied without being formed: two products a vector.

    >>> radial, tangential = split(np.array([[2.0, 1.0]]), np.array([[3.0, 0.0]]), "per_output")
    >>> radial, tangential
    (array([[2., 0.]]), array([[0., 1.]]))
    """
    V = floating("V", V, ndim=2)
    G = shaped("G", G, V.shape, "the shape of V")
    axis = summed_axis(norm_axis)
    unit = V / np.expand_dims(norms(V, norm_axis, eps), axis)  # (d_out, d_in)
    radial = (G * unit).sum(axis, keepdims=True) * unit  # (d_out, d_in)
    return radial, G - radial


def project(G: Array, V: Array, norm_axis: str, eps: float = EPS) -> Array:
    """What Eq. 6 lets through: each vector of G less its part along the vector of V.

    >>> project(np.array([[2.0, 1.0]]), np.array([[3.0, 0.0]]), "per_output")
    array([[0., 1.]])
    """
    return split(G, V, norm_axis, eps)[1]


def direction_gradient(
    G: Array, V: Array, m: Array, norm_axis: str, *, norm_grad: str = "exact", eps: float = EPS
) -> Array:
    """dV from G = dL/dW: (m / c) * project(G) if exact (Eq. 6), (m / c) * G if detached (Eq. 11).

    G, V: (d_out, d_in); m: (d_out,) or (d_in,).
    """
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    c = norms(V, norm_axis, eps)
    m = shaped("m", m, c.shape, f"one per vector, {norm_axis}")
    passed = project(G, V, norm_axis, eps) if exact else G
    return np.expand_dims(m / c, summed_axis(norm_axis)) * passed


class Step(NamedTuple):
    """What one step does to each vector of V; each (d_out,) or (d_in,)."""

    norm_before: Array
    norm_after: Array
    angle: Array  # in radians, between the vector before and after


def step(V: Array, dV: Array, rate: float, norm_axis: str) -> Step:
    """Norms before and after V - rate * dV, and the angle each vector turns by.

    V, dV: (d_out, d_in). Where dV is tangential, as the exact gradient is, the norm after is
    sqrt(norm_before² + (rate * ‖dv‖)²): such a step can only lengthen V. The angle is taken from
    its tangent, radial and tangential parts, so small angles keep their digits; vectors of zero
    norm have none and give 0.

    >>> step(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]), 1.0, "per_output").norm_after
    array([5.])
    """
    V = floating("V", V, ndim=2)
    dV = shaped("dV", dV, V.shape, "the shape of V")
    moved = V - number("rate", rate) * dV
    before, after = norms(V, norm_axis, 0), norms(moved, norm_axis, 0)
    radial, tangential = split(moved, V, norm_axis)
    along = (radial * V).sum(summed_axis(norm_axis))  # ‖v‖ times the length along v
    across = norms(tangential, norm_axis, 0) * before
    return Step(before, after, np.arctan2(across, along))

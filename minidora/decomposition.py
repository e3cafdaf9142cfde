"""A weight matrix as magnitudes times directions (paper, Eq. 2).

Each weight vector w of W is written as w = ‖w‖ · (w / ‖w‖). Which entries of W (d_out, d_in)
make up one vector is `norm_axis`:

- "per_output": a row, one vector per output neuron, d_out magnitudes. What PEFT and the paper's
  authors run.
- "per_input": a column, one vector per input feature, d_in magnitudes. What the paper's notation
  says, read with y = W x.
"""

import numpy as np
from numpy.typing import ArrayLike

from ._boundary import EPS, Array, cast, floating, number, shaped, summed_axis

__all__ = ["EPS", "decompose", "norms", "recompose", "squared_norms", "sum_of_squares"]


def norms(W: ArrayLike, norm_axis: str, eps: float = EPS) -> Array:
    """Norm of each weight vector, sqrt(sum(w²) + eps²), the ‖·‖_c of Eq. 2.

    W: (d_out, d_in). Returns c: (d_out,) for "per_output", (d_in,) for "per_input"; float32 at
    least. Squares are summed in float64, so rows that overflow or vanish in W's own dtype do not.
    Raises TypeError for an array that is not floating, ValueError for a wrong shape or name.

    >>> norms(np.array([[3.0, 4.0], [0.0, 2.0]]), "per_output")
    array([5., 2.])
    >>> norms(np.array([[3.0, 4.0], [0.0, 2.0]]), "per_input").round(3)
    array([3.   , 4.472])
    """
    eps = number("eps", eps, minimum=0)
    squares = squared_norms(W, norm_axis)  # (d_out,) or (d_in,)
    return cast(np.sqrt(squares + eps * eps), np.result_type(W, np.float32))


def squared_norms(W: ArrayLike, norm_axis: str) -> Array:
    """Squared norm of each weight vector, sum(w²), summed in float64 and returned so.

    W: (d_out, d_in), never copied. Returns (d_out,) for "per_output", (d_in,) for "per_input".

    >>> squared_norms(np.array([[3.0, 4.0], [0.0, 2.0]]), "per_output")
    array([25.,  4.])
    """
    return sum_of_squares(floating("W", W, ndim=2), summed_axis(norm_axis)).reshape(-1)


def sum_of_squares(V: Array, axis: int) -> Array:
    """sum(V²) along an axis of V, (d_out, d_in), in float64: (d_out, 1) for 1, (1, d_in) for 0."""
    kept = "o" if axis == 1 else "i"
    squares = np.einsum(f"oi,oi->{kept}", V, V, dtype=np.result_type(V, np.float64))
    return np.expand_dims(squares, axis)


def decompose(W: Array, norm_axis: str) -> tuple[Array, Array]:
    """Split W into magnitudes and unit directions (Eq. 2): W = m · V_unit, vector by vector.

    W: (d_out, d_in). Returns m: (d_out,) or (d_in,), and V_unit: (d_out, d_in) in W's dtype. A
    zero vector has no direction: its part of V_unit is zero and its magnitude is EPS.

    >>> m, V_unit = decompose(np.array([[3.0, 4.0], [0.0, 2.0]]), "per_output")
    >>> m
    array([5., 2.])
    >>> V_unit
    array([[0.6, 0.8],
           [0. , 1. ]])
    """
    m = norms(W, norm_axis)
    V_unit = W / np.expand_dims(m, summed_axis(norm_axis))  # (d_out, d_in)
    return m, cast(V_unit, np.asarray(W).dtype)


def recompose(m: Array, V_unit: Array, norm_axis: str) -> Array:
    """The weight with these magnitudes and directions, the inverse of `decompose`.

    m: (d_out,) for "per_output", (d_in,) for "per_input"; V_unit: (d_out, d_in). Returns W in
    V_unit's dtype.

    >>> recompose(np.array([10.0, 2.0]), np.array([[0.6, 0.8], [0.0, 1.0]]), "per_output")
    array([[6., 8.],
           [0., 2.]])
    """
    V_unit = floating("V_unit", V_unit, ndim=2)
    axis = summed_axis(norm_axis)
    m = shaped("m", m, (V_unit.shape[1 - axis],), f"one per vector, {norm_axis}")
    return cast(np.expand_dims(m, axis) * V_unit, V_unit.dtype)

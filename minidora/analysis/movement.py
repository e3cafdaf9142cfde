"""ΔM and ΔD (Eq. 3-4): how far magnitudes and directions have moved.

Everything is summed in float64, whatever the weights' type, and by formulas that keep their digits
where the change is small: 1 - cos of an angle of 1e-4 is 5e-9, less than float32 can take from 1.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from .._boundary import (
    Array,
    cast,
    floating,
    number,
    positive_int,
    shaped,
    summed_axis,
    weights,
)
from ..decomposition import norms
from ..factored import GUARD
from .correlation import Correlation, correlate


class Rows(Protocol):
    """A matrix that lies in a file: an array is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(d_out, d_in)."""

    @property
    def dtype(self) -> Any:
        """The type of what is read."""

    def __getitem__(self, key: Any, /) -> Any:
        """[rows] or [rows, columns]: slices, or indices."""


class Changes(NamedTuple):
    """How each weight vector of one matrix has moved. All arrays are (d_out,) or (d_in,)."""

    before: Array  # ‖w0‖
    growth: Array  # ‖w‖ - ‖w0‖, with its sign
    turn: Array  # 1 - cos(w, w0)

    @property
    def dM(self) -> float:
        """ΔM of the matrix (Eq. 3): mean of |growth|."""
        return float(np.abs(self.growth).mean())

    @property
    def dD(self) -> float:
        """ΔD of the matrix (Eq. 4): mean of turn."""
        return float(self.turn.mean())

    @property
    def right_angle_ratio(self) -> float:
        """Total growth over what it would be had every update stood at a right angle to w0.

        1 where norms grow by Pythagoras alone, 0 where they do not grow. Vectors turned by a right
        angle or more, which no such update can do, are left out.
        """
        grown, predicted = self.right_angle_sums
        return grown / predicted if predicted else float("nan")

    @property
    def right_angle_sums(self) -> tuple[float, float]:
        """The two sums of `right_angle_ratio`, so that those of several matrices can be added."""
        kept = self.turn < 1
        predicted = right_angle_growth(self.before[kept], self.turn[kept])
        return float(self.growth[kept].sum()), float(predicted.sum())

    @property
    def correlation(self) -> Correlation:
        """|growth| against turn, over the vectors."""
        return correlate(self.turn, np.abs(self.growth))


def right_angle_growth(before: Array, turn: Array) -> Array:
    """Growth of a norm whose vector turned by an update at a right angle to it, by Pythagoras.

    cos = before / after, so the growth is before / (1 - turn) - before. Vectors turned by a right
    angle or more, which no such update can do, give inf.

    >>> right_angle_growth(np.array([4.0]), np.array([0.5]))
    array([4.])
    """
    before, turn = np.asarray(before, np.float64), np.asarray(turn, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(turn < 1, before * turn / (1 - turn), np.inf)


def magnitude_change(
    W0: ArrayLike,
    W: ArrayLike,
    norm_axis: str,
    *,
    per_vector: bool = False,
    signed: bool = False,
) -> Any:
    """ΔM (Eq. 3): the mean of | ‖w‖ - ‖w0‖ | over the weight vectors.

    W0, W: (d_out, d_in). per_vector gives (d_out,) or (d_in,) instead of the mean; signed leaves
    out the absolute value, so that growth and shrinkage can be told apart.

    >>> magnitude_change(np.array([[3.0, 4.0]]), np.array([[6.0, 8.0]]), "per_output")
    5.0
    """
    growth = changes(W0, W, norm_axis).growth
    growth = growth if signed else np.abs(growth)
    return growth if per_vector else float(growth.mean())


def direction_change(
    W0: ArrayLike, W: ArrayLike, norm_axis: str, *, per_vector: bool = False
) -> Any:
    """ΔD (Eq. 4): the mean of 1 - cos(w, w0) over the weight vectors.

    W0, W: (d_out, d_in). per_vector gives (d_out,) or (d_in,) instead of the mean. Vectors of zero
    length have no direction and count as turned by a right angle, ΔD = 1.

    >>> direction_change(np.array([[3.0, 0.0]]), np.array([[0.0, 2.0]]), "per_output")
    1.0
    """
    turn = changes(W0, W, norm_axis).turn
    return turn if per_vector else float(turn.mean())


def changes(W0: ArrayLike, W: ArrayLike, norm_axis: str) -> Changes:
    """ΔM and ΔD of every weight vector from W0 to W, (d_out, d_in) each, without eps.

    By 1 - cos = ‖u - u0‖² / 2 of the unit vectors, which keeps its digits at small angles.
    """
    W0, W = _pair(W0, W)
    axis = summed_axis(norm_axis)
    before, after = (norms(M, norm_axis, 0.0) for M in (W0, W))
    zero = (before == 0) | (after == 0)
    c0, c = (np.expand_dims(np.where(zero, 1, norm), axis) for norm in (before, after))
    turn = np.square(W / c - W0 / c0).sum(axis) / 2
    return Changes(before, after - before, np.where(zero, 1.0, turn))


def _pair(W0: ArrayLike, W: ArrayLike) -> tuple[Array, Array]:
    W0 = floating("W0", W0, ndim=2)
    W = shaped("W", W, W0.shape, "the shape of W0")
    return cast(W0, np.float64), cast(W, np.float64)


def adapter_changes(
    W0: Rows,
    A: Array,
    B: Array,
    scale: float,
    *,
    m: Array | None = None,
    norm_axis: str = "per_output",
    block: int = 1024,
) -> Changes:
    """`changes` from W0 to the weight of a LoRA or (with m) DoRA adapter, which is never formed.

    W0: (d_out, d_in); A: (r, d_in); B: (d_out, r); m: (d_out,) or (d_in,). With D = scale * B @ A,
    a vector's turn depends on v · w0 and on the part of D at a right angle to w0; both come from
    products of W0, or its transpose, with at most r columns, as in `factored.update_products`. One
    pass over W0, `block` rows at a time, so W0 may lie in a file (`Rows`, or what
    `checkpoint.load(memory_map=True)` gives); vectors that W0 and D nearly cancel in are then taken
    up once more, densely, `block` at a time.
    """
    like_W0 = np.broadcast_to(np.zeros((), W0.dtype), W0.shape)  # checked without reading W0
    beside = ... if m is None else m
    given, _ = weights(like_W0, A, B, scale, m=beside, norm_axis=norm_axis, least=None)
    A, B = cast(given.A, np.float64), cast(given.B, np.float64)
    s, axis, m = given.scale, given.axis, None if m is None else given.m.reshape(-1)
    size = W0.shape[1 - axis]
    # D = D_small @ Q.T (rows) or Q @ D_small (columns), with orthonormal columns of Q: lengths and
    # products of D's vectors with w0 are those of D_small's, also where B @ A cancels inside itself
    Q, R = np.linalg.qr(A.T if axis == 1 else B)
    D_small = s * (B @ R.T if axis == 1 else R @ A)  # (d_out, k) or (k, d_in)
    W0_sq, D_W0 = np.zeros(size), np.zeros(size)  # ‖w0‖² and d · w0 of every vector
    QW0 = np.zeros((Q.shape[1], size))
    for first in range(0, W0.shape[0], positive_int("block", block)):
        rows = slice(first, first + block)
        part = cast(W0[rows], np.float64)  # (block, d_in)
        if axis == 1:
            W0_sq[rows] = np.einsum("oi,oi->o", part, part)
            D_W0[rows] = (D_small[rows] * (part @ Q)).sum(1)
        else:
            W0_sq += np.einsum("oi,oi->i", part, part)
            QW0 += Q[rows].T @ part  # (k, d_in)
    if axis == 0:
        D_W0 = (D_small * QW0).sum(0)
    D_sq = np.square(D_small).sum(axis)
    changed = _from_products(W0_sq, D_W0, D_sq, m)
    cancelled = np.flatnonzero(W0_sq + 2 * D_W0 + D_sq < GUARD * (W0_sq + D_sq))
    for first in range(0, len(cancelled), block):
        some = cancelled[first : first + block]
        B_some, A_some = (B[some], A) if axis == 1 else (B, A[:, some])
        part = cast(W0[some] if axis == 1 else W0[:, some], np.float64)
        exact = changes(part, part + s * B_some @ A_some, norm_axis)
        for array, values in zip(changed, _scaled(exact, m, some), strict=True):
            array[some] = values
    return changed


def _from_products(W0_sq: Array, D_W0: Array, D_sq: Array, m: Array | None) -> Changes:
    """Changes of v = w0 + d from ‖w0‖², d · w0 and ‖d‖²."""
    before = np.sqrt(W0_sq)
    c0 = np.where(before > 0, before, 1)
    after = np.sqrt(np.maximum(W0_sq + 2 * D_W0 + D_sq, 0))
    # v = (c0 + along) w0 / c0 + aside, at a right angle: ‖v‖² - (c0 + along)² is ‖aside‖², and so
    # 1 - cos = aside² / (‖v‖ (‖v‖ + c0 + along)), with no difference of near-equal numbers
    along = D_W0 / c0
    aside_sq = np.maximum(D_sq - along * along, 0)
    ahead = before + along  # c cos
    total = np.where(after > 0, after, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        turn = np.where(ahead > 0, aside_sq / (total * (total + ahead)), 1 - ahead / total)
        growth = np.where(before > 0, (2 * D_W0 + D_sq) / (after + before), after)
    return _scaled(Changes(before, growth, turn), m, slice(None))


def _scaled(of_V: Changes, m: Array | None, chosen) -> Changes:
    """The changes of W = m * V / ‖V‖: its norm is |m|, and a negative m turns it about."""
    if m is None:
        return of_V
    m = cast(m[chosen], np.float64)
    turn = np.where(m > 0, of_V.turn, np.where(m < 0, 2 - of_V.turn, 1.0))
    return Changes(of_V.before, np.abs(m) - of_V.before, turn)


def equal_lengths(W0: Array, W: Array, norm_axis: str) -> Array:
    """W with every vector's update made as long as the mean one, each at the angle it had.

    A control: whatever the spread of update lengths over the vectors explains is gone. Vectors
    without any update stay as they are. Returns (d_out, d_in), float64.
    """
    W0, W = _pair(W0, W)
    update, axis = W - W0, summed_axis(norm_axis)
    lengths = norms(update, norm_axis, 0.0)
    factors = np.divide(lengths.mean(), lengths, where=lengths > 0, out=np.ones_like(lengths))
    return W0 + update * np.expand_dims(factors, axis)


def random_low_rank(W0: Array, rank: int, length: float, rng: np.random.Generator) -> Array:
    """W0 plus a product of two Gaussian matrices of that rank, of Frobenius norm `length`.

    A control: the update of an adapter that learned nothing. Returns (d_out, d_in), float64.
    """
    W0 = cast(floating("W0", W0, ndim=2), np.float64)
    d_out, d_in = W0.shape
    update = rng.normal(size=(d_out, positive_int("rank", rank))) @ rng.normal(size=(rank, d_in))
    return W0 + update * (number("length", length, minimum=0) / np.linalg.norm(update))

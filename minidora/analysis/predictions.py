"""Figure 2's correlations as decay alone makes them: predicted by the law, and without learning.

What happens to vectors is laid out as (checkpoints, layers, vectors). Lengths, pulls and the like
may leave out axes from the right: a number, (checkpoints,) or (checkpoints, layers).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._boundary import Array, positive_int
from .correlation import correlate
from .decay import checked, moved, moved_magnitude, radial_parts
from .movement import Changes, changes
from .recording import Recording


class Correlations(NamedTuple):
    """Pearson's r of ΔM with ΔD in three ways, NaN where nothing varies.

    pooled: over all layers and checkpoints, as in the paper; last: over the layers at the last
    checkpoint; within: over the vectors of one layer there, the mean over layers. sd: the standard
    deviation of the three over draws, zero where there is one.
    """

    pooled: float
    last: float
    within: float
    sd: tuple[float, float, float] = (0.0, 0.0, 0.0)


def correlations_of(moves: Changes, *, signed: bool = False) -> Correlations:
    """The correlations of vectors that moved so; arrays of (checkpoints, layers, vectors).

    signed: of growth with its sign in place of |growth|. Over norms that differ, at one checkpoint,
    decay does not turn that one; pooled over time it may, for norms shrink while vectors turn.
    """
    growth = moves.growth if signed else np.abs(moves.growth)
    dM, dD = growth.mean(2), moves.turn.mean(2)  # (checkpoints, layers)
    within = [_r(*layer) for layer in zip(moves.turn[-1], growth[-1], strict=True)]
    return Correlations(_r(dD.ravel(), dM.ravel()), _r(dD[-1], dM[-1]), float(np.mean(within)))


def _r(x: Array, y: Array) -> float:
    return correlate(x, y).r if len(x) > 1 else math.nan


def moves_of(recording: Recording) -> Changes:
    """A recording's vectors as arrays of (checkpoints, layers, vectors), for `correlations_of`.

    With `update_of(moves, pull)` and `predicted_correlations` a run is held against the law.
    Raises ValueError for layers that differ in the number of their vectors.
    """
    vectors = recording.vectors
    counts = {len(moves.before) for moves in vectors[-1]}
    if len(counts) > 1:
        raise ValueError(f"recording: expected layers of as many vectors, got {sorted(counts)}")
    return Changes(*np.moveaxis(np.array(vectors), 2, 0))


def mean_correlations(draws: Iterable[Correlations]) -> Correlations:
    """The mean of several, and their standard deviation."""
    values = np.array([draw[:3] for draw in draws])
    pooled, last, within = values.mean(0).tolist()
    return Correlations(pooled, last, within, tuple(values.std(0).tolist()))


def predicted_correlations(
    norms: ArrayLike,
    lengths: ArrayLike,
    pull: ArrayLike,
    *,
    radial: ArrayLike = 0,
    step: ArrayLike | None = None,
    dimension: int | None = None,
    draws: int = 100,
    rng: np.random.Generator | None = None,
) -> Correlations:
    """What the law of `decay` says of vectors of these norms.

    norms: (layers, vectors), before tuning. lengths: u of what the gradients moved; pull: Λ of what
    is measured, 0 for LoRA; radial: ρ, where it is known, as by `update_of`. step: p of DoRA's m;
    Λ is then m's. dimension: draws ρ instead, `draws` times by rng, for random directions in so
    many dimensions that a vector keeps from checkpoint to checkpoint. A vector's direction is its
    own: where those of one layer share theirs, as of low rank, ρ does not average out so well.
    """
    m = _layers(norms)
    u, pull, rho = (
        _beside(m, name, value)
        for name, value in (("lengths", lengths), ("pull", pull), ("radial", radial))
    )
    p = None if step is None else _beside(m, "step", step)

    def correlations_at(rho: Array) -> Correlations:
        moves = moved(m, u, pull, rho) if p is None else moved_magnitude(m, u, pull, p, rho)
        return correlations_of(moves)

    if dimension is None:
        return correlations_at(rho)
    if rng is None:
        raise ValueError("rng: expected a generator to draw directions with, got None")
    return mean_correlations(
        correlations_at(u * radial_parts(np.ones(m.shape), dimension, rng))
        for _ in range(positive_int("draws", draws))
    )


def untrained(
    norms: ArrayLike,
    lengths: ArrayLike,
    pull: ArrayLike,
    dimension: int,
    rng: np.random.Generator,
) -> Changes:
    """The control that learns nothing: random vectors, random updates, decay.

    norms: (layers, vectors); lengths, pull: u and Λ of each checkpoint. w = (1 - Λ) w0 + u e, with
    w0 and e of random directions in `dimension` dimensions, drawn by rng; e stays from checkpoint
    to checkpoint. Measured by `changes` of the vectors, through no formula of `decay`. Returns
    Changes of (checkpoints, layers, vectors), for `correlations_of`. A correlation that this gives
    as well is no sign of learning.
    """
    m = _layers(norms)  # (1, layers, vectors)
    u = checked("lengths", _beside(m, "lengths", lengths), 0)
    pull = checked("pull", _beside(m, "pull", pull), 0, 1)
    shape = np.broadcast_shapes(m.shape, u.shape, pull.shape)
    w0 = m[..., None] * _directions(m.shape, dimension, rng)
    w = (1 - pull)[..., None] * w0 + u[..., None] * _directions(m.shape, dimension, rng)
    W0, W = (np.broadcast_to(v, (*shape, dimension)).reshape(-1, dimension) for v in (w0, w))
    moves = changes(W0, W, "per_output")
    return Changes(*(array.reshape(shape) for array in moves))


def _directions(shape: tuple[int, ...], dimension: int, rng: np.random.Generator) -> Array:
    """Random unit vectors, (*shape, dimension)."""
    drawn = rng.normal(size=(*shape, positive_int("dimension", dimension)))
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def _layers(norms: ArrayLike) -> Array:
    """(layers, vectors) as (1, layers, vectors)."""
    m = checked("norms", norms, 0)
    if m.ndim != 2:
        raise ValueError(f"norms: expected shape (layers, vectors), got shape {m.shape}")
    return m[None]


def _beside(m: Array, name: str, value: ArrayLike) -> Array:
    """`value` with its axes from the left, as (checkpoints, layers, vectors) or ones of these."""
    array = np.asarray(value, np.float64)
    shape = array.shape + (1,) * (3 - array.ndim)
    if len(shape) > 3 or shape[1] not in (1, m.shape[1]) or shape[2] not in (1, m.shape[2]):
        raise ValueError(
            f"{name}: expected a number, or shape (checkpoints, {m.shape[1]}, {m.shape[2]}) with"
            f" axes left out from the right, got shape {array.shape}"
        )
    return array.reshape(shape)

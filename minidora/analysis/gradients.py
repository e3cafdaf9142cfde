"""The paper's two arguments about gradients, measured.

The two scenarios S1 and S2 of Eq. 8-10 say that a vector whose gradient turns it less has a larger
magnitude gradient. The claim beside Eq. 6 is that the gradient of V has a covariance closer to a
multiple of the identity than that of W.
"""

from typing import NamedTuple

import numpy as np

from .._boundary import Array, floating, number, shaped, summed_axis
from ..decomposition import norms
from ..projection import direction_gradient, step
from .correlation import spearman


class Scenario(NamedTuple):
    """Magnitude gradient against turn over the weight vectors of one matrix."""

    dm: Array  # |dL/dm|, (d_out,) or (d_in,)
    turn: Array  # ΔD of the step, like dm
    spearman: float  # their rank correlation


def scenarios(W0: Array, G: Array, norm_axis: str, *, rate: float) -> dict[str, Scenario]:
    """The argument of Eq. 8-10, at B = 0: does the vector that turns less have the larger |dm|?

    W0, G = dL/dW: (d_out, d_in), no vector all zero. The paper compares two updates of one vector,
    equally long, where a small turn means a large |cos(g, w0)| and so a large |dm|. Over the many
    vectors of a matrix that can mean three things, returned by name:

    - "one vector": all gradients scaled to their mean length, all vectors to theirs.
    - "one length": all gradients scaled to their mean length, the vectors as long as they are.
    - "as they are": the steps that gradient descent takes.

    Each step is `rate` times its gradient.
    """
    W0 = floating("W0", W0, ndim=2)
    G = shaped("G", G, W0.shape, "the shape of W0")
    rate = number("rate", rate, minimum=0)
    same_G, same_W0 = (_of_one_length(M, norm_axis) for M in (G, W0))
    meant = {"one vector": (same_W0, same_G), "one length": (W0, same_G), "as they are": (W0, G)}
    by_name = {}
    for name, (vectors, gradients) in meant.items():
        dm = (gradients * vectors).sum(summed_axis(norm_axis)) / norms(vectors, norm_axis)  # Eq. 7
        angle = step(vectors, gradients, rate, norm_axis).angle
        turn = 2 * np.sin(angle / 2) ** 2  # 1 - cos, also for small angles
        by_name[name] = Scenario(np.abs(dm), turn, spearman(np.abs(dm), turn))
    return by_name


def _of_one_length(M: Array, norm_axis: str) -> Array:
    lengths = norms(M, norm_axis)
    return M * np.expand_dims(lengths.mean() / lengths, summed_axis(norm_axis))


class CovarianceStats(NamedTuple):
    """How far a covariance matrix (d, d) is from a multiple of the identity."""

    eigenvalues: Array  # (d,), largest first
    effective_rank: float  # exp of the entropy of the eigenvalues' shares; d for the identity
    distance: float  # ‖C - (tr C / d) I‖ / ‖C‖, Frobenius; 0 for the identity


def covariance_stats(samples: Array) -> CovarianceStats:
    """Statistics of the covariance of samples (n, d) over n.

    The effective rank is Roy and Vetterli's (2007). Raises ValueError for fewer than two samples,
    and for samples that are all the same.

    >>> covariance_stats(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).distance
    0.0
    """
    samples = floating("samples", samples, ndim=2).astype(np.float64, copy=False)
    n, d = samples.shape
    centred = samples - samples.mean(0) if n else samples
    if n < 2 or not centred.any():
        raise ValueError(f"samples: expected two or more that differ, got shape {samples.shape}")
    # The squared singular values of the centred samples are n times the eigenvalues
    positive = np.linalg.svd(centred, compute_uv=False) ** 2 / n
    eigenvalues = np.zeros(d)
    eigenvalues[: len(positive)] = positive
    share = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    spread = eigenvalues - eigenvalues.mean()
    distance = np.sqrt((spread**2).sum() / (eigenvalues**2).sum())
    return CovarianceStats(
        eigenvalues, float(np.exp(-(share * np.log(share)).sum())), float(distance)
    )


def gradient_covariances(
    x: Array, dy: Array, V: Array, m: Array, norm_axis: str, *, norm_grad: str = "exact"
) -> tuple[list[CovarianceStats], list[CovarianceStats]]:
    """Covariances of per-example gradients, with respect to W and to V, a pair for each vector.

    x: (n, d_in) and dy: (n, d_out), what enters a linear layer and what reaches its output, row by
    row; V: (d_out, d_in); m: (d_out,) or (d_in,). One example's dL/dW is the outer product of its
    dy and x. Vectors whose gradients are all the same (a dead neuron's) are left out of both lists.
    """
    V = floating("V", V, ndim=2)
    x, dy = floating("x", x, ndim=2), floating("dy", dy, ndim=2)
    shaped("x", x, (len(x), V.shape[1]), "(n, d_in)")
    shaped("dy", dy, (len(x), V.shape[0]), "(n, d_out)")
    m = shaped("m", m, norms(V, norm_axis).shape, f"one per vector, {norm_axis}")
    of_W, of_V = [], []
    for i in range(len(m)):
        if norm_axis == "per_output":
            gradients, v = dy[:, i, None] * x, V[i]  # (n, d_in)
        else:
            gradients, v = dy * x[:, i, None], V[:, i]  # (n, d_out)
        if np.ptp(gradients, axis=0).any():
            of_W.append(covariance_stats(gradients))
            # n copies of v, so that each example's gradient meets the same projector
            copies = np.broadcast_to(v, gradients.shape)
            scale = np.full(len(x), m[i])
            dV = direction_gradient(gradients, copies, scale, "per_output", norm_grad=norm_grad)
            of_V.append(covariance_stats(dV))
    return of_W, of_V

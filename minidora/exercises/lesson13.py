"""Checkers of lesson 13, what else can be taken apart."""

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad

from .. import nn
from ..experiments.networks import judge
from . import ask, checker, expect, same


def _by_autograd(V: Any, m: Any, labels: Any, G: Any) -> tuple[Any, Any]:
    """dV and dm of sum(G * W), W = m V / c by the groups that `labels` numbers."""
    member = (labels.ravel() == np.arange(len(m))[:, None]).astype(float)

    def loss(V, m):
        c = anp.sqrt(anp.dot(member, anp.ravel(V) ** 2))
        return anp.sum(G * anp.reshape(anp.dot(m / c, member), V.shape) * V)

    return grad(loss, 0)(V, m), grad(loss, 1)(V, m)


@checker
def own_grouping(answer: Any) -> None:
    """A function (d_out, d_in) -> labels of two-by-two tiles, held against autograd."""
    for shape in ((4, 6), (2, 2), (6, 4)):
        labels = np.asarray(ask(answer, *shape))
        expect(labels.shape == shape, f"expected labels of shape {shape}, got {labels.shape}")
        expect(labels.dtype.kind in "iu", "labels are whole numbers")
        groups = shape[0] * shape[1] // 4
        counts = np.bincount(labels.ravel(), minlength=groups)
        expect(
            len(counts) == groups and set(counts.tolist()) == {4},
            f"a matrix {shape} has {groups} tiles, numbered from 0, of four entries each;"
            f" yours have {counts.tolist()}",
        )
        tile = labels[:2, :2]
        expect(bool((tile == tile[0, 0]).all()), "the four entries of a tile stand in a square")
        rng = np.random.default_rng(0)
        V, G, m = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=groups)
        dV, _ = _by_autograd(V, m, labels, G)
        along = np.bincount(labels.ravel(), (dV * V).ravel())
        same(along, 0 * along, "dV is not at a right angle to V in every tile")


@checker
def not_learned(answer: Any) -> None:
    """A direction of m_in, (6,), along which BoRA's gradient is always zero, as a function."""
    rng = np.random.default_rng(1)
    m_in = rng.normal(size=6)
    direction = np.asarray(ask(answer, m_in.copy()), float)
    expect(direction.shape == (6,), f"expected shape (6,), like m_in; got {direction.shape}")
    expect(float(np.linalg.norm(direction)) > 1e-9, "zero is no direction")
    cos = direction @ m_in / np.linalg.norm(direction) / np.linalg.norm(m_in)
    ones = bool(np.allclose(direction, direction[0]))
    expect(not ones, "adding the same to every m changes their ratios; multiply")
    same(abs(cos), 1.0, "which change of m_in leaves all ratios of its entries as they are?")


@checker
def costliest(answer: Any, base: Any, part: Any) -> None:
    """The head of the third block without which the loss on part of the data is largest."""
    expect(isinstance(answer, int | np.integer), "give the number of a head, from 0")
    expect(0 <= answer < 4, "there are 4 heads, numbered from 0")
    losses = []
    for head in range(4):
        model: Any = nn.adapt(base, "magnitude", ("blocks.2.attn.o",), groups=("columns", 8))
        model.blocks[2].attn.o.m[head] = 0
        losses.append(judge(model, part)["loss"])
    expect(
        int(answer) == int(np.argmax(losses)),
        f"without head {answer} the loss is {losses[int(answer)]:.4f}; another costs more",
    )

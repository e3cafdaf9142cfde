"""Gradients at single layers of a network: what Eq. 8-10 and the remark beside Eq. 6 speak of."""

from dataclasses import dataclass

import numpy as np

from .. import analysis
from ..lora import lora_delta
from ..nn.layer import Layer, no_training, rebuilt
from ..nn.linear import DoRALinear
from .networks import Task


@dataclass(eq=False)
class Watched(Layer):
    """A layer that lets everything through and keeps what went in and what gradient came back."""

    inner: Layer
    trainable: tuple[str, ...] = no_training()

    def forward(self, x, *, rng=None):
        """The inner layer's."""
        self.x = x
        return self.inner.forward(x, rng=rng)

    def backward(self, dy, cache):
        """The inner layer's."""
        self.dy = dy
        return self.inner.backward(dy, cache)


def watched(base: Layer, model: Layer, on: Task, rows: int) -> dict[str, dict]:
    """For each DoRA layer: the rank correlations of Eq. 8-10, and the covariances beside Eq. 6.

    On the first 64 examples held back to choose by, at most `rows` rows of the layer's input
    (tokens, or examples), those whose gradient is zero (padding) left out.
    """
    found: dict[str, Watched] = {}

    def change(path, layer):
        if isinstance(layer, DoRALinear):
            found[path] = layer = Watched(layer)
        return layer

    watching = rebuilt(model, change)
    make = getattr(type(on.choose), "_make", tuple)
    on.loss(watching, make([array[:64] for array in on.choose]))
    return {path: _figures(layer, rows) for path, layer in found.items()}


def _figures(layer: Watched, rows: int) -> dict:
    x, dy = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (layer.x, layer.dy))
    counts = np.flatnonzero(np.abs(dy).sum(1) > 0)[:rows]
    x, dy = x[counts], dy[counts]
    inner = layer.inner
    V = inner.W0 + lora_delta(inner.A, inner.B, inner.scale)
    V = V.astype(np.float64)
    G = dy.T @ x
    alive = G.any(1)  # a neuron that is off for all these rows has no gradient to compare
    found = analysis.scenarios(V[alive], G[alive], inner.norm_axis, rate=1e-3)
    result: dict = {"spearman": {name: s.spearman for name, s in found.items()}}
    for norm_grad in ("exact", "detached"):
        of_W, of_V = analysis.gradient_covariances(
            x, dy, V, inner.m.astype(np.float64), inner.norm_axis, norm_grad=norm_grad
        )
        rank = [[c.effective_rank for c in of] for of in (of_W, of_V)]
        far = [[c.distance for c in of] for of in (of_W, of_V)]
        result[norm_grad] = {
            "effective rank ratio": float(np.mean(rank[1]) / np.mean(rank[0])),
            "distance ratio": float(np.mean(far[1]) / np.mean(far[0])),
        }
    return result

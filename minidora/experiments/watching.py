"""Gradients at single layers of a network: what Eq. 8-10 and the remark beside Eq. 6 speak of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import analysis
from .._boundary import Array
from ..lora import lora_delta
from ..nn.layer import Layer, rebuilt
from ..nn.linear import DoRALinear
from .networks import Task, rows


@dataclass(eq=False)
class Watched(Layer):
    """A layer that lets everything through and keeps what went in and what gradient came back."""

    inner: DoRALinear

    def forward(self, x: Array, *, rng: np.random.Generator | None = None) -> tuple[Array, Any]:
        """The inner layer's."""
        self.x = x
        return self.inner.forward(x, rng=rng)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """The inner layer's."""
        self.dy = dy
        return self.inner.backward(dy, cache)


def watched(model: Layer, on: Task, most_rows: int) -> dict[str, dict[str, Any]]:
    """For each DoRA layer: the rank correlations of Eq. 8-10, and the covariances beside Eq. 6.

    On the first 64 examples held back to choose by, at most `most_rows` rows of the layer's input
    (tokens, or examples), those whose gradient is zero (padding) left out.
    """
    by_path: dict[str, Watched] = {}

    def change(path: str, layer: Layer) -> Layer:
        if isinstance(layer, DoRALinear):
            by_path[path] = layer = Watched(layer)
        return layer

    on.loss(rebuilt(model, change), rows(on.choose, slice(64)))
    return {path: _figures(layer, most_rows) for path, layer in by_path.items()}


def _figures(layer: Watched, most_rows: int) -> dict[str, Any]:
    x, dy = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (layer.x, layer.dy))
    counted = np.flatnonzero(np.abs(dy).sum(1) > 0)[:most_rows]
    x, dy = x[counted], dy[counted]
    inner = layer.inner
    V = inner.W0 + lora_delta(inner.A, inner.B, inner.scale)
    V = V.astype(np.float64)
    G = dy.T @ x
    alive = G.any(1)  # a neuron that is off for all these rows has no gradient to compare
    scenarios = analysis.scenarios(V[alive], G[alive], inner.norm_axis, rate=1e-3)
    figures: dict[str, Any] = {"spearman": {name: s.spearman for name, s in scenarios.items()}}
    for norm_grad in ("exact", "detached"):
        of_W, of_V = analysis.gradient_covariances(
            x, dy, V, inner.m.astype(np.float64), inner.norm_axis, norm_grad=norm_grad
        )
        rank_W, rank_V = (np.mean([c.effective_rank for c in of]) for of in (of_W, of_V))
        distance_W, distance_V = (np.mean([c.distance for c in of]) for of in (of_W, of_V))
        figures[norm_grad] = {
            "effective rank ratio": float(rank_V / rank_W),
            "distance ratio": float(distance_V / distance_W),
        }
    return figures

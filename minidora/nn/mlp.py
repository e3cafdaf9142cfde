"""A multi-layer perceptron."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._boundary import Array, floating, positive_int
from .layer import Cache, Grads, Layer, Rng, under
from .layers import GELU, Dropout, ReLU
from .linear import AnyLinear, Linear


@dataclass(eq=False)
class MLP(Layer):
    """Linear layers with an activation, and dropout, between them. Names: layers.0.weight, ..."""

    layers: tuple[AnyLinear, ...]
    activation: ReLU | GELU
    drop: Dropout

    @classmethod
    def init(
        cls,
        sizes: Sequence[int],
        rng: np.random.Generator,
        *,
        activation: ReLU | GELU | None = None,
        dropout: float = 0.0,
        dtype: DTypeLike = np.float32,
    ) -> "MLP":
        """sizes: from the inputs to the classes, such as (64, 128, 10)."""
        sizes = [positive_int("sizes", size) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(f"sizes: expected two or more, got {sizes}")
        linears = [
            Linear.init(d_in, d_out, rng, scale=(2 / d_in) ** 0.5, dtype=dtype)
            for d_in, d_out in zip(sizes[:-1], sizes[1:], strict=True)
        ]
        return cls(tuple(linears), activation or ReLU(), Dropout(dropout))

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d_in) to logits (..., classes)."""
        h, caches = floating("x", x), []
        for i, linear in enumerate(self.layers):
            if i > 0:
                h, active_cache = self.activation.forward(h)
                h, drop_cache = self.drop.forward(h, rng=rng)
                caches += [active_cache, drop_cache]
            h, linear_cache = linear.forward(h, rng=rng)
            caches.append(linear_cache)
        return h, caches

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and whatever trains in the linears."""
        grads: Grads = {}
        caches = iter(reversed(cache))
        for i in reversed(range(len(self.layers))):
            dy, linear_grads = self.layers[i].backward(dy, next(caches))
            grads |= under(f"layers.{i}", linear_grads)
            if i > 0:
                dy, _ = self.drop.backward(dy, next(caches))
                dy, _ = self.activation.backward(dy, next(caches))
        return dy, grads

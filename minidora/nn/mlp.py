"""A multi-layer perceptron."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._boundary import positive_int
from .layer import Layer, no_training, under
from .layers import GELU, Dropout, ReLU
from .linear import Linear


@dataclass(eq=False)
class MLP(Layer):
    """Linear layers with an activation, and dropout, between them. Names: layers.0.weight, ..."""

    layers: tuple[Linear, ...]
    activation: ReLU | GELU
    drop: Dropout
    trainable: tuple[str, ...] = no_training()

    @classmethod
    def init(
        cls, sizes: Sequence[int], rng, *, activation=None, dropout=0.0, dtype=np.float32
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

    def forward(self, x, *, rng=None):
        """x: (..., d_in) to logits (..., classes)."""
        caches = []
        for i, linear in enumerate(self.layers):
            x, linear_cache = linear.forward(x, rng=rng)
            if i == len(self.layers) - 1:
                caches.append((linear_cache, None, None))
                return x, caches
            x, active_cache = self.activation.forward(x)
            x, drop_cache = self.drop.forward(x, rng=rng)
            caches.append((linear_cache, active_cache, drop_cache))

    def backward(self, dy, cache):
        """Gradients: dx, and whatever trains in the linears."""
        grads = {}
        for i in reversed(range(len(self.layers))):
            linear_cache, active_cache, drop_cache = cache[i]
            if i < len(self.layers) - 1:
                dy, _ = self.drop.backward(dy, drop_cache)
                dy, _ = self.activation.backward(dy, active_cache)
            dy, found = self.layers[i].backward(dy, linear_cache)
            grads |= under(f"layers.{i}", found)
        return dy, grads

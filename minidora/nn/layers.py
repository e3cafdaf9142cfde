"""Embedding, layer norm, activations and dropout.

Each forward stands directly above its backward, which quotes it.
"""

from dataclasses import dataclass

import numpy as np

from .._boundary import Array, number
from .layer import Layer, no_training
from .linear import rows, working_dtype


@dataclass(eq=False)
class Embedding(Layer):
    """Rows of a table by index. table: (entries, d)."""

    table: Array
    trainable: tuple[str, ...] = no_training()

    @classmethod
    def init(cls, entries, d, rng, *, scale=0.02, dtype=np.float32) -> "Embedding":
        """Normal entries of standard deviation `scale`; they train."""
        working_dtype(dtype)
        table = (scale * rng.normal(size=(entries, d))).astype(dtype)
        return cls(table, trainable=("table",))

    def forward(self, tokens, *, rng=None):
        """tokens: (...) whole numbers to (..., d). Raises ValueError for one out of range."""
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens: expected whole numbers, got dtype {tokens.dtype}")
        if tokens.size and not (0 <= tokens.min() and tokens.max() < len(self.table)):
            bad = tokens[(tokens < 0) | (tokens >= len(self.table))].flat[0]
            raise ValueError(f"tokens: expected 0 to {len(self.table) - 1}, got {bad}")
        return self.table[tokens], tokens

    def backward(self, dy, cache):
        """Gradient of the table where it trains; tokens have none."""
        # y = table[tokens]: every row collects what its uses got
        if "table" not in self.trainable:
            return None, {}
        # as one product with one-hot rows: faster than np.add.at for small tables
        onehot = np.zeros((cache.size, len(self.table)), dy.dtype)
        onehot[np.arange(cache.size), cache.ravel()] = 1
        return None, {"table": onehot.T @ rows(dy)}


def _row_mean(x: Array) -> Array:
    """x.mean(-1, keepdims=True) as a product, which NumPy does faster for short rows."""
    d = x.shape[-1]
    return (x @ np.full(d, 1 / d, x.dtype))[..., None]


@dataclass(eq=False)
class LayerNorm(Layer):
    """Each row to mean 0 and variance 1, then gain and bias, (d,) each."""

    gain: Array
    bias: Array
    eps: float = 1e-5
    trainable: tuple[str, ...] = no_training()

    @classmethod
    def init(cls, d, *, dtype=np.float32) -> "LayerNorm":
        """Gain one, bias zero; both train."""
        working_dtype(dtype)
        return cls(np.ones(d, dtype), np.zeros(d, dtype), trainable=("gain", "bias"))

    def forward(self, x, *, rng=None):
        """x: (..., d) to y: (..., d)."""
        unit = x - _row_mean(x)  # (..., d)
        var = np.einsum("...d,...d->...", unit, unit)[..., None] / x.shape[-1]
        inv = 1 / np.sqrt(var + x.dtype.type(self.eps))  # (..., 1)
        unit *= inv
        y = unit * self.gain
        y += self.bias
        return y, (unit, inv)

    def backward(self, dy, cache):
        """Gradients: dx, and gain and bias where they train."""
        unit, inv = cache
        grads = {}
        # y = unit * gain + bias
        if "gain" in self.trainable:
            grads["gain"] = np.einsum("nd,nd->d", rows(dy), rows(unit))
        if "bias" in self.trainable:
            grads["bias"] = rows(dy).sum(0)
        dx = dy * self.gain  # (..., d), dunit
        # unit = (x - mean) * inv: the parts along the ones and along unit drop out
        along = np.einsum("...d,...d->...", dx, unit)[..., None] / dx.shape[-1]
        dx -= _row_mean(dx)
        dx -= unit * along
        dx *= inv
        return dx, grads


@dataclass(eq=False)
class ReLU(Layer):
    """max(x, 0)."""

    trainable: tuple[str, ...] = no_training()

    def forward(self, x, *, rng=None):
        """Elementwise."""
        return np.maximum(x, 0), x > 0

    def backward(self, dy, cache):
        """dx = dy where x was above 0."""
        return dy * cache, {}


@dataclass(eq=False)
class GELU(Layer):
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x³))), the tanh form (Hendrycks and Gimpel)."""

    trainable: tuple[str, ...] = no_training()

    def forward(self, x, *, rng=None):
        """Elementwise; every step after the first in the same memory."""
        square = x * x
        half = square * (0.044715 * (2 / np.pi) ** 0.5)
        half += (2 / np.pi) ** 0.5
        half *= x
        np.tanh(half, out=half)
        half *= 0.5
        half += 0.5  # (1 + tanh) / 2
        return half * x, (x, square, half)

    def backward(self, dy, cache):
        """dx, elementwise."""
        x, square, half = cache
        # y = x * half, and tanh' = 1 - tanh² makes half' = 2 half (1 - half) times the inner slope
        slope = square * (6 * 0.044715 * (2 / np.pi) ** 0.5)
        slope += 2 * (2 / np.pi) ** 0.5
        slope *= x
        slope *= 1 - half
        slope += 1
        slope *= half
        slope *= dy
        return slope, {}


@dataclass(eq=False)
class Dropout(Layer):
    """Inverted dropout: each entry is kept with probability 1 - rate and scaled by its inverse."""

    rate: float = 0.0
    trainable: tuple[str, ...] = no_training()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= number("rate", self.rate) < 1:
            raise ValueError(f"rate: expected 0 or more and below 1, got {self.rate!r}")
        self.rate = float(self.rate)

    def forward(self, x, *, rng=None):
        """Acts only where an rng is given."""
        if rng is None or self.rate == 0:
            return x, None
        mask = (rng.random(x.shape, np.float32) >= self.rate) * x.dtype.type(1 / (1 - self.rate))
        return x * mask, mask

    def backward(self, dy, cache):
        """dx = dy * mask."""
        return (dy if cache is None else dy * cache), {}

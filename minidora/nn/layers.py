"""Embedding, layer norm, RMS norm, activations and dropout.

Each forward stands directly above its backward, which quotes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._boundary import Array
from .layer import Grads, Layer, Rng
from .linear import dropout_rate, rows, working_dtype

Tokens = NDArray[np.integer]


def sequences(tokens: ArrayLike, longest: int) -> Tokens:
    """`tokens` as an array (batch, t) with t from 1 to `longest`; ValueError for other shapes."""
    array = np.asarray(tokens)
    if array.ndim != 2 or 0 in array.shape or array.shape[1] > longest:
        raise ValueError(
            "tokens: expected shape (batch, t) with batch from 1 and t from 1 to"
            f" {longest}, got shape {array.shape}"
        )
    return array


@dataclass(eq=False)
class Embedding(Layer):
    """Rows of a table by index. table: (entries, d)."""

    table: Array

    @classmethod
    def init(
        cls,
        entries: int,
        d: int,
        rng: np.random.Generator,
        *,
        scale: float = 0.02,
        dtype: DTypeLike = np.float32,
    ) -> "Embedding":
        """Normal entries of standard deviation `scale`; they train."""
        working_dtype(dtype)
        table = (scale * rng.normal(size=(entries, d))).astype(dtype)
        return cls(table, trainable=("table",))

    def forward(self, tokens: ArrayLike, *, rng: Rng = None) -> tuple[Array, Tokens]:
        """tokens: (...) whole numbers to (..., d). Raises ValueError for one out of range."""
        tokens = np.asarray(tokens)
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens: expected whole numbers, got dtype {tokens.dtype}")
        bad = tokens[(tokens < 0) | (tokens >= len(self.table))]
        if bad.size:
            raise ValueError(f"tokens: expected 0 to {len(self.table) - 1}, got {bad[0]}")
        return self.table[tokens], tokens

    def backward(self, dy: Array, cache: Tokens) -> tuple[None, Grads]:
        """Gradient of the table where it trains; tokens have none."""
        if "table" not in self.trainable:
            return None, {}
        # y = table[tokens]: every row collects what its uses got, dtable = onehot.T @ dy, in the
        # rows that were used
        used, index = np.unique(cache, return_inverse=True)
        onehot = np.zeros((cache.size, len(used)), dy.dtype)
        onehot[np.arange(cache.size), index.ravel()] = 1
        dtable = np.zeros((len(self.table), dy.shape[-1]), dy.dtype)
        dtable[used] = onehot.T @ rows(dy)
        return None, {"table": dtable}


# LayerNorm in plain means, each in new memory, makes a training step 3 to 8 % longer


def _mean(x: Array) -> Array:
    """x.mean(-1, keepdims=True) as a product, which is faster for short rows."""
    d = x.shape[-1]
    return (x @ np.full(d, 1 / d, x.dtype))[..., None]


def _mean_of_product(x: Array, y: Array) -> Array:
    """(x * y).mean(-1, keepdims=True) without x * y."""
    return np.einsum("...d,...d->...", x, y)[..., None] / x.shape[-1]


@dataclass(eq=False)
class LayerNorm(Layer):
    """Each row to mean 0 and variance 1, then gain and bias, (d,) each."""

    gain: Array
    bias: Array
    eps: float = 1e-5

    @classmethod
    def init(cls, d: int, *, dtype: DTypeLike = np.float32) -> "LayerNorm":
        """Gain one, bias zero; both train."""
        working_dtype(dtype)
        return cls(np.ones(d, dtype), np.zeros(d, dtype), trainable=("gain", "bias"))

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, tuple[Array, Array]]:
        """x: (..., d) to y: (..., d)."""
        # unit = (x - mean(x)) * inv, inv = 1 / sqrt(mean((x - mean(x))²) + eps)
        unit = x - _mean(x)  # (..., d)
        inv = 1 / np.sqrt(_mean_of_product(unit, unit) + float(self.eps))  # (..., 1)
        unit *= inv
        return unit * self.gain + self.bias, (unit, inv)

    def backward(self, dy: Array, cache: tuple[Array, Array]) -> tuple[Array, Grads]:
        """Gradients: dx, and gain and bias where they train."""
        unit, inv = cache
        grads = {}
        # y = unit * gain + bias
        if "gain" in self.trainable:
            grads["gain"] = (rows(dy) * rows(unit)).sum(0)
        if "bias" in self.trainable:
            grads["bias"] = rows(dy).sum(0)
        dunit = dy * self.gain  # (..., d)
        # unit = (x - mean(x)) * inv: the parts along the ones and along unit drop out,
        # dx = inv * (dunit - mean(dunit) - unit * mean(dunit * unit)), in the memory of dunit
        along = _mean_of_product(dunit, unit)
        dx = np.subtract(dunit, _mean(dunit), out=dunit)
        dx -= unit * along
        dx *= inv
        return dx, grads


@dataclass(eq=False)
class RMSNorm(Layer):
    """Each row to mean square 1, then gain, (d,) (Zhang and Sennrich 2019)."""

    gain: Array
    eps: float = 1e-5

    @classmethod
    def init(cls, d: int, *, dtype: DTypeLike = np.float32) -> "RMSNorm":
        """Gain one; it trains."""
        working_dtype(dtype)
        return cls(np.ones(d, dtype), trainable=("gain",))

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, tuple[Array, Array]]:
        """x: (..., d) to y: (..., d)."""
        inv = 1 / np.sqrt(_mean_of_product(x, x) + float(self.eps))  # (..., 1)
        unit = x * inv  # (..., d)
        return unit * self.gain, (unit, inv)

    def backward(self, dy: Array, cache: tuple[Array, Array]) -> tuple[Array, Grads]:
        """Gradients: dx, and gain where it trains."""
        unit, inv = cache
        # y = unit * gain
        grads = {"gain": (rows(dy) * rows(unit)).sum(0)} if "gain" in self.trainable else {}
        dunit = dy * self.gain  # (..., d)
        # unit = x * inv, inv = 1 / sqrt(mean(x²) + eps): the part along unit drops out
        return inv * (dunit - unit * _mean_of_product(dunit, unit)), grads


@dataclass(eq=False)
class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, NDArray[np.bool_]]:
        """Elementwise."""
        return np.maximum(x, 0), x > 0

    def backward(self, dy: Array, cache: NDArray[np.bool_]) -> tuple[Array, Grads]:
        """dx = dy where x was above 0."""
        return dy * cache, {}


@dataclass(eq=False)
class GELU(Layer):
    """x/2 * (1 + tanh(a (x + b x³))), a = sqrt(2/π), b = 0.044715 (Hendrycks and Gimpel)."""

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, tuple[Array, Array, Array]]:
        """Elementwise."""
        # y = x * half, half = (1 + tanh(a (x + b x³))) / 2, step by step in the same memory: with
        # a new array for every operation, a training step takes 7 to 14 % longer
        square = x * x
        half = square * (0.044715 * (2 / np.pi) ** 0.5)
        half += (2 / np.pi) ** 0.5
        half *= x
        np.tanh(half, out=half)
        half *= 0.5
        half += 0.5
        return half * x, (x, square, half)

    def backward(self, dy: Array, cache: tuple[Array, Array, Array]) -> tuple[Array, Grads]:
        """dx, elementwise."""
        x, square, half = cache
        # y = x * half, and tanh' = 1 - tanh² = 4 half (1 - half):
        # dx = dy * half * (1 + x * (1 - half) * 2 a (1 + 3 b x²))
        slope = square * (6 * 0.044715 * (2 / np.pi) ** 0.5)
        slope += 2 * (2 / np.pi) ** 0.5
        slope *= x
        slope *= 1 - half
        slope += 1
        slope *= half
        slope *= dy
        return slope, {}


# atanh(erf(x / sqrt(2))) = x P(x²) for |x| <= 6, where Φ is 1 or 0 to 1e-9: fitted by the largest
# error of x Φ(x), 7e-8, with a linear program
ATANH_ERF = (
    *(1.80560939e-09, -1.334461e-07, 3.96910462e-06, -5.52401257e-05),
    *(-3.31300885e-05, 3.63342836e-02, 7.97884216e-01),
)
CHUNK = 2**15
"""So many entries go through the steps of Φ together: they stay in the processor's cache."""


@dataclass(eq=False)
class ExactGELU(Layer):
    """x Φ(x), Φ(x) = (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel; BERT's "gelu").

    float64 by scipy's erf. float32 by (1 + tanh(x P(x²))) / 2, a polynomial P of degree 6, within
    6e-7 of x Φ(x) and six times as fast. Needs scipy for float64.
    """

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, tuple[Array, Array]]:
        """Elementwise."""
        y, half = np.empty_like(x, order="C"), np.empty_like(x, order="C")
        for x_part, y_part, half_part in _chunks(x, y, half):
            _phi(x_part, half_part, y_part)
            np.multiply(half_part, x_part, out=y_part)
        return y, (x, half)

    def backward(self, dy: Array, cache: tuple[Array, Array]) -> tuple[Array, Grads]:
        """dx, elementwise."""
        x, half = cache
        dx = np.empty_like(half)
        # y = x Φ(x): dx = dy * (Φ(x) + x exp(-x² / 2) / sqrt(2 π))
        for slope, x_part, half_part, dy_part in _chunks(dx, x, half, dy):
            np.multiply(x_part, x_part, out=slope)
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= x_part
            slope *= (2 * np.pi) ** -0.5
            slope += half_part
            slope *= dy_part
        return dx, {}


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Arrays of one shape, in flat parts of `CHUNK` entries."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, CHUNK):
        yield tuple(array[start : start + CHUNK] for array in flat)


def _phi(x: Array, out: Array, scratch: Array) -> None:
    """Φ(x) into `out`, elementwise; scratch, like x, is overwritten."""
    if x.dtype != np.float32:
        from scipy.special import ndtr

        ndtr(x, out=out)
        return
    near = np.clip(x, -6, 6, out=scratch)
    square = near * near
    np.multiply(square, ATANH_ERF[0], out=out)
    for coefficient in ATANH_ERF[1:-1]:
        out += coefficient
        out *= square
    out += ATANH_ERF[-1]
    out *= near
    np.tanh(out, out=out)
    out *= 0.5
    out += 0.5


@dataclass(eq=False)
class Dropout(Layer):
    """Inverted dropout: each entry is kept with probability 1 - rate and scaled by its inverse."""

    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rate = dropout_rate("rate", self.rate)

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, Array | None]:
        """Acts only where an rng is given."""
        if rng is None or self.rate == 0:
            return x, None
        mask = (rng.random(x.shape, np.float32) >= self.rate) * x.dtype.type(1 / (1 - self.rate))
        return x * mask, mask

    def backward(self, dy: Array, cache: Array | None) -> tuple[Array, Grads]:
        """dx = dy * mask."""
        return (dy if cache is None else dy * cache), {}

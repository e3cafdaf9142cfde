"""Linear layers, plain and adapted by LoRA, DoRA or the magnitude alone.

Each forward stands directly above its backward, which quotes it. x may have any number of leading
dimensions; n stands for all of them together.
"""

from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from .. import factored, lora
from .._boundary import (
    EPS,
    Array,
    cast,
    features,
    finite,
    number,
    one_of,
    shaped,
    summed_axis,
    weights,
)
from ..decomposition import norms, squared_norms
from ..dora import dora_weight
from .layer import Layer, no_training, own_arrays


def rows(x: Array) -> Array:
    """(..., d) as (n, d)."""
    return x.reshape(-1, x.shape[-1])


def working_dtype(dtype) -> None:
    """Raise ValueError unless networks can be computed in this dtype: float32 or float64."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")


@dataclass(eq=False)
class Linear(Layer):
    """y = x @ weight.T + bias. weight: (d_out, d_in); bias: (d_out,) or None."""

    weight: Array
    bias: Array | None = None
    trainable: tuple[str, ...] = no_training()

    @classmethod
    def init(cls, d_in, d_out, rng, *, bias=True, scale=None, dtype=np.float32) -> "Linear":
        """Normal weights of standard deviation `scale` (1 / sqrt(d_in)), bias zero; all train."""
        working_dtype(dtype)
        scale = d_in**-0.5 if scale is None else scale
        weight = (scale * rng.normal(size=(d_out, d_in))).astype(dtype)
        names = ("weight", "bias") if bias else ("weight",)
        return cls(weight, np.zeros(d_out, dtype) if bias else None, trainable=names)

    def forward(self, x, *, rng=None):
        """x: (..., d_in) to y: (..., d_out)."""
        x = features(x, self.weight.shape[1])
        y = rows(x) @ self.weight.T  # (n, d_out): one product, not one for each leading index
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], len(self.weight)), x

    def backward(self, dy, cache):
        """Gradients: dx, and weight and bias where they train."""
        # y = x @ weight.T + bias
        grads = {}
        if "weight" in self.trainable:
            grads["weight"] = rows(dy).T @ rows(cache)  # (d_out, d_in)
        if "bias" in self.trainable:
            grads["bias"] = rows(dy).sum(0)  # (d_out,)
        return (rows(dy) @ self.weight).reshape(cache.shape), grads


@dataclass(eq=False)
class Adapted(Layer):
    """What LoRALinear, DoRALinear and MagnitudeLinear share: a frozen W0, and what is added.

    dropout: rate on what the adapter sees of x, acting only where forward gets an rng. strength: 0
    gives the base layer back exactly, 1 the adapted one, anything between or beyond the line
    through both.
    """

    W0: Array
    bias: Array | None
    _: KW_ONLY
    dropout: float = 0.0
    strength: float = 1.0
    trainable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= number("dropout", self.dropout) < 1:
            raise ValueError(f"dropout: expected 0 or more and below 1, got {self.dropout!r}")
        for name, array in own_arrays(self):
            finite(name, array)
        for name in ("dropout", "strength", "scale"):  # Python numbers, which promote nothing
            if hasattr(self, name):
                setattr(self, name, number(name, getattr(self, name)))

    def mask(self, x: Array, rng) -> Array | None:
        """strength times inverted dropout, shaped like x; None where that is all ones."""
        if rng is None or self.dropout == 0:
            return None if self.strength == 1 else np.full_like(x, self.strength)
        kept = rng.random(x.shape, np.float32) >= self.dropout
        return kept * x.dtype.type(self.strength / (1 - self.dropout))

    def chosen(self, **grads) -> dict[str, Array]:
        """The gradients of what trains."""
        return {name: grads[name] for name in self.trainable if grads.get(name) is not None}


@dataclass(eq=False)
class LoRALinear(Adapted):
    """y = x @ (W0 + scale * B @ A).T + bias (Eq. 1). A: (r, d_in); B: (d_out, r)."""

    A: Array
    B: Array
    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weights(self.W0, self.A, self.B, self.scale, norm_axis="per_output")  # shapes

    def forward(self, x, *, rng=None):
        """x: (..., d_in) to y: (..., d_out)."""
        mask = self.mask(x, rng)
        return lora.lora_forward(x, self.W0, self.A, self.B, self.scale, bias=self.bias, mask=mask)

    def backward(self, dy, cache):
        """Gradients: dx, and A, B and bias where they train."""
        g = lora.lora_backward(dy, cache)
        return g.dx, self.chosen(A=g.dA, B=g.dB, bias=g.dbias)

    def merged(self) -> Array:
        """The one matrix that stands for the layer."""
        return self.W0 + self.strength * lora.lora_delta(self.A, self.B, self.scale)


@dataclass(eq=False)
class DoRALinear(Adapted):
    """y = x @ (m * V / ‖V‖).T + bias with V = W0 + scale * B @ A (Eq. 5), by `factored`.

    A: (r, d_in); B: (d_out, r); m: (d_out,) or (d_in,) by norm_axis. The squares of W0 are summed
    once, here; W0 must not change afterwards, so `adapt` makes it read-only.
    """

    A: Array
    B: Array
    m: Array
    scale: float
    norm_axis: str = "per_output"
    norm_grad: str = "exact"
    W0_sq: Array = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        weights(self.W0, self.A, self.B, self.scale, m=self.m, norm_axis=self.norm_axis)  # shapes
        self.W0_sq = squared_norms(self.W0, self.norm_axis)

    def forward(self, x, *, rng=None):
        """x: (..., d_in) to y: (..., d_out)."""
        return factored.dora_forward(
            x,
            self.W0,
            self.A,
            self.B,
            self.m,
            self.scale,
            bias=self.bias,
            norm_axis=self.norm_axis,
            mask=self.mask(x, rng),
            W0_sq=self.W0_sq,
        )

    def backward(self, dy, cache):
        """Gradients: dx, and A, B, m and bias where they train."""
        g = factored.dora_backward(dy, cache, norm_grad=self.norm_grad)
        return g.dx, self.chosen(A=g.dA, B=g.dB, m=g.dm, bias=g.dbias)

    def merged(self) -> Array:
        """The one matrix that stands for the layer."""
        W = dora_weight(self.W0, self.A, self.B, self.m, self.scale, norm_axis=self.norm_axis)
        return W if self.strength == 1 else self.W0 + self.strength * (W - self.W0)


@dataclass(eq=False)
class MagnitudeLinear(Adapted):
    """DoRA with the magnitude alone (paper, section 5.6): W = m * W0 / ‖W0‖."""

    m: Array
    norm_axis: str = "per_output"
    c: Array = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.c = norms(self.W0, self.norm_axis, EPS)
        shaped("m", self.m, self.c.shape, f"one per vector, {self.norm_axis}")

    def forward(self, x, *, rng=None):
        """x: (..., d_in) to y: (..., d_out)."""
        x = features(x, self.W0.shape[1])
        mask = self.mask(x, rng)
        lead, x = x.shape[:-1], rows(x)  # (n, d_in)
        xm = x if mask is None else x * rows(mask)
        g = cast(self.m / self.c, x.dtype)
        # W = g * W0, so what the adapter adds is (g - 1) * W0, on xm
        z = None
        if self.norm_axis == "per_output":
            z = xm @ self.W0.T  # (n, d_out)
            y = z * g if mask is None else x @ self.W0.T + z * (g - 1)
        else:
            y = (x + xm * (g - 1)) @ self.W0.T
        if self.bias is not None:
            y += self.bias
        return y.reshape(*lead, len(self.W0)), (xm, mask, g, z)

    def backward(self, dy, cache):
        """Gradients: dx, and m and bias where they train."""
        xm, mask, g, z = cache
        lead, dy = dy.shape[:-1], rows(dy)  # (n, d_out)
        d = dy @ self.W0  # (n, d_in)
        if self.norm_axis == "per_output":
            # y = x @ W0.T + (xm @ W0.T) * (g - 1)
            dm = np.einsum("no,no->o", dy, z) / self.c  # (d_out,)
            added = (dy * (g - 1)) @ self.W0
        else:
            # y = (x + xm * (g - 1)) @ W0.T
            dm = np.einsum("ni,ni->i", xm, d) / self.c  # (d_in,)
            added = d * (g - 1)
        dx = d + (added if mask is None else added * rows(mask))
        dbias = None if self.bias is None else dy.sum(0)
        grads = self.chosen(m=cast(dm, self.m.dtype), bias=dbias)
        return dx.reshape(*lead, self.W0.shape[1]), grads

    def merged(self) -> Array:
        """The one matrix that stands for the layer."""
        g = 1 + self.strength * (self.m / self.c - 1)
        return cast(np.expand_dims(g, summed_axis(self.norm_axis)) * self.W0, self.W0.dtype)

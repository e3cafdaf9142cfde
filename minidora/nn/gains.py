"""The gain of a norm layer as magnitude times direction: what DoRA does, to a vector.

A gain γ (d,) is a matrix of one row, so it has one magnitude: γ = m * v / ‖v‖, v trained in full,
for a vector has no low rank. The norm layer's own forward and backward stay as they are; only
(m, v) → γ is added. Training γ itself is LN-tuning (arXiv 2312.11420), the control.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._boundary import EPS, Array, cast, finite, floating, one_of, shaped
from .layer import Cache, Grads, Layer, Rng, own_arrays
from .layers import LayerNorm, RMSNorm

NORMS: dict[str, type[LayerNorm | RMSNorm]] = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


def gain_magnitude(gain: Array, eps: float = EPS) -> Array:
    """‖gain‖ = sqrt(sum(gain²) + eps²), (1,), float32 at least, summed in float64.

    >>> gain_magnitude(np.array([3.0, 4.0]))
    array([5.])
    """
    gain = floating("gain", gain, ndim=1)
    square = np.einsum("d,d->", gain, gain, dtype=np.result_type(gain, np.float64))
    return cast(np.sqrt([square + eps * eps]), np.result_type(gain, np.float32))


def gain_forward(m: Array, v: Array, eps: float = EPS) -> tuple[Array, Cache]:
    """γ = m * v / ‖v‖. m: (1,); v: (d,). Returns (d,) in v's dtype, and the cache.

    >>> gain_forward(np.array([10.0]), np.array([3.0, 4.0]))[0]
    array([6., 8.])
    """
    m = shaped("m", m, (1,), "one for the whole gain")
    c = gain_magnitude(v, eps)  # (1,)
    unit = v / c  # (d,)
    return cast(m * unit, v.dtype), (m, c, unit)


def gain_backward(dgain: Array, cache: Cache, *, norm_grad: str = "exact") -> tuple[Array, Array]:
    """Gradients of `gain_forward`: dm (1,) and dv (d,)."""
    m, c, unit = cache
    along = (dgain * unit).sum(keepdims=True)  # (1,)
    # γ = m * unit
    dm = along
    # unit = v / ‖v‖: what points along v drops out, unless the norm is held constant (detached)
    exact = one_of("norm_grad", norm_grad, ("exact", "detached")) == "exact"
    dv = m / c * (dgain - unit * along if exact else dgain)
    return cast(dm, m.dtype), cast(dv, dgain.dtype)


@dataclass(eq=False)
class DoRANorm(Layer):
    """A layer norm or RMS norm whose gain is m * v / ‖v‖. m: (1,); v: (d,); bias: (d,) or None.

    kind: "layer_norm", which has a bias, or "rms_norm", which has none. eps: the norm layer's.
    """

    m: Array
    v: Array
    bias: Array | None = None
    kind: str = "layer_norm"
    eps: float = 1e-5
    norm_grad: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        d = floating("v", self.v, ndim=1).shape
        shaped("m", self.m, (1,), "one for the whole gain")
        if one_of("kind", self.kind, NORMS) == "layer_norm":
            shaped("bias", self.bias, d, "like v")
        elif self.bias is not None:
            raise ValueError("bias: expected None with kind 'rms_norm', got an array")
        for name, array in own_arrays(self):
            finite(name, array)

    def plain(self) -> LayerNorm | RMSNorm:
        """The norm layer of the same function; its gain and bias train where m or v, bias do."""
        gain, _ = gain_forward(self.m, self.v)
        trainable: tuple[str, ...] = ("gain",) if {"m", "v"} & {*self.trainable} else ()
        if self.bias is None:
            return RMSNorm(gain, self.eps, trainable=trainable)
        trainable += ("bias",) if "bias" in self.trainable else ()
        return LayerNorm(gain, self.bias, self.eps, trainable=trainable)

    def forward(self, x: Array, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d) to y: (..., d)."""
        norm = self.plain()
        y, cache = norm.forward(x)
        return y, (norm, cache)

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and m, v and bias where they train."""
        norm, norm_cache = cache
        dx, grads = norm.backward(dy, norm_cache)
        if "gain" in grads:
            _, gain_cache = gain_forward(self.m, self.v)
            dm, dv = gain_backward(grads.pop("gain"), gain_cache, norm_grad=self.norm_grad)
            both = {"m": dm, "v": dv}
            grads |= {name: both[name] for name in both if name in self.trainable}
        return dx, grads


def adapted_norm(
    layer: LayerNorm | RMSNorm, method: str, train: tuple[str, ...], norm_grad: str
) -> LayerNorm | RMSNorm | DoRANorm:
    """A norm layer by method "gain" (itself) or "gain_dora"; what trains are copies."""
    missing = {"bias"} & {*train} - {name for name, _ in own_arrays(layer)}
    if missing:
        raise ValueError("train: expected names of arrays that there are, got 'bias'")
    copies: dict[str, Any] = {
        name: array.copy() for name, array in own_arrays(layer) if name in train
    }
    if method == "gain":
        return replace(layer, **copies, trainable=train)
    kind = next(name for name, known in NORMS.items() if type(layer) is known)
    bias = copies.get("bias", getattr(layer, "bias", None))
    arrays = (gain_magnitude(layer.gain), layer.gain.copy(), bias)
    return DoRANorm(*arrays, kind, layer.eps, norm_grad, trainable=train)


AnyNorm = LayerNorm | RMSNorm | DoRANorm
"""What a network has where it normalises."""

"""Linear layers, plain and adapted by LoRA, DoRA, or DoRA along both axes.

Each forward stands directly above its backward, which quotes it. x may have any number of leading
dimensions; n stands for all of them together.
"""

from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import factored, granularity, lora
from .._boundary import (
    Array,
    Groups,
    cast,
    features,
    finite,
    floating,
    number,
    one_of,
    positive_int,
    shaped,
    weights,
)
from ..decomposition import squared_norms
from ..dora import dora_weight
from .layer import Cache, Grads, Layer, Rng, own_arrays


def rows(x: Array) -> Array:
    """(..., d) as (n, d)."""
    return x.reshape(-1, x.shape[-1])


def working_dtype(dtype: DTypeLike) -> None:
    """Raise ValueError unless networks can be computed in this dtype: float32 or float64."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")


def dropout_rate(name: str, rate: float) -> float:
    """A rate of dropout as a Python number, 0 or more and below 1."""
    if not 0 <= number(name, rate) < 1:
        raise ValueError(f"{name}: expected 0 or more and below 1, got {rate!r}")
    return float(rate)


@dataclass(eq=False)
class Linear(Layer):
    """y = x @ weight.T + bias. weight: (d_out, d_in); bias: (d_out,) or None."""

    weight: Array
    bias: Array | None = None

    @classmethod
    def init(
        cls,
        d_in: int,
        d_out: int,
        rng: np.random.Generator,
        *,
        bias: bool = True,
        scale: float | None = None,
        dtype: DTypeLike = np.float32,
    ) -> "Linear":
        """Normal weights of standard deviation `scale` (1 / sqrt(d_in)), bias zero; all train."""
        working_dtype(dtype)
        d_in, d_out = positive_int("d_in", d_in), positive_int("d_out", d_out)
        scale = d_in**-0.5 if scale is None else scale
        weight = (scale * rng.normal(size=(d_out, d_in))).astype(dtype)
        names = ("weight", "bias") if bias else ("weight",)
        return cls(weight, np.zeros(d_out, dtype) if bias else None, trainable=names)

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Array]:
        """x: (..., d_in) to y: (..., d_out)."""
        x = features(x, self.weight.shape[1])
        y = rows(x) @ self.weight.T  # (n, d_out): one product, not one for each leading index
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], len(self.weight)), x

    def backward(self, dy: Array, cache: Array) -> tuple[Array, Grads]:
        """Gradients: dx, and weight and bias where they train."""
        # y = x @ weight.T + bias
        grads: Grads = {}
        if "weight" in self.trainable:
            grads["weight"] = rows(dy).T @ rows(cache)  # (d_out, d_in)
        if "bias" in self.trainable:
            grads["bias"] = rows(dy).sum(0)  # (d_out,)
        return (rows(dy) @ self.weight).reshape(*cache.shape), grads


@dataclass(eq=False)
class Adapted(Layer):
    """What LoRALinear and DoRALinear share: a frozen W0, and A and B beside it.

    W0: (d_out, d_in), made read-only, the very array, for what is derived of it must not go stale;
    a deep copy's and a pickle's W0 is read-only too. bias: (d_out,) or None; A: (r, d_in); B:
    (d_out, r). dropout: rate on what the adapter sees of x, acting only where forward gets an rng.
    strength: 0 gives the base layer back exactly, 1 the adapted one, anything between or beyond the
    line through both.
    """

    W0: Array
    bias: Array | None
    A: Array
    B: Array
    _: KW_ONLY
    dropout: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, array in own_arrays(self):
            finite(name, array)
        self.dropout = dropout_rate("dropout", self.dropout)
        for name in ("strength", "scale"):  # Python numbers, which promote nothing
            setattr(self, name, number(name, getattr(self, name)))
        self._freeze_base()

    def _freeze_base(self) -> None:
        """Make read-only what W0 is kept as."""
        self.W0 = np.asanyarray(self.W0)
        self.W0.flags.writeable = False

    def __setstate__(self, state: dict) -> None:
        """NumPy's copies and pickles of a read-only array are writable."""
        self.__dict__.update(state)
        self._freeze_base()

    def mask(self, x: ArrayLike, rng: Rng) -> Array | None:
        """strength times inverted dropout, shaped like x; None where that is all ones."""
        x = floating("x", x)
        if rng is None or self.dropout == 0:
            return None if self.strength == 1 else np.full_like(x, self.strength)
        kept = rng.random(x.shape, np.float32) >= self.dropout
        return kept * x.dtype.type(self.strength / (1 - self.dropout))

    def chosen(self, **grads: Array | None) -> Grads:
        """The gradients of what trains."""
        return {
            name: grad
            for name, grad in grads.items()
            if grad is not None and name in self.trainable
        }

    def merged(self) -> Array:
        """The one matrix that stands for the layer at its strength, in W0's dtype."""
        W0 = cast(self.W0, np.result_type(self.W0, self.A, self.B, np.float32))
        W = self.adapted(W0)
        return cast(W if self.strength == 1 else W0 + self.strength * (W - W0), self.W0.dtype)

    def adapted(self, W0: Array) -> Array:
        """The weight at strength 1, given W0 in the dtype to compute in."""
        raise NotImplementedError


@dataclass(eq=False)
class LoRALinear(Adapted):
    """y = x @ (W0 + scale * B @ A).T + bias (Eq. 1). A: (r, d_in); B: (d_out, r)."""

    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        weights(self.W0, self.A, self.B, self.scale, norm_axis="per_output")  # shapes

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d_in) to y: (..., d_out)."""
        mask = self.mask(x, rng)
        return lora.lora_forward(x, self.W0, self.A, self.B, self.scale, bias=self.bias, mask=mask)

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and A, B and bias where they train."""
        g = lora.lora_backward(dy, cache)
        return g.dx, self.chosen(A=g.dA, B=g.dB, bias=g.dbias)

    def adapted(self, W0: Array) -> Array:
        """W0 + scale * B @ A."""
        return W0 + lora.lora_delta(self.A, cast(self.B, W0.dtype), self.scale)


@dataclass(eq=False)
class DoRALinear(Adapted):
    """y = x @ (m * V / ‖V‖).T + bias with V = W0 + scale * B @ A (Eq. 5), by `factored`.

    A: (r, d_in); B: (d_out, r); m: (d_out,) or (d_in,) by norm_axis, or one for each of `groups`,
    blocks of norm_axis's vectors (`minidora.granularity`). At rank 0, V is W0, and m trains alone
    (paper, section 5.6). The squares of W0 are summed once, here.
    """

    m: Array
    scale: float
    norm_axis: str = "per_output"
    norm_grad: str = "exact"
    groups: Groups | None = None
    W0_sq: Array = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        if self.groups is not None and not isinstance(self.groups, str):
            self.groups = tuple(self.groups)  # type: ignore[assignment]  # a list, from a file
        weights(  # shapes
            self.W0,
            self.A,
            self.B,
            self.scale,
            m=self.m,
            norm_axis=self.norm_axis,
            groups=self.groups,
        )
        self.W0_sq = squared_norms(self.W0, self.norm_axis)

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
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
            groups=self.groups,
        )

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and A, B, m and bias where they train."""
        g = factored.dora_backward(dy, cache, norm_grad=self.norm_grad)
        return g.dx, self.chosen(A=g.dA, B=g.dB, m=g.dm, bias=g.dbias)

    def adapted(self, W0: Array) -> Array:
        """m * V / ‖V‖."""
        arrays = (W0, self.A, self.B, self.m, self.scale)
        if self.groups is None:
            return dora_weight(*arrays, norm_axis=self.norm_axis)
        return granularity.dora_weight(*arrays, groups=self.groups)


@dataclass(eq=False)
class BoRALinear(Adapted):
    """y = x @ W.T + bias, V normalised by column and the result by row (`granularity`), dense.

    A: (r, d_in); B: (d_out, r); m_in: (d_in,); m_out: (d_out,).
    """

    m_in: Array
    m_out: Array
    scale: float
    norm_grad: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        weights(self.W0, self.A, self.B, self.scale)  # shapes
        shaped("m_in", self.m_in, (self.W0.shape[1],), "one per input")
        shaped("m_out", self.m_out, (self.W0.shape[0],), "one per output")

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d_in) to y: (..., d_out)."""
        arrays = (self.W0, self.A, self.B, self.m_in, self.m_out, self.scale)
        return granularity.bora_forward(x, *arrays, bias=self.bias, mask=self.mask(x, rng))

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and A, B, m_in, m_out and bias where they train."""
        g = granularity.bora_backward(dy, cache, norm_grad=self.norm_grad)
        return g.dx, self.chosen(A=g.dA, B=g.dB, m_in=g.dm_in, m_out=g.dm_out, bias=g.dbias)

    def adapted(self, W0: Array) -> Array:
        """m_out * U / ‖U‖ with U = m_in * V / ‖V‖."""
        return granularity.bora_weight(W0, self.A, self.B, self.m_in, self.m_out, self.scale)


AnyLinear = Linear | Adapted
"""What a network has where it multiplies by a weight."""

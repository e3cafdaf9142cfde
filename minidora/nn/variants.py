"""The paper's own variants of DoRA's linear layer: DVoRA and QDoRA (section 5.5).

Each is `factored` around another V: DVoRA trains two vectors around a random pair that all layers
share, QDoRA keeps W0 in four bits. Forward stands above backward.
"""

from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import factored, nf4
from .._boundary import Array, cast, floating, one_of, positive_int, shaped
from ..decomposition import squared_norms
from ..dora import dora_weight
from .layer import Cache, Grads, Rng
from .linear import Adapted, DoRALinear

D_INIT = 0.1
"""What d starts at, in VeRA's paper and in PEFT; b starts at 0."""


def shared_pair(
    shapes: Collection[tuple[int, ...]], rank: int, rng: np.random.Generator, dtype: DTypeLike
) -> tuple[Array, Array]:
    """VeRA's frozen random A (rank, widest) and B (tallest, rank) for layers of these shapes.

    shapes: (d_out, d_in) of each layer. Kaiming-uniform, within ±sqrt(6 / fan_in), as published.
    """
    rank, d_in = positive_int("rank", rank), max(shape[1] for shape in shapes)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    d_out = max(shape[0] for shape in shapes)
    A = rng.uniform(-1, 1, (rank, d_in)) * (6 / d_in) ** 0.5
    B = rng.uniform(-1, 1, (d_out, rank)) * (6 / rank) ** 0.5
    return A.astype(dtype), B.astype(dtype)


@dataclass(eq=False)
class DVoRALinear(Adapted):
    """y = x @ (m * V / ‖V‖).T + bias with V = W0 + scale * (b ∘ B) (d ∘ A) (VeRA, 2310.11454).

    A: (r, d_in or wider) and B: (d_out or taller, r), frozen, the same two arrays in every layer,
    each of which uses the first d_in columns and d_out rows. What trains: d (r,), b (d_out,) and
    m, (d_out,) or (d_in,) by norm_axis.
    """

    d: Array
    b: Array
    m: Array
    scale: float = 1.0
    norm_axis: str = "per_output"
    norm_grad: str = "exact"
    W0_sq: Array = field(init=False, repr=False, metadata={"derived": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("norm_grad", self.norm_grad, ("exact", "detached"))
        d_out, d_in = floating("W0", self.W0, ndim=2).shape
        A, B = floating("A", self.A, ndim=2), floating("B", self.B, ndim=2)
        for name, large, least in (("A", A.shape[1], d_in), ("B", len(B), d_out)):
            if large < least:
                raise ValueError(f"{name}: expected {least} or more for W0, got {large}")
        shaped("B", B, (len(B), len(A)), f"(d_out, r) beside A of shape {A.shape}")
        shaped("d", self.d, (len(A),), "one for each row of A")
        shaped("b", self.b, (d_out,), "one for each row of W0")
        self.W0_sq = squared_norms(self.W0, self.norm_axis)
        shaped("m", self.m, self.W0_sq.shape, f"one per vector, {self.norm_axis}")

    def _freeze_base(self) -> None:
        super()._freeze_base()
        for array in (self.A, self.B):
            array.flags.writeable = False

    def cut(self) -> tuple[Array, Array]:
        """What this layer uses of A and B: (r, d_in), (d_out, r)."""
        d_out, d_in = self.W0.shape
        return self.A[:, :d_in], self.B[:d_out]

    def pair(self) -> tuple[Array, Array]:
        """d ∘ A and b ∘ B, in place of DoRA's A and B."""
        A, B = self.cut()
        return self.d[:, None] * A, self.b[:, None] * B

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d_in) to y: (..., d_out)."""
        how: Any = {"norm_axis": self.norm_axis, "W0_sq": self.W0_sq, "bias": self.bias}
        arrays = (self.W0, *self.pair(), self.m, self.scale)
        return factored.dora_forward(x, *arrays, mask=self.mask(x, rng), **how)

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and d, b, m and bias where they train."""
        g = factored.dora_backward(dy, cache, norm_grad=self.norm_grad)
        A, B = self.cut()
        # the pair is (d ∘ A, b ∘ B): a number multiplies a row
        dd, db = (g.dA * A).sum(1), (g.dB * B).sum(1)  # (r,), (d_out,)
        return g.dx, self.chosen(d=dd, b=db, m=g.dm, bias=g.dbias)

    def adapted(self, W0: Array) -> Array:
        """m * V / ‖V‖."""
        return dora_weight(W0, *self.pair(), self.m, self.scale, norm_axis=self.norm_axis)


def _dequantised(layer: "QDoRALinear") -> Array:
    """W0 (d_out, d_in) as the codes have it, made anew, in A's dtype, float32 at least."""
    return nf4.dequantise(layer.quantised(), np.result_type(layer.A, np.float32))


@dataclass(eq=False)
class QDoRALinear(DoRALinear):
    """DoRALinear around a base in NF4: W0 is dequantised where it is needed, and not kept.

    codes, absmax, block: of `nf4.NF4`, in place of W0; everything else, norms too, is DoRALinear's
    with the dequantised W0, also what strength 0 and `merged` give.
    """

    W0: Array = field(init=False, repr=False, metadata={"derived": True})
    _: KW_ONLY
    codes: Any  # of bytes
    absmax: Array
    block: int = 64

    def _freeze_base(self) -> None:
        for array in (self.codes, self.absmax):
            array.flags.writeable = False

    def quantised(self) -> nf4.NF4:
        """W0 as it is kept."""
        return nf4.NF4(self.codes, self.absmax, (len(self.B), self.A.shape[1]), self.block)

    def forward(self, x: ArrayLike, *, rng: Rng = None) -> tuple[Array, Cache]:
        """x: (..., d_in) to y: (..., d_out); the cache keeps no W0."""
        y, cache = super().forward(x, rng=rng)
        return y, cache._replace(weights=cache.weights._replace(W0=None))

    def backward(self, dy: Array, cache: Cache) -> tuple[Array, Grads]:
        """Gradients: dx, and A, B, m and bias where they train."""
        W0 = cast(self.W0, cache.edge.compute)
        return super().backward(dy, cache._replace(weights=cache.weights._replace(W0=W0)))

    def requantised(self) -> nf4.NF4:
        """The merged weight in NF4 again: each block within nf4.HALF_GAP of its absmax."""
        return nf4.quantise(self.merged(), self.block)


QDoRALinear.W0 = property(_dequantised)  # type: ignore[assignment]

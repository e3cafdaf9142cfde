"""What the layers check, reshape and cast, so that the layers themselves read as mathematics.

Every error names the argument, what was expected and what came. Shapes and dtypes are checked
at every call; finiteness only where a layer is built or loaded (`finite`).

One rule of dtypes holds for all layers: arithmetic runs in the widest dtype among x, W0, A and
B, float32 at least; `y` comes back in the dtype of x, a merged weight in that of W0, and every
gradient in that of its own array, except that magnitudes never go below float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

EPS = 1e-12
"""Inside every norm, c = sqrt(sum(V²) + EPS²): a zero vector keeps finite gradients."""

SUMMED_AXIS = {"per_output": 1, "per_input": 0}
"""The axis of a (d_out, d_in) matrix that a norm sums over."""


def named(path: str, target: str) -> bool:
    """Whether a target means the layer at this path: its whole name, or its last parts.

    >>> named("blocks.0.attn.q", "attn.q"), named("blocks.0.seq", "q")
    (True, False)
    """
    return path == target or path.endswith("." + target)


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """`value`, if it is one of the named choices; ValueError otherwise."""
    choices = tuple(choices)
    if value not in choices:
        expected = " or ".join(repr(c) for c in choices)
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return value


def summed_axis(norm_axis: str) -> int:
    """The axis summed over: 1 for "per_output", 0 for "per_input"."""
    return SUMMED_AXIS[one_of("norm_axis", norm_axis, SUMMED_AXIS)]


def number(name: str, value: float, *, minimum: float | None = None) -> float:
    """A finite real number as a Python float, which cannot promote a float32 array."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__} {value!r}")
    if not isfinite(value) or (minimum is not None and value < minimum):
        bound = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return float(value)


def positive_int(name: str, value: int) -> int:
    """A whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return int(value)


def floating(name: str, value: Any, *, ndim: int | None = None) -> Array:
    """An array of a real floating dtype, uncopied, with `ndim` dimensions if that is given."""
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected a real floating dtype, got dtype {array.dtype}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {array.shape}")
    return array


def shaped(name: str, value: Any, expected: tuple[int, ...], because: str) -> Array:
    """A floating array of exactly the `expected` shape; `because` says where that comes from."""
    array = floating(name, value)
    if array.shape != expected:
        raise ValueError(f"{name}: expected shape {expected} ({because}), got shape {array.shape}")
    return array


def features(x: Any, d_in: int) -> Array:
    """x as a floating array of shape (..., d_in)."""
    x = floating("x", x)
    if x.ndim == 0 or x.shape[-1] != d_in:
        raise ValueError(f"x: expected shape (..., {d_in}) for d_in = {d_in}, got shape {x.shape}")
    return x


def cast(array: Array, dtype) -> Array:
    """`array` in `dtype`; the same object, never a copy, where it is that already."""
    return array.astype(dtype, copy=False)


def finite(name: str, array: Array) -> Array:
    """`array`, if it holds neither NaN nor infinity; for where a layer is built or loaded."""
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: expected finite values, got {int(bad.sum())} that are not,"
            f" the first {array[where]} at {where}"
        )
    return array


@dataclass(frozen=True)
class Weights:
    """W0, A, B, m and scale of one layer, checked, in the dtype to compute in."""

    W0: Array  # (d_out, d_in)
    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Array | None  # (d_out,) or (d_in,); None for LoRA
    scale: float
    norm_axis: str
    dtypes: dict[str, np.dtype]  # what each array came in

    @property
    def axis(self) -> int:
        """The axis of W0 that a norm sums over."""
        return SUMMED_AXIS[self.norm_axis]

    def beside(self, per_vector: Array) -> Array:
        """(d_out,) or (d_in,) as (d_out, 1) or (1, d_in), to multiply a weight matrix."""
        return np.expand_dims(per_vector, self.axis)

    def like(self, name: str, array: Array) -> Array:
        """`array` in the dtype that the argument `name` came in."""
        return cast(array, self.dtypes[name])


def weights(W0, A, B, scale, *, norm_axis: str, m=..., compute=np.float32) -> Weights:
    """Check the parameters of a layer; `compute` is the least dtype to compute in, None casts none.

    m is left out (`...`) where a layer has none, as in LoRA; None is an error like any other.
    """
    W0 = floating("W0", W0, ndim=2)
    d_out, d_in = W0.shape
    A = floating("A", A, ndim=2)
    rank = A.shape[0]
    shaped("A", A, (rank, d_in), f"(r, d_in) beside W0 of shape {W0.shape}")
    B = shaped("B", B, (d_out, rank), f"(d_out, r) beside W0 {W0.shape} and A {A.shape}")
    scale = number("scale", scale)
    axis = summed_axis(norm_axis)
    dtypes = {"W0": W0.dtype, "A": A.dtype, "B": B.dtype}
    if compute is not None:
        compute = np.result_type(compute, W0, A, B)
        W0, A, B = (cast(array, compute) for array in (W0, A, B))
    if m is ...:
        m = None
    else:
        m = shaped("m", m, (W0.shape[1 - axis],), f"one per vector, {norm_axis}")
        dtypes["m"] = np.result_type(m, np.float32)
        m = m if compute is None else cast(m, compute)
    return Weights(W0, A, B, m, scale, norm_axis, dtypes)


@dataclass(frozen=True)
class Inputs:
    """x, bias and mask of one call, checked, leading dimensions flattened to n rows."""

    x: Array  # (n, d_in)
    bias: Array | None  # (d_out,)
    mask: Array | None  # (n, d_in)
    lead: tuple[int, ...]  # the leading dimensions of x
    d_out: int
    dtypes: dict[str, np.dtype]

    @property
    def xm(self) -> Array:
        """What the adapter sees of x, (n, d_in)."""
        return self.x if self.mask is None else self.x * self.mask

    def through_mask(self, dxm: Array, dy_W0: Array | None) -> Array:
        """dx from the gradient of xm and, where a mask is, from dy @ W0 past the mask."""
        return dxm if self.mask is None else self.mask * dxm + (1 - self.mask) * dy_W0

    def output(self, y: Array) -> Array:
        """(n, d_out), with the bias added in place, in the leading dimensions and dtype of x."""
        if self.bias is not None:
            y += self.bias
        return cast(y, self.dtypes["x"]).reshape(*self.lead, self.d_out)

    def cotangent(self, dy: Any) -> Array:
        """`dy`, checked against y, as (n, d_out) in the dtype to compute in."""
        dy = shaped("dy", dy, (*self.lead, self.d_out), "the shape of y")
        return cast(dy.reshape(-1, self.d_out), self.x.dtype)

    def dx(self, dx: Array) -> Array:
        """(n, d_in) in the shape and dtype of x."""
        return cast(dx, self.dtypes["x"]).reshape(*self.lead, dx.shape[1])

    def dbias(self, dy: Array) -> Array | None:
        """Gradient of the bias, (d_out,), or None where the layer has none."""
        return None if self.bias is None else cast(dy.sum(0), self.dtypes["bias"])


def layer(x, W0, A, B, scale, *, norm_axis: str, m=..., bias=None, mask=None):
    """Check all the arguments of a forward pass: (Inputs, Weights), in one compute dtype."""
    x = floating("x", x)
    w = weights(W0, A, B, scale, m=m, norm_axis=norm_axis, compute=np.result_type(x, np.float32))
    d_out, d_in = w.W0.shape
    features(x, d_in)
    compute, dtypes = w.W0.dtype, {"x": x.dtype}
    if bias is not None:
        bias = shaped("bias", bias, (d_out,), "d_out")
        dtypes["bias"] = bias.dtype
        bias = cast(bias, compute)
    if mask is not None:
        mask = shaped("mask", mask, x.shape, "the shape of x")
        mask = cast(mask.reshape(-1, d_in), compute)
    flat = cast(x.reshape(-1, d_in), compute)
    return Inputs(flat, bias, mask, x.shape[:-1], d_out, dtypes), w

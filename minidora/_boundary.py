"""The edge of every layer: what is no mathematics happens here, before and after the formulas.

`enter` checks the arguments of a call, makes x plain (n, d_in) rows, lays m beside V and brings all
of them to one dtype; `Edge.leave` takes results back to the shapes and dtypes that came. Every
error names the argument, what was expected and what came. Shapes and dtypes are checked at every
call; finiteness only where a layer is built or loaded (`finite`).

One rule of dtypes holds for all layers: arithmetic runs in the widest dtype among x, W0, A and
B, float32 at least; `y` comes back in the dtype of x, a merged weight in that of W0, and every
gradient in that of its own array, except that magnitudes never go below float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite
from numbers import Integral, Real
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[np.floating[Any]]

EPS = 1e-12
"""Inside every norm, c = sqrt(sum(V²) + EPS²): a zero vector keeps finite gradients."""

SUMMED_AXIS = {"per_output": 1, "per_input": 0}
"""The axis of a (d_out, d_in) matrix that a norm sums over."""

Groups = str | tuple[str, int]
"""What shares a magnitude: "per_output", "per_input", ("rows", k) or ("columns", k), blocks of k
whole rows or columns one after the other, or "whole", all of the matrix."""


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


AXIS_OF = {"rows": "per_output", "columns": "per_input"}


def axis_of(groups: Groups) -> str:
    """The norm_axis whose vectors such groups are made of; "per_output" for "whole"."""
    if isinstance(groups, str) and groups in (*SUMMED_AXIS, "whole"):
        return "per_output" if groups == "whole" else groups
    if not isinstance(groups, str) and len(tuple(groups)) == 2 and groups[0] in AXIS_OF:
        return AXIS_OF[groups[0]]
    raise ValueError(
        "groups: expected 'per_output', 'per_input', ('rows', k), ('columns', k) or 'whole',"
        f" got {groups!r}"
    )


def block_of(groups: Groups | None, shape: tuple[int, ...], norm_axis: str) -> int:
    """How many vectors of a matrix, one after the other, share a magnitude; None means one.

    >>> block_of(("columns", 2), (3, 6), "per_input"), block_of("whole", (3, 6), "per_input")
    (2, 6)
    """
    count = shape[1 - summed_axis(norm_axis)]
    if groups is None:
        return 1
    kind = "rows" if norm_axis == "per_output" else "columns"
    if groups == "whole":
        return max(count, 1)
    if axis_of(groups) != norm_axis:
        raise ValueError(
            f"groups: expected {kind} or 'whole' for norm_axis {norm_axis!r}, got {groups!r}"
        )
    if isinstance(groups, str):
        return 1
    block = positive_int("groups", groups[1])
    if count % block:
        raise ValueError(
            f"groups: expected a block size that divides the {count} {kind} of W0"
            f" {tuple(shape)}, got {block}"
        )
    return block


def number(name: str, value: float, *, minimum: float | None = None) -> float:
    """A finite real number as a Python float, which cannot promote a float32 array."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a real number, got {type(value).__name__} {value!r}")
    try:
        value = float(value)
    except OverflowError:  # a whole number beyond the largest float
        value = inf if value > 0 else -inf
    if not isfinite(value) or (minimum is not None and value < minimum):
        bound = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name}: expected a finite number{bound}, got {value!r}")
    return value


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


def cast(array: Array, dtype: DTypeLike) -> Array:
    """`array` in `dtype`; the same object, never a copy, where it is that already."""
    return array.astype(dtype, copy=False)


def finite(name: str, array: Array) -> Array:
    """`array`, if it holds neither NaN nor infinity; for where a layer is built or loaded."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: expected finite values, got {int(bad.sum())} that are not,"
            f" the first {array[first]} at {first}"
        )
    return array


class Weights(NamedTuple):
    """The arrays and settings of one layer, checked, in the dtype to compute in."""

    W0: Array  # (d_out, d_in)
    A: Array  # (r, d_in)
    B: Array  # (d_out, r)
    m: Any  # an Array beside V, (d_out, 1) or (1, d_in); None for LoRA
    scale: float
    axis: int  # that a norm sums over: 1, the inputs ("per_output"), or 0, the outputs
    eps: float


class Rows(NamedTuple):
    """The inputs of one call, leading dimensions flattened to n rows, in the same dtype."""

    x: Array  # (n, d_in)
    bias: Array | None  # (d_out,)
    mask: Array | None  # (n, d_in)


@dataclass(frozen=True)
class Edge:
    """The shapes and dtypes that a call's arrays came in: the way back to the caller."""

    came: dict[str, tuple[tuple[int, ...], np.dtype]]  # of each argument, and of y
    compute: Any  # the dtype to compute in; None where nothing was cast

    def rows(self, dy: ArrayLike) -> Array:
        """`dy`, checked against y, as (n, d_out) in the dtype to compute in."""
        shape, _ = self.came["y"]
        dy = shaped("dy", dy, shape, "the shape of y")
        return cast(dy.reshape(-1, shape[-1]), self.compute)

    def leave(self, **results: Array | None) -> list[Any]:
        """Each result in the shape and dtype of the array it belongs to: y, dx (x's), dA (A's)."""
        return [self._back(name.removeprefix("d"), array) for name, array in results.items()]

    def _back(self, name: str, array: Array | None) -> Array | None:
        if array is None:
            return None
        shape, dtype = self.came[name]
        return cast(array, dtype).reshape(shape)


def weights(
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scale: float,
    *,
    norm_axis: str = "per_output",
    groups: Groups | None = None,
    m: ArrayLike | None | EllipsisType = ...,
    eps: float = EPS,
    least: DTypeLike | None = np.float32,
) -> tuple[Weights, Edge]:
    """Check the parameters of a layer; `least` is the narrowest dtype to compute in (None: as is).

    m is left out (`...`) where a layer has none, as in LoRA; None is an error like any other.
    With groups of norm_axis's vectors m has an entry a group, and comes to lie beside V with one
    for each vector all the same.
    """
    W0 = floating("W0", W0, ndim=2)
    d_out, d_in = W0.shape
    A = floating("A", A, ndim=2)
    rank = A.shape[0]
    shaped("A", A, (rank, d_in), f"(r, d_in) beside W0 of shape {W0.shape}")
    B = shaped("B", B, (d_out, rank), f"(d_out, r) beside W0 {W0.shape} and A {A.shape}")
    scale, eps = number("scale", scale), number("eps", eps, minimum=0)
    axis, block = summed_axis(norm_axis), block_of(groups, W0.shape, norm_axis)
    compute: Any = None if least is None else np.result_type(least, W0, A, B)
    came = {"W0": (W0.shape, W0.dtype), "A": (A.shape, A.dtype), "B": (B.shape, B.dtype)}
    beside = None
    if m is not ...:
        vectors = W0.shape[1 - axis]
        what = f"one per vector, {norm_axis}" if groups is None else f"one per group, {groups}"
        m = shaped("m", m, (vectors // block,), what)
        came["m"] = m.shape, np.result_type(m, np.float32)
        m = m if compute is None else cast(m, compute)
        beside = np.expand_dims(m if block == 1 else np.repeat(m, block), axis)
    if compute is not None:
        W0, A, B = (cast(array, compute) for array in (W0, A, B))
    return Weights(W0, A, B, beside, scale, axis, eps), Edge(came, compute)


def enter(
    x: ArrayLike,
    W0: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    scale: float,
    *,
    norm_axis: str = "per_output",
    groups: Groups | None = None,
    m: ArrayLike | None | EllipsisType = ...,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    eps: float = EPS,
) -> tuple[Rows, Weights, Edge]:
    """Check all the arguments of a forward pass and bring them to one dtype."""
    x = floating("x", x)
    least = np.result_type(x, np.float32)
    layer, edge = weights(
        W0, A, B, scale, m=m, norm_axis=norm_axis, groups=groups, eps=eps, least=least
    )
    d_out, d_in = layer.W0.shape
    features(x, d_in)
    compute = edge.compute
    edge.came.update(x=(x.shape, x.dtype), y=((*x.shape[:-1], d_out), x.dtype))
    if bias is not None:
        bias = shaped("bias", bias, (d_out,), "d_out")
        edge.came["bias"] = bias.shape, bias.dtype
        bias = cast(bias, compute)
    if mask is not None:
        mask = shaped("mask", mask, x.shape, "the shape of x")
        mask = cast(mask.reshape(-1, d_in), compute)
    return Rows(cast(x.reshape(-1, d_in), compute), bias, mask), layer, edge

"""NF4, four bits a weight (Dettmers et al. 2023, QLoRA, arXiv 2305.14314), as QDoRA's base has it.

A matrix is read row by row in blocks of 64 weights. Each block keeps its largest absolute value,
absmax, and for every weight the number of the nearest of 16 values times absmax; two such codes
share a byte, the first in its upper half. The values are quantiles of a normal distribution, so
that weights which are normal use all codes about alike. Codes and absmax are those of bitsandbytes.
"""

from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._boundary import Array, finite, floating, positive_int, shaped

__all__ = ["HALF_GAP", "NF4", "VALUES", "block_errors", "dequantise", "even_block", "quantise"]

Codes = NDArray[np.uint8]

OUTERMOST = np.float32(0.9677083)
"""The probability below the largest value: the mean of 1 - 1/30 and 1 - 1/32."""


def _quantiles(count: int) -> list[float]:
    """Normal quantiles of `count` probabilities even from OUTERMOST to 1/2, without the 0 there.

    In float32, from both ends towards the middle, as the published table was computed.
    """
    half = np.float32(0.5)
    step = (half - OUTERMOST) / np.float32(count)
    steps = np.arange(count, dtype=np.float32)
    upper, lower = OUTERMOST + step * steps, half - step * (count - steps)
    even = np.where(steps < (count + 1) // 2, upper, lower)
    return [NormalDist().inv_cdf(float(p)) for p in even]


def _values() -> Array:
    """Eight values above 0, seven below, and 0; the largest is 1, the smallest -1."""
    values = [-q for q in _quantiles(7)] + [0.0] + _quantiles(8)[::-1]
    return np.array(values, np.float32) / np.float32(values[-1])


VALUES = _values()
"""What the codes 0 to 15 stand for, in units of absmax, ascending, float32."""

BOUNDS = (VALUES[1:] + VALUES[:-1]) / 2  # between neighbours; a weight on a bound takes the lower

HALF_GAP = float(max(b - a for a, b in pairwise(VALUES.tolist()))) / 2
"""Half NF4's widest gap, .152: no weight moves further, in units of its block's absmax."""


class NF4(NamedTuple):
    """A quantised matrix: `dequantise` gives it back, `quantise` makes it."""

    codes: Codes  # two to a byte, row by row, (ceil(d_out * d_in / 2),)
    absmax: Array  # of each block, float32, (blocks,)
    shape: tuple[int, int]  # (d_out, d_in)
    block: int  # weights in a block; the last one may have fewer


def even_block(block: int) -> int:
    """A size of blocks: whole, positive, and even, so that no byte belongs to two of them."""
    if positive_int("block", block) % 2:
        raise ValueError(f"block: expected an even number, got {block}")
    return int(block)


def quantise(W: ArrayLike, block: int = 64) -> NF4:
    """The nearest NF4 matrix, block by block, computed in float32.

    W: (d_out, d_in), finite. Raises TypeError where W is not floating or block not whole,
    ValueError for another number of dimensions, values that are not finite (in float32), or a block
    that is not positive and even. A block of zeros comes back as zeros.

    >>> quantise(np.array([[3.0, -1.5, 0.0, 0.4]])).absmax
    array([3.], dtype=float32)
    """
    W, block = floating("W", W, ndim=2), even_block(block)
    with np.errstate(over="ignore"):
        flat = finite("W", W.astype(np.float32)).ravel()  # (d_out * d_in,)
    width = min(block, flat.size + flat.size % 2)
    blocks = np.zeros((-(-flat.size // block), width), np.float32)  # the last one filled with 0
    blocks.flat[: flat.size] = flat
    absmax = np.abs(blocks).max(1)  # (blocks,)
    least = np.float32(1e-38)  # nothing is divided by zero
    scaled = blocks * (1 / np.maximum(absmax, least))[:, None]
    if flat.size % block:  # as bitsandbytes does where the last block is not whole
        absmax[-1] = max(absmax[-1], least)
        scaled[-1] = blocks[-1] / absmax[-1]
    codes = np.searchsorted(BOUNDS, scaled.ravel()[: flat.size + flat.size % 2]).astype(np.uint8)
    return NF4(codes[::2] << 4 | codes[1::2], absmax, W.shape, block)


def dequantise(q: NF4, dtype: DTypeLike = np.float32) -> Array:
    """The matrix that NF4 codes stand for, absmax * VALUES[code], in a floating dtype.

    Returns (d_out, d_in). Raises TypeError where codes are no bytes or absmax is not floating,
    ValueError where they do not fit shape and block.

    >>> dequantise(quantise(np.array([[3.0, -1.5, 0.0, 0.4]]))).round(3)
    array([[ 3.   , -1.575,  0.   ,  0.483]], dtype=float32)
    """
    size = q.shape[0] * q.shape[1]
    because = f"W {q.shape} in blocks of {q.block}"
    shaped("absmax", q.absmax, (-(-size // even_block(q.block)),), because)
    if q.codes.dtype != np.uint8:
        raise TypeError(f"codes: expected dtype uint8, got {q.codes.dtype}")
    if q.codes.shape != (expected := ((size + 1) // 2,)):
        raise ValueError(f"codes: expected shape {expected} ({because}), got {q.codes.shape}")
    codes = np.stack([q.codes >> 4, q.codes & 15], 1).ravel()[:size]
    units = np.repeat(q.absmax.astype(dtype), min(q.block, size))[:size]
    return (VALUES.astype(dtype)[codes] * units).reshape(q.shape)


def block_errors(W: ArrayLike, q: NF4) -> Array:
    """The largest |W - dequantise(q)| of each block, (blocks,), at most HALF_GAP * absmax.

    In float64; with float32's rounding, HALF_GAP * absmax * (1 + 1e-6), where absmax is a normal
    number of float32. Raises ValueError where W is not what was quantised.
    """
    W = floating("W", W, ndim=2)
    again = quantise(W, q.block)
    if W.shape != q.shape:
        raise ValueError(f"W: expected what was quantised, of shape {q.shape}, got {W.shape}")
    for name in ("absmax", "codes"):
        differ = np.flatnonzero(getattr(again, name) != getattr(q, name))
        if differ.size:
            raise ValueError(
                f"W: expected what was quantised, got one whose {name} differ"
                f" in {differ.size} places, the first {differ[0]}"
            )
    apart = np.abs(W - dequantise(q, np.float64)).ravel()
    return np.maximum.reduceat(apart, np.arange(0, apart.size, q.block))

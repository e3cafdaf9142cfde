"""What goes into the kit's cases: numbers out of a hash of their names.

Most are multiples of 1/32 of at most 8 binary digits, the same number in every dtype, so that one
set of expected values serves all.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray]


def draw(name: str, array: str, shape: tuple, low: int = -96, high: int = 96) -> NDArray:
    """Numbers k/32, k from low to high without 0, out of a hash of the names."""
    size = int(np.prod(shape))
    digest = hashlib.shake_256(f"{name}/{array}".encode()).digest(4 * size)
    k = np.frombuffer(digest, "<u4") % (high - low + 1) + float(low)
    return np.where(k == 0, high, k).reshape(shape) / 32


def drawn(name: str, /, **shapes: tuple[int, ...]) -> Inputs:
    """Inputs of given shapes; m is positive."""
    positive = {"m": (16, 112)}
    return {a: draw(name, a, shape, *positive.get(a, ())) for a, shape in shapes.items()}


def linear(
    name: str,
    lead: tuple[int, ...] = (3,),
    d_out: int = 4,
    d_in: int = 5,
    rank: int = 2,
    bias: bool = True,
    axis: str = "per_output",
) -> Inputs:
    """Inputs of one linear layer: m away from the norm, B away from zero."""
    shapes = {"x": (*lead, d_in), "W0": (d_out, d_in), "A": (rank, d_in), "B": (d_out, rank)}
    shapes |= {"m": (d_out if axis == "per_output" else d_in,), "dy": (*lead, d_out)}
    return drawn(name, **shapes, **({"bias": (d_out,)} if bias else {}))

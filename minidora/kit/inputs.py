"""Numbers for the cases, out of a hash of their names: no random generator has a say."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def draw(
    name: str, array: str, shape: tuple[int, ...], low: int = -96, high: int = 96
) -> np.ndarray:
    """Numbers k/32, k from low to high without 0, out of a hash of the names."""
    size = int(np.prod(shape))
    digest = hashlib.shake_256(f"{name}/{array}".encode()).digest(4 * size)
    k = np.frombuffer(digest, "<u4") % (high - low + 1) + float(low)
    return np.where(k == 0, high, k).reshape(shape) / 32


def linear(
    name: str,
    lead: tuple[int, ...] = (3,),
    d_out: int = 4,
    d_in: int = 5,
    rank: int = 2,
    bias: bool = True,
    axis: str = "per_output",
) -> dict[str, NDArray]:
    """Inputs of one linear layer: m away from the norm, B away from zero."""
    shapes = {
        "x": (*lead, d_in),
        "W0": (d_out, d_in),
        "A": (rank, d_in),
        "B": (d_out, rank),
        "m": (d_out if axis == "per_output" else d_in,),
        "dy": (*lead, d_out),
    }
    if bias:
        shapes["bias"] = (d_out,)
    inputs = {array: draw(name, array, shape) for array, shape in shapes.items()}
    inputs["m"] = draw(name, "m", shapes["m"], 16, 112)
    return inputs


def mask(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An inverted-dropout mask of rate 1/5, 0 or 1.25, that surely holds both."""
    drawn = np.where(draw(name, "mask", shape, 1, 100) * 32 <= 30, 0.0, 1.25)
    drawn.reshape(-1)[:2] = 0.0, 1.25
    return drawn

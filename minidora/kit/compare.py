"""How far an answer is from the expected one, and whether an answer is an answer at all."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evidence.gradcheck import Difference

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number."""


def ulps(difference: Difference, dtype: str) -> float:
    """The error in units in the last place of the largest expected entry."""
    return difference.max_abs / float(2.0 ** np.floor(np.log2(difference.unit)) * EPS[dtype])


def judged(output: str, answer: Any, expected: NDArray, tolerance: float) -> Difference:
    """Hold one answer, whatever it is, against the expected array."""

    def bad(note: str) -> Difference:
        return Difference(output, expected.shape, float("inf"), 1.0, tolerance, note=note)

    if answer is None:
        return bad(f"expected shape {expected.shape}, got nothing")
    got = as_array(answer)
    if got is None:
        return bad(f"expected numbers of shape {expected.shape}, got {_short(answer)}")
    flat = got.size == expected.size == 0 and got.ndim == 1  # JSON's empty list
    if got.shape != expected.shape and not flat:
        return bad(f"expected shape {expected.shape}, got shape {got.shape}")
    finite = np.isfinite(got)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = f"({int((~finite).sum())} not finite)"
        return bad(f"expected {expected[place]:.6g} at {list(place)}, got {got[place]} {count}")
    got = got.reshape(expected.shape)
    difference = Difference.between(output, got, expected, tolerance)
    return difference if difference.ok else replace(difference, note=_explained(got, expected))


def _explained(got: NDArray, expected: NDArray) -> str:
    """A factor or a transposition that explains an error, in words, or how small it is."""
    apart = np.abs(got - expected)
    place = np.unravel_index(apart.argmax(), got.shape)
    small = apart[place] < 1e-4 * abs(expected[place])
    text = f" (off by {got[place] - expected[place]:.1e})" if small else ""
    square = (expected * expected).sum()
    factor = (got * expected).sum() / square if square else 0.0
    constant = np.abs(got - factor * expected).max() <= 1e-6 * np.abs(expected).max()
    if square and constant and abs(factor - 1) > 1e-4:
        text += f", {factor:.6g} times what is expected"
    elif got.ndim == 2 and got.shape[0] == got.shape[1] and np.allclose(got, expected.T):
        text += ", the transpose of what is expected"
    return text


def as_array(value: Any) -> NDArray[np.float64] | None:
    """Numbers as float64 (null as NaN), or None for what is no array of real numbers."""
    try:
        array = np.asarray(value)
        if array.dtype.kind == "V" and array.dtype.name == "bfloat16":  # of ml_dtypes
            return array.astype(np.float64)
        if array.dtype.kind not in "fiuO" or array.dtype.kind == "O" and _has_text(array):
            return None
        return array.astype(np.float64)
    except Exception:  # whatever NumPy or the value itself says to that
        return None


def _has_text(array: NDArray) -> bool:
    return any(isinstance(entry, str | bytes | bool | dict) for entry in array.reshape(-1))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

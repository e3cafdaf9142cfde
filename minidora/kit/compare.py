"""How far an answer is from the expected one, and whether an answer is an answer at all."""

from dataclasses import dataclass

import numpy as np

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""The distance from 1 to the next number."""


@dataclass(frozen=True)
class Difference:
    """One output against what was expected of it."""

    output: str
    error: float  # max|got - expected| / max|expected|; max|got - expected| where all is 0
    ulps: float  # the same in units in the last place of the largest expected entry
    tolerance: float
    message: str = ""  # what is wrong, where it is not a matter of size
    worst: str = ""  # where the error is largest, and what a factor would explain

    @property
    def ok(self) -> bool:
        """Whether the answer is within the tolerance."""
        return not self.message and self.error <= self.tolerance

    def __str__(self) -> str:
        if self.message:
            return f"{self.output}: {self.message}"
        far = f"relative error {self.error:.1e}, bound {self.tolerance:.0e}"
        return f"{self.output}: {far}{self.worst}"


def difference(output: str, got, expected: np.ndarray, tolerance: float, dtype: str) -> Difference:
    """Hold one answer, whatever it is, against the expected array."""

    def bad(message):
        return Difference(output, float("inf"), float("inf"), tolerance, message)

    if got is None:
        return bad(f"expected shape {expected.shape}, got nothing")
    array = as_array(got)
    if array is None:
        return bad(f"expected numbers of shape {expected.shape}, got {_short(got)}")
    flat = array.size == expected.size == 0 and array.ndim == 1  # JSON's empty list
    if array.shape != expected.shape and not flat:
        return bad(f"expected shape {expected.shape}, got shape {array.shape}")
    if expected.size == 0:
        return Difference(output, 0.0, 0.0, tolerance)
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(i) for i in np.argwhere(~finite)[0])
        count = int((~finite).sum())
        return bad(
            f"expected {expected[where]:.6g} at {list(where)}, got {array[where]}"
            f" ({count} not finite)"
        )
    apart = float(np.abs(array - expected).max())
    largest = float(np.abs(expected).max())
    ulp = 2.0 ** np.floor(np.log2(largest)) * EPS[dtype] if largest else EPS[dtype]
    worst = _worst(array, expected) if apart > tolerance * (largest or 1.0) else ""
    return Difference(output, apart / (largest or 1.0), apart / float(ulp), tolerance, worst=worst)


def _worst(got: np.ndarray, expected: np.ndarray) -> str:
    """Where two arrays are farthest apart, and the factor between them, if there is one."""
    where = np.unravel_index(np.abs(got - expected).argmax(), got.shape)
    off = got[where] - expected[where]
    text = f", at {[int(i) for i in where]} {got[where]:.6g} for {expected[where]:.6g}"
    text += f" (off by {off:.1e})" if abs(off) < 1e-4 * abs(expected[where]) else ""
    square = (expected * expected).sum()
    factor = (got * expected).sum() / square if square else 0.0
    constant = np.abs(got - factor * expected).max() <= 1e-6 * np.abs(expected).max()
    if square and constant and abs(factor - 1) > 1e-4:
        text += f", {factor:.6g} times what is expected"
    elif got.ndim == 2 and got.shape[0] == got.shape[1] and np.allclose(got, expected.T):
        text += ", the transpose of what is expected"
    return text


def as_array(value) -> np.ndarray | None:
    """Numbers as float64 (null as NaN), or None for what is no array of real numbers."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiuO" or array.dtype.kind == "O" and _has_text(array):
            return None
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def _has_text(array: np.ndarray) -> bool:
    return any(isinstance(entry, str | bytes | bool | dict) for entry in array.reshape(-1))


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Central differences, and the comparison of one set of gradients with another.

The relative error of an array a against b is max|a - b| / max|b|, and max|a - b| where b is all
zero: small entries are judged on the scale of their array.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

STEP = float(np.finfo(np.float64).eps ** (1 / 3))
"""Where the truncation error step² meets the rounding error eps / step, for values near 1."""


def relative_error(a: ArrayLike, b: ArrayLike) -> float:
    """max|a - b| / max|b|, or max|a - b| where max|b| = 0; infinite if any entry is not finite.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    0.5
    """
    return Difference.between("", a, b, 0.0).max_rel


def central_differences(
    f: Callable[..., ArrayLike],
    inputs: Mapping[str, NDArray],
    dy: ArrayLike,
    *,
    step: float = STEP,
) -> dict[str, NDArray]:
    """Gradients of sum(dy * f(**inputs)), every entry of every input moved both ways in turn.

    inputs: float64 arrays by argument name; dy: shaped like what f returns. Each entry p moves by
    step * max(1, |p|). Returns {"d" + name: array like the input}. The error is about step² times
    the third derivative, plus 1e-16 / step times the value: 1e-10 with the default step.

    >>> central_differences(lambda x: x**2, {"x": np.array([1.0, 3.0])}, np.ones(2))["dx"].round(6)
    array([2., 6.])
    """
    grads = {}
    for name, value in inputs.items():
        moved = np.array(value, np.float64)  # the one copy that moves
        grad = np.empty_like(moved)
        for i in np.ndindex(moved.shape):
            p = float(moved[i])
            h = step * max(1.0, abs(p))
            moved[i] = p + h
            above, up = f(**{**inputs, name: moved}), moved[i]
            moved[i] = p - h
            below, down = f(**{**inputs, name: moved}), moved[i]
            moved[i] = p
            grad[i] = np.sum(dy * np.subtract(above, below)) / (up - down)
        grads["d" + name] = grad
    return grads


@dataclass(frozen=True)
class Difference:
    """One array held against another: how far apart they are, and where most."""

    name: str
    shape: tuple[int, ...]
    max_abs: float  # max|got - expected|, infinite if any entry is not finite
    unit: float  # what that is relative to: max|expected|, or 1 where that is 0
    tolerance: float
    worst: tuple[int, ...] = ()  # where max_abs is, and the two numbers there
    got: float = 0.0
    expected: float = 0.0
    note: str = ""  # in words: why there are no numbers, or what would explain them

    @classmethod
    def between(
        cls,
        name: str,
        got: ArrayLike,
        expected: ArrayLike,
        tolerance: float,
        *,
        unit: float | None = None,
    ) -> "Difference":
        """Hold `got` against `expected`, two arrays of numbers that broadcast.

        unit: what the error is relative to; max|expected| unless given, or 1 where that is 0.
        """
        got, expected = np.broadcast_arrays(
            np.asarray(got, np.float64), np.asarray(expected, np.float64)
        )
        if got.size == 0:
            return cls(name, got.shape, 0.0, 1.0, tolerance)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(got - expected)
        apart = np.where(np.isnan(apart), np.inf, apart)  # inf - inf is no agreement
        worst = np.unravel_index(apart.argmax(), apart.shape)
        return cls(
            name,
            got.shape,
            max_abs=float(apart[worst]),
            unit=float(np.abs(expected).max()) or 1.0 if unit is None else unit,
            tolerance=tolerance,
            worst=tuple(int(i) for i in worst),
            got=float(got[worst]),
            expected=float(expected[worst]),
        )

    @property
    def max_rel(self) -> float:
        """max_abs / unit."""
        return self.max_abs / self.unit if isfinite(self.max_abs) else float("inf")

    @property
    def ok(self) -> bool:
        """Whether all is finite, and the relative error within the tolerance."""
        return isfinite(self.max_abs) and self.max_rel <= self.tolerance

    def __str__(self) -> str:
        if not isfinite(self.max_abs) and self.note:
            return f"{self.name}: {self.note}"
        place = f"at {list(self.worst)} {self.got:.6g} for {self.expected:.6g}{self.note}"
        apart = f"relative error {self.max_rel:.1e}, bound {self.tolerance:.0e}"
        return f"{self.name}: {apart}, {place}"


@dataclass(frozen=True)
class Verdict:
    """What came of a check: the differences it made, and what it was a check of.

    `print(verdict)` is a table with a line for each; `raise_if_failed()` asserts it.
    """

    differences: tuple[Difference, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every difference is within its tolerance."""
        return all(difference.ok for difference in self.differences)

    @property
    def worst(self) -> Difference:
        """The difference with the largest relative error; ValueError where there is none."""
        return max(self.differences, key=lambda d: d.max_rel)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the table and the names that differ, unless all agree."""
        if not self.ok:
            wrong = ", ".join(d.name for d in self.differences if not d.ok)
            raise AssertionError(f"gradients differ: {wrong}\n{self}")

    def __str__(self) -> str:
        lines = ["gradient  shape       max abs    max rel    verdict"]
        for d in self.differences:
            at = f"worst at {list(d.worst) or ''}: got {d.got:.10g}, expected {d.expected:.10g}"
            lines.append(
                f"{d.name:<10}{str(d.shape):<12}{d.max_abs:<11.1e}{d.max_rel:<11.1e}"
                f"{'agrees' if d.ok else 'DIFFERS':<9}{at}"
            )
        return "\n".join(lines)


def compare(
    grads: Mapping[str, ArrayLike | None],
    expected: Mapping[str, ArrayLike | None],
    tolerance: float,
    *,
    vanishing: Collection[str] = (),
) -> Verdict:
    """Hold `grads` against `expected`, name by name, at a relative `tolerance`.

    A gradient that is None (no bias) counts as absent, on either side. Gradients named in
    `vanishing` are zero but for rounding, such as that of a key's bias in attention; they are held
    to the tolerance as they are, not relative to their size. Raises ValueError where the names or a
    shape differ.

    >>> compare({"dx": np.array([1.0])}, {"dx": np.array([1.0])}, 1e-9).ok
    True
    """
    got = {name: np.asarray(grad) for name, grad in grads.items() if grad is not None}
    right = {name: np.asarray(grad) for name, grad in expected.items() if grad is not None}
    if got.keys() != right.keys():
        raise ValueError(f"grads: expected the names {sorted(right)}, got {sorted(got)}")
    for name in got:
        if got[name].shape != right[name].shape:
            raise ValueError(
                f"{name}: expected shape {right[name].shape}, got shape {got[name].shape}"
            )
    units = dict.fromkeys(vanishing, 1.0)
    return Verdict(
        tuple(
            Difference.between(name, got[name], right[name], tolerance, unit=units.get(name))
            for name in got
        )
    )


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines of text, each column as wide as its widest cell.

    >>> print(aligned([("a", "b"), ("long", "c")]))
    a     b
    long  c
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

"""Central differences, and the comparison of one set of gradients with another.

The relative error of an array a against b is max|a - b| / max|b|, and max|a - b| where b is all
zero: small entries are judged on the scale of their array.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

STEP = float(np.finfo(np.float64).eps ** (1 / 3))
"""Where the truncation error step² meets the rounding error eps / step, for values near 1."""


def relative_error(a, b) -> float:
    """max|a - b| / max|b|, or max|a - b| where max|b| = 0; infinite if any entry is not finite.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    0.5
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.size == 0:
        return 0.0
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    largest = float(np.abs(b).max())
    return float(np.abs(a - b).max()) / (largest or 1.0)


def central_differences(
    f: Callable, inputs: Mapping[str, np.ndarray], dy: np.ndarray, *, step: float = STEP
) -> dict[str, np.ndarray]:
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
            p = moved[i]
            h = step * max(1.0, abs(p))
            moved[i] = p + h
            above, up = f(**{**inputs, name: moved}), moved[i]
            moved[i] = p - h
            below, down = f(**{**inputs, name: moved}), moved[i]
            moved[i] = p
            grad[i] = np.sum(dy * (above - below)) / (up - down)
        grads["d" + name] = grad
    return grads


@dataclass(frozen=True)
class Row:
    """One gradient held against another: where and by how much it is worst."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    tolerance: float
    worst: tuple[int, ...]
    got: float
    expected: float

    @property
    def ok(self) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.max_rel <= self.tolerance

    def __str__(self) -> str:
        verdict = "agrees" if self.ok else "DIFFERS"
        at = str(list(self.worst)) if self.worst else ""
        return (
            f"{self.name:<10}{str(self.shape):<12}{self.max_abs:<11.1e}{self.max_rel:<11.1e}"
            f"{verdict:<9}worst at {at}: got {self.got:.10g}, expected {self.expected:.10g}"
        )


@dataclass(frozen=True)
class Report:
    """A `Row` for each gradient. `print(report)` is a table; `raise_if_failed()` asserts it."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees."""
        return all(row.ok for row in self.rows)

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the table and the names that differ, unless all agree."""
        if not self.ok:
            wrong = ", ".join(row.name for row in self.rows if not row.ok)
            raise AssertionError(f"gradients differ: {wrong}\n{self}")

    def __str__(self) -> str:
        head = f"{'gradient':<10}{'shape':<12}{'max abs':<11}{'max rel':<11}{'verdict':<9}"
        return "\n".join([head.rstrip(), *map(str, self.rows)])


def compare(
    grads: Mapping[str, np.ndarray | None],
    expected: Mapping[str, np.ndarray],
    tolerance: float,
    *,
    vanishing: Collection[str] = (),
) -> Report:
    """Hold `grads` against `expected`, name by name, at a relative `tolerance`.

    A gradient that is None (no bias) counts as absent, on either side. Gradients named in
    `vanishing` are zero but for rounding, such as that of a key's bias in attention; they are held
    to the tolerance as they are, not relative to their size. Raises ValueError where the names or a
    shape differ.

    >>> compare({"dx": np.array([1.0])}, {"dx": np.array([1.0])}, 1e-9).ok
    True
    """
    grads = {name: np.asarray(g) for name, g in grads.items() if g is not None}
    expected = {name: g for name, g in expected.items() if g is not None}
    if grads.keys() != expected.keys():
        raise ValueError(f"grads: expected the names {sorted(expected)}, got {sorted(grads)}")
    rows = []
    for name, grad in grads.items():
        reference = np.asarray(expected[name])
        if grad.shape != reference.shape:
            raise ValueError(f"{name}: expected shape {reference.shape}, got shape {grad.shape}")
        rows.append(_row(name, grad, reference, tolerance, name in vanishing))
    return Report(tuple(rows))


def _row(name, grad: np.ndarray, reference: np.ndarray, tolerance: float, vanishes: bool) -> Row:
    """Compare two arrays of one shape; on the scale of 1 where they vanish."""
    if grad.size == 0:
        return Row(name, grad.shape, 0.0, 0.0, tolerance, (), 0.0, 0.0)
    difference = np.abs(grad.astype(np.float64) - reference)
    difference[np.isnan(difference)] = np.inf
    worst = tuple(int(i) for i in np.unravel_index(difference.argmax(), grad.shape))
    relative = relative_error(grad - reference, 0 * reference) if vanishes else None
    return Row(
        name=name,
        shape=grad.shape,
        max_abs=float(difference[worst]),
        max_rel=relative_error(grad, reference) if relative is None else relative,
        tolerance=tolerance,
        worst=worst,
        got=float(grad[worst]),
        expected=float(reference[worst]),
    )

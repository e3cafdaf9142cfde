"""The name of a mistake, from the wrong outputs it gave.

Where a case has wrong answers stored beside the right ones, those are compared; for every other
linear case the same mistakes are computed (`wrong`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..evidence.gradcheck import Difference
from . import wrong
from .compare import as_array
from .files import KitCase

SMALL = 1e-3  # the size below which an output is judged absolutely: it may be rounding alone
CLOSE = 3e-6  # steps of AdamW depend so little on the gradient that a wider bound says nothing
STALE = "norm kept from before the step"
DEAD = "0/0 at a vector of V that is zero"
CANCELLED = "the squares of the norm cancelled to 0 or less"
ALONE = {
    "W": "in the merged weight alone",
    "y": "in the forward pass alone",
    "m": "in the initial magnitude alone",
}


def diagnose(
    case: KitCase,
    dtype: str,
    norm_grad: str | None,
    got: Mapping[str, Any],
    differences: Sequence[Difference],
) -> list[str]:
    """Every mistake that would have given these outputs; none where no known one would.

    got: the answers by output; differences: each of them against what was expected.
    """
    names = _mistakes(case, norm_grad, got, differences)
    return [n for n in names if dtype == "float16" or not n.startswith(wrong.HALF)]


def _mistakes(case, norm_grad, got, differences) -> list[str]:
    failed = {d.name for d in differences if not d.ok}
    numbers = {name: as_array(value) for name, value in got.items()}
    arrays = {name: array for name, array in numbers.items() if array is not None}
    tolerance = differences[0].tolerance
    special = (
        DEAD if case.requires.get("zero_vector") else CANCELLED if "D6" in case.clauses else ""
    )
    forward = failed & {"y", "W"}
    if special and any(not np.isfinite(arrays[n]).all() for n in forward & arrays.keys()):
        return [special]
    if case.kind == "convolution" or special == CANCELLED:
        return []
    if "steps" in case.gives:
        if not failed & set("ABm"):
            return []  # the merged weight alone
        return _of_steps(case, norm_grad or "exact", arrays, min(tolerance, CLOSE))
    group = "forward" if failed & set(wrong.OUTPUTS["forward"]) else "gradient"
    asked = [n for n in wrong.OUTPUTS[group] if n in case.expected and n in arrays]
    right = {n: _mode(case.expected[n], norm_grad) for n in asked}
    failed &= set(asked)
    names, alone = [], []
    for mistake, changed in candidates(case, group, asked, norm_grad or "exact"):
        given = right | changed
        matched = {n for n in asked if alike(arrays[n], given[n], tolerance)}
        if failed and failed <= matched:
            if matched == set(asked):
                names.append(mistake)
            elif len(failed) == 1 and group == "forward":
                alone.append(f"{mistake} ({ALONE[min(failed)]})")
    return names or alone


def candidates(
    case: KitCase, group: str, asked: Iterable[str], norm_grad: str
) -> Iterator[tuple[str, dict]]:
    """Each mistake of a group with the outputs that it changes in this case."""
    mistakes = wrong.FORWARD if group == "forward" else wrong.GRADIENT
    if case.wrong:
        of_the_case = mistakes | (case.wrong if case.requires.get("zero_vector") else {})
        for mistake in (m for m in case.wrong if m in of_the_case):
            stored = case.wrong[mistake]
            changed = [n for n in asked if _has(stored, n, norm_grad)]
            yield mistake, {n: _mode(stored[n], norm_grad) for n in changed}
        return
    # a wrong forward pass may show in its gradients alone
    everything = mistakes if group == "forward" else mistakes | wrong.FORWARD
    for mistake, cells in everything.items():
        yield mistake, wrong.answers(case, case.inputs, cells, asked, norm_grad)


def alike(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays agree, NaN and infinities in the same places included."""
    if a.shape != b.shape:
        return False
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return False
    largest = np.abs(b[finite]).max(initial=SMALL)
    return bool((np.abs(a - b)[finite] <= tolerance * largest).all())


def _of_steps(case, norm_grad, arrays, tolerance) -> list[str]:
    tries: list[tuple[str, dict, bool, str]] = [(STALE, {}, True, norm_grad)]
    tries += [(name, cells, False, norm_grad) for name, cells in wrong.GRADIENT.items()]
    for name, cells in wrong.FORWARD.items():
        # by hand, or by a framework, to which a wrong norm may be a constant
        tries += [(name, cells, False, mode) for mode in dict.fromkeys((norm_grad, "detached"))]
    names: list[str] = []
    for name, cells, stale, mode in tries:
        try:
            with np.errstate(all="ignore"):
                after = wrong.after_steps(case, case.inputs, cells, mode, stale)
        except (TypeError, ValueError):
            continue  # the mistake cannot be made here
        if all(n in arrays and alike(arrays[n], after[n], tolerance) for n in "ABm"):
            names.append(name)
    return list(dict.fromkeys(names))


def _mode(answer, norm_grad):
    return answer[norm_grad] if isinstance(answer, dict) else answer


def _has(answers, name, norm_grad) -> bool:
    return name in answers and (not isinstance(answers[name], dict) or norm_grad in answers[name])

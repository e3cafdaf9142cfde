"""The name of a mistake, from the wrong outputs it gave."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ..evidence.gradcheck import Difference
from .clauses import CLAUSES
from .compare import as_array
from .files import WIDE, KitCase
from .mistakes import (
    BY_NAME,
    CANCELLED,
    DEAD,
    EPS,
    EXPANDED,
    FLOOR,
    HALF,
    MISTAKES,
    NARROW,
    ROOTED_EPS,
    Mistake,
)
from .protocol import in_dtype
from .sheet import IMPOSSIBLE, OUTPUTS, Sheet, after_steps, answers, given, in_parts, transposed

SMALL = 1e-3  # the size below which an output is judged absolutely: it may be rounding alone
AWAY = 0.05  # a match is nearer to the mistake's answer than this part of the way to the right one
AWAY_IN_16_BITS = 0.3  # where rounding alone goes part of the way
OF_STEPS = ("A", "B", "m", "W")
LIKELY = 0.5  # a mistake explains at least this part of what it would show in
FITTED = (EPS, ROOTED_EPS, FLOOR)
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
    failed = {d.name for d in differences if not d.ok}
    numbers = {name: as_array(value) for name, value in got.items()}
    arrays = {name: array for name, array in numbers.items() if array is not None}
    if not failed <= arrays.keys():
        return []
    mode = norm_grad or "exact"
    special = (
        DEAD if case.requires.get("zero_vector") else CANCELLED if "D6" in case.clauses else ""
    )
    if special and any(not np.isfinite(arrays[n]).all() for n in failed & {"y", "W"}):
        return [special]
    if special == CANCELLED:
        return []
    narrow = _narrow(dtype, arrays, failed, differences)
    if narrow:
        return [narrow]
    tolerance = differences[0].tolerance
    groups = _groups(case, failed)
    asked = [n for n in _outputs(case, groups) if n in arrays]
    right = {n: of_mode(case.expected[n], mode) for n in asked}
    failed &= set(asked)
    names, alone = [], []
    away = AWAY if dtype in WIDE else AWAY_IN_16_BITS
    for name, wrong in _candidates(case, mode, groups, arrays):
        if name == HALF and dtype != "float16" or not failed & wrong.keys():
            continue
        given_by = right | wrong  # all that was asked for
        far = all(
            _apart(arrays[n], given_by[n]) <= away * _apart(right[n], given_by[n]) for n in failed
        )
        if not far or not all(alike(arrays[n], given_by[n], tolerance) for n in failed):
            continue
        if all(alike(arrays[n], given_by[n], tolerance) for n in asked):
            names.append(name)
        elif len(failed) == 1 and failed & ALONE.keys():
            alone.append(f"{name} ({ALONE[min(failed)]})")
    if not names and "D5" in case.clauses and _lengths(case, arrays) is not None:
        return [EXPANDED]
    return list(dict.fromkeys(names)) or alone


def credible(results: Sequence[Any]) -> list[Any]:
    """The CaseResults of a run, each with those of its diagnoses that the others do not refute.

    A mistake is refuted where most of the results in which it would show, among cases like those
    that it explains, are right or wrong otherwise; and it adds nothing where another one explains
    all that it does.
    """
    explained: dict[str, set[int]] = {}
    for i, result in enumerate(results):
        for name in result.diagnoses:
            explained.setdefault(name, set()).add(i)
    ranks = {name: _rank(name, of_name, results) for name, of_name in explained.items()}
    likely = {name: explained[name] for name, rank in ranks.items() if rank[0] >= LIKELY}
    kept = {
        name
        for name, mine in likely.items()
        if not any(
            mine < theirs or mine == theirs and ranks[other] > ranks[name]
            for other, theirs in likely.items()
        )
    }
    return [replace(r, diagnoses=tuple(n for n in r.diagnoses if n in kept)) for r in results]


def _rank(name, of_name, results) -> tuple:
    """How likely a mistake is: the part that it explains of the results in which it would show.

    Among equals, whether it is about the outputs that are wrong, and about what the cases are for.
    """
    families = {_family(results[i]) for i in of_name}
    shows = [
        i
        for i, result in enumerate(results)
        if i in of_name or _family(result) in families and _shows(name, result)
    ]
    mistake, first = BY_NAME[name.partition(" (in ")[0]], results[min(of_name)]
    group = _groups(first.variant.case, {d.name for d in first.differences if not d.ok})[0]
    about = sum(bool(set(results[i].variant.case.clauses) & set(mistake.clauses)) for i in of_name)
    return len(of_name) / len(shows), mistake.group == group, about, name


def _family(result):
    case = result.variant.case
    return case.kind, result.variant.dtype, tuple(sorted(case.requires.items()))


def _shows(name, result) -> bool:
    """Whether a mistake would change what came; one without cells, or fitted, wherever it fails."""
    case, mode = result.variant.case, result.variant.norm_grad or "exact"
    failed = {d.name for d in result.differences if not d.ok}
    mistake = BY_NAME.get(name)
    if mistake is None or not mistake.cells or name in FITTED:
        return bool(failed) and "steps" not in case.gives
    groups = _groups(case, failed)
    wrong = predictions(case, mode, groups).get(name, {})
    bounds = {d.name: d for d in result.differences}
    return any(
        _apart(value, of_mode(case.expected[n], mode)) > 3 * bounds[n].tolerance * bounds[n].unit
        for n, value in wrong.items()
        if n in bounds
    )


def of_mode(answer: Any, norm_grad: str) -> Any:
    """An expected output, of that kind of gradient where there are two."""
    return answer[norm_grad] if isinstance(answer, dict) else answer


def _groups(case, failed):
    if "steps" in case.gives:
        return ("training", "forward", "gradient")
    return ("forward",) if failed & set(OUTPUTS["forward"]) else ("gradient", "forward")


def _outputs(case, groups):
    """What a mistake of the first of these groups is judged by."""
    names = OF_STEPS if groups[0] == "training" else OUTPUTS[groups[0]]
    return [n for n in names if n in case.expected]


def _candidates(case, mode, groups, arrays) -> Iterator[tuple[str, dict]]:
    """Each mistake with the outputs that it gives in this case."""
    for name, wrong in case.wrong.items():
        yield name, {n: of_mode(value, mode) for n, value in wrong.items()}
    if "m" not in case.inputs and "m" not in arrays:
        return  # of an m that is not known here
    m = None if "m" in case.inputs else tuple(arrays["m"].reshape(-1))
    yield from predictions(case, mode, groups, m).items()
    if groups[0] == "forward":
        for name, eps in _fits(case, arrays):
            yield name, _predicted(case, BY_NAME[name], mode, groups, case.inputs | {"eps": eps})


@cache
def predictions(
    case: KitCase, mode: str, groups: tuple[str, ...], m: tuple[float, ...] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """{mistake: outputs that it changes} of every mistake in these groups that a case can show.

    m: the implementation's own, where the case has none.
    """
    arrays = case.inputs if m is None else case.inputs | {"m": np.array(m)}
    shown = {}
    for mistake in (m for m in MISTAKES if m.group in groups and _possible(m, case)):
        wrong = _predicted(case, mistake, mode, groups, arrays)
        if wrong:
            shown[mistake.name] = wrong
    return shown


def _possible(mistake: Mistake, case: KitCase) -> bool:
    """Whether the case has the setting that all clauses of a mistake are about."""
    settings = {CLAUSES[clause].alternative for clause in mistake.clauses}
    about_all = {"", "norm_axis", "norm_grad", "dtype"}
    return mistake.name not in FITTED and not settings.isdisjoint(about_all | case.requires.keys())


def _predicted(case, mistake: Mistake, mode, groups, arrays) -> dict:
    """The outputs of a mistake, but for those that are right all the same."""
    names = _outputs(case, groups)
    if groups[0] != "training":
        wrong = answers(case, arrays, mistake.cells, names, mode)
    else:
        try:
            with np.errstate(all="ignore"):
                wrong = after_steps(case, arrays, mistake.cells, mode)
        except IMPOSSIBLE:
            return {}
    right = {n: of_mode(case.expected[n], mode) for n in names}
    return {n: w for n, w in wrong.items() if n in right and _apart(w, right[n]) > 1e-12}


def _apart(a, b) -> float:
    """The largest difference of two arrays; infinite where they cannot be compared."""
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    return float(np.abs(a - b)[finite].max(initial=0))


def alike(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays agree, NaN and infinities in the same places included."""
    finite = np.isfinite(b)
    return _apart(a, b) <= tolerance * np.abs(b[finite]).max(initial=SMALL)


def _narrow(dtype, arrays, failed, differences) -> str:
    """The name for answers in a narrower dtype than was asked for, or nothing."""
    worst, numbers = max(d.max_rel for d in differences), sum(arrays[n].size for n in failed)
    near = 5e-9  # they may have been written with nine digits
    for name, (narrow, wider, bound) in NARROW.items():
        if dtype in wider and worst <= bound and numbers > 5:  # fewer may look so by chance
            pairs = [(in_dtype(arrays[n], narrow, n), arrays[n]) for n in failed]
            if all(np.allclose(rounded, got, rtol=near, atol=0.0) for rounded, got in pairs):
                return name
    return ""


def _fits(case: KitCase, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """The number that would explain a merged weight, for each mistake about an eps."""
    lengths = _lengths(case, arrays)
    if lengths is not None:
        c, got = lengths
        floor = got[got > c * (1 + 1e-9)].min(initial=np.inf)
        for name, eps in zip(FITTED, (got - c, got**2 - c**2, floor), strict=True):
            eps = float(np.median(eps))
            if 0 < eps < np.inf:
                yield name, eps


def _lengths(case, arrays):
    """The norms of V, and what a merged weight was divided by; None where it is no multiple."""
    if "W" not in arrays or "m" not in case.inputs or len(in_parts(case, case.inputs)) > 1:
        return None
    sheet = Sheet(given(case, case.inputs, "exact"), {})
    got, right, axis = arrays["W"], case.expected["W"], sheet["axis"]
    if transposed(case):
        got, right = got.T, right.T
    if got.size != sheet["W"].size or not np.isfinite(got).all():
        return None
    got, right = got.reshape(sheet["W"].shape), right.reshape(sheet["W"].shape)
    with np.errstate(all="ignore"):
        factor = (got * right).sum(axis, keepdims=True) / (right * right).sum(axis, keepdims=True)
    if not np.isfinite(factor).all() or (factor == 0).any():
        return None
    if _apart(got, factor * right) > AWAY * _apart(got, right):
        return None
    c = sheet["c"].reshape(-1)
    return c, c / factor.reshape(-1)

"""Which cases are put to an implementation, and which of their failures are expected."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .clauses import CLAUSES
from .files import KitCase
from .protocol import ALTERNATIVES, escaped
from .report import CaseResult, Report

FILTERS: dict[str, Callable[[KitCase], Collection[str]]] = {
    "clause": lambda case: case.clauses,
    "flag": lambda case: case.flags,
    "level": lambda case: (case.level,),
    "kind": lambda case: (case.kind,),
    "dtype": lambda case: case.dtypes,
}
"""What a case has of each kind of word that chooses cases."""
VARIANTS = {*ALTERNATIVES["dtype"], *ALTERNATIVES["norm_grad"]}


def selected(cases: list[KitCase], options: Mapping[str, Any]) -> list[KitCase]:
    """The cases that every option leaves, in the dtypes asked for.

    options: `only`, a part of the name; `match`, a pattern for it; and lists of words by FILTERS.
    Raises ValueError for a word that no case has, and where no case is left.
    """
    given = {name: words for name in ("only", "match", *FILTERS) if (words := options.get(name))}
    left = [case for case in cases if given.get("only", "") in case.name]
    left = [case for case in left if re.search(given.get("match", ""), case.name)]
    for name in (n for n in FILTERS if n in given):
        known = {word for case in cases for word in FILTERS[name](case)}
        if unknown := [word for word in given[name] if word not in known]:
            expected = ", ".join(sorted(known))
            raise ValueError(f"--{name}: expected one of {expected}, got {unknown[0]!r}")
        left = [case for case in left if {*given[name]} & {*FILTERS[name](case)}]
    if not left:
        words = " ".join(f"--{name} {_words(value)}" for name, value in given.items())
        raise ValueError(f"expected options that leave a case, got {words}")
    dtypes = given.get("dtype", ALTERNATIVES["dtype"])
    return [replace(c, dtypes=tuple(d for d in c.dtypes if d in dtypes)) for c in left]


def _words(value: Any) -> str:
    return getattr(value, "pattern", value) if not isinstance(value, list) else ",".join(value)


@dataclass(frozen=True)
class Expectation:
    """A line of a file of expected failures."""

    text: str
    clauses: frozenset[str]
    case: str | None
    variant: frozenset[str]  # dtype and norm_grad, as far as they are said

    def concerns(self, result: CaseResult) -> bool:
        """Whether it is about this variant."""
        variant = result.variant
        words = {variant.dtype, variant.norm_grad}
        return self.case in (None, variant.case.name) and self.variant <= words

    def named(self, clauses: Iterable[str]) -> bool:
        """Whether it names one of these clauses, or none at all."""
        return not self.clauses or not self.clauses.isdisjoint(clauses)


def expectations(path: Path, cases: Iterable[KitCase]) -> list[Expectation]:
    """The lines of a file: case names, clauses, dtypes and kinds of gradient that hold together.

    What comes after # is a comment. Raises ValueError with the line that is not understood, and
    OSError where there is no such file.
    """
    names, lines = {case.name for case in cases}, []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = frozenset(line.partition("#")[0].split())
        clauses, about, variant = words & CLAUSES.keys(), words & names, words & VARIANTS
        if not words:
            continue
        if words - clauses - about - variant or len(about) > 1 or not (clauses or about):
            expected = "a case or clauses of the kit, perhaps with dtype and norm_grad"
            raise ValueError(f"{path}, line {number}: expected {expected}, got {line.strip()!r}")
        place = escaped(f"line {number} of {path.name}: {line.strip()}")
        lines.append(Expectation(place, clauses, next(iter(about), None), variant))
    return lines


def expect(report: Report, lines: list[Expectation]) -> None:
    """Mark the failures of a report that lines expect, and note lines of which nothing failed.

    A line with clauses expects those alone: a variant that breaks one more has failed. After a
    run that was stopped nobody knows what else would have failed.
    """
    report.results = [replace(r, expected=expected(r, lines)) for r in report.results]
    for line in () if report.stopped else lines:
        about = [r for r in report.results if line.concerns(r)]
        passed = [r for r in about if r.status == "pass" and line.named(r.variant.case.clauses)]
        if passed and not any(r.broken and line.named(r.broken) for r in about):
            report.unexpected.append(line.text)


def expected(result: CaseResult, lines: list[Expectation]) -> bool:
    """Whether lines expect all that is wrong with a variant, if anything is."""
    about = [line for line in lines if line.concerns(result)]
    clauses = frozenset[str]().union(*(line.clauses for line in about))
    return any(not line.clauses for line in about) or result.broken <= clauses

"""What became of the cases: a result for each variant, the report of all, and its words."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace

from ..evidence.gradcheck import Difference, Verdict, aligned
from .clauses import CLAUSES
from .compare import ulps
from .files import KitCase
from .mistakes import MISTAKES, WHOLE
from .protocol import ANSWERS, escaped

HEAD = ("case", "level", "verdict", "max rel error", "ulps", "note")
STATUSES = ("pass", "fail", "skip", "xfail")
BREAKS = {mistake.name: set(mistake.clauses) for mistake in MISTAKES}
MUST = ("must", "alternatives")  # levels; a choice between alternatives has to be made
NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Variant:
    """A case in one dtype and, where it has gradients, one kind of them."""

    case: KitCase
    dtype: str
    norm_grad: str | None
    turned: bool = False  # W0 and W are stored as (d_in, d_out), though the case has them otherwise

    def __str__(self) -> str:
        turned = "in_out" if self.turned else ""
        return " ".join(filter(None, (self.case.name, self.norm_grad, self.dtype, turned)))


@dataclass(frozen=True)
class CaseResult(Verdict):
    """What became of one variant: its outputs' differences, and what came instead of them."""

    variant: Variant = field(kw_only=True)
    skipped: tuple[str, ...] = ()  # what the implementation does not have
    errors: tuple[str, ...] = ()  # what it raised or answered instead
    diagnoses: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()  # the operations that it was asked for and does not have
    expected: bool = False  # whether somebody said that it would fail

    @property
    def status(self) -> str:
        """One of STATUSES: "skip" where nothing came, "xfail" for an expected failure."""
        if self.errors or not self.ok:
            return "xfail" if self.expected else "fail"
        return "pass" if self.differences else "skip"

    @property
    def error(self) -> float:
        """The largest relative error of its outputs."""
        return max((d.max_rel for d in self.differences), default=0.0)

    @property
    def ulps(self) -> float:
        """The largest error of its outputs in units in the last place."""
        return max((ulps(d, self.variant.dtype) for d in self.differences), default=0.0)

    @property
    def note(self) -> str:
        """What to read: the diagnosis, the errors, what was left out."""
        parts = [f"diagnosis: {self.diagnoses[0]}"] if self.diagnoses else []
        parts += [str(d) for d in self.differences if not d.ok]
        parts += [*self.errors, *(f"skipped: {what}" for what in self.skipped)]
        if self.status in ("fail", "xfail"):
            parts.append(f"clauses {' '.join(self.variant.case.clauses)}")
        elif any(d.tolerance == float("inf") for d in self.differences):
            parts.append("finite is enough")
        return escaped("; ".join(parts), 2000)

    def counts(self, *, strict: bool, status: str = "fail") -> bool:
        """Whether it is a failure that keeps the report from passing; "xfail": from conforming."""
        return self.status == status and (strict or self.variant.case.level != "should")

    def shows(self, clause: str) -> list[Difference]:
        """The outputs that came and say something of a clause."""
        if clause == "Q1" and self.variant.dtype not in NARROW:
            return []
        return [d for d in self.differences if d.name in CLAUSES[clause].shows_in]

    @property
    def broken(self) -> set[str]:
        """The clauses that it breaks: the mistake's or the outputs', and what an error left out."""
        clauses = set(self.variant.case.clauses)
        if self.status not in ("fail", "xfail"):
            return set()
        named = self.diagnoses[0].partition(" (in ")[0] if self.diagnoses else ""
        shown = {c for c in clauses if any(not d.ok for d in self.shows(c))}
        silent = {c for c in clauses if self.errors and not self.shows(c)}
        return (BREAKS.get(named) or shown) | silent or clauses


@dataclass
class Report:
    """What the kit found of one implementation."""

    kit: str
    name: str
    version: str
    alternatives: dict[str, tuple[str, ...]]
    results: list[CaseResult] = field(default_factory=list)
    stopped: str = ""  # why not every case was asked
    missing: str = ""  # the command that installs it, or why it does not run
    selection: bool = False  # whether some of the kit was not put to it
    unexpected: list[str] = field(default_factory=list)  # failures that were expected and did pass

    def count(self, status: str) -> int:
        """How many variants came out so, of STATUSES."""
        return sum(result.status == status for result in self.results)

    @property
    def unanswered(self) -> dict[str, int]:
        """Operations that cases it was asked had, and that it did not answer: how often each."""
        return dict(Counter(op for result in self.results for op in result.unanswered))

    @property
    def clauses(self) -> dict[str, list[str]]:
        """The clauses that were judged, with what failed of each, case by case: nothing, a pass."""
        failed: dict[str, list[str]] = {}
        passed: set[str] = set()
        for result in self.results:
            for clause in result.broken:
                failed.setdefault(clause, []).append(f"{result.variant}: {result.note}")
            for clause in result.variant.case.clauses:
                if (outputs := result.shows(clause)) and all(d.ok for d in outputs):
                    passed.add(clause)
        return {c: failed.get(c, []) for c in CLAUSES if c in passed or c in failed}

    @property
    def not_asked(self) -> dict[str, str]:
        """Musts of these cases that a declaration or an answer left out, and which."""
        return self._left(declared=False)

    @property
    def not_offered(self) -> dict[str, str]:
        """Musts about what the implementation declares that it does not have, and what that is."""
        return self._left(declared=True)

    def _left(self, *, declared: bool) -> dict[str, str]:
        left = {}
        for clause in (c for c in CLAUSES if CLAUSES[c].level in MUST):
            about = [r for r in self.results if clause in r.variant.case.clauses]
            if not about or any(result.errors or result.shows(clause) for result in about):
                continue
            reasons = [self._why_not(clause, result) for result in about]
            silent = [why for why, said in reasons if not said]
            if declared != bool(silent):
                left[clause] = (silent or [reasons[0][0]])[0]
        return left

    def _why_not(self, clause: str, result: CaseResult) -> tuple[str, bool]:
        """What keeps a result from showing a clause, and whether that was declared."""
        if clause == "Q1" and result.variant.dtype not in NARROW:
            return "dtype", True
        needs = result.variant.case.requires
        missing = [n for n, value in needs.items() if value not in self.alternatives.get(n, ())]
        said = [name for name in missing if name in self.alternatives]
        if result.variant.dtype not in self.alternatives["dtype"]:
            missing.append("dtype")
        shown = CLAUSES[clause].shows_in
        asked = [op for op in result.unanswered if op not in ANSWERS or ANSWERS[op] in shown]
        return (said or missing or asked or ["norm_grad"])[0], bool(said)

    def passes(self, *, strict: bool = False) -> bool:
        """Whether something passed, nothing failed unexpectedly, and declared gradients came.

        A "should" may fail, and an operation or a must stay unasked, unless strict.
        """
        heavy = any(result.counts(strict=strict) for result in self.results)
        gradients = any(d.name in ("dA", "A") for r in self.results for d in r.differences)
        if self.alternatives.get("norm_grad") and "backward" in self.unanswered and not gradients:
            return False
        if strict and (self.unanswered or self.not_asked):
            return False
        if heavy or self.stopped or self.unexpected:
            return False
        return self.count("pass") + self.count("xfail") > 0

    def conforms(self, *, strict: bool = False) -> bool:
        """Whether it passes, the whole kit was put to it, and nothing failed as expected either."""
        excused = any(result.counts(strict=strict, status="xfail") for result in self.results)
        return self.passes(strict=strict) and not self.selection and not excused

    @property
    def failing_outputs(self) -> dict[str, int]:
        """The outputs that were wrong, with in how many variants, and those that never were."""
        counts = {d.name: 0 for r in self.results for d in r.differences}
        for wrong in (d for r in self.results for d in r.differences if not d.ok):
            counts[wrong.name] += 1
        return counts

    @property
    def diagnoses(self) -> dict[str, int]:
        """Few mistakes that explain the diagnosed failures, with how many each explains first."""
        unexplained = [set(r.diagnoses) for r in self.results if r.diagnoses]
        explains: dict[str, int] = {}
        while unexplained:
            counts = Counter(name for names in unexplained for name in sorted(names))
            name, explains[name] = max(counts.items(), key=lambda item: item[1])
            unexplained = [names for names in unexplained if name not in names]
        return explains


def ranked(report: Report) -> Report:
    """Each result's diagnoses with the one that explains most of the run first."""
    order = list(report.diagnoses)

    def rank(name: str) -> int:
        return order.index(name) if name in order else len(order)

    report.results = [
        replace(r, diagnoses=tuple(sorted(r.diagnoses, key=rank))) for r in report.results
    ]
    return report


def row(result: CaseResult) -> tuple[str, ...]:
    """One variant as a row of the table."""
    measured = bool(result.differences)
    return (
        str(result.variant),
        result.variant.case.level,
        result.status.replace("fail", "FAIL"),
        f"{result.error:.1e}" if measured else "-",
        f"{result.ulps:.3g}" if measured else "-",
        result.note,
    )


def verdict(report: Report, *, strict: bool = False) -> list[str]:
    """What to read first: conforms or not, the counts, what was not asked, the diagnoses."""
    passes = report.passes(strict=strict)
    if report.selection:
        words = "passes a selection of" if passes else "does NOT pass a selection of"
    elif report.conforms(strict=strict):
        words = "conforms to"
    else:
        words = "does NOT conform, as expected, to" if passes else "does NOT conform to"
    left_out = passes and not report.selection and (report.not_asked or report.unanswered)
    less = " as far as it was asked" * bool(left_out)
    shown = [s for s in STATUSES if s != "xfail" or report.count(s)]
    counts = ", ".join(f"{report.count(status)} {status}" for status in shown)
    cases = len({r.variant.case.name for r in report.results})
    counts += f" (variants of {cases} case{'s' * (cases > 1)})"
    chosen = ", ".join(f"{k} {'/'.join(v)}" for k, v in report.alternatives.items() if v)
    lines = [
        f"{report.name} {report.version} {words} kit {report.kit}{less}: {counts}",
        f"({chosen})",
    ]
    lines += [f"STOPPED: {report.stopped}"] if report.stopped else []
    lines += [f"UNEXPECTED PASS: {line}" for line in report.unexpected]
    for name, count in report.diagnoses.items():
        lines.append(f"diagnosis: {name} ({count} variant{'s' * (count > 1)})")
        if name in WHOLE and 2 * count > report.count("fail"):
            lines.append(f"the whole port: {WHOLE[name]}")
    if report.not_asked:
        lines.append(f"musts NOT ASKED: {_grouped(report.not_asked)}")
    if report.not_offered:
        lines.append(f"musts about what it does not offer: {_grouped(report.not_offered)}")
    if report.unanswered:
        left = ", ".join(f"{op} ({count})" for op, count in report.unanswered.items())
        lines.append(f"NOT ANSWERED: {left}")
    outputs = report.failing_outputs
    if any(outputs.values()):
        wrong = ", ".join(f"{name} ({count})" for name, count in outputs.items() if count)
        right = ", ".join(name for name, count in outputs.items() if not count) or "none"
        lines.append(f"wrong outputs: {wrong}; always right: {right}")
    undiagnosed = sum(r.status == "fail" and not r.diagnoses for r in report.results)
    if undiagnosed:
        lines.append(f"{undiagnosed} failure{'s' * (undiagnosed > 1)} without a diagnosis")
    return lines


def _grouped(left: dict[str, str]) -> str:
    """Z2 Z3 (zero_vector), M1 (merge)."""
    reasons = dict.fromkeys(left.values())
    return ", ".join(f"{' '.join(c for c in left if left[c] == why)} ({why})" for why in reasons)


def table(report: Report, everything: bool) -> list[tuple[str, ...]]:
    """The rows that are shown, and their head where there are any: failures, or everything."""
    rows = [row(r) for r in report.results if everything or r.status in ("fail", "xfail")]
    return [HEAD, *rows] if rows else []


def text(report: Report, *, strict: bool = False, everything: bool = False) -> str:
    """The table for a terminal, the verdict last."""
    rows = table(report, everything)
    return "\n".join([*([aligned(rows), ""] if rows else []), *verdict(report, strict=strict)])


def coloured(text: str) -> str:
    """The same, what is wrong in red and the good news in green."""
    wrong = r"\b(x?FAIL|does NOT \w+|NOT A\w+ED|UNEXPECTED PASS|STOPPED)\b"
    text = re.sub(wrong, "\033[31m\\1\033[0m", text)
    return re.sub(r"\b(conforms to|passes a selection)\b", "\033[32m\\1\033[0m", text)

"""What became of the cases: a result for each variant, and the report of all."""

from collections import Counter
from dataclasses import dataclass, field, replace

from ..evidence.gradcheck import Verdict
from .compare import ulps
from .files import KitCase


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

    @property
    def status(self) -> str:
        """Whether it is a pass, a fail or, where nothing came, a skip."""
        if self.errors or not self.ok:
            return "fail"
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
        if self.status == "fail":
            parts.append(f"clauses {' '.join(self.variant.case.clauses)}")
        elif any(d.tolerance == float("inf") for d in self.differences):
            parts.append("finite is enough")
        return "; ".join(parts)


@dataclass
class Report:
    """What the kit found of one implementation."""

    kit: str
    name: str
    version: str
    alternatives: dict[str, tuple[str, ...]]
    results: list[CaseResult] = field(default_factory=list)
    missing: str = ""  # the command that installs it, or why it does not run

    def count(self, status: str) -> int:
        """How many variants passed, failed or were skipped."""
        return sum(result.status == status for result in self.results)

    @property
    def unanswered(self) -> dict[str, int]:
        """Operations that cases it was asked had, and that it did not answer: how often each."""
        return dict(Counter(op for result in self.results for op in result.unanswered))

    def conforms(self, *, strict: bool = False) -> bool:
        """Whether something passed and nothing failed, and gradients came if they were declared.

        A "should" may fail, and an operation stay unanswered, unless strict.
        """
        failed = [r for r in self.results if r.status == "fail"]
        heavy = [r for r in failed if strict or r.variant.case.level != "should"]
        gradients = any(d.name in ("dA", "A") for r in self.results for d in r.differences)
        if self.alternatives.get("norm_grad") and "backward" in self.unanswered and not gradients:
            return False
        return self.count("pass") > 0 and not heavy and not (strict and self.unanswered)

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

"""A report as text for the terminal, as JSON and as Markdown."""

import json
from typing import Any

from ..evidence.gradcheck import Difference, aligned
from .compare import ulps
from .outcomes import CaseResult, Report

HEAD = ("case", "level", "verdict", "max rel error", "ulps", "note")


def row(result: CaseResult) -> tuple[str, ...]:
    """One variant as a row of the table."""
    measured = bool(result.differences)
    return (
        str(result.variant),
        result.variant.case.level,
        {"pass": "pass", "fail": "FAIL", "skip": "skip"}[result.status],
        f"{result.error:.1e}" if measured else "-",
        f"{result.ulps:.3g}" if measured else "-",
        result.note,
    )


def verdict(report: Report, *, strict: bool = False) -> list[str]:
    """What to read first: conforms or not, the counts, the diagnoses."""
    conforms = "conforms to" if report.conforms(strict=strict) else "does NOT conform to"
    counts = ", ".join(f"{report.count(s)} {s}" for s in ("pass", "fail", "skip"))
    cases = len({r.variant.case.name for r in report.results})
    counts += f" (variants of {cases} case{'s' * (cases > 1)})"
    chosen = ", ".join(f"{k} {'/'.join(v)}" for k, v in report.alternatives.items() if v)
    lines = [f"{report.name} {report.version} {conforms} kit {report.kit}: {counts}", f"({chosen})"]
    for name, count in report.diagnoses.items():
        lines.append(f"diagnosis: {name} ({count} variant{'s' * (count > 1)})")
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


def text(report: Report, *, strict: bool = False) -> str:
    """The table for a terminal, the verdict last."""
    rows = [HEAD, *(row(r) for r in report.results)]
    return "\n".join([aligned(rows), "", *verdict(report, strict=strict)])


def markdown(report: Report, *, strict: bool = False) -> str:
    """The same in Markdown, the verdict first."""
    head, *rest = verdict(report, strict=strict)
    cells = [[c.replace("|", "\\|").replace("\n", " ") for c in row(r)] for r in report.results]
    rows = [HEAD, ["---"] * len(HEAD), *cells]
    table = ["| " + " | ".join(r) + " |" for r in rows]
    return "\n".join([f"**{head}**", "", *(f"- {line}" for line in rest), "", *table, ""])


def as_json(report: Report, *, strict: bool = False) -> str:
    """The same as JSON, every output's figures included; infinity is null."""
    results = [
        {
            "case": r.variant.case.name,
            "clauses": r.variant.case.clauses,
            "level": r.variant.case.level,
            "flags": r.variant.case.flags,
            "dtype": r.variant.dtype,
            "norm_grad": r.variant.norm_grad,
            "status": r.status,
            "outputs": [_output(d, r.variant.dtype) for d in r.differences],
            "diagnoses": r.diagnoses,
            "errors": r.errors,
            "skipped": r.skipped,
        }
        for r in report.results
    ]
    about: dict[str, Any] = {"kit": report.kit, "name": report.name, "version": report.version}
    about |= {"alternatives": report.alternatives, "conforms": report.conforms(strict=strict)}
    counts = {status: report.count(status) for status in ("pass", "fail", "skip")}
    return json.dumps(
        {**about, "counts": counts, "diagnoses": report.diagnoses, "results": results}, indent=1
    )


def _output(difference: Difference, dtype: str) -> dict:
    measured = {
        "error": difference.max_rel,
        "ulps": ulps(difference, dtype),
        "tolerance": difference.tolerance,
    }
    finite = {name: None if value == float("inf") else value for name, value in measured.items()}
    message = "" if difference.ok else str(difference).removeprefix(f"{difference.name}: ")
    return {"output": difference.name, **finite, "ok": difference.ok, "message": message}

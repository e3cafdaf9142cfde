"""A report as it is written into files: Markdown, JSON, and JUnit XML for CI servers."""

import json
from typing import Any

from ..evidence.gradcheck import Difference
from .compare import ulps
from .report import HEAD, STATUSES, Report, printable, table, verdict


def markdown(report: Report, *, strict: bool = False, everything: bool = False) -> str:
    """The same in Markdown, the verdict first."""
    head, *rest = verdict(report, strict=strict)
    cells = [[c.replace("|", "\\|") for c in row] for row in table(report, everything)]
    rows = [*cells[:1], ["---"] * len(HEAD), *cells[1:]] if cells else []
    lines = ["| " + " | ".join(r) + " |" for r in rows]
    return "\n".join([f"**{head}**", "", *(f"- {line}" for line in rest), "", *lines, ""])


def as_json(report: Report, *, strict: bool = False) -> str:
    """The same as JSON, every variant and every output's figures included; infinity is null."""
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
    return json.dumps(
        {
            "kit": report.kit,
            "name": report.name,
            "version": report.version,
            "alternatives": report.alternatives,
            "strict": strict,
            "selection": report.selection,
            "passes": report.passes(strict=strict),
            "conforms": report.conforms(strict=strict),
            "counts": {status: report.count(status) for status in STATUSES},
            "diagnoses": report.diagnoses,
            "not_asked": report.not_asked,
            "not_offered": report.not_offered,
            "unanswered": report.unanswered,
            "unexpected_passes": report.unexpected,
            "clauses": {c: "fail" if failed else "pass" for c, failed in report.clauses.items()},
            "results": results,
        },
        indent=1,
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


def as_junit(report: Report, *, strict: bool = False) -> str:
    """A test for each variant, each must that was not asked, and each unexpected pass.

    What does not count, as `Report.passes` has it, is skipped and says why. Needs junitparser.
    """
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(printable(f"{report.name} {report.version}, DoRA kit {report.kit}"))
    for name, values in report.alternatives.items():
        suite.add_property(name, " ".join(values))

    def add(group: str, name: str, outcome: Any, why: str) -> None:
        test = TestCase(printable(name), classname=f"kit.{group}")
        if outcome:
            test.result = [outcome(printable(why))]
        suite.add_testcase(test)

    for result in report.results:
        status, counts = result.status, result.counts(strict=strict)
        why = {"xfail": "expected to fail: ", "fail": "" if counts else "should: "}.get(status, "")
        outcome = Failure if counts else None if status == "pass" else Skipped
        add(result.variant.case.kind, str(result.variant), outcome, why + result.note)
    for clause, why in report.not_asked.items():
        add("musts", clause, Failure if strict else Skipped, f"not asked: {why}")
    for line in report.unexpected:
        add("expected", line, Failure, f"unexpected pass: {line}")
    xml = JUnitXml(suite.name)
    xml.add_testsuite(suite)
    return xml.tostring().decode()

"""A report as it is written into files: Markdown, JSON, and JUnit XML for CI servers."""

import json
from typing import Any

from ..evidence.gradcheck import Difference
from .compare import ulps
from .report import HEAD, STATUSES, Report, table, verdict

ABOUT = """kit name version alternatives selection stopped unexpected
diagnoses not_asked not_offered unanswered""".split()
"""What JSON has of a report as it is."""


def markdown(report: Report, *, strict: bool = False, everything: bool = False) -> str:
    """The same in Markdown, the verdict first."""
    head, *rest = verdict(report, strict=strict)
    cells = [[c.replace("|", "\\|") for c in row] for row in table(report, everything)]
    rows = [*cells[:1], ["---"] * len(HEAD), *cells[1:]] if cells else []
    lines = ["| " + " | ".join(r) + " |" for r in rows]
    return "\n".join([f"**{head}**", "", *(f"- {line}" for line in rest), "", *lines, ""])


def as_json(report: Report, *, strict: bool = False) -> str:
    """The same as JSON, every variant and every output's figures included; infinity is null."""
    about = {name: getattr(report, name) for name in ABOUT} | {
        "strict": strict,
        "passes": report.passes(strict=strict),
        "conforms": report.conforms(strict=strict),
        "counts": {status: report.count(status) for status in STATUSES},
        "clauses": {c: "fail" if failed else "pass" for c, failed in report.clauses.items()},
    }
    results = []
    for result in report.results:
        case, variant = result.variant.case, result.variant
        of_case = {"case": case.name} | {n: getattr(case, n) for n in ("clauses", "level", "flags")}
        of_result = {n: getattr(result, n) for n in ("status", "diagnoses", "errors", "skipped")}
        outputs = [_output(d, variant.dtype) for d in result.differences]
        of_case |= {"dtype": variant.dtype, "norm_grad": variant.norm_grad, "outputs": outputs}
        results.append(of_case | of_result)
    return json.dumps(about | {"results": results}, indent=1)


def _output(difference: Difference, dtype: str) -> dict:
    tolerance, error = difference.tolerance, difference.max_rel
    measured = {"error": error, "ulps": ulps(difference, dtype), "tolerance": tolerance}
    finite = {name: None if value == float("inf") else value for name, value in measured.items()}
    message = "" if difference.ok else str(difference).removeprefix(f"{difference.name}: ")
    return {"output": difference.name, **finite, "ok": difference.ok, "message": message}


def as_junit(report: Report, *, strict: bool = False) -> str:
    """A test for each variant, each must that was not asked, and each unexpected pass.

    What does not count, as `Report.passes` has it, is skipped and says why. Needs junitparser.
    """
    from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(f"{report.name} {report.version}, DoRA kit {report.kit}")
    for name, values in report.alternatives.items():
        suite.add_property(name, " ".join(values))

    def add(group: str, name: str, outcome: Any, why: str) -> None:
        test = TestCase(name, classname=f"kit.{group}")
        if outcome:
            test.result = [outcome(why)]
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

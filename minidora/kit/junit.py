"""A report as JUnit XML, which CI servers show; needs junitparser."""

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from .report import Report, printable


def as_junit(report: Report, *, strict: bool = False) -> str:
    """A test for each variant, each must that was not asked, and each unexpected pass.

    What does not count, as `Report.passes` has it, is skipped and says why.
    """
    suite = TestSuite(printable(f"{report.name} {report.version}, DoRA kit {report.kit}"))
    for name, values in report.alternatives.items():
        suite.add_property(name, " ".join(values))

    def add(group: str, name: str, outcome: type[Failure | Skipped] | None, why: str) -> None:
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

"""The kit inside a port's own test suite, three lines:

from minidora.kit.testing import conformance
from my_package.kit_adapter import Adapter
test_dora = conformance(Adapter())
"""

import atexit
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from .files import KitCase, load
from .program import Failed, Program
from .protocol import check_alternatives, described, load_adapter, made
from .runner import answered, variants
from .serve import command


def conformance(
    implementation: Any, cases: Iterable[KitCase] | None = None, *, timeout: float = 30.0
) -> Callable:
    """A pytest test with a parameter for each variant of each case that concerns it.

    implementation: see `minidora.kit.Implementation`, or "package.module:Adapter". It answers in a
    process of its own, `timeout` seconds at most, so it is pickled; what was changed in this
    process besides is not there. A failing variant fails with its outputs, their errors and the
    diagnosis; one that the implementation does not have is skipped, by name.
    """
    import pytest

    words = command(implementation)
    if isinstance(implementation, str):
        implementation = load_adapter(implementation)
    chosen = check_alternatives(described(made(implementation))["alternatives"])
    every = [v for case in (load() if cases is None else cases) for v in variants(case, chosen)]

    @cache
    def started() -> Program | Failed:
        try:
            program = Program(words, timeout=timeout)
        except Failed as failed:
            return failed
        atexit.register(program.close)
        return program

    @pytest.mark.parametrize("variant", every, ids=str)
    def test(variant):
        program = started()
        if isinstance(program, Failed):
            pytest.fail(f"{implementation!r} does not start: {program}", pytrace=False)
        result = answered(program, variant, chosen)
        if result.status == "skip":
            pytest.skip(result.note)
        if result.status == "fail":
            pytest.fail(f"{variant}: {result.note}", pytrace=False)

    return test

"""The kit inside a port's own test suite, three lines:

from minidora.kit.testing import conformance
from my_package.kit_adapter import Adapter
test_dora = conformance(Adapter())
"""

from collections.abc import Callable, Iterable
from typing import Any

from .adapter import described, made
from .files import KitCase, load
from .protocol import check_alternatives
from .runner import answered, variants


def conformance(implementation: Any, cases: Iterable[KitCase] | None = None) -> Callable:
    """A pytest test with a parameter for each variant of each case that concerns it.

    implementation: see `minidora.kit.Implementation`. A failing variant fails with its outputs,
    their errors and the diagnosis; one that the implementation does not have is skipped, by name.
    """
    import pytest

    implementation = made(implementation)
    chosen = check_alternatives(described(implementation)["alternatives"])
    every = [v for case in (load() if cases is None else cases) for v in variants(case, chosen)]

    @pytest.mark.parametrize("variant", every, ids=str)
    def test(variant):
        result = answered(implementation, variant, chosen)
        if result.status == "skip":
            pytest.skip(result.note)
        if result.status == "fail":
            pytest.fail(f"{variant}: {result.note}", pytrace=False)

    return test

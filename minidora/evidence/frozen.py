"""The functions with their norms held constant: what central differences take for Eq. 11."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from .. import granularity
from .._boundary import EPS
from .cases import Case


def with_frozen_norm(forward: Callable, case: Case) -> Callable:
    """`forward` as a function whose norm stays what it is at `case`: m grows as ‖V‖ does.

    y depends on m / ‖V‖ alone, so replacing m by m * ‖V‖ / ‖V at case‖ cancels the norm. This
    gives central differences something to differentiate that has Eq. 11 as its derivative.
    """
    settings = case.settings
    scale, eps = settings["scale"], settings.get("eps", EPS)
    groups = settings.get("groups", settings.get("norm_axis"))
    at = {name: case.inputs[name] for name in ("W0", "A", "B")}

    def norm(W0: NDArray, A: NDArray, B: NDArray) -> NDArray:
        return granularity.norms(W0 + scale * B @ A, groups or "per_input", eps)

    c = norm(**at)

    def frozen(W0: NDArray, A: NDArray, B: NDArray, m: NDArray, **rest: Any) -> Any:
        return forward(W0=W0, A=A, B=B, m=m * norm(W0, A, B) / c, **rest)

    def made(W0: NDArray, A: NDArray, B: NDArray, m_in: NDArray) -> NDArray:
        return granularity.norms(m_in / c * (W0 + scale * B @ A), "per_output", eps)

    def frozen_both(
        W0: NDArray, A: NDArray, B: NDArray, m_in: NDArray, m_out: NDArray, **rest: Any
    ) -> Any:
        outer = m_out * made(W0, A, B, m_in) / made(**at, m_in=case.inputs["m_in"])
        inner = m_in * norm(W0, A, B) / c
        return forward(W0=W0, A=A, B=B, m_in=inner, m_out=outer, **rest)

    return frozen if groups else frozen_both

"""The conformance kit: any DoRA implementation, in any language, held against the reference.

SPEC.md says in numbered clauses what DoRA is, `cases/` holds inputs and expected outputs (computed
with 60 digits), and `minidora kit run` puts them to an implementation.
"""

from .files import KitCase, load
from .program import Program
from .protocol import Implementation, Request
from .report import CaseResult, Report, verdict
from .runner import run

__all__ = [
    "CaseResult",
    "Implementation",
    "KitCase",
    "Program",
    "Report",
    "Request",
    "load",
    "run",
    "verdict",
]

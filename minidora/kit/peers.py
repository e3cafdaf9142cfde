"""`minidora kit peers`: real implementations against every clause, as a matrix."""

import datetime
import importlib.util
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import serve
from .clauses import CLAUSES
from .files import KitCase
from .program import Failed, Program
from .protocol import VERSION
from .report import Report
from .runner import run

PEERS_EXTRA = 'pip install "minidora[peers]"'


@dataclass(frozen=True)
class Peer:
    """One implementation: its adapter, the modules it needs, and how to install them."""

    target: str
    needs: tuple[str, ...] = ()
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether every module it needs can be found."""
        return all(importlib.util.find_spec(name) is not None for name in self.needs)


TORCH, PEFT = 'pip install "minidora[torch]"', "pip install peft"
PEERS = (
    Peer("numpy_layers:Textbook"),
    Peer("numpy_layers:Factored"),
    Peer("pytorch_layers:Function", ("torch",), TORCH),
    Peer("pytorch_layers:Module", ("torch",), TORCH),
    Peer("peft_layers:Linear", ("peft",), PEFT),
    Peer("peft_layers:Conv1D", ("peft", "transformers"), PEFT),
    Peer("peft_layers:Embedding", ("peft",), PEFT),
    Peer("peft_layers:Conv2d", ("peft",), PEFT),
    Peer("torchtune_layers:Linear", ("torchtune", "torchao"), PEERS_EXTRA),
    Peer("lycoris_layers:LoCon", ("lycoris",), PEERS_EXTRA),
    Peer("mlx_layers:Linear", ("mlx_lm", "mlx"), PEERS_EXTRA),
    Peer("mlx_layers:Embedding", ("mlx_lm", "mlx"), PEERS_EXTRA),
)


def measure(
    peers: Iterable[Peer], cases: list[KitCase], timeout: float, each: Callable[[str], object]
) -> list[Report]:
    """A report of every peer, each run in a process of its own; what does not run is `missing`.

    each: called with a peer's name before it runs.
    """
    reports = []
    for peer in peers:
        report = Report(VERSION, peer.target, "", {})
        if not peer.installed:
            report.missing = f"not installed: {peer.install}"
        else:
            each(peer.target)
            served = serve.command(f"minidora.kit.adapters.{peer.target}")
            try:
                with Program(served, timeout=timeout) as program:
                    report = run(program, cases)
            except Failed as failed:
                report.missing = f"does not run here: {failed}"
        reports.append(report)
    return reports


def matrix(reports: list[Report], kit: str) -> str:
    """The matrix in Markdown, a column for each implementation; then what each failure is."""
    columns = [(report, report.clauses) for report in reports if not report.missing]
    lines = ["| clause | " + " | ".join(f"{r.name} {r.version}" for r, _ in columns) + " |"]
    lines.append("| --- |" + " :-: |" * len(columns))
    for clause, about in CLAUSES.items():
        cells = [MARKS[judgement(clauses, clause)] for _, clauses in columns]
        if any(cells):
            lines.append(f"| {clause} {about.text} | {' | '.join(cells)} |")
    lines.append("")
    for report, clauses in columns:
        by_note: dict[str, list[str]] = {}
        for clause, notes in clauses.items():
            if notes:
                by_note.setdefault(notes[0], []).append(clause)
        for note, broken_clauses in by_note.items():
            short = note if len(note) <= 300 else f"{note[:297]}..."
            lines.append(f"- {report.name}, {', '.join(broken_clauses)}: {short}")
    lines += [f"- {report.name}: {report.missing}" for report in reports if report.missing]
    day, python = datetime.date.today().isoformat(), platform.python_version()
    return "\n".join([*lines, "", f"kit {kit}, Python {python}, {day}"])


MARKS = {"pass": "✓", "fail": "✗", None: ""}


def judgement(clauses: dict[str, list[str]], clause: str) -> str | None:
    """Whether every variant passed ("pass"), one failed ("fail"), or none was judged (None)."""
    return None if clause not in clauses else "fail" if clauses[clause] else "pass"


def as_json(reports: list[Report], kit: str) -> str:
    """The same as JSON, with every failure."""
    of_each = [report.clauses for report in reports]
    judged = [clause for clause in CLAUSES if any(clause in clauses for clauses in of_each)]
    rows = [
        {
            "name": report.name,
            "version": report.version,
            "missing": report.missing or None,
            "clauses": {clause: judgement(clauses, clause) for clause in judged},
            "diagnoses": report.diagnoses,
            "failed": {clause: notes for clause, notes in clauses.items() if notes},
        }
        for report, clauses in zip(reports, of_each, strict=True)
    ]
    about = {"kit": kit, "date": datetime.date.today().isoformat()}
    return json.dumps(about | {"python": platform.python_version(), "rows": rows}, indent=1)


def peers_named(part: str) -> list[Peer]:
    """The peers whose adapter's name has `part` in it; ValueError for none."""
    named = [peer for peer in PEERS if part in peer.target]
    if not named:
        expected = ", ".join(peer.target for peer in PEERS)
        raise ValueError(f"--peer: expected part of {expected}, got {part!r}")
    return named

"""`minidora kit peers`: real implementations against every clause, as a matrix."""

import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from . import serve
from .clauses import CLAUSES
from .files import KitCase
from .program import Failed, Program
from .protocol import VERSION
from .report import Report
from .runner import run

PORTS = Path(__file__).parents[2] / "tests" / "ports"
COMPILED = 'cc -std=c11 -O2 -o "$1" "$0" -lm && exec "$1"'


@dataclass(frozen=True)
class Peer:
    """One implementation: an adapter beside this file, or a port of the tests."""

    target: str
    needs: str = ""  # what no extra of minidora installs

    def command(self, python: str, folder: str) -> list[str]:
        """The words that start it; what has to be built first goes into the folder."""
        port = PORTS / self.target
        if port.suffix == ".mjs":
            return ["node", str(port)]
        if port.suffix == ".c":
            return ["sh", "-c", COMPILED, str(port), f"{folder}/port"]
        target = str(port) if ".py:" in self.target else f"minidora.kit.adapters.{self.target}"
        return serve.command(target, python)


OWN = "`pip install minidora adapters` in an environment of its own, --python adapterhub=ITS_PYTHON"
PEERS = (
    Peer("numpy_layers:Textbook"),
    Peer("numpy_layers:Factored"),
    Peer("pytorch_layers:Function"),
    Peer("pytorch_layers:Module"),
    Peer("peft_layers:Linear"),
    Peer("peft_layers:Conv1D"),
    Peer("peft_layers:Embedding"),
    Peer("peft_layers:Conv2d"),
    Peer("torchtune_layers:Linear"),
    Peer("lycoris_layers:LoCon"),
    Peer("mlx_layers:Linear"),
    Peer("mlx_layers:Embedding"),
    Peer("adapterhub_layers:Linear", OWN),
    Peer("dora.mjs", "a checkout of minidora, and Node.js"),
    Peer("dora.c", "a checkout of minidora, and a C compiler"),
    Peer("dora_jax.py:Layer", "a checkout of minidora"),
)


def measure(
    peers: Iterable[Peer],
    cases: list[KitCase],
    timeout: float,
    each: Callable[[str], object],
    pythons: Iterable[tuple[str, str]] = (),
) -> list[Report]:
    """A report of every peer, each run in a process of its own; what does not run is `missing`.

    each: called with a peer's name before it runs; pythons: (part of a name, the interpreter of
    the environment that has those peers), where it is not this one.
    """
    reports = []
    for peer in peers:
        each(peer.target)
        own = [python for part, python in pythons if part in peer.target]
        with tempfile.TemporaryDirectory() as folder:
            command = peer.command(own[-1] if own else sys.executable, folder)
            try:
                with Program(command, timeout=timeout) as program:
                    report = run(program, cases)
            except Failed as failed:
                needs = f" (needs {peer.needs})" if peer.needs else ""
                missing = f"does not run: {failed}{needs}"
                report = Report(VERSION, peer.target, "", {}, missing=missing)
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
            lines.append(f"- {report.name}, {', '.join(broken_clauses)}: {brief(note)}")
    lines += [f"- {report.name}: {report.missing}" for report in reports if report.missing]
    day, python = datetime.date.today().isoformat(), platform.python_version()
    return "\n".join([*lines, "", f"kit {kit}, Python {python}, {day}"])


def brief(note: str) -> str:
    """The start of a note."""
    return note if len(note) <= 300 else f"{note[:297]}..."


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
            "failed": {clause: [*map(brief, notes)] for clause, notes in clauses.items() if notes},
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


def interpreter(text: str) -> tuple[str, str]:
    """TEXT=PATH as part of a peer's name and an interpreter; ValueError for anything else."""
    part, _, path = text.partition("=")
    if not (part and path and any(part in peer.target for peer in PEERS)):
        raise ValueError(f"--python: expected part of a peer's name, =, and a path, got {text!r}")
    return part, path

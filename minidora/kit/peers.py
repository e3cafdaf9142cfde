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
from .files import KitCase
from .program import Failed, Program
from .protocol import VERSION
from .report import CaseResult, Report
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

CLAUSES = {
    # in the order of SPEC.md, in a few words
    "D1": "V = W0 + s B A",
    "D2": "one vector per output or per input",
    "D3": "norm of V, with s, as it is now",
    "D4": "W = m V / c, m of any sign",
    "D5": "digits where V is small beside W0",
    "D6": "finite where V nearly cancels W0",
    "F1": "y = x Wᵀ + bias",
    "F2": "a single vector, no rows",
    "B1": "bias added once, not scaled",
    "M1": "merged weight",
    "G1": "dm",
    "G2": "dV, exact or detached",
    "G3": "dA and dB, with s",
    "G4": "dx",
    "G5": "dbias",
    "G6": "sums, not means",
    "I1": "m starts at the norms",
    "S1": "any scale, negative too",
    "S2": "alpha / r, alpha / sqrt(r)",
    "S3": "strength",
    "P1": "dropout, forward",
    "P2": "dropout, gradients",
    "Z1": "a zero vector that has moved",
    "Z2": "a zero vector that has not",
    "Z3": "no NaN from zero vectors",
    "T1": "no stale values after a step",
    "T2": "two optimizer steps",
    "Q1": "norms of 16-bit arrays",
    "L1": "weights stored transposed",
    "E1": "embedding: the weight",
    "E2": "embedding: outputs and gradients",
    "C1": "convolution",
}
GRADIENTS = ("dx", "dA", "dB", "dm", "dbias")
SHOWS_IN = {
    # the outputs in which a clause shows
    **dict.fromkeys(("D1", "D2", "D3", "D4", "D5", "D6", "Q1", "E1"), ("y", "W")),
    **dict.fromkeys(("S1", "S2", "S3", "Z1", "Z2", "Z3", "L1", "C1"), ("y", "W", *GRADIENTS)),
    **dict.fromkeys(("F1", "B1", "P1"), ("y",)),
    **dict.fromkeys(("F2", "E2"), ("y", *GRADIENTS)),
    **dict.fromkeys(("G2", "G3"), ("dA", "dB")),
    **dict.fromkeys(("T1", "T2"), ("A", "B", "m", "W")),
    "M1": ("W",),
    "G1": ("dm",),
    "G4": ("dx",),
    "G5": ("dbias",),
    "G6": ("dA", "dB", "dm", "dbias"),
    "P2": GRADIENTS,
    "I1": ("m",),
}
BREAKS = (
    # what a diagnosed mistake breaks, by the beginning of its name, whatever the case is about; the
    # case's own clauses are then judged by the outputs that are right alone
    ("bias", ("B1",)),
    ("scale is alpha", ("S2",)),
    ("scale divided", ("S2",)),
    ("scale", ("D3",)),
    ("norm summed in float16", ("Q1",)),
    ("norm kept", ("T1",)),
    ("norm", ("D3",)),
    ("strength", ("S3",)),
    ("0/0", ("Z2", "Z3")),
    ("the zero vector", ("Z2",)),
    ("gradient is", ("G2",)),
    ("dm", ("G1",)),
    ("dx", ("G4",)),
    ("dbias", ("G5",)),
    ("dV", ("G2",)),
)


Clauses = dict[str, list[str]]


def clauses_of(report: Report) -> Clauses:
    """The clauses that a report judges, with what failed of each, case by case: nothing, a pass."""
    passed: set[str] = set()
    failed: Clauses = {}
    for result in report.results:
        for clause in broken(result):
            failed.setdefault(clause, []).append(f"{result.variant}: {result.note}")
        for clause in result.variant.case.clauses:
            if clause == "Q1" and result.variant.dtype not in ("float16", "bfloat16"):
                continue
            outputs = [d for d in result.differences if d.name in SHOWS_IN[clause]]
            if outputs and all(d.ok for d in outputs):
                passed.add(clause)
    return {c: failed.get(c, []) for c in CLAUSES if c in passed or c in failed}


def broken(result: CaseResult) -> set[str]:
    """The clauses that a failing variant breaks: the mistake's, or those its outputs show."""
    clauses = set(result.variant.case.clauses)
    if result.status != "fail":
        return set()
    wrong = {d.name for d in result.differences if not d.ok}
    shown = {
        c for c in clauses if wrong & set(SHOWS_IN[c])
    } or clauses  # it raised, or said nothing
    for beginning, breaks in BREAKS:
        if result.diagnoses and result.diagnoses[0].startswith(beginning):
            return set(breaks)
    return shown


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
                report = Report(VERSION, peer.target, "", {}, missing=f"does not run: {failed}{needs}")
        reports.append(report)
    return reports


def matrix(reports: list[Report], kit: str) -> str:
    """The matrix in Markdown, a column for each implementation; then what each failure is."""
    columns = [(report, clauses_of(report)) for report in reports if not report.missing]
    lines = ["| clause | " + " | ".join(f"{r.name} {r.version}" for r, _ in columns) + " |"]
    lines.append("| --- |" + " :-: |" * len(columns))
    for clause, words in CLAUSES.items():
        cells = [MARKS[judgement(clauses, clause)] for _, clauses in columns]
        if any(cells):
            lines.append(f"| {clause} {words} | {' | '.join(cells)} |")
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


def judgement(clauses: Clauses, clause: str) -> str | None:
    """Whether every variant passed ("pass"), one failed ("fail"), or none was judged (None)."""
    return None if clause not in clauses else "fail" if clauses[clause] else "pass"


def as_json(reports: list[Report], kit: str) -> str:
    """The same as JSON, with every failure."""
    of_each = [clauses_of(report) for report in reports]
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


def interpreter(text: str) -> tuple[str, str]:
    """TEXT=PATH as part of a peer's name and an interpreter; ValueError for anything else."""
    part, _, path = text.partition("=")
    if not (part and path and any(part in peer.target for peer in PEERS)):
        raise ValueError(f"--python: expected part of a peer's name, =, and a path, got {text!r}")
    return part, path

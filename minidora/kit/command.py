"""`python -m minidora kit run | verify | peers | list`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .._files import write_whole
from . import peers
from .files import FOLDER, left_out, load
from .outcomes import CaseResult, Report
from .program import Failed, Program
from .report import as_json, markdown, text
from .results import Results
from .runner import run


def add_boundary(kit: argparse.ArgumentParser) -> None:
    """The kit's commands and their options."""
    commands = kit.add_subparsers(dest="kit", required=True)
    running = commands.add_parser("run", help="put every case to an implementation")
    which = running.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--impl", metavar="MODULE:NAME", help="a Python adapter, in a process of its own"
    )
    which.add_argument(
        "--program", metavar="COMMAND", help="JSON lines in and out; SPEC.md, part 2"
    )
    verifying = commands.add_parser("verify", help="hold files of answers against the cases")
    verifying.add_argument("folder", type=Path, help="with implementation.json and a file a case")
    comparing = commands.add_parser("peers", help="real implementations against every clause")
    comparing.add_argument("--peer", default="", metavar="TEXT", help="those whose name has it")
    comparing.add_argument("--json", type=Path, metavar="FILE", help="also write all as JSON")
    listing = commands.add_parser("list", help="the cases, what each is for, and where they are")
    for command in (running, comparing):
        command.add_argument(
            "--timeout", type=float, default=30.0, help="seconds for one answer (default 30)"
        )
    for command in (running, verifying, comparing, listing):
        command.add_argument("--only", default="", metavar="TEXT", help="cases whose name has it")
    for command in (running, verifying):
        command.add_argument("--strict", action="store_true", help='a "should" that fails counts')
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="also write the report as JSON"
        )
        command.add_argument("--markdown", type=Path, metavar="FILE", help="and as Markdown")


def main(arguments: argparse.Namespace) -> int:
    """Run one command; 0 conforms, 1 does not. Raises ValueError or OSError for bad arguments."""
    if not 0 < getattr(arguments, "timeout", 1) < float("inf"):
        raise ValueError(f"--timeout: expected seconds above 0, got {arguments.timeout}")
    cases = load()
    if missing := left_out(cases):
        print(f"left out: {', '.join(missing)} (pip install safetensors)", file=sys.stderr)
    cases = [case for case in cases if arguments.only in case.name]
    if not cases:
        raise ValueError(f"--only: expected part of a case's name, got {arguments.only!r}")
    if arguments.kit == "list":
        return list_cases(cases)
    for option in ("json", "markdown"):
        path = getattr(arguments, option, None)
        if path and not path.resolve().parent.is_dir():
            raise ValueError(f"--{option}: expected a file in a folder that exists, got {path}")
    if arguments.kit == "peers":
        return compare_peers(arguments, cases)
    if arguments.kit == "verify":
        results = Results(arguments.folder)
        if unknown := results.unknown(load()):
            raise ValueError(f"{arguments.folder}: expected the kit's cases, got {unknown}")
        return show(run(results, cases), arguments)
    return show(run_program(arguments, cases), arguments)


def run_program(arguments: argparse.Namespace, cases) -> Report:
    """The program, or the Python adapter as a program."""
    command: str | list[str] = arguments.program
    if arguments.impl:
        command = [sys.executable, "-m", "minidora.kit.serve", arguments.impl]
    try:
        with Program(command, timeout=arguments.timeout) as program:
            return run(program, cases, each=progress if sys.stderr.isatty() else None)
    except Failed as failed:
        raise ValueError(f'{arguments.impl or arguments.program}: "hello": {failed}') from None


def compare_peers(arguments: argparse.Namespace, cases) -> int:
    """The matrix of implementations and clauses; 0 however they fare, for it is a measurement."""

    def said(target):
        print(f"{target} ...", file=sys.stderr, flush=True)

    rows = peers.measure(peers.peers_named(arguments.peer), cases, arguments.timeout, said)
    print(peers.matrix(rows, cases[0].kit))
    if arguments.json:
        write_whole(arguments.json, f"{peers.as_json(rows, cases[0].kit)}\n".encode())
    return 0


def progress(result: CaseResult) -> None:
    """Say on a terminal where the run is."""
    print(f"\r{str(result.variant):60}", end="\r", file=sys.stderr, flush=True)


def show(report: Report, arguments: argparse.Namespace) -> int:
    """Print the table and write the files asked for."""
    print(text(report, strict=arguments.strict))
    formats: tuple[tuple[str, Callable], ...] = (("json", as_json), ("markdown", markdown))
    for option, render in formats:
        path = getattr(arguments, option)
        if path:
            write_whole(path, render(report, strict=arguments.strict).encode())
    return 0 if report.conforms(strict=arguments.strict) else 1


def list_cases(cases) -> int:
    """One line a case."""
    print(f"{len(cases)} cases in {FOLDER}; the clauses are in {FOLDER.parent / 'SPEC.md'}")
    for case in cases:
        catches = ", ".join(case.flags) or "-"
        print(f"{case.name:36} {case.level:7} {', '.join(case.clauses)}; catches {catches}")
    return 0

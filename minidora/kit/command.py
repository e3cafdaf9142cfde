"""`minidora kit run | list | verify | peers | generate`."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _command
from .._files import write_whole
from . import peers, serve
from .files import FOLDER, KitCase, left_out, load
from .outcomes import CaseResult, Report
from .program import Failed, Program
from .report import as_json, markdown, text
from .results import Results
from .runner import run

SHARED: dict[str, dict[str, Any]] = {
    "--only": {"default": "", "metavar": "TEXT", "help": "cases whose name has it"},
    "--timeout": {
        "type": _command.seconds,
        "default": 30.0,
        "metavar": "SECONDS",
        "help": "for one answer (default 30)",
    },
    "--strict": {"action": "store_true", "help": 'a "should" that fails counts'},
    "--markdown": {
        "type": _command.new_file,
        "metavar": "FILE",
        "help": "also write the report as Markdown",
    },
    "--json": {"type": _command.new_file, "metavar": "FILE", "help": "also write it all as JSON"},
}
"""Options that several subcommands have."""
REPORT = ("--only", "--strict", "--markdown", "--json")


def add_arguments(kit: _command.Parser) -> None:
    """The kit's subcommands and their options, on its parser."""
    subcommands = kit.subcommands()

    def add(
        name: str, purpose: str, example: str, run: _command.Command, *shared: str
    ) -> _command.Parser:
        example = f"minidora kit {name} {example}"
        parser = _command.add(subcommands, name, purpose, example, run)
        for option in shared:
            parser.add_argument(option, **SHARED[option])
        return parser

    purpose, example = "put every case to an implementation", "--impl my_package.port:Port"
    running = add("run", purpose, example, run_port, "--timeout", *REPORT)
    port = running.add_mutually_exclusive_group(required=True)
    served = "a Python port, in a process of its own"
    port.add_argument("--impl", metavar="MODULE:NAME", help=served)
    port.add_argument("--program", metavar="COMMAND", help="JSON lines in and out; SPEC.md, part 2")
    purpose = "the cases, what each is for, and where they are"
    add("list", purpose, "--only dropout", list_cases, "--only")
    purpose = "hold files of answers against the cases"
    verifying = add("verify", purpose, "answers/", verify_files, *REPORT)
    of_answers = "with implementation.json and a file a case"
    verifying.add_argument("folder", type=Path, metavar="FOLDER", help=of_answers)
    purpose, example = "hold real implementations against every clause", "--peer peft"
    comparing = add("peers", purpose, example, compare_peers, "--only", "--timeout", "--json")
    comparing.add_argument("--peer", default="", metavar="TEXT", help="those whose name has it")
    interpreter = "peers with TEXT in their name run in another environment, by its interpreter"
    comparing.add_argument(
        "--python", action="append", default=[], metavar="TEXT=PATH", help=interpreter
    )
    own = "default: the kit's own"
    generating = add("generate", "write the kit's cases anew", "--out cases/", generate_cases)
    generating.add_argument("--out", type=Path, metavar="FOLDER", default=FOLDER, help=own)


def chosen_cases(arguments: Namespace) -> list[KitCase]:
    """The cases that --only names, all by default; says on stderr which could not be read."""
    cases = load()
    if missing := left_out(cases):
        print(f'left out: {", ".join(missing)} (pip install "minidora[train]")', file=sys.stderr)
    chosen = [case for case in cases if arguments.only in case.name]
    if not chosen:
        raise ValueError(f"--only: expected part of a case's name, got {arguments.only!r}")
    return chosen


def run_port(arguments: Namespace) -> int:
    """Hold a program, or a Python port as a program, against the cases; 0 where it conforms."""
    cases = chosen_cases(arguments)
    program_words = serve.command(arguments.impl) if arguments.impl else arguments.program
    try:
        with Program(program_words, timeout=arguments.timeout) as program:
            report = run(program, cases, each=show_progress if sys.stderr.isatty() else None)
    except Failed as failed:
        raise ValueError(f'{arguments.impl or arguments.program}: "hello": {failed}') from None
    return show(report, arguments)


def verify_files(arguments: Namespace) -> int:
    """Hold a folder of answers against the cases; 0 where they conform."""
    cases = chosen_cases(arguments)
    results = Results(arguments.folder)
    if unknown := results.unknown(load()):
        raise ValueError(f"{arguments.folder}: expected the kit's cases, got {unknown}")
    return show(run(results, cases), arguments)


def compare_peers(arguments: Namespace) -> int:
    """The matrix of implementations and clauses; 0 however they fare, for it is a measurement."""
    cases = chosen_cases(arguments)

    def announce(target: str) -> None:
        print(f"{target} ...", file=sys.stderr, flush=True)

    pythons = [peers.interpreter(text) for text in arguments.python]
    chosen = peers.peers_named(arguments.peer)
    rows = peers.measure(chosen, cases, arguments.timeout, announce, pythons)
    print(peers.matrix(rows, cases[0].kit))
    if arguments.json:
        write_whole(arguments.json, f"{peers.as_json(rows, cases[0].kit)}\n".encode())
    return 0


def list_cases(arguments: Namespace) -> int:
    """One line a case."""
    cases = chosen_cases(arguments)
    print(f"{len(cases)} cases in {FOLDER}; the clauses are in {FOLDER.parent / 'SPEC.md'}")
    for case in cases:
        catches = ", ".join(case.flags) or "-"
        print(f"{case.name:36} {case.level:7} {', '.join(case.clauses)}; catches {catches}")
    return 0


def generate_cases(arguments: Namespace) -> int:
    """Write the cases and their manifest into a folder, which is made if need be."""
    from .generate import files  # needs mpmath and safetensors

    folder = arguments.out
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {str(folder)!r}")
    written = files()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        write_whole(folder / name, content)
    print(f"{len(written)} files in {folder}")
    return 0


def show_progress(result: CaseResult) -> None:
    """Say on a terminal which variant is done."""
    print(f"\r{str(result.variant):60}", end="\r", file=sys.stderr, flush=True)


def show(report: Report, arguments: Namespace) -> int:
    """Print the table and write the files asked for; 0 where the report conforms."""
    print(text(report, strict=arguments.strict))
    formats: tuple[tuple[Path | None, Callable[..., str]], ...] = (
        (arguments.json, as_json),
        (arguments.markdown, markdown),
    )
    for path, render in formats:
        if path:
            write_whole(path, render(report, strict=arguments.strict).encode())
    return 0 if report.conforms(strict=arguments.strict) else 1

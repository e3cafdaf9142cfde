"""`minidora kit run | verify | list | explain | show | peers | export | generate`."""

import os
import re
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _command
from .._files import write_whole
from . import explain, formats, peers, report, serve
from .files import FOLDER, KitCase, left_out, load
from .program import IN_A_ROW, Failed, Program
from .progress import progress
from .report import CaseResult, Report
from .results import Results
from .runner import run, variants
from .selection import FILTERS, Expectation, expect, expectations, expected, selected


def pattern(text: str) -> re.Pattern[str]:
    """A type of option: a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise ArgumentTypeError(f"expected a regular expression, got {text!r}: {error}") from None


def words(text: str) -> list[str]:
    """A type of option: words with commas between them."""
    return text.split(",")


Options = dict[str, dict[str, Any]]
SELECTION: Options = {
    "only": {"default": "", "metavar": "TEXT", "help": "cases whose name has it"},
    "match": {"type": pattern, "metavar": "REGEX", "help": "cases in whose name it is found"},
}
for _name in FILTERS:
    _help = f"in {'these' if _name == 'dtype' else 'cases of these'} {_name}s, with commas"
    SELECTION[_name] = {"type": words, "action": "extend", "metavar": "WORDS", "help": _help}
FILE: dict[str, Any] = {"type": _command.new_file, "metavar": "FILE"}
STRICT = "what may fail or be left out counts: each should, each must that was not asked"
REPORT: Options = {
    "strict": {"action": "store_true", "help": STRICT},
    "xfail": {"type": Path, "metavar": "FILE", "help": "expected failures, a line each"},
    "all": {"action": "store_true", "help": "show what passed or was skipped, too"},
    "markdown": FILE | {"help": "also write the report as Markdown"},
    "json": FILE | {"help": "also write it all as JSON"},
    "junit": FILE | {"help": "also write it all as JUnit XML"},
}
"""What every report can be told."""
TIMEOUT: Options = {
    "timeout": {
        "type": _command.seconds,
        "default": 30.0,
        "metavar": "SECONDS",
        "help": "for one answer (default 30)",
    }
}
PORT: Options = {
    "impl": {"metavar": "MODULE:NAME", "help": "a Python port, in a process of its own"},
    "program": {"metavar": "COMMAND", "help": "JSON lines in and out; SPEC.md, part 2"},
}
_on = f"also after {IN_A_ROW} time-outs in a row"
ENDS: Options = {
    "fail-fast": {"action": "store_true", "help": "stop at the first failure that counts"},
    "keep-going": {"action": "store_true", "help": _on},
}
PEER: Options = {
    "json": REPORT["json"],
    "peer": {"default": "", "metavar": "TEXT", "help": "those whose name has it"},
    "python": {
        "action": "append",
        "default": [],
        "metavar": "TEXT=PATH",
        "help": "the interpreter of an environment of its own, for peers whose name has TEXT",
    },
}


def add_arguments(kit: _command.Parser) -> None:
    """The kit's subcommands and their options, on its parser."""
    subcommands = kit.subcommands()

    def add(
        name: str, purpose: str, example: str, run: _command.Command, *options: Options
    ) -> _command.Parser:
        example = f"minidora kit {name} {example}"
        parser = _command.add(subcommands, name, purpose, example, run)
        put(parser, *options)
        return parser

    def put(parser: Any, *options: Options) -> None:
        for name, settings in (pair for group in options for pair in group.items()):
            parser.add_argument(f"--{name}", **settings)

    purpose, example = "put every case to an implementation", "--impl my_package.port:Port"
    running = add("run", purpose, example, run_port, TIMEOUT, SELECTION, REPORT, ENDS)
    put(running.add_mutually_exclusive_group(required=True), PORT)
    purpose = "hold files of answers against the cases"
    verifying = add("verify", purpose, "answers/", verify_files, SELECTION, REPORT)
    of_answers = "with implementation.json and a file a case"
    verifying.add_argument("folder", type=Path, metavar="FOLDER", help=of_answers)
    purpose = "the cases, what each is for, and where they are"
    add("list", purpose, "--only dropout", list_cases, SELECTION)
    purpose = "a clause: its text, what breaks it, where it is from, what asks for it"
    explaining = add("explain", purpose, "D3", explain_clause)
    explaining.add_argument("clause", metavar="CLAUSE", help="of SPEC.md")
    purpose = "a case, and what an implementation answers"
    showing = add("show", purpose, "plain.per_output", show_case, TIMEOUT)
    showing.add_argument("case", metavar="CASE", help="its name; `minidora kit list` has them")
    put(showing, {"dtype": SELECTION["dtype"]})
    put(showing.add_mutually_exclusive_group(), PORT)
    asked = "write what it was asked, lines to put into any program"
    showing.add_argument("--questions", **FILE, help=asked)
    purpose, example = "hold real implementations against every clause", "--peer peft"
    add("peers", purpose, example, compare_peers, TIMEOUT, SELECTION, PEER)
    purpose = "copy SPEC.md, the schema and the cases, for tests in another language"
    exporting = add("export", purpose, "vendor/dora", export_files)
    exporting.add_argument("folder", type=Path, metavar="FOLDER", help="a new or an empty one")
    own = "default: the kit's own"
    generating = add("generate", "write the kit's cases anew", "--out cases/", generate_cases)
    generating.add_argument("--out", type=Path, metavar="FOLDER", default=FOLDER, help=own)


def every_case() -> list[KitCase]:
    """All cases; says on stderr which could not be read."""
    cases = load()
    if missing := left_out(cases):
        print(f'left out: {", ".join(missing)} (pip install "minidora[train]")', file=sys.stderr)
    return cases


def chosen_cases(arguments: Namespace) -> list[KitCase]:
    """The cases that the options choose, all by default."""
    return selected(every_case(), vars(arguments))


@contextmanager
def port(arguments: Namespace) -> Iterator[Program]:
    """The program that --impl or --program names; ValueError where it does not say hello."""
    named = arguments.impl or arguments.program
    command = serve.command(arguments.impl) if arguments.impl else arguments.program
    try:
        program = Program(
            command,
            timeout=arguments.timeout,
            keep_going=getattr(arguments, "keep_going", False),
        )
    except Failed as failed:
        raise ValueError(f'{named}: "hello": {failed}') from None
    with program:
        yield program


def run_port(arguments: Namespace) -> int:
    """Hold a program, or a Python port as a program, against the cases; 0 where it passes."""
    cases, lines = chosen_cases(arguments), prepared(arguments)

    def each(result: CaseResult) -> str:
        note(result)
        counts = result.counts(strict=arguments.strict) and not expected(result, lines)
        return "at the first failure" if arguments.fail_fast and counts else ""

    with port(arguments) as program:
        total = sum(1 for case in cases for _ in variants(case, program.alternatives))
        with progress(total) as note:
            found = run(program, cases, each=each)
    return conclude(found, arguments, lines)


def verify_files(arguments: Namespace) -> int:
    """Hold a folder of answers against the cases; 0 where they pass."""
    cases, lines = chosen_cases(arguments), prepared(arguments)
    results = Results(arguments.folder)
    if unknown := results.unknown(load()):
        raise ValueError(f"{arguments.folder}: expected the kit's cases, got {unknown}")
    return conclude(run(results, cases), arguments, lines)


def prepared(arguments: Namespace) -> list[Expectation]:
    """The failures that are expected, and whatever else is better missed before the work."""
    if arguments.junit:
        _command.require("junitparser")
    return expectations(arguments.xfail, load()) if arguments.xfail else []


def conclude(found: Report, arguments: Namespace, lines: list[Expectation]) -> int:
    """Print the report and write the files asked for; 0 where it passes."""
    found.selection |= any(getattr(arguments, name) for name in SELECTION)
    expect(found, lines)
    strict, everything = {"strict": arguments.strict}, arguments.all
    text = report.text(found, **strict, everything=everything)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(report.coloured(text) if colour else text)
    failed = [r.variant for r in found.results if r.status == "fail"]
    if failed and "impl" in arguments:
        print(f"look closer: {again(arguments, failed[0].case.name, [failed[0].dtype])}")
    if arguments.json:
        write_whole(arguments.json, formats.as_json(found, **strict).encode())
    if arguments.markdown:
        page = formats.markdown(found, **strict, everything=everything)
        write_whole(arguments.markdown, page.encode())
    if arguments.junit:
        write_whole(arguments.junit, formats.as_junit(found, **strict).encode())
    return 0 if found.passes(**strict) else 1


def again(arguments: Namespace, case: str, dtypes: list[str]) -> str:
    """The command line that shows a case and what the implementation answers."""
    name = "impl" if arguments.impl else "program"
    only = ["--dtype", ",".join(dtypes)] if dtypes else []
    port = [f"--{name}", getattr(arguments, name)]
    return shlex.join(["minidora", "kit", "show", case, *only, *port])


def list_cases(arguments: Namespace) -> int:
    """One line a case."""
    cases = chosen_cases(arguments)
    print(f"{len(cases)} cases in {FOLDER}; the clauses are in {explain.SPEC}")
    for case in cases:
        catches = ", ".join(case.flags) or "-"
        print(f"{case.name:36} {case.level:7} {', '.join(case.clauses)}; catches {catches}")
    return 0


def explain_clause(arguments: Namespace) -> int:
    """A clause in full."""
    print(explain.clause(arguments.clause, every_case()))
    return 0


def show_case(arguments: Namespace) -> int:
    """A case in full; 1 where an implementation is named and fails it."""
    named = [case for case in every_case() if case.name == arguments.case]
    if not named:
        raise ValueError(f"CASE: expected a name of `minidora kit list`, got {arguments.case!r}")
    (case,) = selected(named, {"dtype": arguments.dtype})
    pages, code = [explain.case(case)], 0
    if arguments.impl or arguments.program:
        with port(arguments) as program:
            found, answers, questions = explain.answered(program, case)
        if arguments.questions:
            write_whole(arguments.questions, questions.encode())
        pages += [answers, f"again: {again(arguments, case.name, arguments.dtype)}"]
        code = 1 if found.count("fail") else 0
    elif arguments.questions:
        raise ValueError("--questions: expected --impl or --program, to which they are put")
    print(*pages, sep="\n")
    return code


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


def export_files(arguments: Namespace) -> int:
    """Copy what no Python is needed for into a folder, which is made if need be."""
    load()  # refuses changed cases
    folder: Path = arguments.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"FOLDER: expected a new or an empty folder, got {str(folder)!r}")
    kit = FOLDER.parent
    paths = [explain.SPEC, kit / "schema.json", *sorted(FOLDER.iterdir())]
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    for path in paths:
        write_whole(folder / path.relative_to(kit), path.read_bytes())
    print(f"{len(paths)} files in {folder}")
    return 0

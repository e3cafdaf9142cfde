"""The command line: `minidora`, the same as `python -m minidora`.

Exit codes: 0 good, 1 disagreement, 2 bad arguments or something missing, 130 interrupted, 141 when
nobody reads what is printed any more. A new part joins by a line in `PARTS`.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from ._command import Parser, add, install_advice

PARTS = {
    # the module whose `add_arguments` adds the part's options, what it is for, an example
    "check": (
        "evidence.command",
        "hold every hand-derived gradient against every witness installed",
        "minidora check --dtype float32 --json check.json",
    ),
    "kit": (
        "kit.command",
        "hold a DoRA implementation against the conformance kit",
        "minidora kit run --impl my_package.port:Port",
    ),
    "adapter": (
        "adapter.command",
        "find what is wrong with an adapter's files, and measure what it does",
        "minidora adapter check my_adapter --base my_model",
    ),
    "experiments": (
        "experiments.command",
        "the paper's figures, at a small size",
        "minidora experiments run figure2 --short",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, or raises SystemExit with it.

    argv: the words after `minidora`, this process's own unless given.
    """
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            print(end="", flush=True)  # here, since what fails at exit cannot be caught
    except OSError as error:  # of stdout itself
        _drop_output()
        if isinstance(error, BrokenPipeError):  # who reads has seen enough, as `head` has
            return 141
        print(f"minidora: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        line = "; ".join(["interrupted", *interrupt.args])
        print("\n" * sys.stderr.isatty() + line, file=sys.stderr)  # a terminal has shown ^C
        return 130


def parser_for(argv: Sequence[str]) -> Parser:
    """The parser, with the options of the parts that `argv` names: no other part is imported."""
    parser = Parser(prog="minidora", description="DoRA in NumPy.", epilog="example: minidora check")
    parser.add_argument("--version", action="version", version=f"minidora {__version__}")
    commands = parser.subcommands()
    for name, (module, purpose, example) in PARTS.items():
        part = add(commands, name, purpose, example)
        if name in argv:
            import_module(f".{module}", __package__).add_arguments(part)
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments, unknown = parser_for(argv).parse_known_args(argv)
    named: Parser = arguments.parser
    if unknown:
        named.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        named.fail(str(error))
    except ModuleNotFoundError as missing:
        if advice := install_advice(missing):
            named.fail(advice)
        raise


def _drop_output() -> None:
    """Let what is still to be printed go nowhere, so that the interpreter ends quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())

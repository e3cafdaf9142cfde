"""What the parts of the command line share: parsers with one style of errors, types of options."""

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

Command = Callable[[argparse.Namespace], int]
EXTRAS = {
    # which extra of pyproject.toml brings an importable package
    "train": ("tqdm", "safetensors"),
    "torch": ("torch",),
    "lessons": ("autograd", "matplotlib", "scipy", "sklearn"),
    "kit": ("junitparser",),
    "test": ("mpmath", "peft"),
    "peers": ("jax", "lycoris", "mlx", "mlx_lm", "torchao", "torchtune"),
}
LONGEST_WAIT = 1e6  # seconds; the clocks of some systems end at 4e6


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations, whose errors are one line that names the option first."""

    def __init__(self, **settings: Any) -> None:
        lines_as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=lines_as_written, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and exit with 2."""
        self.fail(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def fail(self, message: str) -> NoReturn:
        """Say in one line what went wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {printable(message)}\n")

    def subcommands(self) -> Any:
        """The place where subcommands are added, one of which has to be named."""
        return self.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add(
    subcommands: Any, name: str, purpose: str, example: str, run: Command | None = None
) -> Parser:
    """Add a subcommand and return its parser.

    purpose: a line for the help; example: a whole command line; run: what does the work and returns
    the exit code, None where the subcommand has subcommands of its own.
    """
    about = {"help": purpose, "description": f"{purpose[0].upper()}{purpose[1:]}."}
    parser: Parser = subcommands.add_parser(name, **about, epilog=f"example: {example}")
    parser.set_defaults(run=run, parser=parser)
    return parser


def require(*packages: str) -> None:
    """Raise ModuleNotFoundError for the first that is not installed, before work is lost."""
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def install_advice(missing: ModuleNotFoundError) -> str:
    """What is not installed and the command that installs it; nothing for what no extra brings."""
    package = str(missing.name).partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f'{package} is not installed: pip install "minidora[{extra}]"'
    return ""


def printable(text: str) -> str:
    r"""`text` in one line, and nothing in it that a terminal obeys.

    >>> print(printable("name\x1b[2J"))
    name\x1b[2J
    """
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def at_least(least: int) -> Callable[[str], int]:
    """A type of option: a whole number that is `least` or more."""

    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            expected = f"a whole number, {least} or more"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return number

    return whole_number


def seconds(text: str) -> float:
    """A type of option: how long to wait."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= LONGEST_WAIT:
        expected = f"seconds above 0, {LONGEST_WAIT:.0e} at most"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def new_file(text: str) -> Path:
    """A type of option: a file to write, in a folder that exists."""
    path = Path(text)
    if os.path.isdir(path) or not os.path.isdir(path.parent):  # False where a name is too long
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text!r}")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file that may be written, got {text!r}")
    return path

"""The command line: `python -m minidora check` and `kit`."""

import argparse
import sys
from pathlib import Path

from . import __version__
from ._files import write_whole
from .evidence import check
from .kit import command as kit


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (0 good, 1 disagreement, 2 bad arguments)."""
    parser = argparse.ArgumentParser(prog="python -m minidora", description="DoRA in NumPy.")
    parser.add_argument("--version", action="version", version=f"minidora {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check", help="hold every hand-derived gradient against every witness installed"
    )
    checking.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto")
    checking.add_argument(
        "--dtype",
        choices=tuple(check.TOLERANCES),
        default="float64",
        help="dtype of the hand-derived gradients; witnesses and central differences use float64",
    )
    checking.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    checking.add_argument("--seed", type=int, default=0, help="of the random cases (default 0)")
    kit.add_boundary(
        commands.add_parser("kit", help="hold a DoRA implementation against the conformance kit")
    )
    arguments = parser.parse_args(argv)
    try:
        return run_check(arguments) if arguments.command == "check" else kit.main(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"python -m minidora {arguments.command}: {error}\n")


def run_check(arguments: argparse.Namespace) -> int:
    """Print the table, write the JSON file, and say by the exit code whether all agree."""
    if arguments.seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {arguments.seed}")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        raise ValueError(f"--json: expected a file in a folder that exists, got {arguments.json}")
    result = check.run(device=arguments.device, dtype=arguments.dtype, seed=arguments.seed)
    print(check.table(result))
    if arguments.json:
        write_whole(arguments.json, f"{result.as_json()}\n".encode())
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())

"""`minidora check`."""

from argparse import Namespace

from .. import _command
from .._files import write_whole
from . import check


def add_arguments(checking: _command.Parser) -> None:
    """The options of the command, on its parser."""
    checking.set_defaults(run=run)
    checking.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto")
    checking.add_argument(
        "--dtype",
        choices=tuple(check.TOLERANCES),
        default="float64",
        help="of the hand-derived gradients; witnesses and central differences use float64",
    )
    checking.add_argument(
        "--seed",
        type=_command.at_least(0),
        default=0,
        metavar="N",
        help="of the random cases (default 0)",
    )
    checking.add_argument(
        "--json", type=_command.new_file, metavar="FILE", help="also write the table as JSON"
    )


def run(arguments: Namespace) -> int:
    """Print the table and write the JSON file; 0 where all agree, 1 where not."""
    result = check.run(device=arguments.device, dtype=arguments.dtype, seed=arguments.seed)
    print(check.table(result))
    if arguments.json:
        write_whole(arguments.json, f"{result.as_json()}\n".encode())
    return 0 if result.ok else 1

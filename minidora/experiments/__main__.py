"""The command line: `python -m minidora.experiments figure2 --out results/figure2.json`."""

import argparse
import os
import sys
from pathlib import Path

from .. import training
from .registry import EXPERIMENTS
from .store import read, run, table
from .verify import verify


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code (0 good, 1 disagreement, 2 bad arguments)."""
    parser = argparse.ArgumentParser(
        prog="python -m minidora.experiments", description="The paper's figures, at a small size."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, experiment in EXPERIMENTS.items():
        command = commands.add_parser(name, help=experiment.about)
        command.add_argument("--seeds", type=int, metavar="N", help="how many, for every network")
        command.add_argument("--out", type=Path, metavar="FILE", help=f"default {name}.json")
        command.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
        command.add_argument("--short", action="store_true", help="few steps, one seed (figure2)")
    showing = commands.add_parser("table", help="print the summary in a file as Markdown")
    showing.add_argument("file", type=Path)
    checking = commands.add_parser("verify", help="run one seed of a file anew, and compare")
    checking.add_argument("file", type=Path)
    checking.add_argument("--seed", type=int, help="default: the first in the file")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "verify":
            return run_verify(arguments.file, arguments.seed)
        if arguments.command == "table":
            print(table(read(arguments.file)))
            return 0
        out = arguments.out or Path(f"{arguments.command}.json")
        options = {"seeds": arguments.seeds, "short": arguments.short, "jobs": arguments.jobs}
        results = run(arguments.command, out, **options)
    except (ValueError, OSError) as error:
        parser.exit(2, f"python -m minidora.experiments {arguments.command}: {error}\n")
    except ModuleNotFoundError as missing:
        parser.exit(2, f'{missing.name} is not installed: pip install "minidora[lessons]"\n')
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; the seeds that were finished are kept\n")
    print(table(results))
    print(f"\n{out}: {len(results['seeds'])} seeds, {results['seconds']:.0f} s")
    return 0


def run_verify(path: Path, seed: int | None) -> int:
    """Print each figure's error beside its tolerance; 0 where all agree."""
    compared = verify(path, seed=seed)
    for one in compared:
        mark = "ok" if one.ok else "DIFFERS"
        print(f"{one.name:<60} {one.error:8.1e} of {one.tolerance:.0e}  {mark}")
    worst = sum(not one.ok for one in compared)
    print(f"{path}: {len(compared)} figures, {worst} differ" if worst else f"{path}: all agree")
    return 1 if worst else 0


if __name__ == "__main__":
    training.keep_memory()
    sys.exit(main())

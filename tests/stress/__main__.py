"""`python -m tests.stress`: every fault, counted; the package's own text says how to run it."""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from . import corrupt, faults, flips, fuzz
from .outcome import Outcome


class Fault(NamedTuple):
    """How often one kind of fault is tried, and what that needs."""

    run: Callable[[int, int], Outcome]  # (how many, seed)
    many: int
    few: int  # with --quick
    needs: tuple[str, ...] = ("safetensors",)
    posix: bool = False


FAULTS = {
    "kills": Fault(faults.kills, 50, 4, posix=True),
    "races": Fault(faults.races, 200, 10),
    "flips": Fault(flips.flips, 1_000_000, 250),
    "checkpoints": Fault(corrupt.checkpoints, 2000, 150),
    "adapters": Fault(corrupt.adapters, 2000, 150),
    "disks": Fault(faults.full_disks, 20, 4, posix=True),
    "experiments": Fault(faults.experiments, 4, 0, posix=True),
    "ports": Fault(faults.ports, 12, 6, needs=(), posix=True),
    "fuzz": Fault(fuzz.loaders, 20_000, 300, needs=("safetensors", "hypothesis")),
    "protocol": Fault(fuzz.protocol, 5_000, 200, needs=("hypothesis",)),
}


def main(argv: list[str] | None = None) -> int:
    """Run the faults asked for; 0 where nothing was lost and nothing damaged was accepted."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--quick", action="store_true", help="few of each, as in the tests")
    arguments = parser.parse_args(argv)
    names = arguments.names or list(FAULTS)
    unknown = sorted(set(names) - set(FAULTS))
    if unknown:
        parser.error(f"expected names among {', '.join(FAULTS)}, got {unknown[0]!r}")
    if arguments.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {arguments.seed}")
    needed = {package for name in names for package in FAULTS[name].needs}
    missing = sorted(p for p in needed if importlib.util.find_spec(p) is None)
    if missing:
        parser.exit(2, f"{parser.prog}: missing packages: pip install {' '.join(missing)}\n")
    print(f"seed {arguments.seed}", flush=True)
    try:
        return max([_run(name, arguments.quick, arguments.seed) for name in names])
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


def _run(name: str, quick: bool, seed: int) -> int:
    """Try one kind of fault and print what came of it; 1 where anything came out wrong."""
    fault = FAULTS[name]
    count = fault.few if quick else fault.many
    if not count or (fault.posix and os.name != "posix"):
        print(f"{name}: left out", flush=True)
        return 0
    start = time.perf_counter()
    outcome = fault.run(count, seed)
    print(f"{outcome} ({time.perf_counter() - start:.0f} s)", flush=True)
    for wrong in outcome.bad[:10]:
        print(f"  WRONG {wrong}", flush=True)
    return int(bool(outcome.bad))


if __name__ == "__main__":
    sys.exit(main())

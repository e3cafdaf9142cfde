"""`python -m tests.stress`: every fault, counted; exit code 1 if anything came out wrong."""

import argparse
import os
import sys
import time

from . import corrupt, faults, fuzz

FAULTS = {
    # name: (function, how many, how many with --quick)
    "kills": (faults.kills, 50, 4),
    "checkpoints": (corrupt.checkpoints, 2000, 150),
    "adapters": (corrupt.adapters, 2000, 150),
    "disks": (faults.full_disks, 20, 4),
    "experiments": (faults.experiments, 4, 0),
    "ports": (faults.ports, 12, 6),
    "fuzz": (fuzz.loaders, 20_000, 300),
    "protocol": (fuzz.protocol, 5_000, 200),
}
POSIX = ("kills", "disks", "experiments", "ports")


def main(argv: list[str] | None = None) -> int:
    """Run the faults asked for; 0 where nothing was lost and nothing damaged was accepted."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--quick", action="store_true", help="few of each, as in the tests")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(FAULTS))
    if unknown:
        parser.error(f"expected names among {', '.join(FAULTS)}, got {unknown[0]!r}")
    if arguments.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {arguments.seed}")
    print(f"seed {arguments.seed}", flush=True)
    failed = False
    for name in arguments.names or FAULTS:
        function, many, few = FAULTS[name]
        count = few if arguments.quick else many
        if not count or (name in POSIX and os.name != "posix"):
            print(f"{name}: left out", flush=True)
            continue
        start = time.perf_counter()
        outcome = function(count, arguments.seed)
        print(f"{outcome} ({time.perf_counter() - start:.0f} s)", flush=True)
        for bad in outcome.bad[:10]:
            print(f"  WRONG {bad}", flush=True)
        failed |= bool(outcome.bad)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

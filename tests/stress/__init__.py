"""What minidora writes, under faults: `python -m tests.stress` counts what comes of them.

    python -m tests.stress                   every fault, ten minutes
    python -m tests.stress --quick           a few of each, as in the tests
    python -m tests.stress flips --seed 7    one kind, another seed
    python -m tests.stress --help            the kinds, one by one

Run it at the top of the repository. Kills while saving, readers beside writers, flipped bits,
corrupted files, full disks, killed experiments, ports that misbehave, and bytes that nobody meant.
All that is random is drawn from one seed, which the command prints (what a kill or a race then hits
is not). Exit code 0 where nothing came out wrong, 1 where something did, 2 for bad arguments and
for packages that are missing (safetensors; hypothesis for fuzz and protocol), 130 after Ctrl-C.
Kills and limits are POSIX's.
"""

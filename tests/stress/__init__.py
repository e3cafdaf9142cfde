"""What minidora writes, under faults: `python -m tests.stress` counts what comes of them.

Kills while saving, corrupted files, full disks, killed experiments, ports that misbehave, and bytes
that nobody meant. All that is random is drawn from one seed, which the command prints (what a kill
then hits is not). Needs safetensors, and hypothesis for the last; kills and limits are POSIX's.
"""

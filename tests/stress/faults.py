"""Kills, full disks, killed experiments, and ports that misbehave."""

import errno
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minidora import nn, peft
from minidora.kit import Program, load, run
from minidora.training import checkpoint

from .corrupt import model
from .outcome import Outcome

SAVING = """
import sys
import numpy as np
from minidora import peft
from minidora.training import checkpoint
from tests.stress.faults import filled
path, kind = sys.argv[1:]
for k in range(1, 1_000_000):
    (checkpoint.save if kind == "checkpoint" else peft.save_adapter)(path, filled(k))
    if k == 1:
        print("saved", flush=True)
"""


def filled(k: int):
    """A model all of whose arrays that are saved hold the number k."""
    _, adapted = model(0)
    for array in nn.parameters(adapted).values():
        array.flags.writeable = True
        array[...] = k
    return adapted


def kills(count: int, seed: int) -> Outcome:
    """kill -9 at a random moment of a process that saves over and over; then load."""
    outcome, rng = Outcome("killed while saving"), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as where:
        for i in range(count):
            kind = ("checkpoint", "adapter folder")[i % 2]
            path = Path(where) / f"{kind.split()[0]}{i}"
            command = [sys.executable, "-c", SAVING, str(path), kind]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            _judge_killed(outcome, f"{kind} {i}", path, kind)
    return outcome


def _judge_killed(outcome: Outcome, what: str, path: Path, kind: str, only=None) -> None:
    """Load, and see that all arrays hold one number: `only`, if that is given."""
    try:
        if kind == "checkpoint":
            arrays = nn.parameters(checkpoint.load(path).model)
        else:
            old = sorted(path.parent.glob(f".{path.name}.*.old"))
            where = path if path.exists() else old[0]  # stopped between two renames
            loaded = nn.parameters(peft.load_adapter(where, model(0)[0]))
            arrays = {n: a for n, a in loaded.items() if n.endswith((".A", ".B", ".m"))}
            kind += " under the old one's name" if where is not path else ""
    except (ValueError, OSError, IndexError) as error:
        outcome.wrong(f"{what}: {error!r}")
        return
    values = {float(a.min()) for a in arrays.values()} | {float(a.max()) for a in arrays.values()}
    if len(values) == 1 and (only is None or values == {only}):
        outcome.saw(f"{kind} whole")
    else:
        outcome.wrong(f"{what}: a mixture of {values}")


FULL = """
import resource, signal, sys
from minidora import peft
from minidora.training import checkpoint
from tests.stress.faults import filled
path, kind, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    (checkpoint.save if kind == "checkpoint" else peft.save_adapter)(path, filled(2))
except OSError as error:
    print(error.errno, error.filename, error)
"""


def full_disks(count: int, seed: int) -> Outcome:
    """A limit on the size of files, at random places, and a full tmpfs where one can be mounted."""
    outcome, rng = Outcome("full disk while saving"), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as where:
        for i in range(count):
            kind = ("checkpoint", "adapter")[i % 2]
            _fill(outcome, Path(where) / f"{kind}{i}", kind, int(rng.integers(1, 10_000)))
    with tempfile.TemporaryDirectory() as where:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", where]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
            outcome.saw("tmpfs not tried: it cannot be mounted here")
            return outcome
        try:
            for kind in ("checkpoint", "adapter"):
                ballast = Path(where) / "ballast"
                _fill(outcome, Path(where) / kind, kind, 0, ballast)
                ballast.unlink(missing_ok=True)
        finally:
            subprocess.run(["umount", where], check=True)
    return outcome


def _fill(outcome: Outcome, path: Path, kind: str, limit: int, ballast: Path | None = None) -> None:
    """Save once, then again where there is no room; the first must still be there."""
    (checkpoint.save if kind == "checkpoint" else peft.save_adapter)(path, filled(1))
    if ballast:
        try:
            with open(ballast, "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass  # now it is full
    names = sorted(p.name for p in path.parent.iterdir())
    command = [sys.executable, "-c", FULL, str(path), kind, str(limit)]
    said = subprocess.run(command, capture_output=True, text=True)
    what = f"{kind}, limit {limit or 'tmpfs'}"
    number = int(said.stdout.split(" ")[0]) if said.stdout else 0
    if said.returncode or number not in (errno.ENOSPC, errno.EFBIG):
        outcome.wrong(f"{what}: {said.stdout} {said.stderr[-300:]}")
    elif path.name not in said.stdout:
        outcome.wrong(f"{what}: the error does not name the file: {said.stdout}")
    elif names != sorted(p.name for p in path.parent.iterdir()):
        outcome.wrong(f"{what}: something is left behind")
    else:
        _judge_killed(outcome, what, path, "checkpoint" if kind == "checkpoint" else "folder", 1.0)


def experiments(count: int, seed: int) -> Outcome:
    """An experiment killed soon after each seed that it finishes, run again, and at last let be."""
    outcome, rng = Outcome("killed experiments"), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as where:
        file = Path(where) / "figure2.json"
        command = [sys.executable, "-m", "minidora", "experiments", "run", "figure2", "--short"]
        command += ["--seeds", str(count + 1), "--jobs", "1", "--out", str(file)]
        for i in range(count):
            before = file.read_bytes() if file.exists() else b""
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for _ in range(1200):  # until there is something more to lose
                if (file.read_bytes() if file.exists() else b"") != before:
                    break
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            _judge_experiment(outcome, f"kill {i}", file, before)
        before = file.read_bytes() if file.exists() else b""
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            outcome.wrong(f"the last run: {ran.stderr[-300:]}")
        else:
            _judge_experiment(outcome, "the last run", file, before)
    return outcome


def _runs(data: bytes) -> dict[str, str]:
    """{seed and run: its result}, of what an experiment's file has so far."""
    seeds = json.loads(data)["seeds"] if data else {}
    return {f"{s} {n}": json.dumps(found) for s, runs in seeds.items() for n, found in runs.items()}


def _judge_experiment(outcome: Outcome, what: str, file: Path, before: bytes) -> None:
    try:
        then, now = _runs(before), _runs(file.read_bytes() if file.exists() else b"")
    except (ValueError, KeyError) as error:
        outcome.wrong(f"{what}: the file is damaged: {error!r}")
        return
    if any(now.get(key) != value for key, value in then.items()):
        outcome.wrong(f"{what}: finished runs were lost or made anew")
    elif then:
        outcome.saw("kept every finished run")
    else:
        outcome.saw("had nothing finished to lose")


PORT = """
import json, os, sys, time
for line in sys.stdin:
    q = json.loads(line)
    if q["op"] == "hello":
        print(json.dumps({"id": q["id"], "alternatives": {"norm_axis": "per_output"}}), flush=True)
    elif q["case"] == "wide.per_output":
        MISCHIEF
    else:
        print(json.dumps({"id": q["id"], "unsupported": "nothing"}), flush=True)
"""
MISCHIEFS = {
    "hangs": "time.sleep(600)",
    "floods its output": "while True: print('x' * 1000)",
    "floods one line": "while True: sys.stdout.write('x' * 100000)",
    "floods stderr": "[print('x' * 10000, file=sys.stderr) for _ in range(10000)]; os._exit(1)",
    "dies": "os.abort()",
    "answers rubbish": "os.write(1, bytes(range(256)) * 20 + b'\\\\n'); sys.stdout.flush()",
}


def ports(count: int, seed: int) -> Outcome:
    """Programs that hang, flood or die under the kit: one failed case each, and the run goes on."""
    outcome = Outcome("ports that misbehave")
    cases = [
        c for c in load() if c.name in ("plain.per_output", "wide.per_output", "tall.per_output")
    ]
    for i in range(count):
        name, mischief = list(MISCHIEFS.items())[i % len(MISCHIEFS)]
        with tempfile.TemporaryDirectory() as where:
            script = Path(where) / "port.py"
            script.write_text(PORT.replace("MISCHIEF", mischief))
            with Program([sys.executable, str(script)], timeout=3) as program:
                report = run(program, cases)
        found = {r.variant.case.name: r.status for r in report.results}
        right = {"plain.per_output": "skip", "wide.per_output": "fail", "tall.per_output": "skip"}
        if found == right:
            outcome.saw("one failed case")
        else:
            outcome.wrong(f"{name}: {found}")
    return outcome

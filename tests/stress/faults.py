"""Kills, full disks, killed experiments, and ports that misbehave."""

import errno
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
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


def filled(k: int) -> nn.Layer:
    """A model all of whose arrays that are saved, and scales, are the number k."""
    _, adapted = model(0)
    for array in nn.parameters(adapted).values():
        array.flags.writeable = True
        array[...] = k
    for _, layer in nn.walk(adapted):
        if isinstance(layer, nn.DoRALinear):
            layer.scale = float(k)
    return adapted


def numbers_in(path: Path, kind: str) -> set[float]:
    """The numbers in a checkpoint or an adapter folder: one, if it is whole and of `filled`."""
    if kind == "checkpoint":
        loaded = checkpoint.load(path).model
    else:
        loaded = peft.load_adapter(path, model(0)[0])
    numbers = {la.scale for _, la in nn.walk(loaded) if isinstance(la, nn.DoRALinear)}
    for name, array in nn.parameters(loaded).items():
        if kind == "checkpoint" or name.endswith((".A", ".B", ".m")):
            numbers |= {float(array.min()), float(array.max())}
    return numbers


def kills(count: int, seed: int) -> Outcome:
    """kill -9 at a random moment of a process that saves over and over; then load."""
    outcome, rng = Outcome("killed while saving"), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        for i in range(count):
            kind = ("checkpoint", "adapter folder")[i % 2]
            path = Path(temporary) / f"{kind.split()[0]}{i}"
            command = [sys.executable, "-c", SAVING, str(path), kind]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command, text=True, **pipes)
            try:
                process.stdout.readline()
                time.sleep(rng.uniform(0, 0.1))
            finally:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            judge_killed(outcome, f"{kind} {i}", path, kind)
    return outcome


def judge_killed(
    outcome: Outcome, event: str, path: Path, kind: str, only: float | None = None
) -> None:
    """Load, and see that all arrays hold one number: `only`, if that is given."""
    try:
        numbers = numbers_in(path, kind)
    except (ValueError, OSError) as error:
        outcome.wrong(f"{event}: {error!r}")
        return
    if len(numbers) != 1 or (only is not None and numbers != {only}):
        outcome.wrong(f"{event}: a mixture of {numbers}")
    elif kind != "checkpoint" and alpha_in(path) != 64 * numbers.pop():
        outcome.saw(f"{kind} whole, stopped between its two files")
    else:
        outcome.saw(f"{kind} whole")


def alpha_in(folder: Path) -> float:
    """lora_alpha, rank 64 times the scale, in adapter_config.json."""
    return json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]


def races(count: int, seed: int) -> Outcome:
    """Two threads that save under one name, `count` times each, and two that load meanwhile."""
    outcome = Outcome("loads beside savers")
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("checkpoint", "adapter folder"):
            path = Path(temporary) / kind.split()[0]
            save = checkpoint.save if kind == "checkpoint" else peft.save_adapter
            models = [filled(k) for k in (1, 2, 3, 4)]
            save(path, models[0])
            _race(outcome, kind, path, save, models, count)
            if names := [p.name for p in path.parent.rglob(".*")]:
                outcome.wrong(f"{kind}: something is left behind: {names}")
    return outcome


def _race(
    outcome: Outcome, kind: str, path: Path, save, models: list[nn.Layer], count: int
) -> None:
    """Run the four threads on one path and judge what each load gave."""
    done = threading.Event()

    def saving(mine: list[nn.Layer]) -> None:
        for i in range(count):
            save(path, mine[i % 2])

    def loading() -> list[object]:
        loads: list[object] = []
        while not done.is_set():
            try:
                loads.append(numbers_in(path, kind))
            except Exception as error:  # the judge below says that none is allowed
                loads.append(error)
        return loads

    with ThreadPoolExecutor(4) as pool:
        loaders = [pool.submit(loading) for _ in range(2)]
        savers = [pool.submit(saving, mine) for mine in (models[:2], models[2:])]
        wait(savers)
        done.set()
    for saver in savers:
        if saver.exception() is not None:
            outcome.wrong(f"{kind}: saving: {saver.exception()!r}")
    for numbers in (numbers for loader in loaders for numbers in loader.result()):
        if isinstance(numbers, set) and len(numbers) == 1:
            outcome.saw(f"{kind} whole")
        else:
            outcome.wrong(f"{kind}: loading: {numbers!r}")


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
    with tempfile.TemporaryDirectory() as temporary:
        for i in range(count):
            kind = ("checkpoint", "adapter")[i % 2]
            _fill(outcome, Path(temporary) / f"{kind}{i}", kind, int(rng.integers(1, 10_000)))
    with tempfile.TemporaryDirectory() as temporary:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", temporary]
        if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
            outcome.saw("tmpfs not tried: it cannot be mounted here")
            return outcome
        try:
            for kind in ("checkpoint", "adapter"):
                ballast = Path(temporary) / "ballast"
                _fill(outcome, Path(temporary) / kind, kind, 0, ballast)
                ballast.unlink(missing_ok=True)
        finally:
            subprocess.run(["umount", temporary], check=True)
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
    names = sorted(p.name for p in path.parent.rglob("*"))
    command = [sys.executable, "-c", FULL, str(path), kind, str(limit)]
    ran = subprocess.run(command, capture_output=True, text=True)
    event = f"{kind}, limit {limit or 'tmpfs'}"
    number = int(ran.stdout.split(" ")[0]) if ran.stdout else 0
    if ran.returncode or number not in (errno.ENOSPC, errno.EFBIG):
        outcome.wrong(f"{event}: {ran.stdout} {ran.stderr[-300:]}")
    elif path.name not in ran.stdout:
        outcome.wrong(f"{event}: the error does not name the file: {ran.stdout}")
    elif names != sorted(p.name for p in path.parent.rglob("*")):
        outcome.wrong(f"{event}: something is left behind")
    else:
        judge_killed(outcome, event, path, "checkpoint" if kind == "checkpoint" else "folder", 1.0)


def experiments(count: int, seed: int) -> Outcome:
    """An experiment killed soon after each seed that it finishes, run again, and at last let be."""
    outcome, rng = Outcome("killed experiments"), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "figure2.json"
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
            outcome.wrong(f"the last run: exit code {ran.returncode}: {ran.stderr[-300:]}")
        else:
            _judge_experiment(outcome, "the last run", file, before)
    return outcome


def _runs(data: bytes) -> dict[str, str]:
    """{seed and run: its result}, of what an experiment's file has so far."""
    seeds = json.loads(data)["seeds"] if data else {}
    return {f"{s} {n}": json.dumps(run) for s, runs in seeds.items() for n, run in runs.items()}


def _judge_experiment(outcome: Outcome, event: str, file: Path, before: bytes) -> None:
    try:
        then, now = _runs(before), _runs(file.read_bytes() if file.exists() else b"")
    except (ValueError, KeyError) as error:
        outcome.wrong(f"{event}: the file is damaged: {error!r}")
        return
    if any(now.get(key) != value for key, value in then.items()):
        outcome.wrong(f"{event}: finished runs were lost or made anew")
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
        with tempfile.TemporaryDirectory() as temporary:
            script = Path(temporary) / "port.py"
            script.write_text(PORT.replace("MISCHIEF", mischief))
            with Program([sys.executable, str(script)], timeout=3) as program:
                report = run(program, cases)
        statuses = {r.variant.case.name: r.status for r in report.results}
        right = {"plain.per_output": "skip", "wide.per_output": "fail", "tall.per_output": "skip"}
        if statuses == right:
            outcome.saw("one failed case")
        else:
            outcome.wrong(f"{name}: {statuses}")
    return outcome

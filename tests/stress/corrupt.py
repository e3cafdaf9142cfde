"""Corrupted checkpoints and adapter folders: each loads as it was, or raises a ValueError."""

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minidora import nn, peft
from minidora.training import checkpoint

from .outcome import Outcome

SIZE = (96, 256, 192, 10)  # of a network whose file has half a megabyte
SLACK = 200_000  # bytes that Python itself may take, whatever the file's size


def corrupted(data: bytes, rng: np.random.Generator, other: bytes) -> tuple[str, bytes]:
    """One way of damaging a file, and the damaged file; sometimes it is the file as it was."""
    kinds = ("flip", "flips", "cut", "longer", "header", "length", "zeros", "moved", "text")
    kind, out = str(rng.choice(kinds)), bytearray(data)
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else int(rng.integers(2, 9))):
            # half of them where they tell most: in the header
            at = rng.integers(len(out) if rng.random() < 0.5 else min(len(out), 3000))
            out[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del out[int(rng.integers(len(out))) :]
    elif kind == "longer":
        out += rng.bytes(int(rng.integers(1, 100)))
    elif kind == "header":  # another file's
        length = 8 + int.from_bytes(other[:8], "little")
        out[: 8 + int.from_bytes(data[:8], "little")] = other[:length]
    elif kind == "length":  # an absurd one
        out[:8] = int(rng.integers(0, 2**63)).to_bytes(8, "little")
    elif kind == "zeros":
        at, length = int(rng.integers(len(out))), int(rng.integers(1, 5000))
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == "moved":  # a piece to another place
        at, length = int(rng.integers(len(out))), int(rng.integers(1, 500))
        piece = bytes(out[at : at + length])
        del out[at : at + length]
        at = int(rng.integers(len(out) + 1))
        out[at:at] = piece
    else:  # digits of the header are changed: shapes, offsets, settings
        places = [i for i in range(8, min(len(out), 4000)) if chr(out[i]).isdigit()]
        for at in rng.choice(places, min(3, len(places)), replace=False) if places else ():
            out[at] = ord(str(rng.integers(10)))
    return kind, bytes(out)


def measured(load: Callable[[], object]) -> tuple[object, int]:
    """What `load` gives or raises, and the most memory Python and NumPy took meanwhile."""
    tracemalloc.start()
    try:
        loaded: object = load()
    except Exception as error:  # the judge says whether it is one that is allowed
        loaded = error
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return loaded, peak


def judge(outcome: Outcome, event: str, load, same, sizes: int, names: tuple[str, ...]) -> None:
    """Load once and say whether what comes of it is allowed."""
    loaded, peak = measured(load)
    outcome.most = max(outcome.most, max(0, peak - SLACK) / max(sizes, 1))
    if peak > 2 * sizes + SLACK:
        outcome.wrong(f"{event}: {peak} bytes for a file of {sizes}")
    elif isinstance(loaded, ValueError | FileNotFoundError):
        named = any(name in str(loaded) for name in names)
        if named:
            outcome.saw("refused, naming the file")
        else:
            outcome.wrong(f"{event}: an error that does not name the file: {loaded}")
    elif isinstance(loaded, Exception):
        outcome.wrong(f"{event}: {type(loaded).__name__}: {loaded}")
    elif same(loaded):
        outcome.saw("loaded as it was")
    else:
        outcome.wrong(f"{event}: accepted, and it is not what was saved")


def model(seed: int):
    """A network with a DoRA adapter that has moved, and its base."""
    rng = np.random.default_rng(seed)
    base = nn.MLP.init(SIZE, rng)
    adapted = nn.adapt(base, "dora", rank=64, rng=rng)
    for name, array in nn.parameters(adapted).items():
        if name.endswith((".B", ".m")):
            array.flags.writeable = True
            array += rng.normal(size=array.shape).astype(array.dtype)
    return base, adapted


def equal(a, b) -> bool:
    """Whether two networks are the same: kinds of layers, settings, arrays, what trains."""
    mine, its = nn.parameters(a), nn.parameters(b)
    arrays = mine.keys() == its.keys() and all(
        mine[name].dtype == its[name].dtype and np.array_equal(mine[name], its[name])
        for name in mine
    )
    layers = zip(nn.walk(a), nn.walk(b), strict=True)
    return arrays and all(
        (p, type(la), _settings(la)) == (q, type(lb), _settings(lb)) for (p, la), (q, lb) in layers
    )


def _settings(layer) -> dict:
    """Numbers, names and what trains."""
    kinds = str | int | float
    values = vars(layer).items()
    return {n: v for n, v in values if isinstance(v, kinds)} | {"trainable": layer.trainable}


def checkpoints(count: int, seed: int) -> Outcome:
    """Corrupted files of whole models and of adapters, by training.checkpoint."""
    outcome, rng = Outcome("corrupted checkpoints"), np.random.default_rng(seed)
    base, adapted = model(0)
    _, another = model(1)
    with tempfile.TemporaryDirectory() as folder:
        whole, adapter, other = (Path(folder) / f"{n}.safetensors" for n in ("m", "a", "o"))
        checkpoint.save(whole, adapted, step=7)
        checkpoint.save_adapter(adapter, adapted)
        checkpoint.save(other, another)
        good = {path: path.read_bytes() for path in (whole, adapter)}
        loads = {
            whole: lambda: checkpoint.load(whole).model,
            adapter: lambda: checkpoint.load_adapter(adapter, base).model,
        }
        for i in range(count):
            path = (whole, adapter)[i % 2]
            kind, data = corrupted(good[path], rng, other.read_bytes())
            path.write_bytes(data)
            event = f"checkpoint {i}, {kind}"
            names = (str(path),)
            judge(outcome, event, loads[path], lambda m: equal(m, adapted), len(data), names)
    return outcome


def adapters(count: int, seed: int) -> Outcome:
    """Corrupted PEFT folders: the arrays, the settings, or one of the files gone."""
    outcome, rng = Outcome("corrupted adapter folders"), np.random.default_rng(seed)
    base, adapted = model(0)
    _, another = model(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, other = Path(temporary) / "adapter", Path(temporary) / "other"
        peft.save_adapter(folder, adapted)
        peft.save_adapter(other, another)
        files = sorted(path.name for path in folder.iterdir())
        good = {name: (folder / name).read_bytes() for name in files}
        expected = peft.load_adapter(folder, base)
        for i in range(count):
            for name, data in good.items():
                (folder / name).write_bytes(data)
            name = files[int(rng.random() < 0.6)]  # the arrays somewhat oftener
            if rng.random() < 0.02:
                kind = "gone"
                (folder / name).unlink()
            else:
                kind, data = corrupted(good[name], rng, (other / name).read_bytes())
                (folder / name).write_bytes(data)
            size = sum(path.stat().st_size for path in folder.iterdir())
            event = f"adapter {i}, {name}, {kind}"
            load = lambda: peft.load_adapter(folder, base)  # noqa: E731
            judge(outcome, event, load, lambda m: equal(m, expected), size, (str(folder),))
    return outcome

"""Every single bit of what minidora writes, flipped: refused by name, or loaded as it was."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minidora import nn, peft
from minidora.training import AdamW, checkpoint

from .corrupt import equal
from .outcome import Outcome

REFUSED, SAME = "refused, naming the file", "loaded as it was"
DIFFERING, CRASHED = "accepted, differing", "crashed"


def training() -> tuple[nn.Layer, checkpoint.Checkpoint]:
    """A small base, and a run around it that has a step behind it."""
    rng = np.random.default_rng(0)
    base = nn.MLP.init((2, 3, 2), rng, dropout=0.25)
    model = nn.adapt(base, "dora", ("layers.0",), rank=1, rng=rng, dropout=0.5)
    optimizer, arrays = (
        AdamW(weight_decay=0.1, no_decay=("*.m",), rates={"*.B": 2}),
        nn.trained(model),
    )
    optimizer.step(arrays, {name: np.full_like(a, 0.3) for name, a in arrays.items()}, 0.01)
    return base, checkpoint.Checkpoint(model, optimizer, rng, 7)


def same(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> bool:
    """Whether two checkpoints are the same to the bit, with all that training goes on from."""
    if a.optimizer is None or a.rng is None or b.optimizer is None or b.rng is None:
        return a.optimizer is b.optimizer and a.rng is b.rng and a.step == b.step and _alike(a, b)
    first, second = dict(vars(a.optimizer)), dict(vars(b.optimizer))
    moments, others = first.pop("state"), second.pop("state")
    return (
        _alike(a, b)
        and a.step == b.step
        and a.rng.bit_generator.state == b.rng.bit_generator.state
        and type(a.optimizer) is type(b.optimizer)
        and first == second
        and {slot: _bytes(arrays) for slot, arrays in moments.items()}
        == {slot: _bytes(arrays) for slot, arrays in others.items()}
    )


def _alike(a: checkpoint.Checkpoint, b: checkpoint.Checkpoint) -> bool:
    return equal(a.model, b.model)


def _bytes(arrays: dict) -> dict:
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}


def flips(count: int, seed: int) -> Outcome:
    """Each bit of a model's file, an adapter's and a PEFT folder's two, at most `count` of each."""
    outcome, rng = Outcome("flipped bits"), np.random.default_rng(seed)
    outcome.counts.update({DIFFERING: 0, CRASHED: 0})
    base, run = training()
    state = {"optimizer": run.optimizer, "rng": run.rng, "step": run.step}
    with tempfile.TemporaryDirectory() as temporary:
        model, adapter, folder = (Path(temporary) / n for n in ("model", "adapter", "folder"))
        checkpoint.save(model, run.model, **state)
        checkpoint.save_adapter(adapter, run.model, **state)
        peft.save_adapter(folder, run.model)
        around = peft.load_adapter(folder, base)
        expected = checkpoint.Checkpoint(around, None, None, 0)

        def load_folder() -> checkpoint.Checkpoint:
            return expected._replace(model=peft.load_adapter(folder, base))

        for file, load, saved in (
            (model, lambda: checkpoint.load(model), run),
            (model, lambda: checkpoint.load(model, memory_map=True), run),
            (adapter, lambda: checkpoint.load_adapter(adapter, base), run),
            (folder / "adapter_config.json", load_folder, expected),
            (folder / "adapter_model.safetensors", load_folder, expected),
        ):
            flip_bits(outcome, file, load, saved, count, rng)
    return outcome


def flip_bits(
    outcome: Outcome,
    file: Path,
    load: Callable[[], checkpoint.Checkpoint],
    saved: checkpoint.Checkpoint,
    count: int,
    rng: np.random.Generator,
) -> None:
    """Flip the bits of one file, one at a time: all of them, or `count` drawn ones."""
    good = file.read_bytes()
    bits = np.arange(8 * len(good))
    for bit in bits if len(bits) <= count else rng.choice(bits, count, replace=False):
        data = bytearray(good)
        data[bit // 8] ^= 1 << int(bit % 8)
        file.write_bytes(data)
        event = f"{file.name}, byte {bit // 8}, bit {bit % 8}"
        try:
            loaded = load()
        except ValueError as error:
            if str(file.parent) in str(error):
                outcome.saw(REFUSED)
            else:
                outcome.wrong(f"{event}: an error that does not name the file: {error}", CRASHED)
        except BaseException as error:  # a panic of safetensors is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome.wrong(f"{event}: {type(error).__name__}: {error}", CRASHED)
        else:
            if same(loaded, saved):
                outcome.saw(SAME)
            else:
                outcome.wrong(f"{event}: accepted, and it is not what was saved", DIFFERING)
    file.write_bytes(good)

"""Files that load as they were saved, or not at all."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")

from test_training import classify, digest, problem

from minidora import nn, training
from minidora.training import checkpoint, data


def models(rng):
    """One of everything that can be saved."""
    base = nn.Transformer.init(9, 8, 2, 2, 5, rng, dropout=0.1)
    plain = nn.MLP.init((4, 6, 3), rng, activation=nn.GELU())
    mixed = {"q": "lora", "v": "dora", "up": "magnitude", "down": "full"}
    return [plain, base, nn.adapt(base, "dora", mixed, rank=2, rng=rng, dropout=0.2, strength=0.5)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_model_comes_back_as_it_was(which, tmp_path):
    rng = np.random.default_rng(0)
    model = models(rng)[which]
    checkpoint.save(tmp_path / "m.safetensors", model)
    back = checkpoint.load(tmp_path / "m.safetensors")
    assert back.optimizer is None and back.rng is None and back.step == 0
    assert digest(nn.parameters(back.model)) == digest(nn.parameters(model))
    assert list(nn.trained(back.model)) == list(nn.trained(model))
    x = rng.integers(9, size=(2, 5)) if which else rng.normal(size=(2, 4)).astype("float32")
    for seed in (None, 1):
        outs = [
            m.forward(x, rng=None if seed is None else np.random.default_rng(seed))[0]
            for m in (model, back.model)
        ]
        np.testing.assert_array_equal(*outs)
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize(
    "optimizer", [training.AdamW(weight_decay=0.1), training.SGD(momentum=0.9)]
)
def test_resuming_equals_going_on_to_the_bit(optimizer, tmp_path):
    def start():
        model, _, rows = problem(1, np.float32)
        rng = np.random.default_rng(2)
        model = nn.adapt(model, "dora", rank=2, rng=rng, dropout=0.1)
        kind = type(optimizer)
        settings = {k: v for k, v in vars(optimizer).items() if k not in ("state", "steps")}
        return model, rows, kind(**settings), rng

    def batches(rows, start=0):
        return data.batches(rows, 32, np.random.default_rng(7), start=start)

    schedule = training.linear(1e-2, 100, warmup=10)
    settings = {"rate": schedule, "progress": False, "clip": 1.0}
    model, rows, opt, rng = start()
    training.fit(model, classify, batches(rows), steps=100, optimizer=opt, rng=rng, **settings)
    expected = digest(nn.parameters(model))

    model, rows, opt, rng = start()
    training.fit(model, classify, batches(rows), steps=50, optimizer=opt, rng=rng, **settings)
    checkpoint.save(tmp_path / "half", model, optimizer=opt, rng=rng, step=50)
    del model, opt, rng
    back = checkpoint.load(tmp_path / "half")
    training.fit(
        back.model,
        classify,
        batches(rows, back.step),
        steps=100,
        start=back.step,
        optimizer=back.optimizer,
        rng=back.rng,
        **settings,
    )
    assert digest(nn.parameters(back.model)) == expected


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_an_adapter_alone_comes_back_around_its_base(method, tmp_path):
    rng = np.random.default_rng(3)
    base = nn.Transformer.init(9, 8, 2, 2, 5, rng)
    model = nn.adapt(base, method, ("q", "v"), rank=2, rng=rng)
    for array in nn.trained(model).values():
        array += 0.1
    checkpoint.save_adapter(tmp_path / "a", model)
    checkpoint.save(tmp_path / "whole", model)
    assert (tmp_path / "a").stat().st_size < 0.8 * (tmp_path / "whole").stat().st_size
    back = checkpoint.load_adapter(tmp_path / "a", base).model
    tokens = rng.integers(9, size=(2, 5))
    np.testing.assert_array_equal(back.forward(tokens)[0], model.forward(tokens)[0])
    assert back.blocks[0].attn.q.W0 is base.blocks[0].attn.q.weight
    other = nn.thaw(base)
    other.blocks[1].up.weight[0, 0] += 1
    with pytest.raises(ValueError, match="a: this adapter belongs to another base: 'blocks.1.up.w"):
        checkpoint.load_adapter(tmp_path / "a", other)
    with pytest.raises(ValueError, match="a: expected a base with an array"):
        checkpoint.load_adapter(tmp_path / "a", nn.MLP.init((2, 3), rng))
    with pytest.raises(ValueError, match="a: expected a file of kind 'model', got 'adapter'; use"):
        checkpoint.load(tmp_path / "a")
    with pytest.raises(ValueError, match="whole: expected a file of kind 'adapter', got 'model'"):
        checkpoint.load_adapter(tmp_path / "whole", base)


def saved(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, nn.MLP.init((4, 6, 3), np.random.default_rng(4)))
    return path, path.read_bytes()


def test_truncated_corrupted_and_foreign_files(tmp_path):
    path, whole = saved(tmp_path)
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"m\.safetensors: not a whole safetensors file"):
            checkpoint.load(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"m\.safetensors: its data do not have the SHA-256"):
        checkpoint.load(path)
    from safetensors.numpy import save_file

    save_file({"a": np.ones(2)}, path)
    with pytest.raises(ValueError, match="not one that minidora wrote"):
        checkpoint.load(path)
    save_file({"a": np.ones(2)}, path, metadata={"minidora": "{"})
    with pytest.raises(ValueError, match="its metadata are damaged"):
        checkpoint.load(path)
    about = json.dumps({"format": 99, "kind": "model", "sha256": ""})
    save_file({"a": np.ones(2)}, path, metadata={"minidora": about})
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, got no such file"):
        checkpoint.load(tmp_path / "nothing")


def test_what_cannot_be_written_is_refused_not_dropped(tmp_path):
    model = nn.LayerNorm.init(3)
    model.eps = np.float32(1e-3)
    with pytest.raises(
        ValueError, match="^model: expected settings of LayerNorm that JSON can hold"
    ):
        checkpoint.save(tmp_path / "m", model)
    mersenne = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(
        ValueError, match="^rng: expected a generator such as .* got one of MT19937"
    ):
        checkpoint.save(tmp_path / "m", nn.LayerNorm.init(3), rng=mersenne)
    assert os.listdir(tmp_path) == []


def test_a_structure_that_does_not_fit_is_refused(tmp_path):
    path, _ = saved(tmp_path)
    about, arrays = checkpoint._read(path, "model")
    del arrays["layers.0.bias"]
    with pytest.raises(ValueError, match=r"m\.safetensors: it cannot be put together"):
        checkpoint._checkpoint(path, about, arrays, arrays)
    about["structure"]["type"] = "os"
    with pytest.raises(ValueError, match="it cannot be put together"):
        checkpoint._checkpoint(path, about, arrays, arrays)


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = nn.MLP.init((4, 6, 3), np.random.default_rng(7))
    model.layers[1].weight[2, 3] = np.nan
    checkpoint.save(tmp_path / "m", model)
    with pytest.raises(ValueError, match=r"m: it cannot .*layers.1.weight: expected finite values"):
        checkpoint.load(tmp_path / "m")


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, whole = saved(tmp_path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, nn.MLP.init((4, 6, 3), np.random.default_rng(5)))
    assert path.read_bytes() == whole and os.listdir(tmp_path) == [path.name]


def test_memory_mapped_arrays_stay_in_the_file_and_a_change_is_noticed(tmp_path):
    path, whole = saved(tmp_path)
    mapped = checkpoint.load(path, memory_map=True).model
    assert all(isinstance(a, np.memmap) for a in nn.parameters(mapped).values())
    assert not any(a.flags.writeable for a in nn.parameters(mapped).values())
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(mapped.forward(x)[0], checkpoint.load(path).model.forward(x)[0])
    checkpoint.verify(path, mapped)
    changed = bytearray(whole)
    changed[-3] ^= 1
    with open(path, "r+b") as file:
        file.write(changed)
    with pytest.raises(ValueError, match=r"m\.safetensors: its data do not have the SHA-256"):
        checkpoint.verify(path, mapped)
    with pytest.raises(ValueError, match=r"its data do not have the SHA-256"):
        checkpoint.load(path, memory_map=True)
    checkpoint.save(path, nn.MLP.init((4, 6, 3), np.random.default_rng(6)))
    with pytest.raises(ValueError, match="is not what this file was saved with"):
        checkpoint.verify(path, mapped)

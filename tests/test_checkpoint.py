"""Files that load as they were saved, or not at all."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")

from test_training import classify, problem

from minidora import nn, training
from minidora._files import digest
from minidora.training import checkpoint, data
from tests.stress import flips


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
    with pytest.raises(ValueError, match="expected format 1 or 2, got 99"):
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

    class MyLinear(nn.Linear):
        pass

    class AdamW(training.AdamW):
        pass

    class PCG64(np.random.PCG64):
        pass

    norm = nn.LayerNorm.init(3)
    wide = nn.Linear(np.ones((2, 3), np.longdouble))
    for save in (checkpoint.save, checkpoint.save_adapter):
        for model, more, message in (
            (MyLinear(np.ones((2, 3))), {}, "^model: expected layers of minidora.nn, got a .*MyLi"),
            (wide, {}, "weight: expected float16, float32 or float64, got "),
            (norm, {"optimizer": AdamW()}, "^optimizer: expected one of AdamW, SGD, got a .*<loc"),
            (norm, {"rng": np.random.Generator(PCG64())}, "^rng: expected a generator of one of"),
            (norm, {"step": -1}, "^step: expected a whole number of at least 0, got -1"),
            (norm, {"step": 1.5}, "^step: expected a whole number of at least 0, got 1.5"),
        ):
            with pytest.raises(ValueError, match=message):
                save(tmp_path / "m", model, **more)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("bits", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_generator_of_numpy_comes_back(bits, tmp_path):
    rng = np.random.Generator(getattr(np.random, bits)(3))
    rng.random(5, np.float32)
    checkpoint.save(tmp_path / "m", nn.LayerNorm.init(3), rng=rng)
    back = checkpoint.load(tmp_path / "m").rng
    assert type(back.bit_generator) is type(rng.bit_generator)
    np.testing.assert_array_equal(back.random(2000, np.float32), rng.random(2000, np.float32))


@pytest.mark.parametrize("form", ["fortran", "big-endian", "strided"])
def test_arrays_in_any_memory_come_back(form, tmp_path):
    forms = {
        "fortran": np.asfortranarray,
        "big-endian": lambda a: a.astype(">f4"),
        "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
    }
    rng = np.random.default_rng(0)
    base = nn.MLP.init((4, 6, 3), rng)
    for layer in base.layers:
        layer.weight = forms[form](layer.weight)
    optimizer = training.AdamW()
    arrays = nn.trained(base)
    optimizer.step(arrays, {name: forms[form](a + 1) for name, a in arrays.items()}, 0.1)
    checkpoint.save(tmp_path / "m", base, optimizer=optimizer, step=np.int64(3))
    back = checkpoint.load(tmp_path / "m")
    assert back.step == 3
    for name, array in arrays.items():
        np.testing.assert_array_equal(nn.parameters(back.model)[name], array)
        for slot in ("first", "second"):
            moment = back.optimizer.state[slot][name]
            np.testing.assert_array_equal(moment, optimizer.state[slot][name])
    model = nn.adapt(base, "dora", rank=2, rng=rng)
    checkpoint.save_adapter(tmp_path / "a", model)
    back = checkpoint.load_adapter(tmp_path / "a", base)
    x = rng.normal(size=(2, 4)).astype("float32")
    np.testing.assert_array_equal(back.model.forward(x)[0], model.forward(x)[0])


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
    with pytest.raises(ValueError, match=r"m: it cannot .*layers.1.weight: expected finite values"):
        checkpoint.save(tmp_path / "m", model)
    assert os.listdir(tmp_path) == []


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
    with pytest.raises(ValueError, match="'layers.0.weight' is not what this file was saved with"):
        checkpoint.verify(path, mapped)


def test_verify_holds_everything_against_the_file(tmp_path):
    rng = np.random.default_rng(0)
    model = nn.adapt(nn.MLP.init((4, 6, 3), rng), "dora", ("layers.0",), rank=2, rng=rng)
    checkpoint.save(tmp_path / "m", model)

    def changed(**settings):
        back = checkpoint.load(tmp_path / "m").model
        back.layers = (replace(back.layers[0], **settings), back.layers[1])
        return back

    checkpoint.verify(tmp_path / "m", changed())
    wide = nn.parameters(model)["layers.0.B"].astype("float64")
    zeros = np.full((6, 2), -0.0, np.float32)
    for settings, named in (
        ({"scale": model.layers[0].scale + 1e-9}, "layer 'layers.0'"),
        ({"bias": None}, "layer 'layers.0'"),
        ({"norm_grad": "detached"}, "layer 'layers.0'"),
        ({"trainable": ("A", "B")}, "layer 'layers.0'"),
        ({"B": wide}, "'layers.0.B'"),
        ({"B": zeros}, "'layers.0.B'"),  # equal, but not to the bit
    ):
        with pytest.raises(ValueError, match=f"m: the model's {named} is not what this file"):
            checkpoint.verify(tmp_path / "m", changed(**settings))
    with pytest.raises(ValueError, match="m: the model's layer 'activation' is not what"):
        back = changed()
        back.activation = nn.GELU()
        checkpoint.verify(tmp_path / "m", back)


def written(path, about, arrays, *, old=False):
    """A file that says `about`, its checksum right; `old`: as format 1 had it."""
    from safetensors.numpy import save_file

    if old:
        about = about | {"format": 1, "sha256": digest(arrays)}
    text = about if isinstance(about, str) else json.dumps(about)
    metadata = {"minidora": text}
    if not old:
        metadata["minidora_sha256"] = digest(arrays, text)
    save_file(arrays, path, metadata=metadata)


def parts(tmp_path, save=checkpoint.save, kind="model"):
    """What a file with everything in it says, and its arrays."""
    base, run = flips.training()
    save(tmp_path / "m", run.model, optimizer=run.optimizer, rng=run.rng, step=7)
    about, arrays = checkpoint._read(tmp_path / "m", kind)
    return about, arrays, run, base


def test_files_of_format_1_are_still_read(tmp_path):
    about, arrays, run, _ = parts(tmp_path)
    written(tmp_path / "old", about, arrays, old=True)
    assert flips.same(checkpoint.load(tmp_path / "old"), run)
    arrays["layers.1.bias"] = arrays["layers.1.bias"] + 1
    from safetensors.numpy import save_file

    text = json.dumps(about | {"format": 1, "sha256": "0" * 64})
    save_file(arrays, tmp_path / "old", metadata={"minidora": text})
    with pytest.raises(ValueError, match="old: its data do not have the SHA-256"):
        checkpoint.load(tmp_path / "old")


def test_a_new_file_does_not_become_an_old_one(tmp_path):
    """Even where both its format and its sum are taken away."""
    about, arrays, _, _ = parts(tmp_path)
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "m", metadata={"minidora": json.dumps(about | {"format": 1})})
    with pytest.raises(ValueError, match="m: its metadata are damaged: KeyError.'sha256'"):
        checkpoint.load(tmp_path / "m")
    save_file(arrays, tmp_path / "m", metadata={"minidora": json.dumps(about)})
    with pytest.raises(ValueError, match="m: its data do not have the SHA-256"):
        checkpoint.load(tmp_path / "m")


def scaled(scale):
    def change(about):
        about["structure"]["layers"]["layers.0"]["settings"]["scale"] = scale

    return change


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update(step=float("inf")), "step: expected a whole number of at least 0"),
        (lambda a: a.update(step=-1), "step: expected a whole number"),
        (lambda a: a["optimizer"].update(steps=float("nan")), "optimizer: steps: expected a whole"),
        (lambda a: a["optimizer"]["settings"].update(update=3), "unexpected keyword"),
        (lambda a: a["rng"].update(bit_generator="seed"), "KeyError.'seed'"),
        (lambda a: a["rng"].update(bit_generator="test"), "KeyError.'test'"),
        (lambda a: a["rng"].update(state=[]), "cannot be put together"),
        (lambda a: a["rng"].update(buffer_pos=10**6), "rng: expected a place inside its buffer"),
        (lambda a: a["rng"]["state"].update(state=10**60), "cannot be put together"),
        (scaled(10**400), "scale: expected a finite number"),
        (scaled(float("nan")), "scale: expected a finite number"),
        (lambda a: a["structure"].update(layers=3), "cannot be put together"),
        (lambda a: a.pop("structure"), "KeyError.'structure'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(tmp_path, change, message, old):
    about, arrays, *_ = parts(tmp_path)
    change(about)
    written(tmp_path / "m", about, arrays, old=old)
    state = np.random.get_state()[1].copy()
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / 'm'))}: .*{message}"):
        checkpoint.load(tmp_path / "m")
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": 2, "step": ' + "9" * 5000 + "}", "[]", "{}", '{"format": 2}'],
)
def test_metadata_that_cannot_be_read_are_refused_by_name(tmp_path, text):
    written(tmp_path / "m", text, {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"/m: its metadata are damaged"):
        checkpoint.load(tmp_path / "m")


def test_an_adapter_without_its_base_named_is_refused(tmp_path):
    about, arrays, _, base = parts(tmp_path, checkpoint.save_adapter, "adapter")
    for relies_on in (None, [], 3):
        written(tmp_path / "m", about | {"relies_on": relies_on}, arrays)
        with pytest.raises(ValueError, match="m: its metadata are damaged: no 'relies_on'"):
            checkpoint.load_adapter(tmp_path / "m", base)


def test_a_failed_load_leaves_the_base_as_it_was(tmp_path):
    about, arrays, _, base = parts(tmp_path, checkpoint.save_adapter, "adapter")
    base = nn.thaw(base)
    scaled(float("inf"))(about)
    written(tmp_path / "m", about, arrays)
    with pytest.raises(ValueError, match="m: it cannot be put together"):
        checkpoint.load_adapter(tmp_path / "m", base)
    assert all(array.flags.writeable for array in nn.parameters(base).values())


def test_what_does_not_train_is_read_only_after_loading(tmp_path):
    _, _, run, _ = parts(tmp_path)
    back = checkpoint.load(tmp_path / "m").model
    writable = {n for n, array in nn.parameters(back).items() if array.flags.writeable}
    assert writable == set(nn.trained(run.model)) == {f"layers.0.{name}" for name in "ABm"}
    with pytest.raises(ValueError, match="read-only"):
        back.layers[0].W0[0, 0] = 1  # which would leave W0_sq as it was


def test_memory_mapped_arrays_may_be_empty_and_must_be_numbers(tmp_path):
    rng = np.random.default_rng(0)
    layer = nn.DoRALinear(
        *(rng.normal(size=(3, 4)), None, np.ones((0, 4)), np.ones((3, 0)), np.ones(3), 1.0)
    )
    checkpoint.save(tmp_path / "m", layer)
    for memory_map in (False, True):
        back = checkpoint.load(tmp_path / "m", memory_map=memory_map).model
        assert back.A.shape == (0, 4) and back.B.shape == (3, 0)
    written(tmp_path / "m", {"format": 2, "kind": "model"}, {"a": np.ones(2, np.int32)})
    with pytest.raises(ValueError, match="m: not a whole .* a: expected floating numbers, got I32"):
        checkpoint.load(tmp_path / "m", memory_map=True)


@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
def test_a_magnitude_alone_is_dora_of_rank_0(norm_axis, tmp_path):
    """Files with the layer that once stood for it come as a DoRALinear without A and B."""
    rng = np.random.default_rng(0)
    base = nn.Linear.init(4, 3, rng)
    m = rng.uniform(1, 2, 3 if norm_axis == "per_output" else 4).astype("float32")
    settings = {"norm_axis": norm_axis, "dropout": 0.5, "strength": 0.25, "trainable": ["m"]}
    layer = {"type": "MagnitudeLinear", "settings": settings, "layers": {}}
    about = {"format": 2, "step": 0, "structure": layer | {"arrays": ["W0", "bias", "m"]}}
    whole = {"W0": base.weight, "bias": base.bias, "m": m}
    written(tmp_path / "m", about | {"kind": "model"}, whole)
    sums = {name: digest({"": a}) for name, a in (("weight", base.weight), ("bias", base.bias))}
    written(tmp_path / "a", about | {"kind": "adapter", "relies_on": sums}, {"m": m})
    x = rng.normal(size=(5, 4)).astype("float32")
    W = W0 = base.weight.astype("float64")
    axis = 1 if norm_axis == "per_output" else 0
    W = np.expand_dims(m, axis) * W0 / np.linalg.norm(W0, axis=axis, keepdims=True)
    for model in (
        checkpoint.load(tmp_path / "m").model,
        checkpoint.load_adapter(tmp_path / "a", base).model,
    ):
        assert type(model) is nn.DoRALinear and model.A.shape == (0, 4) and model.B.shape == (3, 0)
        assert list(nn.trained(model)) == ["m"] and model.strength == 0.25
        expected = x @ (W0 + 0.25 * (W - W0)).T + base.bias
        np.testing.assert_allclose(model.forward(x)[0], expected, rtol=1e-5, atol=1e-6)
    checkpoint.verify(tmp_path / "m", checkpoint.load(tmp_path / "m").model)


def test_an_adapter_that_cannot_be_built_leaves_the_base_as_it_was(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    base = nn.MLP.init((6, 5, 3), rng)
    adapted = nn.adapt(nn.thaw(base), "dora", rank=2, rng=rng)
    checkpoint.save_adapter(tmp_path / "a", adapted)
    build = checkpoint.built

    def built_and_refused(*arguments):
        build(*arguments)  # whose layers have frozen W0
        raise ValueError("no")

    monkeypatch.setattr(checkpoint, "built", built_and_refused)
    with pytest.raises(ValueError, match="no"):
        checkpoint.load_adapter(tmp_path / "a", base)
    assert all(array.flags.writeable for array in nn.parameters(base).values())

"""Adapter folders: to the installed PEFT and back, and everything a folder can have wrong."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from minidora import nn, peft, training
from minidora._files import digest
from minidora.nn import DoRALinear, LoRALinear, Transformer, adapt, merge, walk
from minidora.peft import format, patterns

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
BOUNDS = {"float32": 1e-6, "float64": 1e-10}
TOKENS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def base_of(dtype):
    rng = np.random.default_rng(1)
    return Transformer.init(11, 16, 2, 2, 6, rng, dtype=np.dtype(dtype))


def adapted(base, method, **more):
    """Adapters that have moved, of two ranks."""
    rng = np.random.default_rng(2)
    targets = {"q": {}, "v": {}, "blocks.1.v": {"rank": 3, "alpha": 5}, "up": {"alpha": 12}}
    targets["blocks.1.attn.v"] = targets.pop("blocks.1.v")
    more = {"rank": 2, "alpha": 8, "rng": rng, "dropout": 0.1} | more
    model = adapt(base, method, targets, **more)
    for name, array in nn.parameters(model).items():
        if name.endswith((".B", ".m")):
            array.flags.writeable = True
            array += 0.3 * rng.normal(size=array.shape)
    return model


def layers(model):
    return {p: la for p, la in walk(model) if isinstance(la, LoRALinear | DoRALinear)}


def same(a, b):
    """Whether two models have the same adapters, to the bit."""
    first, second = layers(a), layers(b)
    assert first.keys() == second.keys() and first
    for path, layer in first.items():
        other = second[path]
        assert type(layer) is type(other) and layer.dropout == other.dropout
        assert layer.scale == pytest.approx(other.scale, rel=1e-14)
        for name in ("A", "B", "m", "W0", "bias"):
            if hasattr(layer, name):
                mine, its = getattr(layer, name), getattr(other, name)
                assert mine is its is None or np.array_equal(mine, its), (path, name)
    return True


@pytest.fixture
def folder(tmp_path):
    """A DoRA adapter and the base it is for."""
    base = base_of("float32")
    peft.save_adapter(tmp_path / "adapter", adapted(base, "dora"))
    return tmp_path / "adapter", base


# round trips


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_what_is_saved_comes_back(tmp_path, method, rslora):
    base = base_of("float32")
    model = adapted(base, method, rslora=rslora)
    peft.save_adapter(tmp_path / "a", model, rslora=rslora)
    base = base_of("float32")  # one that `adapt` has not frozen
    loaded = peft.load_adapter(tmp_path / "a", base)
    assert same(model, loaded)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 8, rslora)
    assert config["rank_pattern"] == {"blocks.1.attn.v": 3}
    up = {f"blocks.{i}.up": 12 for i in (0, 1)}
    assert config["alpha_pattern"] == pytest.approx({"blocks.1.attn.v": 5} | up)
    assert type(config["lora_alpha"]) is int
    trained = {name.rpartition(".")[2] for name in nn.trained(loaded)}
    assert trained == ({"A", "B", "m"} if method == "dora" else {"A", "B"})
    with pytest.raises(ValueError, match="read-only"):
        base.head.weight += 1
    if method == "dora":
        assert {la.norm_grad for la in layers(loaded).values()} == {"exact"}
        detached = peft.load_adapter(tmp_path / "a", base, norm_grad="detached")
        assert {la.norm_grad for la in layers(detached).values()} == {"detached"}


def twin_and_peft():
    pytest.importorskip("torch", reason="needs PyTorch")
    return pytest.importorskip("peft", reason="needs PEFT: pip install peft")


def twin(base):
    from twin import twin_of

    return twin_of(merge(base)).eval().requires_grad_(False)


def logits(module):
    import torch

    with torch.no_grad():
        return module(torch.from_numpy(TOKENS)).numpy()


def close(got, expected, bound):
    assert got.dtype == expected.dtype
    return np.abs(got - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_installed_peft_loads_it_around_the_twin(tmp_path, method, rslora, dtype):
    """The logits of minidora's model and of PEFT's agree, rank and alpha patterns included."""
    hf = twin_and_peft()
    base = base_of(dtype)
    model = adapted(base, method, rslora=rslora)
    peft.save_adapter(tmp_path / "a", model, rslora=rslora, base_model="surnames")
    loaded = hf.PeftModel.from_pretrained(twin(base), str(tmp_path / "a"))
    expected = model.forward(TOKENS)[0]
    assert close(logits(loaded.eval()), expected, BOUNDS[dtype])
    assert not close(logits(twin(base)), expected, 1e-2)
    kinds = {type(m).__name__ for m in loaded.modules() if hasattr(m, "lora_A")}
    assert kinds == {"Linear"}
    settings = loaded.peft_config["default"]
    assert settings.use_dora is (method == "dora") and settings.lora_dropout == 0.1


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_the_installed_peft_saves_is_loaded(tmp_path, dora, rslora, dtype):
    hf = twin_and_peft()
    import torch

    base = base_of(dtype)
    config = hf.LoraConfig(
        r=2,
        lora_alpha=7,
        target_modules=["q", "v", "down"],
        rank_pattern={"down": 4, "blocks.0.attn.q": 1},
        alpha_pattern={r"blocks\.1\.attn\.(q|v)": 3},
        use_dora=dora,
        use_rslora=rslora,
    )
    torch.manual_seed(0)
    model = hf.get_peft_model(twin(base), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(str(tmp_path / "hf"))
    loaded = peft.load_adapter(tmp_path / "hf", base)
    assert close(loaded.forward(TOKENS)[0], logits(model), BOUNDS[dtype])
    assert {path: len(la.A) for path, la in layers(loaded).items()} == {
        "blocks.0.attn.q": 1,
        "blocks.0.attn.v": 2,
        "blocks.0.down": 4,
        "blocks.1.attn.q": 2,
        "blocks.1.attn.v": 2,
        "blocks.1.down": 4,
    }
    # and out again: the same keys, shapes and dtypes as PEFT writes
    peft.save_adapter(tmp_path / "ours", loaded, rslora=rslora)
    theirs, ours = (arrays_of(tmp_path / name) for name in ("hf", "ours"))
    assert theirs.keys() == ours.keys() and any("magnitude" in key for key in ours) is dora
    assert all(np.array_equal(theirs[key], ours[key]) for key in ours)
    assert all(theirs[key].dtype == ours[key].dtype for key in ours)
    again = hf.PeftModel.from_pretrained(twin(base), str(tmp_path / "ours")).eval()
    assert close(logits(again), logits(model), BOUNDS[dtype])


def arrays_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_bfloat16_arrays_come_as_float32(folder):
    twin_and_peft()
    import torch
    from safetensors.torch import load_file, save_file

    path, base = folder
    halves = {k: v.bfloat16() for k, v in load_file(path / "adapter_model.safetensors").items()}
    save_file(halves, path / "adapter_model.safetensors")
    loaded = peft.load_adapter(path, base)
    key = "base_model.model.blocks.0.attn.q.lora_A.weight"
    A = layers(loaded)["blocks.0.attn.q"].A
    assert A.dtype == np.float32 and torch.equal(torch.from_numpy(A).bfloat16(), halves[key])


def test_all_linear_and_patterns_and_older_magnitude_keys(folder):
    path, base = folder
    change(path, target_modules="all-linear")
    assert layers(peft.load_adapter(path, base))
    change(path, target_modules=r".*\.(q|v|up)", exclude_modules=["head"])
    assert layers(peft.load_adapter(path, base))
    rename(path, lambda key: key + ".weight" if key.endswith("vector") else key)
    assert layers(peft.load_adapter(path, base))


# what cannot be written


def without(model, path, **more):
    """The model with one layer changed."""
    from minidora.nn.layer import rebuilt

    return rebuilt(model, lambda p, layer: replace(layer, **more) if p == path else layer)


def test_models_that_a_peft_folder_cannot_hold(tmp_path):
    base, rng = base_of("float32"), np.random.default_rng(0)
    dora = adapted(base, "dora")
    q = "blocks.0.attn.q"
    mixed = adapt(base, "dora", {"q": {}, "v": "lora"}, rank=2, rng=rng)
    biased = adapt(base, "lora", ("q",), rank=2, rng=rng, train=("A", "B", "bias"))
    per_input = adapt(base, "dora", ("q",), rank=2, rng=rng, norm_axis="per_input")
    for model, message in (
        (base, "model: expected LoRALinear or DoRALinear layers, got none"),
        (adapt(base, "magnitude", ("q",)), "blocks.0.attn.q: PEFT has no layer that trains a"),
        (adapt(base, "dora", {"q": {}, "v": "magnitude"}, rng=rng), "attn.v: PEFT has no layer"),
        (mixed, r"one for all kinds of layers, got \['DoRALinear', 'LoRALinear'\]"),
        (per_input, "norm_axis: PEFT has 'per_output', got 'per_input'"),
        (nn.set_strength(dora, 0.5), "strength: PEFT has 1, got 0.5"),
        (without(dora, q, dropout=0.5), r"all dropout rates, got \[0.1, 0.5\]"),
        (biased, r"trainable: .* got \['blocks.0.attn.q.bias'"),
        (adapt(base, "dora", {"q": {}, "head": "full"}, rng=rng), "got .'head.weight'. too"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.save_adapter(tmp_path / "a", model)
        assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_is_left_alone(tmp_path):
    model = adapted(base_of("float32"), "dora")
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "real").mkdir()
    with pytest.raises(FileExistsError, match="expected a new folder, got something that is"):
        peft.save_adapter(tmp_path / "thesis.txt", model)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["real", "thesis.txt"]
    with pytest.raises(TypeError, match="base: expected a network of minidora, got dict"):
        peft.load_adapter(tmp_path / "real", {})


def test_what_a_killed_process_left_is_swept_and_the_rest_stays(folder):
    path, base = folder
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (path / f".{name}.{'0f' * 16}.partial").write_text("{")
    (path / "README.md").mkdir()  # what PEFT writes is a file
    (path / "README.md" / "thesis.tex").write_text("mine")
    (path / "adapter_model.bin").write_text("another adapter's")
    model = adapted(base, "lora")
    peft.save_adapter(path, model)
    assert same(peft.load_adapter(path, base), model)
    assert (path / "README.md" / "thesis.tex").read_text() == "mine"
    assert sorted(p.name for p in path.iterdir()) == ["README.md", CONFIG, ARRAYS]
    with pytest.raises(FileNotFoundError, match="nowhere/a: expected a name in a folder"):
        peft.save_adapter(path / "nowhere" / "a", model)


posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@posix
def test_the_folder_itself_is_never_renamed_nor_deleted(folder, tmp_path, monkeypatch):
    """So it may be the working folder, a mount point, or a link to a folder elsewhere."""
    path, base = folder
    inode, model = path.stat().st_ino, adapted(base, "lora")
    monkeypatch.chdir(path)
    peft.save_adapter(".", model)
    assert os.getcwd() == str(path) and path.stat().st_ino == inode
    (tmp_path / "link").symlink_to(path)
    peft.save_adapter(tmp_path / "link", model)
    assert (tmp_path / "link").is_symlink() and same(peft.load_adapter(".", base), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "link"]


@posix
def test_a_new_folder_has_the_umasks_mode(tmp_path):
    model, before = adapted(base_of("float32"), "dora"), os.umask(0o077)
    try:
        peft.save_adapter(tmp_path / "a", model)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "a", tmp_path / "a" / CONFIG)]
    assert modes == [0o700, 0o600]


KILLED = """
import os, sys
from minidora import peft
from tests.test_peft import adapted, base_of
path, at = sys.argv[1], int(sys.argv[2])
replace, calls = os.replace, []
def killed(*names):
    calls.append(names)
    if len(calls) > at:
        os._exit(9)
    replace(*names)
os.replace = killed
peft.save_adapter(path, adapted(base_of("float32"), "dora", alpha=3, rank=1))
"""


@posix
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_the_old_adapter_or_the_new_one(folder, at):
    path, base = folder
    tests = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(tests), tests])}
    command = [sys.executable, "-c", KILLED, str(path), str(at)]
    assert subprocess.run(command, env=environment).returncode == (0 if at == 2 else 9)
    old, new = adapted(base, "dora"), adapted(base, "dora", alpha=3, rank=1)
    assert same(peft.load_adapter(path, base), new if at else old)
    settings = json.loads((path / CONFIG).read_text())
    assert settings["lora_alpha"] == (3 if at == 2 else 8)  # PEFT reads what is there
    left = [p.name for p in path.iterdir() if p.name not in (CONFIG, ARRAYS)]
    assert len(left) == 2 - at
    if at == 1:  # the settings are those in the arrays' file, and they are held to its sum too
        file = path / CONFIG
        file.write_bytes(file.read_bytes().replace(b'"r": 2', b'"r": 3'))
        with pytest.raises(ValueError, match="adapter_config.json: it is not the one"):
            peft.load_adapter(path, base)
    peft.save_adapter(path, old)
    assert same(peft.load_adapter(path, base), old)
    assert sorted(p.name for p in path.iterdir()) == [CONFIG, ARRAYS]


def test_settings_that_stay_the_same_are_not_written_again(folder, monkeypatch):
    """Then there is one rename only, and PEFT too sees the old adapter or the new one."""
    path, base = folder
    renamed, replace_file = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *n: (renamed.append(n[1]), replace_file(*n)))
    peft.save_adapter(path, peft.load_adapter(path, base))
    assert [os.path.basename(name) for name in renamed] == [ARRAYS]
    peft.save_adapter(path, adapted(base, "dora", alpha=3))
    assert [os.path.basename(name) for name in renamed[1:]] == [ARRAYS, CONFIG]


def test_settings_that_change_while_they_are_read_are_read_again(folder, tmp_path, monkeypatch):
    path, base = folder
    newer = adapted(base, "dora", alpha=3)
    peft.save_adapter(tmp_path / "newer", newer)
    read, once = format._with_arrays, []

    def meanwhile(*arguments):
        if not once:  # another process has saved twice since the settings were read
            once.append(shutil.copytree(tmp_path / "newer", path, dirs_exist_ok=True))
        return read(*arguments)

    monkeypatch.setattr(format, "_with_arrays", meanwhile)
    assert same(peft.load_adapter(path, base), newer) and once


def test_folders_with_the_older_sums_are_still_read(folder):
    """Two sums, of adapter_config.json and of the arrays, and no settings beside the arrays."""
    from safetensors.numpy import save_file

    path, base = folder
    text, arrays = (path / CONFIG).read_bytes(), arrays_of(path)
    sums = {"config": hashlib.sha256(text).hexdigest(), "arrays": digest(arrays)}
    save_file(arrays, path / ARRAYS, metadata={"minidora_sha256": json.dumps(sums)})
    assert same(peft.load_adapter(path, base), adapted(base, "dora"))
    (path / CONFIG).write_bytes(text.replace(b'"lora_alpha": 8', b'"lora_alpha": 9'))
    with pytest.raises(ValueError, match="adapter_config.json: it is not the one that was saved"):
        peft.load_adapter(path, base)
    (path / CONFIG).write_bytes(text)
    save_file(arrays, path / ARRAYS, metadata={"minidora_sha256": "[" * 10_000})
    with pytest.raises(ValueError, match="adapter_model.safetensors: its checksums are damaged"):
        peft.load_adapter(path, base)


# the types of numbers


def test_a_float16_folder_trains_in_float32(folder):
    path, base = folder
    for name in ("lora_A", "lora_B", "magnitude"):
        for key in [key for key in arrays_of(path) if name in key]:
            put(path, key.removeprefix("base_model.model."), lambda a: a.astype(np.float16))
    model = peft.load_adapter(path, base)
    arrays = nn.trained(model)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    before = {name: array.copy() for name, array in arrays.items()}
    gradients = {name: np.full_like(array, 1e-5) for name, array in arrays.items()}
    training.AdamW().step(arrays, gradients, 1e-3)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, before[name] - 1e-3, atol=2e-6)


def test_big_endian_arrays_are_written_and_long_doubles_refused(folder, tmp_path):
    path, base = folder
    model = peft.load_adapter(path, base)
    big = without(model, Q, **{n: getattr(layers(model)[Q], n).astype(">f4") for n in "ABm"})
    peft.save_adapter(tmp_path / "big", big)
    assert same(peft.load_adapter(tmp_path / "big", base), model)
    wide = without(model, Q, m=layers(model)[Q].m.astype(np.longdouble))
    with pytest.raises(ValueError, match=f"{Q}: m: expected float16, float32 or float64, got"):
        peft.save_adapter(tmp_path / "wide", wide)
    layers(model)[Q].B[0, 0] = np.nan
    with pytest.raises(ValueError, match=f"{Q}: B: expected finite values"):
        peft.save_adapter(tmp_path / "wide", model)
    assert not (tmp_path / "wide").exists()


def test_names_that_a_pattern_cannot_tell_apart_are_refused(tmp_path):
    """PEFT's pattern q means x.q too: of two ranks only one could be said."""

    def one(rank):
        return format.Adapter(np.ones((rank, 4)), np.ones((3, rank)), np.ones(3), 1.0, 0.0)

    layers = {"q": one(2), "x.q": one(4), "y.q": one(4)}
    with pytest.raises(ValueError, match="model: the name 'x.q' is ambiguous"):
        format.write_adapters(tmp_path / "a", layers)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(folder, tmp_path):
    path, base = folder
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    model = adapted(base, "lora")
    (path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new folder, got one with 'thesis.tex'"):
        peft.save_adapter(path, model)
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.name in before} == before
    (path / "thesis.tex").unlink()
    peft.save_adapter(path, model)
    assert same(peft.load_adapter(path, base), model)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_adapter_or_the_new_one(folder, monkeypatch, call, at):
    """The old one, but where the last rename of all fails."""
    path, base = folder
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    calls, working = [], getattr(os, call)

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise OSError("the disk is gone")
        working(*arguments)

    new = adapted(base, "lora")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="adapter"):
        peft.save_adapter(path, new)
    with pytest.raises(OSError, match="adapter"):
        calls.clear()
        peft.save_adapter(path.with_name("fresh"), new)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == ["adapter"]
    if (call, at) == ("replace", 1):
        assert same(peft.load_adapter(path, base), new)
    else:
        assert {p.name: p.read_bytes() for p in path.iterdir()} == before


# what cannot be read


def change(path, **settings):
    rename(path, lambda key: key)  # which leaves no checksum, as PEFT leaves none
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def rename(path, new):
    from safetensors.numpy import save_file

    save_file({new(k): v for k, v in arrays_of(path).items()}, path / "adapter_model.safetensors")


def drop(path, name):
    from safetensors.numpy import save_file

    kept = {k: v for k, v in arrays_of(path).items() if name not in k}
    save_file(kept, path / "adapter_model.safetensors")


def put(path, name, value):
    from safetensors.numpy import save_file

    arrays = arrays_of(path)
    key = f"base_model.model.{name}"
    arrays[key] = value(arrays.get(key))
    save_file(arrays, path / "adapter_model.safetensors")


Q = "blocks.0.attn.q"


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("peft_type", "IA3", "expected 'LORA', got 'IA3'"),
        ("bias", "all", "expected 'none'"),
        ("bias", "lora_only", "expected 'none'"),
        ("init_lora_weights", "pissa", "got 'pissa'"),
        ("init_lora_weights", "olora", "got 'olora'"),
        ("r", 0, "expected a whole number above 0, got 0"),
        ("r", "2", "got '2'"),
        ("r", True, "got True"),
        ("lora_alpha", None, "expected a number, got None"),
        ("lora_alpha", float("nan"), "expected a number, got nan"),
        ("lora_alpha", 10**400, "expected a number, got 1000"),
        ("lora_dropout", 2**64, "expected 0 to below 1, got 18446744073709551616"),
        ("lora_dropout", 10**400, "expected 0 to below 1"),
        ("alpha_pattern", {"q": 10**400}, "names with numbers"),
        ("rank_pattern", {"(a*)*X": 2}, "whole numbers above 0, .*after something that repeats"),
        ("rank_pattern", {r"(q)\1": 2}, "names with whole numbers above 0, .*simple pattern"),
        ("target_modules", "(?:(?:.*)*)+X", "one pattern, .*after something that repeats"),
        ("exclude_modules", ".*" * 21, "one pattern, .*more than 20 repeats"),
        ("lora_dropout", 1.0, "expected 0 to below 1, got 1.0"),
        ("use_dora", "yes", "expected true or false, got 'yes'"),
        ("use_rslora", 1.5, "expected true or false"),
        ("rank_pattern", {"q": 0}, "names with whole numbers above 0"),
        ("rank_pattern", {"(": 2}, "names with whole numbers above 0"),
        ("rank_pattern", [2], "names with whole numbers above 0"),
        ("alpha_pattern", {"q": "8"}, "names with numbers"),
        ("target_modules", None, "a list of names, or one pattern"),
        ("target_modules", "(", "a list of names, or one pattern"),
        ("target_modules", [1], "a list of names, or one pattern"),
        ("modules_to_save", ["head"], r"not supported by minidora, got \['head'\]"),
        ("layers_to_transform", [0], "not supported by minidora"),
        ("layer_replication", [[0, 1]], "not supported by minidora"),
        ("lora_bias", True, "not supported by minidora"),
        ("use_qalora", True, "not supported by minidora"),
        ("target_parameters", ["table"], "not supported by minidora"),
        ("trainable_token_indices", [3], "not supported by minidora"),
        ("alora_invocation_tokens", [3], "not supported by minidora"),
        ("use_of_2027", {"on": 1}, "not supported by minidora"),
    ],
)
def test_settings_that_are_refused_by_name(folder, name, value, message):
    path, base = folder
    change(path, **{name: value})
    with pytest.raises(ValueError, match=f"adapter_config.json: {name}: .*{message}"):
        peft.load_adapter(path, base)


def test_large_numbers_and_patterns_with_many_ways_through_them_are_read(folder):
    path, base = folder
    change(path, lora_alpha=2**64, alpha_pattern={"(.|.|.|.|.|.|.|.)*X": 1, "v": 2**70})
    scales = {path: layer.scale for path, layer in layers(peft.load_adapter(path, base)).items()}
    assert scales[Q] == 2.0**63 and scales["blocks.1.attn.v"] == 2**70 / 3


def test_patterns_mean_what_they_mean_to_python():
    pieces = [
        *"ab.*+?()|^$1",
        r"\.",
        r"\d",
        "[ab]",
        "[^a]",
        "(?:",
        "(?!",
        "(?=",
        "{2}",
        "{1,2}",
        "*?",
    ]
    rng, read = np.random.default_rng(0), 0
    for _ in range(6000):
        pattern = "".join(rng.choice(pieces, rng.integers(1, 9)))
        try:
            patterns.parsed(pattern)
        except ValueError:
            continue
        read += 1
        whole, end = re.compile(pattern), re.compile(rf"(.*\.)?({pattern})$")
        for _ in range(4):
            name = "".join(rng.choice([*"ab.1"], rng.integers(0, 7)))
            assert patterns.matches(pattern, name) == bool(whole.fullmatch(name)), (pattern, name)
            assert patterns.matches_end(pattern, name) == bool(end.match(name)), (pattern, name)
    assert read > 500
    for pattern in (
        r".*\.(q|v)_proj",
        r"^model\.layers\.(?:[0-9]|1[0-9])\.self_attn.(q|k|v)_proj$",
        r"^(?!.*(?:visual|head$)).*(?:q_proj|v_proj).*",
        r"layers\.\d+\.mlp",
    ):
        patterns.parsed(pattern)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: change(p, r=4, rank_pattern={}), "expected rank 4, by r or rank_pattern"),
        (lambda p: change(p, rank_pattern={}), "blocks.1.attn.v: expected rank 2"),
        (lambda p: change(p, use_dora=False), "got '.*lora_magnitude_vector'"),
        (lambda p: change(p, target_modules=["q", "v"]), "does not mean 'blocks.0.up'"),
        (
            lambda p: change(p, target_modules=["q", "v", "up", "down"]),
            "expected arrays for 'blocks.0.down'",
        ),
        (lambda p: change(p, exclude_modules=["up"]), "does not mean 'blocks.0.up'"),
        (lambda p: change(p, target_modules="all-linear", exclude_modules=["up"]), "not mean"),
        (lambda p: drop(p, f"{Q}.lora_A"), f"expected 'base_model.model.{Q}.lora_A.weight'"),
        (lambda p: drop(p, f"{Q}.lora_m"), f"expected 'base_model.model.{Q}.lora_magnitude"),
        (lambda p: drop(p, f"{Q}."), f"expected arrays for '{Q}'"),
        (lambda p: drop(p, "base_model"), "expected arrays for"),
        (lambda p: put(p, f"{Q}.lora_C.weight", lambda _: np.ones(2)), "got '.*lora_C.weight'"),
        (lambda p: put(p, "tok.lora_embedding_A", lambda _: np.ones(2)), "lora_embedding_A"),
        (lambda p: put(p, "tok.lora_A.weight", lambda _: np.ones((2, 2))), "no linear layer 'tok'"),
        (lambda p: put(p, "blocks.7.up.lora_A.weight", lambda _: np.ones(2)), "'blocks.7.up'"),
        (lambda p: rename(p, lambda k: k.replace("base_model.", "")), "expected keys base_model"),
        (
            lambda p: put(p, f"{Q}.lora_magnitude_vector.weight", lambda _: np.ones(16)),
            "expected one key for 'm' of a layer",
        ),
        (lambda p: put(p, f"{Q}.lora_A.weight", lambda a: a[:, :5]), f"{Q}: A: expected shape"),
        (lambda p: put(p, f"{Q}.lora_A.weight", lambda a: a[0]), r"got A \(16,\)"),
        (lambda p: put(p, f"{Q}.lora_B.weight", lambda a: a.T), f"{Q}: B: expected shape"),
        (lambda p: put(p, f"{Q}.lora_magnitude_vector", lambda a: a[1:]), f"{Q}: m: expected"),
        (
            lambda p: put(p, f"{Q}.lora_B.weight", lambda a: a * np.float32("nan")),
            f"{Q}: B: expected finite values",
        ),
        (
            lambda p: put(p, f"{Q}.lora_B.weight", lambda a: a.astype(np.int64)),
            "expected floating numbers, got I64",
        ),
    ],
)
def test_folders_that_do_not_fit(folder, damage, message):
    path, base = folder
    before = {name: a.copy() for name, a in nn.parameters(base).items()}
    damage(path)
    with pytest.raises(ValueError, match=f"adapter.*{message}"):
        peft.load_adapter(path, base)
    assert all(np.array_equal(before[n], a) for n, a in nn.parameters(base).items())


def cut(name, length):
    def damage(path):
        file = path / name
        file.write_bytes(file.read_bytes()[:length])

    return damage


def swap(name, data):
    return lambda path: (path / name).write_bytes(data)


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut(ARRAYS, 1000), "adapter_model.safetensors: not a whole safetensors file"),
        (cut(ARRAYS, -1), "adapter_model.safetensors: not a whole safetensors file"),
        (cut(ARRAYS, 0), "adapter_model.safetensors: not a whole safetensors file"),
        (swap(ARRAYS, b"\x80\x04K\x01."), "adapter_model.safetensors: not a whole"),
        (cut(CONFIG, 40), "adapter_config.json: expected JSON"),
        (swap(CONFIG, b"\xff\xfe"), "adapter_config.json: expected JSON"),
        (swap(CONFIG, b"[]"), "adapter_config.json: expected a JSON object, got list"),
        (swap(CONFIG, b"[" * 100_000), "adapter_config.json: expected JSON"),
    ],
)
def test_damaged_files(folder, damage, message):
    path, base = folder
    change(path)  # without sums, as PEFT leaves it
    damage(path)
    with pytest.raises(ValueError, match=message):
        peft.load_adapter(path, base)


def test_checksums_notice_what_makes_sense_otherwise(folder):
    """A scale or a number that is another: only for what minidora itself has written."""
    path, base = folder
    file = path / CONFIG
    good = file.read_text()
    file.write_text(good.replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(ValueError, match="adapter_config.json: it is not the one that was saved"):
        peft.load_adapter(path, base)
    file.write_text(good)
    data = bytearray((path / ARRAYS).read_bytes())
    data[-1] ^= 1  # the last bit of the last number's exponent
    (path / ARRAYS).write_bytes(data)
    with pytest.raises(ValueError, match="its arrays do not have the SHA-256"):
        peft.load_adapter(path, base)
    (path / ARRAYS).write_bytes(bytes(data).replace(b"minidora_sha256", b"minidora_sha257"))
    with pytest.raises(
        ValueError, match=r"metadata of PEFT or of minidora, got \['minidora_sha257"
    ):
        peft.load_adapter(path, base)
    change(path, lora_alpha=9)  # PEFT's own folders have no checksum
    assert peft.load_adapter(path, base)


def test_missing_files_and_pickles(folder, tmp_path):
    path, base = folder
    (path / ARRAYS).rename(path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"\(adapter_model.bin is a pickle, which is never"):
        peft.load_adapter(path, base)
    (path / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json: expected a PEFT adapter"):
        peft.load_adapter(path, base)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        peft.load_adapter(tmp_path / "nowhere", base)
    with pytest.raises(ValueError, match="norm_grad: expected 'exact' or 'detached', got 'none'"):
        peft.load_adapter(path, base, norm_grad="none")


def test_a_base_that_is_not_finite_is_refused(folder):
    path, base = folder
    base = nn.thaw(base)
    base.blocks[0].up.weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="base: blocks.0.up.weight: expected finite values"):
        peft.load_adapter(path, base)
    assert base.blocks[0].up.weight.flags.writeable


def test_a_name_that_ends_like_another_is_told_apart(tmp_path):
    """layers.1 and layers.11: PEFT matches whole parts of a name."""
    rng = np.random.default_rng(0)
    base = nn.MLP.init((4,) * 13 + (2,), rng)
    model = adapt(base, "lora", {"layers.1": {"rank": 3}, "layers.11": {"rank": 1}}, rng=rng)
    peft.save_adapter(tmp_path / "a", model)
    assert same(model, peft.load_adapter(tmp_path / "a", base))
    shutil.rmtree(tmp_path / "a")


def test_a_folder_that_does_not_fit_leaves_the_base_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    adapted = nn.adapt(nn.MLP.init((6, 5, 3), rng), "dora", rank=2, rng=rng)
    peft.save_adapter(tmp_path / "adapter", adapted)
    base = nn.MLP.init((6, 5, 4), rng)  # its first layer fits, its second does not
    with pytest.raises(ValueError, match="expected shape"):
        peft.load_adapter(tmp_path / "adapter", base)
    assert all(array.flags.writeable for array in nn.parameters(base).values())

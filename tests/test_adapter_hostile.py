"""Adapters and models that somebody made to do harm, or that a disk has damaged: errors by name."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")

from minidora import nn, peft
from minidora.__main__ import main
from minidora._files import digest
from minidora.adapter.findings import check
from minidora.adapter.formats import weights_of
from minidora.adapter.report import report
from minidora.training import checkpoint
from tests.stress.corrupt import corrupted, model

FIXTURES = Path(__file__).parent / "adapters"
CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
A = "base_model.model.x.lora_A.weight"
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture
def folder(tmp_path):
    """A good folder, with its base in it."""
    return Path(shutil.copytree(FIXTURES / "peft_llama", tmp_path / "adapter"))


def safetensors(header, data=b"\0" * 8, length=None):
    """A file of that header, which is text or JSON."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes):
    """A header with one tensor of eight bytes, changed."""
    return {A: {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]} | changes}


def refused(folder, name, capsys, base="base"):
    """Both commands end with 2 and a line that names the file, and leave the files asked for."""
    kept = folder.parent / "kept.json"
    for command in ("check", "report"):
        kept.write_text("kept")
        arguments = [str(folder), "--base", str(folder / base), "--json", str(kept)]
        with pytest.raises(SystemExit) as stopped:
            main(["adapter", command, *arguments])
        out, err = capsys.readouterr()
        assert (stopped.value.code, out, kept.read_text()) == (2, "", "kept")
        assert err.startswith(f"minidora adapter {command}: ") and len(err.splitlines()) == 1
        assert str(name) in err and err[:-1].isprintable()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, "kept.json"]


HEADERS = {
    "nothing": b"",
    "seven bytes": b"\1" * 7,
    "an absurd length": safetensors(one(), length=2**63 - 1),
    "a length beyond the file": safetensors(one(), length=10_000),
    "a header larger than any": safetensors(one(), length=2**25 + 1),
    "no JSON": safetensors("{..."),
    "a list": safetensors("[]"),
    "a number": safetensors("1"),
    "deep": safetensors("[" * 100_000),
    "no tensors": safetensors({}, b""),
    "null for a tensor": safetensors({A: None}),
    "cut data": safetensors(one(), b"\0" * 7),
    "more data": safetensors(one(), b"\0" * 9),
    "overlapping": safetensors(one() | {"b": one()[A]}),
    "overlapping in part": safetensors(one() | {"b": one(data_offsets=[4, 12])[A]}, b"\0" * 12),
    "a hole": safetensors(one(data_offsets=[4, 12]), b"\0" * 12),
    "backwards": safetensors(one(data_offsets=[8, 0])),
    "negative": safetensors(one(data_offsets=[-8, 0])),
    "beyond": safetensors(one(data_offsets=[2**60, 2**60 + 8])),
    "one offset": safetensors(one(data_offsets=[0])),
    "a huge shape": safetensors(one(shape=[2**62, 2**62])),
    "a shape that overflows to fit": safetensors(one(shape=[2**62, 4])),
    "a shape of another size": safetensors(one(shape=[1, 3])),
    "a negative shape": safetensors(one(shape=[-1, -2])),
    "a shape of halves": safetensors(one(shape=[0.5, 4])),
    "an unknown type": safetensors(one(dtype="F33")),
    "no type": safetensors(one(dtype=None)),
    "metadata that are none": safetensors(one() | {"__metadata__": [1]}),
    "nobody's keys": safetensors({"x\x1b[31m\nlora": one()[A]}),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_headers_that_lie(data, folder, capsys):
    (folder / ARRAYS).write_bytes(data)
    refused(folder, folder / ARRAYS, capsys)


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_headers_of_shards_that_lie(data, folder, capsys):
    if data == HEADERS["no tensors"] or b"\\n" in data:
        data = safetensors(one())  # whole, without what the index promises
    shard = folder / "base" / "model-00002-of-00002.safetensors"
    shard.write_bytes(data)
    refused(folder, shard, capsys)


SETTINGS = {
    "no JSON": "{",
    "a list": "[]",
    "of another kind": "{}",
    "deep": '{"peft_type": ' + "[" * 100_000,
    "no rank": {"r": None},
    "a rank of halves": {"r": 0.5},
    "a huge rank": {"r": 10**400, "lora_alpha": 8.5},
    "too many digits": '{"peft_type": "LORA", "r": ' + "1" * 5000 + "}",
    "alpha not a number": '{"peft_type": "LORA", "r": 1, "lora_alpha": NaN}',
    "alpha infinite": '{"peft_type": "LORA", "r": 1, "lora_alpha": 1e999}',
    "a pattern that never ends": {"rank_pattern": {"(a+)+" * 9 + "$": 2}},
    "a pattern that is none": {"rank_pattern": 7},
    "patterns without end": {"alpha_pattern": {f"x{i}": 1 for i in range(10_001)}},
    "another method": {"peft_type": "\x1b[31mLOHA\n"},
    "mlx-lm's without a rank": '{"lora_parameters": null}',
    "mlx-lm's scale": '{"lora_parameters": {"rank": 2, "scale": 1e999}}',
    "larger than any": {"task_type": " " * 2**25},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_lie(settings, folder, capsys):
    if isinstance(settings, dict):
        settings = json.dumps(json.loads((folder / CONFIG).read_text()) | settings)
    (folder / CONFIG).write_text(settings)
    refused(folder, folder / CONFIG, capsys)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        "\0",
        7,
        None,
        ["a"],
        "no\x1b",
    ],
    ids=repr,
)
def test_an_index_that_leads_elsewhere(name, folder, capsys):
    shard = folder / "base" / "model-00001-of-00002.safetensors"
    for there in ("../x.safetensors", "a/b", "a\\b"):  # where the names lead on some system
        (folder / "base" / there).parent.mkdir(exist_ok=True)
        shutil.copy(shard, folder / "base" / there)
    index = folder / "base" / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["model.layers.0.self_attn.q_proj.weight"] = name
    index.write_text(json.dumps(places))
    refused(folder, index.parent, capsys)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, "\xff"])
def test_an_index_that_is_none(text, folder, capsys):
    index = folder / "base" / "model.safetensors.index.json"
    index.write_text(text, encoding="latin-1")
    refused(folder, index, capsys)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["adapter_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"])
@pytest.mark.parametrize("has_settings", [True, False])
def test_a_pickle_is_named_and_never_read(name, has_settings, folder, capsys, tmp_path):
    (folder / ARRAYS).unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    if not has_settings:
        (folder / CONFIG).unlink()
    refused(folder, name, capsys)
    with pytest.raises(ValueError, match="a pickle, which is never read"):
        check(folder / name)


def test_a_model_that_is_a_pickle(folder, capsys, tmp_path):
    shutil.rmtree(folder / "base")
    (folder / "base").mkdir()
    (folder / "base" / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, "(pytorch_model.bin is a pickle, which is never read)", capsys)


@posix
@pytest.mark.parametrize("kind", ["nowhere", "itself", "zero", "fifo", "folder"])
@pytest.mark.parametrize("name", [ARRAYS, "base/model-00001-of-00002.safetensors"])
def test_what_is_no_file(kind, name, folder, capsys):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"nowhere": "nowhere", "itself": path, "zero": "/dev/zero"}[kind])
    refused(folder, path, capsys)


@posix
def test_links_to_files_are_followed(folder, tmp_path):
    """As the cache of a hub has them."""
    for path in [folder / ARRAYS, *(folder / "base").glob("*.safetensors")]:
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert check(folder, folder / "base") == []


def test_a_name_without_end_takes_no_memory():
    """Its 20,000 ends would have 200 million letters."""
    long = "a_" * 10_000
    tracemalloc.start()
    assert weights_of({f"{long}.weight": None}, dict.fromkeys(["x", long])) == {}
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000


def test_several_files_are_not_guessed_among(folder, capsys):
    (folder / CONFIG).unlink()
    shutil.copy(folder / ARRAYS, folder / "b.safetensors")
    refused(folder, "expected one safetensors file, got ['adapter_model.safetensors', 'b.", capsys)


def test_numbers_that_overflow_are_told(folder):
    """Nothing warns, nothing is NaN in silence."""
    from tests.test_adapter import DOWN, B, Copy

    copy = Copy("peft_llama", folder.parent)
    key = copy.key(DOWN + B)
    copy.arrays[key], copy.arrays.kinds[key] = np.full((16, 2), 1e308), "F64"
    (kind, layer, evidence), *others = copy.findings()
    assert (kind, layer) == ("dtype", DOWN) and "B is F64" in evidence
    assert [f.kind for f in others] == ["not finite"] and "16 of 16" in others[0].evidence
    with pytest.raises(
        ValueError, match="'.*down_proj.weight': its vectors' changes are not finite"
    ):
        report(copy.folder, copy.folder / "base")


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), ()], ids=str)
@pytest.mark.parametrize("name", ["kohya", "mlx", "peft_gpt2"])
def test_arrays_without_numbers_or_dimensions(name, shape, tmp_path):
    from tests.test_adapter import Copy

    copy = Copy(name, tmp_path)
    for key, array in list(copy.arrays.items()):
        copy.arrays[key] = np.ones(shape)
        assert copy.findings() != [] or key.endswith("alpha")
        tried(copy.folder, copy.folder / "base")
        copy.arrays[key] = array


def tried(adapter, base):
    """What checking and measuring come to: never anything but a ValueError that names a file."""
    outcomes = []
    for function in (check, report):
        try:
            function(adapter, base)
            outcomes.append("read")
        except (ValueError, FileNotFoundError) as error:
            assert str(Path(adapter).parent) in str(error)
            outcomes.append("refused")
    return outcomes


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.iterdir() if p.is_dir()))
def test_damaged_files_are_read_or_refused_by_name(name, tmp_path):
    folder = shutil.copytree(FIXTURES / name, tmp_path / "adapter")
    files = [p for p in folder.rglob("*") if p.is_file() and "merged" not in p.parts]
    good, rng, outcomes = {path: path.read_bytes() for path in files}, np.random.default_rng(0), []
    for _ in range(60):
        path = files[rng.integers(len(files))]
        _, data = corrupted(good[path], rng, good[files[0]])
        path.write_bytes(data)
        outcomes += tried(folder, folder / "base")
        path.write_bytes(good[path])
    assert {"read", "refused"} == set(outcomes)


def test_flipped_bits_of_a_header(tmp_path):
    folder = shutil.copytree(FIXTURES / "kohya", tmp_path / "adapter")
    file = folder / "adapter.safetensors"
    good = file.read_bytes()
    bits = 8 * (8 + int.from_bytes(good[:8], "little"))
    for bit in np.random.default_rng(0).choice(bits, 300, replace=False).tolist():
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        tried(folder, folder / "base")


def test_a_flipped_bit_of_minidoras_own_is_noticed(tmp_path):
    """A folder and a file have checksums: whatever was changed is refused, or changes nothing."""
    base, adapted = model(0)
    peft.save_adapter(tmp_path / "folder", adapted)
    checkpoint.save_adapter(tmp_path / "file", adapted)
    checkpoint.save(tmp_path / "base", base)
    rng = np.random.default_rng(0)
    for adapter, file in (("folder", f"folder/{ARRAYS}"), ("file", "file")):
        before = check(tmp_path / adapter, tmp_path / "base")
        good = (tmp_path / file).read_bytes()
        for _ in range(60):
            data = bytearray(good)
            data[rng.integers(len(good))] ^= 1 << int(rng.integers(8))
            (tmp_path / file).write_bytes(data)
            try:
                assert check(tmp_path / adapter, tmp_path / "base") == before
            except ValueError as error:
                assert str(tmp_path / adapter) in str(error)
        (tmp_path / file).write_bytes(good)


def test_a_file_of_minidoras_that_is_no_adapter(tmp_path):
    checkpoint.save(tmp_path / "model", nn.MLP.init((2, 3, 2), np.random.default_rng(0)))
    with pytest.raises(ValueError, match="model: .*expected an adapter, got a model"):
        check(tmp_path / "model")


@pytest.mark.parametrize(
    "old, new, error",
    [
        ("per_output", "sideways", "norm_axis: expected"),
        ('"scale": 1.0', '"scale": 1e999', "scale: expected a finite number"),
        ("DoRALinear", "Nobody", "expected layers of LoRALinear"),
        ('"kind": "adapter"', '"kind": 7', "expected an adapter, got a 7"),
    ],
)
def test_a_file_of_minidoras_with_forged_settings(old, new, error, tmp_path):
    from tests.test_adapter import Arrays

    base = nn.MLP.init((3, 2), np.random.default_rng(0))
    adapted = nn.adapt(base, "dora", rank=1, alpha=1, rng=np.random.default_rng(0))
    checkpoint.save_adapter(tmp_path / "file", adapted)
    arrays = Arrays(tmp_path / "file")
    text = arrays.metadata["minidora"]
    assert old in text
    arrays.metadata["minidora"] = text.replace(old, new)
    arrays.metadata["minidora_sha256"] = digest(arrays, arrays.metadata["minidora"])
    arrays.save()
    with pytest.raises(ValueError, match=f"{tmp_path / 'file'}: .*{error}"):
        check(tmp_path / "file")


@posix
def test_a_file_that_shrinks_while_it_is_read(folder, monkeypatch):
    from minidora.adapter import findings

    weights_of = findings.weights_of

    def shrinking(*arguments):
        weights = weights_of(*arguments)
        for path in (folder / "base").glob("*.safetensors"):
            os.truncate(path, 4000)
        return weights

    monkeypatch.setattr(findings, "weights_of", shrinking)
    with pytest.raises(ValueError, match=r"safetensors: '.*': the file has become shorter"):
        check(folder, folder / "base")


def test_nothing_but_what_it_needs_is_imported(folder):
    code = "import sys; from minidora.__main__ import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "adapter", "check", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "scipy", "mlx", "peft", "lycoris"} & set(ran.stdout.split())

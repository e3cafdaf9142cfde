"""`minidora check`: it agrees, it can disagree, and it says what is missing."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minidora import dora
from minidora.__main__ import main
from minidora._files import write_whole
from minidora.evidence import check

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (hidden)", name=name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda n, p=None: None if n.split(".")[0] in {hidden!r} else real(n, p)
sys.meta_path.insert(0, Hide())
"""


def run_hidden(hidden, code):
    """Run code in a Python that cannot import the packages in `hidden`."""
    script = HIDE.format(hidden=set(hidden)) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])  # float64: tests/test_gradients.py
def test_everything_agrees(dtype):
    result = check.run(dtype=dtype, seed=1)
    assert result.ok, check.table(result)
    assert {"lora", "dora", "factored"} <= {line.about["function"] for line in result.lines}


def test_every_witness_installed_takes_part():
    expected = {"central differences"}
    by_torch = {"torch cpu", "minidora.pytorch cpu"}
    for package, names in (("autograd", {"autograd"}), ("torch", by_torch)):
        if check.importlib.util.find_spec(package):
            expected |= names
    assert {w.name for w in check.witnesses("cpu") if not w.missing} == expected


def wrong_backward(name):
    """The right gradients, but for one entry of one of them."""

    def backward(dy, cache, norm_grad="exact"):
        grads = dora.dora_backward(dy, cache, norm_grad=norm_grad)
        bad = getattr(grads, name)
        if bad is not None and bad.size:
            bad = bad.copy()
            bad.flat[-1] += 1e-4 * (1 + np.abs(bad).max())
        return grads._replace(**{name: bad})

    return backward


@pytest.mark.parametrize("name", ["dx", "dA", "dB", "dm", "dbias"])
def test_a_wrong_gradient_is_named_and_the_exit_code_says_so(name, monkeypatch, capsys):
    right = next(f for f in check.REGISTRY if f.name == "dora")
    broken = check.Function(
        "broken", right.forward, wrong_backward(name), "dora", right.cases, ("per_output",)
    )
    monkeypatch.setattr(check, "REGISTRY", [broken])
    assert main(["check"]) == 1
    out = capsys.readouterr().out.splitlines()
    differing = [line for line in out if "DIFFERS" in line]
    assert differing
    assert all(f" {name} " in line and line.startswith("broken") for line in differing)
    assert "DIFFER" in out[-1]


def test_nothing_checked_is_no_agreement(monkeypatch):
    monkeypatch.setattr(check, "REGISTRY", [])
    assert main(["check"]) == 1


def test_json(tmp_path, capsys):
    file = tmp_path / "check.json"
    assert main(["check", "--json", str(file), "--device", "cpu", "--seed", "3"]) == 0
    report = json.loads(file.read_text())
    assert report["ok"] and report["seed"] == 3 and report["dtype"] == "float64"
    assert report["versions"]["numpy"] == np.__version__
    assert {"function", "mode", "axis", "gradient", "witness", "max_rel", "tolerance", "ok"} <= set(
        report["lines"][0]
    )
    assert list(tmp_path.iterdir()) == [file]
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:5] == ["function", "mode", "axis", "gradient", "witness"]
    assert len(table) == len(report["lines"]) + 2 + len(report["not_installed"])


def test_unknown_device_and_dtype():
    with pytest.raises(ValueError, match="device: expected 'auto' or 'cpu' or 'cuda', got 'tpu'"):
        check.run(device="tpu")
    with pytest.raises(ValueError, match="dtype: expected 'float64' or 'float32' or"):
        check.run(dtype="int8")


def test_cuda_without_a_gpu_is_an_error(capsys):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(SystemExit) as stop:
        main(["check", "--device", "cuda"])
    assert stop.value.code == 2
    assert "expected a CUDA device" in capsys.readouterr().err


def test_cuda_agrees_where_there_is_a_gpu():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    result = check.run(device="cuda")
    assert result.ok, check.table(result)
    assert "torch cuda" in {line.about["witness"] for line in result.lines}


def test_a_base_install_checks_by_central_differences_and_names_the_rest():
    ran = run_hidden(
        ["autograd", "torch"], "from minidora.__main__ import main; exit(main(['check']))"
    )
    assert ran.returncode == 0, ran.stderr
    assert "not installed: autograd (pip install autograd)" in ran.stdout
    assert 'not installed: torch (pip install "torch>=2.6,<2.14")' in ran.stdout
    assert "central differences" in ran.stdout and "all agree" in ran.stdout


def test_numpy_is_all_that_importing_minidora_needs():
    code = "import minidora; print(sorted({m.split('.')[0] for m in sys.modules}))"
    optional = [
        "torch",
        "autograd",
        "scipy",
        "matplotlib",
        "sklearn",
        "tqdm",
        "safetensors",
        "peft",
    ]
    ran = run_hidden(optional, code)
    assert ran.returncode == 0, ran.stderr
    assert "minidora" in ran.stdout and not any(f"'{m}'" in ran.stdout for m in optional)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    file.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_whole(file, b"new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    write_whole(file, b"new")
    assert file.read_text() == "new"

"""The stress command at a small budget, and that it would notice."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")

from minidora.peft import format
from minidora.training import checkpoint
from tests.stress import corrupt, faults, flips, fuzz
from tests.stress.__main__ import FAULTS, main
from tests.stress.outcome import Outcome

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.mark.parametrize("name", ["checkpoints", "adapters", "fuzz", "protocol"])
def test_nothing_corrupted_is_accepted(name, capsys):
    assert main([name, "--quick"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 0\n") and "WRONG" not in out
    assert f": {FAULTS[name].few}: " in out


def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(capsys):
    """Some of them; the command tries all."""
    assert main(["flips", "--quick"]) == 0
    out = capsys.readouterr().out
    counts = re.search(r"1250: 0 accepted, differing, 0 crashed, .*?(\d+) refused, naming", out)
    assert counts and int(counts.group(1)) > 1200 and "WRONG" not in out


@posix
@pytest.mark.parametrize("name", ["kills", "races", "disks", "ports"])
def test_nothing_is_lost(name, capsys):
    assert main([name, "--quick", "--seed", "3"]) == 0
    assert "WRONG" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [(["floods"], "expected names among kills"), (["--seed", "-1"], "expected 0 or more, got -1")],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_experiments_are_left_out_of_the_quick_run(capsys):
    assert main(["experiments", "--quick"]) == 0
    assert "experiments: left out" in capsys.readouterr().out


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    hidden = ("safetensors", "hypothesis")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in hidden else find(n))
    with pytest.raises(SystemExit) as stopped:
        main(["fuzz"])
    error = "python -m tests.stress: missing packages: pip install hypothesis safetensors\n"
    assert stopped.value.code == 2 and capsys.readouterr().err == error
    monkeypatch.setitem(FAULTS, "ports", FAULTS["ports"]._replace(run=lambda *_: Outcome("none")))
    assert main(["ports"]) == 0


def test_stopping_it_is_one_line(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(FAULTS, "ports", FAULTS["ports"]._replace(run=stopped, posix=False))
    assert main(["ports"]) == 130
    assert capsys.readouterr().err == "python -m tests.stress: stopped\n"


# that it would notice


def test_flips_tell_differing_files_and_crashes_from_good_ones(tmp_path):
    file, (_, run) = tmp_path / "x", flips.training()
    file.write_bytes(b"\0")
    other = run._replace(step=8)
    for load, kind in (
        (lambda: run, flips.SAME),
        (lambda: other, flips.DIFFERING),
        (raising(KeyError("x")), flips.CRASHED),
        (raising(ValueError("nameless")), flips.CRASHED),
        (raising(ValueError(f"{file}: no")), flips.REFUSED),
    ):
        outcome = Outcome("x")
        flips.flip_bits(outcome, file, load, run, 8, np.random.default_rng(0))
        assert outcome.counts == {kind: 8} and file.read_bytes() == b"\0"
        assert bool(outcome.bad) == (kind in (flips.DIFFERING, flips.CRASHED))
    contents = []
    flips.flip_bits(
        *(Outcome("x"), file, lambda: contents.append(file.read_bytes()) or run, run, 8),
        np.random.default_rng(0),
    )
    assert contents == [bytes([1 << bit]) for bit in range(8)]


@pytest.mark.parametrize("change", ["optimizer", "moments", "rng", "scale", "array", "trainable"])
def test_flips_see_every_part_of_a_checkpoint(change):
    (_, run), (_, other) = flips.training(), flips.training()
    assert flips.same(run, other)
    layer = other.model.layers[0]
    if change == "optimizer":
        other.optimizer.rates["*.B"] = 3
    elif change == "moments":
        other.optimizer.state["first"]["layers.0.m"][0] += 1
    elif change == "rng":
        other.rng.random()
    elif change == "scale":
        layer.scale += 1
    elif change == "array":
        layer.m[0] *= -1
    else:
        layer.trainable = ("A",)
    assert not flips.same(run, other)


def outcome_of(loaded, size=10**6):
    outcome, expected = Outcome("x"), object()
    corrupt.judge(outcome, "one", loaded, lambda m: m is expected, size, ("file.x",))
    return outcome


def raising(error):
    def load():
        raise error

    return load


def test_the_judge_accepts_errors_that_name_the_file_and_nothing_else():
    assert outcome_of(raising(ValueError("file.x: no"))).bad == []
    assert outcome_of(raising(FileNotFoundError("file.x"))).bad == []
    assert "does not name the file" in outcome_of(raising(ValueError("no"))).bad[0]
    assert "KeyError" in outcome_of(raising(KeyError("file.x"))).bad[0]
    assert "MemoryError" in outcome_of(raising(MemoryError("file.x"))).bad[0]
    assert "not what was saved" in outcome_of(lambda: "something else").bad[0]


def test_the_judge_counts_memory():
    def greedy():
        np.ones(300_000)  # 2.4 MB
        raise ValueError("file.x")

    assert "bytes for a file of 1000000" in outcome_of(greedy).bad[0]
    assert outcome_of(greedy, 2_000_000).bad == []
    assert 1.0 < outcome_of(greedy, 2_000_000).most < 1.2


def test_a_loader_without_its_checksum_is_caught(monkeypatch):
    """The sums of the adapter folder, and of the checkpoint, switched off."""
    monkeypatch.setattr(format, "held_to_sums", lambda folder, text, *_: text)
    assert any("not what was saved" in bad for bad in corrupt.adapters(200, 0).bad)
    wanted = {}
    monkeypatch.setattr(checkpoint, "digest", lambda *_: wanted.setdefault("sum", "same"))
    assert any("not what was saved" in bad for bad in corrupt.checkpoints(200, 0).bad)


@posix
def test_a_save_that_is_not_whole_is_caught(tmp_path):
    path = tmp_path / "checkpoint0"
    checkpoint.save(path, faults.filled(1))
    path.write_bytes(path.read_bytes()[:5000])
    outcome = Outcome("x")
    faults.judge_killed(outcome, "one", path, "checkpoint")
    assert outcome.bad
    mixed = faults.filled(1)
    mixed.layers[0].A[...] = 2
    checkpoint.save(path, mixed)
    outcome = Outcome("x")
    faults.judge_killed(outcome, "one", path, "checkpoint")
    assert "a mixture of" in outcome.bad[0]
    checkpoint.save(path, faults.filled(2))  # a full disk must have left the first
    outcome = Outcome("x")
    faults.judge_killed(outcome, "one", path, "checkpoint", 1.0)
    assert outcome.bad


def test_finished_runs_that_are_made_anew_are_caught(tmp_path):
    file = tmp_path / "e.json"
    before = b'{"seeds": {"0": {"a": 1.0}}}'
    for after, good in (
        (b'{"seeds": {"0": {"a": 1.0, "b": 2.0}}}', True),
        (b'{"seeds": {"0": {"a": 1.5}}}', False),
        (b'{"seeds": {}}', False),
        (b'{"seeds": {"0"', False),
    ):
        file.write_bytes(after)
        outcome = Outcome("x")
        faults._judge_experiment(outcome, "one", file, before)
        assert (outcome.bad == []) == good


def test_a_loader_that_does_not_name_its_file_is_caught(tmp_path, monkeypatch):
    def nameless(*_):
        raise ValueError("something is wrong")

    base, _ = corrupt.model(0)
    assert fuzz.try_loaders(tmp_path, b"rubbish", base).count(",") == 3
    monkeypatch.setattr(checkpoint, "load", nameless)
    with pytest.raises(AssertionError, match="load: the error does not name the file"):
        fuzz.try_loaders(tmp_path, b"rubbish", base)


@posix
def test_the_command_line_works(tmp_path):
    command = [sys.executable, "-m", "tests.stress", "adapters", "--quick", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "seed 7" in ran.stdout
    assert "refused, naming the file" in ran.stdout and "times the file's size" in ran.stdout

"""Two processes on the CPU, by torchrun: DDP, FSDP2, checkpointing, saving; see the worker."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")
pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
import torch

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no distributed package", allow_module_level=True)

TESTS = Path(__file__).parent


def torchrun(script, *arguments, cwd=None, timeout=240):
    """Run a script in two processes and return what they print; a free port is chosen."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script), *arguments]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ran = subprocess.run(command, env=environment, cwd=cwd, timeout=timeout, **pipes)
    assert ran.returncode == 0, ran.stdout[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    out = torchrun(TESTS / "distributed_worker.py", str(folder))
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    reported = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    if reported[0]["what"] == "no FSDP2":
        pytest.skip(f"this PyTorch's FSDP2 does not run on the CPU: {reported[0]['why']}")
    return folder, reported


def of(results, what):
    return [r for r in results[1] if r["what"] == what]


def test_two_processes_give_the_gradients_of_one(results):
    """DDP, FSDP2 and checkpointing, exact and detached, both axes."""
    gradients = of(results, "gradients")
    assert len({(r["axis"], r["mode"], r["how"]) for r in gradients}) == len(gradients) == 16
    assert max(r["error"] for r in gradients) <= 1e-10


def test_a_norm_of_the_local_shard_is_caught(results):
    (planted,) = of(results, "local norm")
    assert planted["error"] > 1e-2


def test_no_more_than_one_layers_weight_is_whole_at_a_time(results):
    (counted,) = of(results, "gathered")
    assert counted["most"] == 1 and counted["times"] == 6  # three forward, three backward
    assert counted["local"] < 0.6 * counted["whole"]  # rows are padded to halves


def test_what_rank_0_saves_loads_in_one_process(results):
    assert {r["how"]: r["error"] <= 1e-12 for r in of(results, "saved")} == {
        "ddp": True,
        "fsdp": True,
    }


def test_an_error_of_rank_0_reaches_every_process(results):
    (refused,) = of(results, "refused")
    assert refused["processes"] == 2
    assert (results[0] / "taken" / "mine.txt").read_text() == "mine"


def test_what_must_be_done_before_sharding_says_so(results):
    (refused,) = of(results, "sharded already")
    adapting, merging = refused["messages"]
    assert "0: expected a whole weight, got a sharded one: adapt, then shard" in adapting
    assert "merge: the layer is sharded" in merging


def test_the_example_trains_stops_and_goes_on(tmp_path, results):
    script = TESTS.parent / "lessons" / "distributed.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 80
    run = tmp_path / "new" / "run"
    first = torchrun(script, str(run), "--steps=20", "--every=10", "--fsdp")
    losses = {int(s): float(x) for s, x in re.findall(r"step (\d+), loss ([\d.]+)", first)}
    assert losses.keys() == {10, 20} and losses[20] < losses[10] < 2.3
    assert first.count("step 20, loss") == 1  # rank 0 alone
    assert (run / "steps.txt").read_text() == "20"
    # shards once, copies then: the folder does not mind
    then = torchrun(script, str(run), "--steps=30", "--every=10")
    (loss,) = re.findall(r"step 30, loss ([\d.]+)", then)
    assert float(loss) < losses[20] and "step 10," not in then and "step 20," not in then


def test_peft_loads_what_two_processes_saved(results):
    hf = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    from distributed_worker import Net

    from minidora.pytorch import load_adapter_

    x = torch.randn(5, 6).double()
    for how in ("ddp", "fsdp"):
        torch.manual_seed(0)
        model = Net().double()
        there = hf.PeftModel.from_pretrained(model, str(results[0] / how))
        torch.manual_seed(0)
        here = Net().double()
        load_adapter_(results[0] / how, here)
        with torch.no_grad():
            np.testing.assert_allclose(there(x), here(x), rtol=1e-10, atol=1e-12)

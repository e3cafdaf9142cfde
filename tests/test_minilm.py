"""MiniLM in the experiments: its batches, its judge, and short runs; skips without weights."""

from dataclasses import replace

import numpy as np
import pytest

from minidora import nn
from minidora.experiments import minilm, minilm_decay, minilm_tuning, runs
from minidora.experiments.archives import NotFetchedError
from minidora.experiments.store import read


@pytest.fixture(scope="module", autouse=True)
def _there():
    """Skips where MiniLM or the docstrings are missing."""
    for package in ("safetensors", "tokenizers"):
        pytest.importorskip(package)
    try:
        nn.minilm_folder()
        minilm.encoded("docstrings", 32)
    except (ModuleNotFoundError, NotFetchedError) as missing:
        pytest.skip(str(missing))


def test_the_tuning_takes_the_rates_that_were_chosen():
    tried = read("lessons/results/minilm_rates.json")["summary"]
    for name, run in minilm_tuning.configuration()["runs"].items():
        assert run["rate"] == tried[name]["rate"], name


def test_a_pass_of_batches_has_every_sentence_once_and_little_padding():
    part = minilm.encoded("docstrings", 32)[1]
    part = tuple(array[:160] for array in part)
    numbered = (np.arange(160)[:, None], *part[1:])
    endless = minilm.batches(numbered, 16, np.random.default_rng(0))
    first = [next(endless) for _ in range(10)]
    assert sorted(np.concatenate([b[0].ravel() for b in first])) == list(range(160))
    widest = [(~b[1]).sum(1).max() for b in first]
    spread = np.mean([w - (~b[1]).sum(1).mean() for w, b in zip(widest, first, strict=True)])
    at_random = [(~part[1])[i : i + 16].sum(1) for i in range(0, 160, 16)]
    assert spread < 0.6 * np.mean([lengths.max() - lengths.mean() for lengths in at_random])
    again = [next(endless)[0].ravel().tolist() for _ in range(10)]
    assert again != [b[0].ravel().tolist() for b in first]


def test_sentences_are_judged_each_by_itself(monkeypatch):
    monkeypatch.setattr(minilm, "JUDGED", 7)
    network = minilm_tuning.configuration()["networks"]["docstrings"] | {"choose": 20, "test": 20}
    model = minilm.with_head(network, 0)
    blocks = replace(model.encoder, blocks=model.encoder.blocks[:1])
    model = replace(model, encoder=blocks)
    part = minilm.task(network, np.random.default_rng(0)).choose
    logits = minilm.predictions(model, part)
    for i in (0, 7, 19):
        alone = tuple(array[i : i + 1] for array in part)
        assert np.allclose(minilm.predictions(model, alone)[0], logits[i], atol=1e-4)
    judged = minilm.judge(model, part)
    assert judged["accuracy"] == np.mean(logits.argmax(1) == part[2])
    assert judged["loss"] == pytest.approx(nn.cross_entropy(logits, part[2])[0])


def test_short_runs_train_and_are_held_against_the_law():
    config = minilm_decay.short()
    network = config["networks"]["minilm"]
    figures = {n: runs.measure(network, run, 0, None) for n, run in config["runs"].items()}
    lora, dora = figures.values()
    for run in (lora, dora):
        assert run["recording"]["steps"] == [2, 4, 6, 8]
        assert len(run["recording"]["names"]) == 12 and np.min(run["recording"]["dD"][-1]) > 0
        assert set(run["law"]) == {"q", "v"}
    assert lora["law"]["q"]["pulls"][-1] == 0  # LoRA's decay does not reach W0
    assert dora["law"]["q"]["pulls"][-1] == pytest.approx(1 - np.exp(-0.3), rel=0.05)
    summed = minilm_decay.summary(config, {"0": figures})
    assert minilm_decay.table(summed).count("\n") == 1 + 2 * len(figures)

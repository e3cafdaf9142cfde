"""The paper's figures as commands: resumable, reproducible, honest about what they chose by."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minidora import nn, training
from minidora.__main__ import main
from minidora.experiments import networks, runs, store, summaries, tables, verify, watching
from minidora.experiments.experiment import Experiment
from minidora.experiments.registry import EXPERIMENTS

MISSING = [name for name in ("tqdm", "sklearn", "safetensors", "scipy") if not find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"experiments need {MISSING}: pip install .[lessons]"
)
RESULTS = Path(__file__).parent.parent / "lessons" / "results"
COMMITTED = sorted(p for p in RESULTS.glob("*.json") if "experiment" in json.loads(p.read_text()))
TINY = {
    **networks.TRANSFORMER,
    **{"d": 8, "heads": 2, "depth": 2, "pretrain_steps": 4, "tune_steps": 4, "batch": 8},
}
TINY_MLP = {**networks.MLP, "sizes": [64, 8, 10], "pretrain_steps": 4, "tune_steps": 4}


def tiny():
    low = {"method": "lora", "targets": ["q"], "rank": 2, "alpha": 4}
    return {
        "networks": {"transformer": TINY},
        "runs": {
            f"{group}, rate {rate}": {
                "network": "transformer",
                "adapt": {**low, "method": method},
                "rate": rate,
                "group": group,
            }
            for group, method in {"LoRA": "lora", "DoRA": "dora"}.items()
            for rate in (1e-3, 1e-2)
        },
        "seeds": {"transformer": 2},
    }


@pytest.fixture
def tiny_sweep(monkeypatch):
    shared = summaries.by_rate, tables.by_rate_table
    monkeypatch.setitem(EXPERIMENTS, "sweep", Experiment("sweep", tiny, *shared))


def test_a_killed_run_keeps_its_finished_seeds(tiny_sweep, tmp_path, monkeypatch):
    measured = []

    def killed(network, settings, seed, folder):
        measured.append(seed)
        if seed == 1:
            raise KeyboardInterrupt
        return runs.measure(network, settings, seed, folder)

    path = tmp_path / "sweep.json"
    monkeypatch.setattr(store, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        store.run("sweep", path, progress=False)
    kept = store.read(path)
    assert list(kept["seeds"]) == ["0"] and kept["summary"] == {} and measured == [0] * 4 + [1]
    unfinished = "sweep was interrupted, 1 of 2 seeds are there; run it again to go on"
    with pytest.raises(ValueError, match=unfinished):  # once a KeyError
        store.table(kept)
    with pytest.raises(ValueError, match=f"sweep.json: {unfinished}"):  # once "the summary is not"
        verify.verify(path, progress=False)
    measured.clear()
    monkeypatch.setattr(store, "measure", lambda *a: (measured.append(a[2]), runs.measure(*a))[1])
    results = store.run("sweep", path, progress=False)
    assert measured == [1] * 4 and results["seeds"]["0"] == kept["seeds"]["0"]
    assert results == store.read(path) and results["seconds"] > kept["seconds"]
    assert set(results["summary"]) == {"LoRA", "DoRA"}
    measured.clear()
    one = store.run("sweep", path, seeds=1, progress=False)
    assert one["seeds"] == results["seeds"] and measured == []  # the other seed is kept
    assert one["config"]["seeds"] == {"transformer": 1}
    assert one["summary"]["LoRA"]["test"]["n"] == 1 and results["summary"]["LoRA"]["test"]["n"] == 2
    assert all(difference.ok for difference in verify.verify(path, progress=False))
    with pytest.raises(ValueError, match=r"expected a seed among \['0'\], got 1"):
        verify.verify(path, seed=1, progress=False)
    measured.clear()
    assert sorted(store.run("sweep", path, seeds=3, progress=False)["seeds"]) == ["0", "1", "2"]
    assert measured == [2] * 4


@pytest.mark.parametrize("during", ["pretraining", "tuning"])
def test_ctrl_c_in_the_midst_of_training_leaves_nothing_half_trained(during, tmp_path, monkeypatch):
    folder = tmp_path / "bases"
    adapt = {"method": "lora", "targets": ["q"], "rank": 2}
    settings = {"adapt": adapt, "rate": 1e-2}
    if during == "tuning":
        networks.pretrained(TINY, 0, folder)

    def pressed(self, params, grads, rate):
        if self.steps == 2:
            raise KeyboardInterrupt  # as Ctrl-C does, which `fit` catches to return what there is
        stepped(self, params, grads, rate)

    stepped = training.AdamW.step
    monkeypatch.setattr(training.AdamW, "step", pressed)
    with pytest.raises(KeyboardInterrupt):
        runs.measure(TINY, settings, 0, folder)
    monkeypatch.setattr(training.AdamW, "step", stepped)
    assert (not folder.exists() or not any(folder.iterdir())) == (during == "pretraining")
    fresh = runs.measure(TINY, settings, 0, folder)
    assert fresh == runs.measure(TINY, settings, 0, tmp_path / "other")


def test_processes_give_what_one_process_gives(tiny_sweep, tmp_path):
    one = store.run("sweep", tmp_path / "one.json", progress=False)
    two = store.run("sweep", tmp_path / "two.json", jobs=2, progress=False)
    assert list(one["seeds"]) == list(two["seeds"]) == ["0", "1"]
    for seed, found in one["seeds"].items():
        for name, result in found.items():
            for compared in verify.compare(name, two["seeds"][seed][name], result):
                assert compared.ok, compared


def test_bases_are_kept_by_seed_and_settings(tmp_path):
    first = networks.pretrained(TINY, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = networks.pretrained({**TINY, "tune_steps": 9}, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1  # it is the same base
    for name, array in nn.parameters(first).items():
        np.testing.assert_array_equal(array, nn.parameters(again)[name])
    networks.pretrained(TINY, 1, tmp_path)
    networks.pretrained({**TINY, "pretrain_steps": 5}, 0, tmp_path)
    networks.pretrained(TINY_MLP, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("network", [networks.TRANSFORMER, networks.MLP])
def test_what_chooses_the_rate_and_what_is_reported_share_nothing(network):
    on = networks.task(network, network["task"], 3)
    parts = [
        {row.tobytes() for row in np.asarray(part[0])} for part in (on.train, on.choose, on.test)
    ]
    assert [len(on.choose[0]), len(on.test[0])] == [network["choose"], network["test"]]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def result(choose, test, **more):
    loss = {"choose": {"loss": choose}, "test": {"loss": test, "accuracy": 0.5}}
    return {"trained": 7, **loss, **more}


def test_the_rate_is_chosen_on_one_split_and_the_loss_reported_on_the_other():
    config = {"runs": {f"a{r}": {"group": "a", "rate": r} for r in (1, 2, 3)}}
    seeds = {
        "0": {"a1": result(3.0, 1.0), "a2": result(2.0, 5.0), "a3": {"trained": 7, "diverged": ""}},
        "1": {"a1": result(3.0, 1.0), "a2": result(2.0, 7.0), "a3": result(0.1, 0.1)},
    }
    found = EXPERIMENTS["sweep"].summed_up(config, seeds)["a"]
    assert (found["rate"], found["test"]["mean"], found["each seed"]) == (2, 6.0, [5.0, 7.0])
    assert found["test by rate"] == [[1.0, 5.0, None], [1.0, 7.0, 0.1]]
    assert found["at the edge"] is False
    less = summaries.difference(found, {"each seed": [4.0, 8.0]})  # within seeds: +1 and -1
    assert less.mean == 0 and less.high == pytest.approx(12.706205, rel=1e-5)
    config["runs"] |= {"b1": {"group": "b", "rate": 1}}
    config["against"] = {"a": "b"}
    for runs_of_seed, loss in zip(seeds.values(), (4.5, 6.0), strict=True):
        runs_of_seed["b1"] = result(1.0, loss)
    found = EXPERIMENTS["sweep"].summed_up(config, seeds)
    assert found["a"]["against"] == "b" and found["a"]["difference"]["mean"] == 0.75
    assert "difference" not in found["b"] and "+0.750 [" in tables.by_rate_table(found)


def test_figure_3_compares_where_the_losses_meet():
    names = ["blocks.0.attn.q"]
    slow = {"steps": [1, 2, 3, 4], "names": names, "choose_loss": [4.0, 3.0, 2.01, 2.0]}
    fast = {"steps": [1, 2, 3, 4], "names": names, "choose_loss": [3.0, 2.0, 1.5, 1.0]}
    moved = {"dM": [[1.0], [2.0], [3.0], [4.0]], "dD": [[0.1], [0.2], [0.3], [0.4]]}
    seeds = {"0": {"LoRA": {"recording": slow | moved}, "DoRA": {"recording": fast | moved}}}
    found = EXPERIMENTS["figure3"].summed_up({"runs": {"LoRA": {}, "DoRA": {}}}, seeds)
    assert [found["runs"][m]["step"]["mean"] for m in ("LoRA", "DoRA")] == [3, 2]
    assert found["DoRA over LoRA"]["dM"]["mean"] == pytest.approx(2 / 3, rel=1e-4)
    assert found["largest gap of the losses"] == pytest.approx(0.005, rel=1e-3)


def test_a_run_with_everything_recorded(tmp_path):
    settings = {
        "adapt": {"method": "lora", "targets": ["q", "v"], "rank": 2},
        "rate": 1e-2,
        "record": {"targets": ["q", "v"], "times": 4},
        "vectors": True,
        "controls": True,
        "optimizer": "sgd",
        "fraction": 0.25,
    }
    found = runs.measure(TINY, settings, 0, tmp_path)
    assert found["trained"] == 2 * 2 * 2 * (8 + 8)
    record = found["recording"]
    assert record["steps"] == [1, 2, 3, 4] and len(record["names"]) == 4
    assert np.shape(record["dM"]) == np.shape(record["dD"]) == (4, 4)
    assert len(record["choose_loss"]) == 4
    vectors = record["vectors"]["blocks.0.attn.q"]
    assert len(vectors["turn"]) == 8
    mean = np.mean(np.abs(vectors["growth"]))
    assert mean == pytest.approx(record["dM"][3][record["names"].index("blocks.0.attn.q")], 1e-3)
    assert set(found["controls"]) == {"equal lengths", "random low rank"}
    assert json.loads(json.dumps(found)) == found


def test_settings_reach_the_run(tmp_path):
    def dM(**settings):
        adapt = {"method": "dora", "targets": ["q"], "rank": 2}
        record = {"targets": ["q"], "times": 4}
        given = {"adapt": adapt, "rate": 1e-2, "record": record, **settings}
        return np.array(runs.measure(TINY, given, 0, tmp_path)["recording"]["dM"])[-1]

    plain = dM()
    assert (dM(m_rate=10) > 3 * plain).all() and (dM(m_rate=0.1) < 0.5 * plain).all()
    assert (dM(fraction=0.05) != plain).all() and (dM(optimizer="sgd") != plain).all()


def test_what_the_network_names_too_holds_for_the_tuning_alone(tmp_path):
    adapt = {"method": "lora", "targets": ["q"], "rank": 2}
    plain, longer = (
        runs.measure(TINY, {"adapt": adapt, "rate": 1e-2, **settings}, 0, tmp_path)
        for settings in ({}, {"tune_steps": 8, "clip": None, "task": "male"})
    )
    assert plain["test"] != longer["test"]
    assert len(list(tmp_path.iterdir())) == 1  # the base is the same


def test_the_short_forms_are_those_that_the_tests_run():
    short = [name for name, experiment in EXPERIMENTS.items() if experiment.short]
    assert short == ["figure2", "decay", "minilm_tuning", "minilm_decay"] and all(
        EXPERIMENTS[name].about for name in EXPERIMENTS
    )
    with pytest.raises(ValueError, match="--short: expected an experiment with a short form"):
        EXPERIMENTS["sweep"].configured(short=True)


def test_gradients_are_watched_at_the_start_and_the_end(tmp_path):
    adapt = {"method": "dora", "rank": 2}
    found = runs.measure(TINY_MLP, {"adapt": adapt, "rate": 1e-2, "watch": 20}, 0, tmp_path)
    assert found["start"].keys() == found["end"].keys() == {"layers.0", "layers.1"}
    start = found["start"]["layers.0"]
    assert set(start["spearman"]) == {"one vector", "one length", "as they are"}
    # for one vector the argument of Eq. 8-10 is a theorem
    assert start["spearman"]["one vector"] == pytest.approx(-1, abs=1e-3)
    # Eq. 11 only scales each vector's gradient, so its covariance has the same shape
    assert start["detached"]["effective rank ratio"] == pytest.approx(1, abs=1e-4)
    assert start["exact"]["effective rank ratio"] != pytest.approx(1, abs=1e-4)


def test_rows_and_neurons_without_a_gradient_do_not_count():
    rng = np.random.default_rng(0)
    base = nn.MLP.init((6, 5), rng, dtype=np.float64)
    model = nn.adapt(base, "dora", "layers.0", rank=2, rng=rng)
    layer = watching.Watched(model.layers[0])
    layer.x, layer.dy = rng.normal(size=(12, 6)), rng.normal(size=(12, 5))
    layer.dy[:, 1] = 0  # a neuron that is off
    plain = watching._figures(layer, 8)
    assert plain["spearman"]["one vector"] == -1
    layer.x = np.insert(layer.x, [0, 3, 3], 7.0, axis=0)  # padding
    layer.dy = np.insert(layer.dy, [0, 3, 3], 0.0, axis=0)
    assert watching._figures(layer, 8) == plain
    assert watching._figures(layer, 7) != plain


def test_a_run_that_diverges_says_so(tmp_path):
    adapt = {"method": "lora", "targets": ["v"], "rank": 2}
    with np.errstate(all="ignore"):
        found = runs.measure(TINY, {"adapt": adapt, "rate": 1e39}, 0, tmp_path)
    assert "choose" not in found and "expected" in found["diverged"]


def test_verify_finds_a_figure_that_was_changed(tiny_sweep, tmp_path):
    path = tmp_path / "sweep.json"
    results = store.run("sweep", path, progress=False)
    assert all(difference.ok for difference in verify.verify(path, seed=1, progress=False))
    run = "LoRA, rate 0.01"
    results["seeds"]["1"][run]["test"]["loss"] *= 1.01
    path.write_text(store.as_text(results), encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep.json: the summary is not what the seeds"):
        verify.verify(path, progress=False)
    results["summary"] = EXPERIMENTS["sweep"].summed_up(results["config"], results["seeds"])
    path.write_text(store.as_text(results), encoding="utf-8")
    wrong = [one for one in verify.verify(path, seed=1, progress=False) if not one.ok]
    assert [difference.name for difference in wrong] == [f"{run}: loss"]
    assert main(["experiments", "verify", str(path), "--seed", "1"]) == 1
    assert main(["experiments", "verify", str(path), "--seed", "0"]) == 0
    with pytest.raises(ValueError, match="expected a seed among .* got 7"):
        verify.verify(path, seed=7)
    del results["seeds"]["0"][run]
    path.write_text(store.as_text(results), encoding="utf-8")
    with pytest.raises(ValueError, match="was interrupted, 1 of 2 seeds"):
        verify.verify(path, progress=False)


def test_ctrl_c_in_the_midst_of_verifying_comes_out_and_leaves_nothing(
    tiny_sweep, tmp_path, monkeypatch
):
    path = tmp_path / "sweep.json"
    store.run("sweep", path, seeds=1, progress=False)
    before = path.read_bytes()

    def pressed(network, settings, seed, folder):
        networks.pretrained(network, seed, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "measure", pressed)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(KeyboardInterrupt):
        verify.verify(path, progress=False)
    assert path.read_bytes() == before and not any(temporary.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal to a group of processes")
def test_ctrl_c_ends_the_workers_in_silence(tmp_path):
    code = "from minidora.experiments import store; import sys; from pathlib import Path\n"
    code += "store.run('figure2', Path(sys.argv[1]), short=True, jobs=2, progress=False)"
    command = [sys.executable, "-c", code, str(tmp_path / "figure2.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(1200):  # until both bases are there, and so both workers
        if len(list(tmp_path.glob("bases/*.safetensors"))) == 2:
            break
        time.sleep(0.1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1  # this script's own


@pytest.mark.parametrize(
    ("fresh", "kept"),
    [
        ({"dM": [1.0, 2.0]}, {"dM": [1.0, 2.0, 3.0]}),
        ({"dM": [1.0]}, {"dM": [None]}),
        ({}, {"a": 1}),
    ],
)
def test_figures_that_are_missing_do_not_agree(fresh, kept):
    assert not any(one.ok for one in verify.compare("run", {"x": fresh}, {"x": kept}))


def test_results_that_do_not_belong_are_refused(tiny_sweep, tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep.json: expected results as JSON"):
        store.run("sweep", path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep.json: expected results with"):
        store.run("sweep", path)
    path.unlink()
    store.run("sweep", path, seeds=1, progress=False)
    kept = path.read_bytes()
    monkeypatch.setitem(EXPERIMENTS, "figure3", EXPERIMENTS["sweep"])
    with pytest.raises(ValueError, match="sweep.json: expected results of figure3"):
        store.run("figure3", path)
    monkeypatch.setattr(store, "versions", lambda: {"numpy": "0"})
    with pytest.raises(ValueError, match="expected seeds made with {'numpy': '0'}"):
        store.run("sweep", path)
    assert path.read_bytes() == kept
    with pytest.raises(ValueError, match="--out: expected a file in a folder that exists"):
        store.run("sweep", tmp_path / "none" / "sweep.json")


def test_the_command_line(tiny_sweep, tmp_path, capsys):
    path = tmp_path / "sweep.json"
    assert (
        main(["experiments", "run", "sweep", "--seeds", "1", "--jobs", "1", "--out", str(path)])
        == 0
    )
    printed = capsys.readouterr().out
    assert "| LoRA | " in printed and "1 seeds" in printed
    assert main(["experiments", "table", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed
    assert main(["experiments", "verify", str(path)]) == 0


def test_every_experiment_has_committed_results():
    names = {path.stem for path in COMMITTED}
    assert names == set(EXPERIMENTS) | {"figure2_short"}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_of_todays_configuration_and_stand_in_their_readme(path):
    results, short = store.read(path), path.stem.endswith("_short")
    experiment = EXPERIMENTS[results["experiment"]]
    config = experiment.configured(short=short)
    assert results["config"] == config and list(results["config"]["runs"]) == list(config["runs"])
    assert {seed: list(figures) for seed, figures in results["seeds"].items()} == store.asked(
        config
    )
    summary = experiment.summed_up(config, results["seeds"])
    assert json.loads(json.dumps(summary)) == results["summary"]
    readme = (RESULTS / "README.md").read_text(encoding="utf-8")
    pages = (page.read_text(encoding="utf-8") for page in RESULTS.glob("*.md"))
    assert any(store.table(results) in page for page in pages)
    command = f"minidora experiments run {experiment.name}{' --short' if short else ''} --out"
    assert f"{command} lessons/results/{path.name}`" in readme


def test_the_committed_short_figure_2_verifies():
    compared = verify.verify(RESULTS / "figure2_short.json", progress=False)
    assert len(compared) > 80
    assert [one for one in compared if not one.ok] == []

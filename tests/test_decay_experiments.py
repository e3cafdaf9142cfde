"""Tuning under decay, and the experiments on figure 2's slopes."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from minidora import nn
from minidora.__main__ import main
from minidora.experiments import decay_figures, networks, runs, store, tuning, untrained
from minidora.experiments.decay_interventions import predicted_and_measured
from minidora.nn.layer import parameters, walk

MISSING = [name for name in ("tqdm", "sklearn", "safetensors", "scipy") if not find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"experiments need {MISSING}: pip install .[lessons]"
)
RESULTS = Path(__file__).parent.parent / "lessons" / "results"
TINY = {
    **networks.TRANSFORMER,
    **{"d": 8, "heads": 2, "depth": 2, "pretrain_steps": 4, "tune_steps": 4, "batch": 8},
}


def test_the_short_form_has_the_signs_of_figure_2(tmp_path):
    options = {"short": True, "jobs": 2, "progress": False}  # workers have one BLAS thread each
    results = store.run("decay", tmp_path / "decay.json", **options)
    pooled = {
        name: [layers["measured"]["pooled"]["mean"] for layers in run["layers"].values()]
        for name, run in results["summary"].items()
    }
    assert max(pooled["FT, spread 2, Λ 0.03"]) < -0.3
    assert min(pooled["LoRA, spread 2, Λ 0.3"]) > 0.3
    assert max(pooled["DoRA, spread 2, Λ 0.3"]) < -0.2
    assert min(pooled["FT, spread 2, Λ 0"]) > 0
    assert pooled["LoRA, spread 2, Λ 0"] == pytest.approx(pooled["LoRA, spread 2, Λ 0.3"], abs=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_pull_is_what_decay_takes_over_the_run(optimizer, schedule):
    """Without gradients a parameter shrinks by the pull, once momentum has settled."""
    steps = 400
    settings = {"rate": 1e-2, "pull": 0.2, "optimizer": optimizer, "schedule": schedule}
    step, made = tuning.schedule_of(steps, settings), tuning.optimizer_of(steps, settings)
    params = {"q.weight": np.ones(3), "q.bias": np.ones(3)}
    for t in range(steps):
        made.step(params, {name: np.zeros(3) for name in params}, step(t))
    left = 1 - tuning.pulls_at(steps, settings, [steps])[0]
    assert left == pytest.approx(np.exp(-0.2), rel=1e-2)
    np.testing.assert_allclose(params["q.weight"], left, rtol=2e-2)
    if optimizer == "adamw":
        np.testing.assert_array_equal(params["q.bias"], 1)


def test_what_is_spared_does_not_decay():
    made = tuning.optimizer_of(10, {"rate": 0.1, "pull": 0.5, "spared": ["*.m"]})
    params = {"q.m": np.ones(2), "q.A": np.ones(2)}
    made.step(params, {name: np.zeros(2) for name in params}, 0.1)
    assert (params["q.m"] == 1).all() and (params["q.A"] < 1).all()


def test_a_negative_pull_is_refused_by_name():
    with pytest.raises(ValueError, match="^pull: expected a finite number of at least 0"):
        tuning.weight_decay_of(10, {"rate": 0.1, "pull": -0.1})


def test_coupled_adam_is_torchs_adam_and_measures_its_pull():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(30, 5))
    ours = {"q.weight": start.copy()}
    made = tuning.CoupledAdam(weight_decay=0.1)
    theirs = torch.nn.Parameter(torch.tensor(start))
    peer = torch.optim.Adam([theirs], lr=0.01, weight_decay=0.1)
    for grad in grads:
        made.step(ours, {"q.weight": grad.copy()}, 0.01)
        theirs.grad = torch.tensor(grad)
        peer.step()
    np.testing.assert_allclose(ours["q.weight"], theirs.detach().numpy(), rtol=1e-10)
    assert 0.5 < made.pulled["q.weight"] / (30 * 0.01 * 0.1) < 2  # second moments of about one
    spared = tuning.CoupledAdam(weight_decay=0.1, no_decay="*.weight")
    spared.step({"q.weight": start.copy()}, {"q.weight": grads[0]}, 0.01)
    assert spared.pulled == {"q.weight": 0}


def test_a_decaying_base_is_a_copy_and_shrinks_by_the_pull():
    base = nn.MLP.init((6, 5, 3), np.random.default_rng(0))
    lora = nn.adapt(base, "lora", rank=2, rng=np.random.default_rng(1))
    own = tuning.with_own_base(lora)
    settings = {"rate": 0.01, "pull": 0.3}
    decay = tuning.DecayingBase(
        tuning.schedule_of(50, settings), tuning.weight_decay_of(50, settings)
    )
    for step in range(51):
        decay(step, own)
    (left,) = tuning.pulls_at(50, settings, [50])
    for ours, theirs in zip(own.layers, base.layers, strict=True):
        np.testing.assert_allclose(ours.W0, (1 - left) * theirs.weight, rtol=1e-5)
        assert not ours.W0.flags.writeable
    dora = nn.adapt(base, "dora", rank=2, rng=np.random.default_rng(1))
    with pytest.raises(ValueError, match="expected LoRA"):
        tuning.with_own_base(dora)


def test_m_kept_positive():
    base = nn.MLP.init((6, 5, 3), np.random.default_rng(0))
    model = nn.adapt(base, "magnitude")
    for _, layer in walk(model):
        if hasattr(layer, "m"):
            layer.m[0] = -1
    tuning.keep_positive(1, model)
    magnitudes = [a for name, a in parameters(model).items() if name.endswith(".m")]
    assert magnitudes and min(m.min() for m in magnitudes) == 0


@pytest.mark.parametrize(
    "settings, decays",
    [
        ({"adapt": {"method": "full"}}, True),
        ({"adapt": {"method": "full"}, "spared": ["*.q.weight", "*.v.weight"]}, False),
        ({"adapt": {"method": "lora", "targets": ["q", "v"], "rank": 2}}, False),
        (
            {
                "adapt": {"method": "lora", "targets": ["q", "v"], "rank": 2},
                "decaying_base": True,
            },
            True,
        ),
        ({"adapt": {"method": "dora", "targets": ["q", "v"], "rank": 2}}, True),
        (
            {"adapt": {"method": "dora", "targets": ["q", "v"], "rank": 2}, "spared": ["*.m"]},
            False,
        ),
    ],
)
def test_a_run_knows_whether_its_norms_decay(settings, decays, tmp_path):
    record = {"record": {"targets": ["q", "v"], "times": 4}, "law": True, "rescale": 2}
    run = {"rate": 1e-3, "pull": 0.3, **record, **settings}
    result = runs.measure(TINY, run, 0, tmp_path)
    for law in result["law"].values():
        assert (law["pulls"][-1] > 0.2) == decays
        assert len(law["measured"]) == len(law["predicted"]) == 3 and law["of"] == 16


def test_predictions_are_judged_by_the_intervals():
    results = json.loads((RESULTS / "decay_interventions.json").read_text(encoding="utf-8"))
    config, seeds = results["config"], results["seeds"]
    name = "DoRA: m alone decayed, Λ 0.3"
    runs_ = predicted_and_measured(config, seeds)
    assert runs_[name]["right"] == {"q": True, "v": True}
    config["runs"][name]["predicted"] = "+"
    assert predicted_and_measured(config, seeds)[name]["right"] == {"q": False, "v": False}


def test_the_figures_are_drawn_from_the_results(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["experiments", "draw", str(RESULTS), "--out", str(tmp_path)]) == 0
    names = {"slopes.png", "collapse.png"}
    assert {Path(line).name for line in capsys.readouterr().out.split()} == names
    assert all((tmp_path / name).stat().st_size > 20_000 for name in names)


def test_the_law_is_near_what_was_measured():
    """The collapse: FT's and DoRA's pooled correlations within .2 of the law's, on average .1."""
    decay = store.read(RESULTS / "decay.json")
    for method in ("FT", "DoRA", "DoRA detached"):
        predicted, measured = map(np.array, decay_figures.means(decay)[method])
        assert np.abs(predicted - measured).mean() < 0.1, method
        assert np.corrcoef(predicted, measured)[0, 1] > 0.9, method


def test_the_page_of_the_untrained_control_is_what_the_command_prints():
    page = (RESULTS / "untrained.md").read_text(encoding="utf-8")
    printed = untrained.page().rstrip("\n")
    head, table = printed.split("\n\n| ")
    assert head in page
    rows = zip(page.splitlines(), printed.splitlines(), strict=True)
    for ours, theirs in rows:  # another BLAS may round another way
        numbers = [
            [float(cell.replace("−", "-")) for cell in line.split() if _number(cell)]
            for line in (ours, theirs)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.011) and table


def _number(cell):
    return cell.replace("−", "-").replace("+", "").replace("-", "").replace(".", "").isdigit()

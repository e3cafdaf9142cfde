"""Heads and gains as the vectors of figure 2: what is recorded, and what the law says of it."""

from dataclasses import replace

import numpy as np
import pytest

from minidora import granularity, nn
from minidora.analysis.decay import moved
from minidora.experiments import heads
from minidora.experiments.grouped import (
    KINDS,
    GroupRecorder,
    against_the_law,
    spread_gains,
    vectors,
)
from minidora.experiments.tuning import optimizer_of


def transformer(seed=0):
    rng = np.random.default_rng(seed)
    model = nn.thaw(nn.Transformer.init(7, 6, 2, 2, 5, rng, dtype=np.float64))
    for array in nn.parameters(model).values():
        array += 0.2 * rng.normal(size=array.shape)
    return model, rng


def test_each_kind_has_its_vectors():
    model, _ = transformer()
    found = vectors(model)
    assert list(found) == list(KINDS)
    shapes = {kind: (4, 18) for kind in KINDS[:4]} | {"q kᵀ of a head": (4, 36), "gain": (5, 6)}
    assert {kind: array.shape for kind, array in found.items()} == shapes
    attn = model.blocks[1].attn
    for name, groups in {"q": ("rows", 3), "o": ("columns", 3)}.items():
        norms = granularity.norms(getattr(attn, name).weight, groups)
        np.testing.assert_allclose(np.linalg.norm(found[f"head of {name}"][2:], axis=1), norms)
    product = attn.q.weight[3:].T @ attn.k.weight[3:]
    np.testing.assert_allclose(found["q kᵀ of a head"][3], product.ravel())
    np.testing.assert_array_equal(found["gain"][-1], model.ln.gain)


def test_gains_are_spread_and_the_function_stays():
    model, rng = transformer(1)
    tokens = rng.integers(7, size=(3, 5))
    other = spread_gains(model, 3.0, rng)
    np.testing.assert_allclose(other.forward(tokens)[0], model.forward(tokens)[0], rtol=1e-5)
    before, after = (np.linalg.norm(vectors(m)["gain"], axis=1) for m in (model, other))
    np.testing.assert_allclose(sorted(after / before), np.geomspace(1 / 3, 3, 5), rtol=1e-6)


def test_q_kT_does_not_see_what_moves_between_q_and_k():
    model, _ = transformer(2)
    other = nn.rescale(model, 2.0, np.random.default_rng(0), by="head")
    ours, theirs = vectors(model), vectors(other)
    np.testing.assert_allclose(ours["q kᵀ of a head"], theirs["q kᵀ of a head"], rtol=1e-12)
    q = [np.linalg.norm(found["head of q"], axis=1) for found in (ours, theirs)]
    assert np.ptp(q[1] / q[0]) > 1


def test_pure_decay_is_what_the_law_says():
    """Every weight but one kind's stays; that one shrinks and takes updates of one length."""
    model, rng = transformer(3)
    recorder = GroupRecorder(model, [1, 2])
    pull = 0.2
    for step in (1, 2):
        share = pull * step / 2
        start = vectors(model)["gain"]
        drawn = np.random.default_rng(9).normal(size=start.shape)
        drawn *= 0.05 * step / np.linalg.norm(drawn, axis=1, keepdims=True)
        gains = iter((1 - share) * start + drawn)
        blocks = tuple(
            replace(
                block,
                ln1=replace(block.ln1, gain=next(gains)),
                ln2=replace(block.ln2, gain=next(gains)),
            )
            for block in model.blocks
        )
        recorder(step, replace(model, blocks=blocks, ln=replace(model.ln, gain=next(gains))))
        recorder(step + 7, model)  # not asked for
    assert [len(several) for several in recorder.moves.values()] == [2] * len(KINDS)
    settings = {"pull": pull, "rate": 1e-3, "schedule": "constant"}
    found = against_the_law(recorder, 2, settings, rng)
    assert list(found) == ["gain"]  # the others did not move
    last = recorder.moves["gain"][-1]
    expected = moved(last.before, 0.1, pull)
    np.testing.assert_allclose(found["gain"]["dM"], np.abs(expected.growth).mean(), rtol=0.2)
    assert found["gain"]["pull"] == pytest.approx(1 - (1 - 0.1) ** 2)
    assert found["gain"]["entries"] == 6
    np.testing.assert_allclose(found["gain"]["norms"], [last.before.min(), last.before.max()])
    start, now = vectors(model)["gain"], recorder.moves["gain"]
    assert len(now[-1].turn) == len(start) == 5  # a gain is a vector, not an entry of one
    r = np.corrcoef(last.turn, last.growth)[0, 1]
    assert found["gain"]["signed"][1] == pytest.approx(r)
    assert found["gain"]["measured"][1] == pytest.approx(
        np.corrcoef(last.turn, np.abs(last.growth))[0, 1]
    )


def test_a_product_decays_twice():
    model, rng = transformer(4)
    recorder = GroupRecorder(model, [1])

    def smaller(block):
        q, k = (
            replace(layer, weight=0.9 * layer.weight + 1e-6 * rng.normal(size=(6, 6)))
            for layer in (block.attn.q, block.attn.k)
        )
        return replace(block, attn=replace(block.attn, q=q, k=k))

    recorder(1, replace(model, blocks=tuple(map(smaller, model.blocks))))
    settings = {"pull": 0.1, "rate": 1e-3, "schedule": "constant"}
    found = against_the_law(recorder, 1, settings, rng)
    assert list(found) == ["head of q", "head of k", "q kᵀ of a head"]
    assert [one["pull"] for one in found.values()] == pytest.approx([0.1, 0.1, 0.19])
    for one in found.values():
        assert one["dM"] == pytest.approx(one["pull"] * np.mean(one["norms"]), rel=0.2)


@pytest.mark.parametrize(
    ("turn", "pull", "expected"),
    [
        (0.3, 0.0, "+"),
        (0.3, 0.3, None),
        (0.3, 0.95, "-"),
        (0.001, 0.0, None),
        (0.001, 0.0031, None),
    ],
)
def test_the_sign_that_the_law_predicts(turn, pull, expected):
    found = {"dD": turn, "pull": pull, "norm_sd": 0.5, "entries": 256.0}
    assert heads.predicted_sign(found) == expected


def test_gains_decay_only_where_asked():
    settings = {"pull": 0.1, "rate": 1e-3}
    assert "*.gain" in optimizer_of(10, settings).no_decay
    decaying = optimizer_of(10, settings | {"gains decay": True}).no_decay
    assert "*.gain" not in decaying and "*.bias" in decaying


def test_signs_that_came_true_are_counted():
    one = {
        "measured": [0.5, 0.6],
        "signed": [0.5, 0.6],
        "predicted": [0.5, 0.7],
        "dD": 0.3,
        "dM": 0.1,
        "pull": 0.0,
        "norm_sd": 0.5,
        "entries": 256,
        "norms": [1.0, 2.0],
    }
    config = {"runs": {"run": {}}}
    seeds = {str(i): {"run": {"heads": {"gain": one}}} for i in range(3)}
    shown = heads.table(heads.summary(config, seeds))
    assert shown.startswith("1 of 1 predicted signs came true.") and "| above |" in shown

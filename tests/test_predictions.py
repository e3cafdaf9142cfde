"""What the law predicts of layers and checkpoints, and the control that learns nothing."""

import itertools
import math

import numpy as np
import pytest

from minidora import analysis, nn, training
from minidora.analysis import decay, predictions
from minidora.analysis.movement import Changes

SIX = np.repeat(np.geomspace(0.5, 2, 6)[:, None], 32, 1)  # six layers of 32 vectors


def pull_of(total):
    return 1 - math.exp(-total)


def mean_untrained(norms, u, pull, dimension, draws, seed=0):
    rng = np.random.default_rng(seed)
    of = {"lengths": u, "pull": pull, "dimension": dimension, "rng": rng}
    return predictions.mean_correlations(
        predictions.correlations_of(
            predictions.untrained(norms(rng) if callable(norms) else norms, **of)
        )
        for _ in range(draws)
    )


def log_uniform(rng):
    return 2 ** rng.uniform(-1, 1, size=(1, 200))


@pytest.mark.parametrize(
    ("u", "total", "expected"),
    [
        (0.08, 0, 0.20),
        (0.08, 0.003, 0.01),
        (0.08, 0.01, -0.66),
        (0.08, 0.03, -0.83),
        (0.5, 0, 0.97),
        (0.5, 0.1, 0.62),
        (0.5, 0.3, -0.75),
    ],
)
def test_no_learning_is_needed_between_layers(u, total, expected):
    drawn = mean_untrained(SIX, u, pull_of(total), 32, draws=100)
    error = drawn.sd[1] / math.sqrt(100)
    assert drawn.last == pytest.approx(expected, abs=3 * error + 0.02)
    rng = np.random.default_rng(1)
    predicted = analysis.predicted_correlations(SIX, u, pull_of(total), dimension=32, rng=rng)
    assert predicted.last == pytest.approx(drawn.last, abs=5 * error + 0.005)
    assert predicted.sd[1] == pytest.approx(drawn.sd[1], rel=0.5)


@pytest.mark.parametrize(
    ("d", "u", "total", "expected"),
    [
        (32, 0.05, 0, -0.04),
        (32, 0.05, 0.003, -0.10),
        (32, 0.05, 0.01, -0.36),
        (32, 0.05, 0.03, -0.71),
        (384, 0.5, 0, 0.84),
        (384, 0.5, 0.1, 0.63),
        (384, 0.5, 0.3, -0.77),
    ],
)
def test_no_learning_is_needed_within_a_matrix(d, u, total, expected):
    drawn = mean_untrained(log_uniform, u, pull_of(total), d, draws=20)
    assert drawn.within == pytest.approx(expected, abs=0.05)
    rng = np.random.default_rng(1)
    predicted = predictions.mean_correlations(
        analysis.predicted_correlations(
            log_uniform(rng), u, pull_of(total), dimension=d, draws=1, rng=rng
        )
        for _ in range(20)
    )
    assert predicted.within == pytest.approx(drawn.within, abs=0.05)


def schedule(total, steps=200, checkpoints=4):
    """Shares of the update and Λ at four checkpoints of a linearly decaying rate."""
    rates = np.array([training.linear(1.0, steps, warmup=20)(step) for step in range(steps)])
    at = np.arange(1, checkpoints + 1) * steps // checkpoints - 1
    return np.cumsum(rates)[at] / rates.sum(), decay.pulls(rates, total / rates.sum())[at]


@pytest.mark.parametrize("total", [0.0, 0.01, 0.03])
def test_pooled_predictions_equal_pooled_simulation(total):
    shares, pull = schedule(total)
    drawn = mean_untrained(SIX, 0.1 * shares, pull, 32, draws=60)
    rng = np.random.default_rng(1)
    predicted = analysis.predicted_correlations(SIX, 0.1 * shares, pull, dimension=32, rng=rng)
    for way in range(3):
        error = drawn.sd[way] * math.sqrt(1 / 60 + 1 / 100)
        assert predicted[way] == pytest.approx(drawn[way], abs=4 * error + 0.005)


def at_ratio(norms, relative, turn, **drawn):
    """What is predicted where Λ is so many times a turn, that of the geometric mean norm."""
    shares, pull = schedule(relative * turn)
    u = math.tan(math.acos(1 - turn)) * (1 - pull[-1])
    rng = np.random.default_rng(0)
    return analysis.predicted_correlations(norms, u * shares, pull, **drawn, rng=rng)


def test_pooling_over_time_delays_the_change_of_sign_and_rho_delays_it_more():
    drawn = {"dimension": 32, "draws": 40}
    delayed = at_ratio(SIX, 1.5, 0.003, **drawn)  # ΔD far below 2 / d
    assert delayed.last < -0.2 and delayed.pooled > 0.2
    assert at_ratio(SIX, 1.5, 0.14, **drawn).pooled < -0.2
    assert at_ratio(SIX, 5, 0.003, **drawn).pooled < -0.2


def test_pooled_over_layers_of_nearly_one_norm_time_rules_at_any_pull():
    alike = np.repeat(np.geomspace(1 / 1.1, 1.1, 6)[:, None], 32, 1)
    for relative in (0, 0.5, 1, 2, 4, 6):
        predicted = at_ratio(alike, relative, 0.003, dimension=32, draws=20)
        assert predicted.pooled > 0.5
    assert predicted.last < -0.3


def test_a_prediction_from_the_updates_themselves_is_exact():
    shares, pull = schedule(0.1)
    rng = np.random.default_rng(3)
    moves = predictions.untrained(SIX, 0.5 * shares, pull, 8, rng)
    update = analysis.update_of(moves, pull[:, None, None])
    np.testing.assert_allclose(
        update.lengths,
        np.broadcast_to((0.5 * shares)[:, None, None], update.lengths.shape),
        rtol=1e-6,
    )
    predicted = analysis.predicted_correlations(SIX, update.lengths, pull, radial=update.radial)
    np.testing.assert_allclose(predicted[:3], analysis.correlations_of(moves)[:3], atol=1e-9)
    assert predicted.sd == (0, 0, 0)


def test_correlations_of_are_the_papers():
    rng = np.random.default_rng(4)
    moves = predictions.untrained(SIX, [0.1, 0.2, 0.3, 0.4], [0, 0.1, 0.2, 0.3], 8, rng)
    drawn = analysis.correlations_of(moves)
    dM, dD = np.abs(moves.growth).mean(2), moves.turn.mean(2)
    assert drawn.pooled == analysis.correlations([1, 2, 3, 4], dM, dD)["pooled"][0].r
    assert drawn.last == analysis.correlations([1, 2, 3, 4], dM, dD)["within step"][3].r
    last = [Changes(*(array[-1, i] for array in moves)).correlation.r for i in range(6)]
    assert drawn.within == pytest.approx(np.mean(last), rel=1e-12)


def test_a_real_run_obeys_the_law():
    rng = np.random.default_rng(0)
    base = nn.rescale(nn.MLP.init((32, 64, 64, 64, 64, 4), rng), 2.0, rng, by="row")
    x = rng.normal(size=(64, 32)).astype(np.float32)
    y = rng.integers(4, size=64)
    rate, weight_decay, steps = training.linear(2e-3, 40), 0.5, range(10, 41, 10)
    recorder = analysis.Recorder(base, ("layers.1", "layers.2", "layers.3"), steps=steps)
    training.fit(
        nn.adapt(base, "full"),
        nn.classification,
        itertools.repeat((x, y)),
        steps=40,
        optimizer=training.AdamW(weight_decay=weight_decay),
        rate=rate,
        progress=False,
        callbacks=[recorder],
    )
    moves = analysis.moves_of(recorder.recording)
    assert moves.turn.shape == (4, 3, 64)
    np.testing.assert_array_equal(moves.growth[2, 1], recorder.recording.vectors[2][1].growth)
    pull = analysis.pulls([rate(step) for step in range(40)], weight_decay)[9::10]
    update = analysis.update_of(moves, pull[:, None, None])
    # by mean lengths alone: norms, time and decay, and nothing of what was learned
    lengths = update.lengths.mean(2)
    predicted = analysis.predicted_correlations(
        moves.before[0], lengths, pull, dimension=64, draws=20, rng=rng
    )
    measured = analysis.correlations_of(moves)
    assert measured.within < -0.3
    assert predicted.within == pytest.approx(measured.within, abs=0.25)
    ragged = analysis.Recording(
        [1],
        ["a", "b"],
        [[analysis.changes(w, w, "per_output") for w in (np.ones((2, 3)), np.ones((4, 3)))]],
    )
    with pytest.raises(ValueError, match=r"recording: expected layers of as many vectors, got"):
        analysis.moves_of(ragged)


def test_a_base_that_does_not_decay_stays_positive_and_dora_turns():
    shares, pull = schedule(0.6)
    u = 0.5 * shares
    assert analysis.predicted_correlations(SIX, u, 0).pooled > 0.9  # LoRA
    assert analysis.predicted_correlations(SIX, u, pull).pooled < -0.3  # the base decays too
    p = np.random.default_rng(0).normal(0.1, 0.1, size=(4, 6, 32)).cumsum(0)
    for pull_of_m in (np.zeros(4), pull):  # DoRA
        moves = decay.moved_magnitude(SIX, u[:, None, None], pull_of_m[:, None, None], p)
        predicted = analysis.predicted_correlations(SIX, u, pull_of_m, step=p)
        np.testing.assert_array_equal(predicted[:3], analysis.correlations_of(moves)[:3])
    assert predicted.last < -0.5


def test_draws_are_seeded():
    of = {"dimension": 16, "draws": 3}
    first, again, other = (
        analysis.predicted_correlations(SIX, 0.1, 0.01, rng=np.random.default_rng(seed), **of)
        for seed in (0, 0, 1)
    )
    assert first == again and first != other and first.sd[0] > 0

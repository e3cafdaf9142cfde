"""The law behind figure 2's slopes, against exact cases, real optimizer steps and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest

from minidora import analysis, dora, training
from minidora.analysis import decay, predictions
from minidora.analysis.movement import Changes

SIX = np.repeat(np.geomspace(0.5, 2, 6)[:, None], 32, 1)  # six layers of 32 vectors


def r(changes, signed=False):
    growth = changes.growth if signed else np.abs(changes.growth)
    return analysis.correlate(np.ravel(changes.turn), np.ravel(growth)).r


# The law itself


@pytest.mark.parametrize("length", [1e-9, 1e-3, 0.7, 40.0])
@pytest.mark.parametrize("pull", [0.0, 1e-8, 0.3, 1.0])
def test_growth_and_turn_equal_mpmaths_of_actual_vectors(length, pull):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(0)
    with mpmath.workdps(60):
        for _ in range(5):
            w0, d = (mpmath.matrix(rng.normal(size=3).tolist()) for _ in range(2))
            d *= length / mpmath.norm(d)
            w = (1 - mpmath.mpf(pull)) * w0 + d
            m, u, after = (mpmath.norm(vector) for vector in (w0, d, w))
            rho = (d.T * w0)[0] / m
            turn = 1 - (w.T * w0)[0] / m / after
            changes = decay.moved(float(m), float(u), pull, float(rho))
            # what rounding ρ and u to float64 costs grows with how much the parts cancel
            size = (after + m) / after
            assert abs(changes.turn - turn) <= 1e-15 * (turn + size * u / after)
            assert abs(changes.growth - (after - m)) <= 2e-15 * (abs(after - m) + u + pull * m)
            if turn < 0.99:
                law = decay.growth_at(float(m), float(turn), pull, float(rho))
                assert abs(law - (after - m)) <= 1e-13 * m
            update = decay.update_of(Changes(*(np.float64(x) for x in (m, after - m, turn))), pull)
            assert abs(update.lengths - u) <= 1e-7 * u + 1e-15 * (m + u)
            assert abs(update.radial - rho) <= 4e-15 * (m + u)


def test_by_hand_in_two_dimensions():
    # w0 = (5, 0), Λ = 2/5, d = (1, 3): w = (4, 3), of norm 5, cos 4/5
    changes = decay.moved(5, math.sqrt(10), 0.4, 1)
    assert changes.growth == pytest.approx(0, abs=1e-15) and changes.turn == pytest.approx(0.2)
    assert decay.growth_at(5, 0.2, 0.4, 1) == pytest.approx(0, abs=1e-15)
    # no ρ: m (ΔD - Λ) / (1 - ΔD), and pull alone neither turns nor grows
    assert decay.growth_at(5, 0.2, 0.4) == pytest.approx(5 * (0.2 - 0.4) / 0.8)
    alone = decay.moved([5.0], 0, 0.4)
    assert alone.growth == pytest.approx(-2) and alone.turn == 0
    # beyond a right angle, at one, and against w0
    behind = decay.moved([1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0, 1, 0.5], [-2.0, 0.0, -1.0])
    np.testing.assert_allclose(behind.turn, [2, 1, 2])
    np.testing.assert_allclose(behind.growth, [0, 0, -0.5], atol=1e-15)
    # nothing left, or nothing to begin with: a right angle, as `changes` counts it
    nothing = decay.moved([1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1, 0, 0], [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(nothing.turn, [1, 1, 1])
    np.testing.assert_array_equal(nothing.growth, [-1, 2, 0])


def test_small_turns_are_u_over_m_squared_over_two():
    m, u, pull = 3.0, 0.01, 0.4
    assert decay.moved(m, u, pull).turn == pytest.approx(u**2 / (2 * (m * (1 - pull)) ** 2), 1e-4)


def test_pulls_are_the_product_and_total_decay_the_sum():
    rates, weight_decay = [0.5, 0.25, 0.125], 0.5
    left = Fraction(1)
    for rate, pull in zip(rates, decay.pulls(rates, weight_decay), strict=True):
        left *= 1 - Fraction(rate) * Fraction(weight_decay)
        assert pull == pytest.approx(float(1 - left), rel=1e-15)
    assert decay.total_decay(rates, weight_decay) == 0.4375
    small = np.full(1000, 1e-9)
    assert decay.pulls(small, 1e-3)[-1] == pytest.approx(1e-9, rel=1e-8)  # digits kept
    assert decay.pulls(np.full(2000, 1e-3), 0.3)[-1] == pytest.approx(1 - math.exp(-0.6), rel=1e-3)
    np.testing.assert_array_equal(decay.pulls([0.5, 1.0, 0.5], 1.0), [0.5, 1, 1])


@pytest.mark.parametrize("learns", [False, True])
def test_the_law_holds_for_adamw_steps(learns):
    rng = np.random.default_rng(1)
    W0 = rng.normal(size=(6, 5))
    W, schedule = W0.copy(), training.linear(0.05, 40, warmup=4)
    optimizer = training.AdamW(weight_decay=0.7)
    for step in range(40):
        gradient = learns * (rng.normal(size=W.shape) + 0.3)
        optimizer.step({"W": W}, {"W": gradient}, schedule(step))
    pull = decay.pulls([schedule(step) for step in range(40)], 0.7)[-1]
    d = W - (1 - pull) * W0
    m = np.linalg.norm(W0, axis=1)
    lengths, radial = np.linalg.norm(d, axis=1), (d * W0).sum(1) / m
    assert learns or lengths.max() < 1e-14
    measured = analysis.changes(W0, W, "per_output")
    predicted = decay.moved(m, lengths, pull, radial)
    np.testing.assert_allclose(predicted.growth, measured.growth, rtol=1e-9)
    np.testing.assert_allclose(predicted.turn, measured.turn, rtol=1e-9, atol=1e-15)
    by_turn = decay.growth_at(m, measured.turn, pull, radial)
    np.testing.assert_allclose(by_turn, measured.growth, rtol=1e-9)
    update = decay.update_of(measured, pull)
    np.testing.assert_allclose(update.lengths, lengths, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(update.radial, radial, rtol=1e-9, atol=1e-13)


def test_doras_law_equals_the_changes_of_its_weight():
    rng = np.random.default_rng(2)
    W0, A, B = rng.normal(size=(4, 5)), rng.normal(size=(2, 5)), rng.normal(size=(4, 2))
    m, pull, p = np.linalg.norm(W0, axis=1), 0.3, np.array([0.1, -0.2, 0.0, -5.0])
    W = dora.dora_weight(W0, A, B, (1 - pull) * m + p, 0.7)
    measured = analysis.changes(W0, W, "per_output")
    d = 0.7 * B @ A
    update = np.linalg.norm(d, axis=1), (d * W0).sum(1) / m
    predicted = decay.moved_magnitude(m, update[0], pull, p, update[1])
    np.testing.assert_allclose(predicted.growth, measured.growth, rtol=1e-12)
    np.testing.assert_allclose(predicted.turn, measured.turn, rtol=1e-12)
    assert measured.turn[3] > 1  # m below zero
    np.testing.assert_allclose(predicted.growth[:3], (p - pull * m)[:3])


# The radial part


def test_radial_parts_are_coordinates_of_random_directions():
    d, rng = 6, np.random.default_rng(3)
    parts = decay.radial_parts(np.full(200_000, 2.0), d, rng) / 2
    assert np.abs(parts).max() <= 1
    # the moments of one coordinate of a unit vector: 1/d, 3/(d (d + 2)), 15/(d (d + 2) (d + 4))
    moments = [0, 1 / d, 3 / (d * (d + 2)), 15 / (d * (d + 2) * (d + 4))]
    for power, moment in zip((1, 2, 4, 6), moments, strict=True):
        assert (parts**power).mean() == pytest.approx(moment, rel=0.03, abs=0.003)


@pytest.mark.parametrize("tau", [0.1, 0.3])
def test_the_radial_part_hides_the_correlation_below_its_limits(tau):
    d, rng = 4096, np.random.default_rng(4)
    u = 2 / math.sqrt(d)  # at the first limit ρ and Pythagoras are as large
    assert u / math.sqrt(d) == pytest.approx(u * u / 2)
    assert decay.hidden_below(d) == pytest.approx(u * u / 2)
    limit = decay.hidden_below(d, norm_sd=tau)
    m = np.exp(tau * rng.normal(size=(1, 20_000)))

    def within(turn, pull=0.0):
        of = {"dimension": d, "draws": 1, "rng": rng}
        u = math.tan(math.acos(1 - turn))
        return predictions.predicted_correlations(m, u, pull, **of).within

    assert abs(within(0.1 * decay.hidden_below(d))) < 0.1
    assert 0.3 < within(0.2 * limit) < 0.6 < within(limit) < 0.8 < within(5 * limit)
    shown = math.sqrt(2 * 1e-4 / d) / tau  # by decay, where the turn alone shows nothing
    assert abs(within(1e-4)) < 0.25 and within(1e-4, 3 * shown) < -0.6


def test_equal_lengths_and_norms_go_negative_by_rho_alone():
    m = np.ones((1, 20_000))
    rng = np.random.default_rng(5)
    for turn in (0.003, 0.14):
        u = math.tan(math.acos(1 - turn))
        drawn = predictions.predicted_correlations(m, u, 0, dimension=32, draws=1, rng=rng)
        assert drawn.within < -0.3


# Where the sign turns


CLOSED = [
    (tau, d, turn, relative)
    for tau, d in ((0.02, 16), (0.1, 32), (0.1, math.inf), (0.05, 384), (0.2, 32))
    for turn in (0.001, 0.03, 0.1)
    for relative in (0, 0.8, 1, 1.3, 4)
]


def simulated(tau, d, turn, pull, rng, n=40_000):
    m = np.exp(tau * rng.normal(size=n))
    u = np.full(n, (1 - pull) * math.tan(math.acos(1 - turn)))
    return r(decay.moved(m, u, pull, decay.radial_parts(u, d, rng) if d < math.inf else 0))


@pytest.mark.parametrize(("tau", "d", "turn", "relative"), CLOSED)
def test_the_closed_form_equals_simulation_in_its_range(tau, d, turn, relative):
    pull = relative * turn
    expected = simulated(tau, d, turn, pull, np.random.default_rng(6))
    closed = decay.small_spread_correlation(turn, pull, tau, dimension=d)
    assert abs(closed - expected) < (0.05 if tau <= 0.1 and turn <= 0.03 else 0.1)


def test_the_closed_form_fails_where_its_docstring_says():
    wide = simulated(0.5, math.inf, 0.2, 0.2, np.random.default_rng(7))
    assert abs(wide - decay.small_spread_correlation(0.2, 0.2, 0.5)) > 0.2


def test_turning_points():
    for ratio, zero, half in ((1.5, 1.015, 1.10), (2, 1.04, 1.2), (4, 1.16, 1.6)):
        assert decay.turning_point(ratio) == pytest.approx(zero, rel=0.005)
        assert decay.turning_point(ratio, -0.5) == pytest.approx(half, rel=0.02)
    assert decay.turning_point(1.01) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("target", [0.5, 0.0, -0.5])
def test_turning_points_are_where_exact_moves_cross(target):
    rng = np.random.default_rng(8)
    m = 3 ** rng.uniform(-0.5, 0.5, size=100_000)
    turn = 1e-4
    for nudge in (-1, 1):
        pull = (1 + 0.02 * nudge) * decay.turning_point(3, target) * turn
        crossed = r(decay.moved(m, math.sqrt(2 * turn) * (1 - pull), pull)) - target
        assert crossed * nudge < 0


@pytest.mark.parametrize("ratio", [1.5, 2, 4])
def test_growth_with_its_sign_stays_positive_at_every_pull(ratio):
    rng = np.random.default_rng(9)
    m = ratio ** rng.uniform(-0.5, 0.5, size=10_000)
    for turn in (0.003, 0.1):
        for relative in (0, 0.5, 1, 2, 5):
            changes = decay.moved(m, math.sqrt(2 * turn), relative * turn)
            assert r(changes, signed=True) > {1.5: 0.98, 2: 0.96, 4: 0.85}[ratio]
            if relative > 1.6:
                assert r(changes) < -0.5


def test_doras_sign_is_that_of_p_against_pull_times_m():
    m = np.geomspace(0.5, 2, 400)
    u = np.full(400, 0.3)
    for p in (0.05, 0.2):  # all of one sign: positive while Λ m < p, negative beyond
        assert r(decay.moved_magnitude(m, u, 0.2 * p, p)) > 0.85
        assert r(decay.moved_magnitude(m, u, 2 * p, p)) < -0.85
    for p in (0.05, 0.2):  # of either sign: max(p, Λ m), flat until Λ times the largest m is p
        either = [decay.moved_magnitude(m, u, p / 2.001, sign * p) for sign in (1, -1)]
        flat = sum(np.abs(changes.growth) for changes in either) / 2
        np.testing.assert_allclose(flat, p, rtol=1e-12)
        either = [decay.moved_magnitude(m, u, 0.9 * p, sign * p) for sign in (1, -1)]
        mean = sum(np.abs(changes.growth) for changes in either) / 2
        np.testing.assert_allclose(mean, np.maximum(p, 0.9 * p * m), rtol=1e-12)
        assert analysis.correlate(either[0].turn, mean).r < -0.5


def test_the_turn_has_no_part_in_doras_growth():
    short, long = (decay.moved_magnitude([1.0, 2.0], u, 0.1, 0.3).growth for u in (0.1, 1.0))
    np.testing.assert_array_equal(short, long)


# Bad input


def test_errors_name_the_argument():
    pull = "pull: expected finite numbers from 0 to 1, got"
    for wrong in (-0.1, 1.5, math.nan):
        for refused in (
            lambda: decay.moved(1.0, 0.1, wrong),  # noqa: B023
            lambda: decay.growth_at(1.0, 0.1, wrong),  # noqa: B023
            lambda: decay.moved_magnitude(1.0, 0.1, wrong, 0.1),  # noqa: B023
            lambda: decay.small_spread_correlation(0.1, wrong, 0.1),  # noqa: B023
            lambda: analysis.predicted_correlations(SIX, 0.1, wrong),  # noqa: B023
            lambda: analysis.untrained(SIX, 0.1, wrong, 4, np.random.default_rng(0)),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=pull):
                refused()
    cases = {
        "rates: expected one number or more": lambda: decay.pulls([], 0.1),
        "rates: expected rate": lambda: decay.pulls([1.0], 2.0),
        "rates: expected finite": lambda: decay.total_decay([-0.1], 2.0),
        "weight_decay: expected a finite number of at least 0": lambda: decay.pulls([0.1], -1),
        "before: expected one number or more": lambda: decay.moved([], 0.1, 0),
        "lengths: expected finite": lambda: decay.moved(1.0, -0.1, 0),
        "radial: expected parts no longer than lengths": lambda: decay.moved(1.0, 0.1, 0, 0.2),
        "turn: expected finite": lambda: decay.growth_at(1.0, 1.0, 0),
        "dimension: expected": lambda: decay.hidden_below(1),
        "ratio: expected a number above 1, got 0.5": lambda: decay.turning_point(0.5),
        "ratio: expected a number above 1, got 1": lambda: decay.turning_point(1),
        "r: expected from": lambda: decay.turning_point(4, -0.99),
        "norms: expected shape": lambda: analysis.predicted_correlations([1.0], 0.1, 0),
        "norms: expected one number": lambda: analysis.predicted_correlations([[]], 0.1, 0),
        "lengths: expected a number, or shape": lambda: analysis.predicted_correlations(
            SIX, np.ones((4, 5)), 0
        ),
        "rng: expected": lambda: analysis.predicted_correlations(SIX, 0.1, 0, dimension=4),
    }
    for message, refused in cases.items():
        with pytest.raises(ValueError, match=message):
            refused()
    with pytest.raises(ValueError, match="dimension: expected 2 or more, got 1"):
        decay.small_spread_correlation(0.1, 0, 0.1, dimension=1)
    assert math.isnan(decay.small_spread_correlation(0.1, 0, 0.0))

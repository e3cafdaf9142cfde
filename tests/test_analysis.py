"""ΔM, ΔD and their correlations, the S1/S2 argument, covariances: each against a few lines."""

import tracemalloc

import numpy as np
import pytest

from minidora import analysis, nn, training

AXES = ("per_output", "per_input")


def rows(M, norm_axis):
    return M if norm_axis == "per_output" else M.T


@pytest.mark.parametrize("norm_axis", AXES)
def test_changes_equal_their_definitions(norm_axis):
    rng = np.random.default_rng(0)
    W0, W = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    dM, dD = [], []
    for w0, w in zip(rows(W0, norm_axis), rows(W, norm_axis), strict=True):
        dM.append(np.linalg.norm(w) - np.linalg.norm(w0))
        dD.append(1 - w @ w0 / np.linalg.norm(w) / np.linalg.norm(w0))
    of = {"W0": W0, "W": W, "norm_axis": norm_axis}
    assert analysis.magnitude_change(**of) == pytest.approx(np.mean(np.abs(dM)), rel=1e-12)
    assert analysis.direction_change(**of) == pytest.approx(np.mean(dD), rel=1e-12)
    np.testing.assert_allclose(analysis.magnitude_change(**of, per_vector=True), np.abs(dM))
    signed = analysis.magnitude_change(**of, per_vector=True, signed=True)
    np.testing.assert_allclose(signed, dM, rtol=1e-10)
    assert (signed < 0).any()
    np.testing.assert_allclose(analysis.direction_change(**of, per_vector=True), dD, rtol=1e-10)


def test_spearman_equals_scipys():
    stats = pytest.importorskip("scipy.stats", exc_type=ImportError)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=30).round(1), rng.normal(size=30).round(1)  # rounding makes ties
    assert analysis.spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-11)
    assert analysis.spearman(a, -a) == -1


@pytest.mark.parametrize("norm_axis", AXES)
def test_scenarios_by_hand(norm_axis):
    rng = np.random.default_rng(2)
    W0, G = rng.normal(size=(6, 9)), rng.normal(size=(6, 9)) * rng.uniform(0.1, 5, size=(6, 9))
    got = analysis.scenarios(W0, G, norm_axis, rate=0.05)
    assert list(got) == ["one vector", "one length", "as they are"]
    w_mean, g_mean = (np.linalg.norm(rows(M, norm_axis), axis=1).mean() for M in (W0, G))
    for i, (w, g) in enumerate(zip(rows(W0, norm_axis), rows(G, norm_axis), strict=True)):
        w_scaled, g_scaled = w * w_mean / np.linalg.norm(w), g * g_mean / np.linalg.norm(g)
        for name, (v, gradient) in {
            "one vector": (w_scaled, g_scaled),
            "one length": (w, g_scaled),
            "as they are": (w, g),
        }.items():
            assert got[name].dm[i] == pytest.approx(abs(v @ gradient) / np.linalg.norm(v))
            after = v - 0.05 * gradient
            cosine = after @ v / np.linalg.norm(after) / np.linalg.norm(v)
            assert got[name].turn[i] == pytest.approx(1 - cosine, rel=1e-6)
    for scenario in got.values():
        assert scenario.spearman == analysis.spearman(scenario.dm, scenario.turn)


def test_the_premise_of_the_scenarios():
    """Gradients of one length: the more along w0, the larger dm, the less turn."""
    angles = np.linspace(0.1, 1.5, 12)
    W0, G = np.tile([1.0, 0.0], (12, 1)), np.stack([np.cos(angles), np.sin(angles)], 1)
    G *= np.linspace(1, 3, 12)[:, None]
    assert analysis.scenarios(W0, G, "per_output", rate=0.01)["one vector"].spearman == -1


def test_covariance_stats_by_hand():
    samples = np.random.default_rng(3).normal(size=(50, 4)) * [1, 2, 3, 4]
    got = analysis.covariance_stats(samples)
    C = np.cov(samples.T, bias=True)
    values = np.linalg.eigvalsh(C)[::-1]
    np.testing.assert_allclose(got.eigenvalues, values, rtol=1e-10)
    p = values / values.sum()
    assert got.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)
    far = np.linalg.norm(C - np.trace(C) / 4 * np.eye(4)) / np.linalg.norm(C)
    assert got.distance == pytest.approx(far, rel=1e-10)


def test_covariance_of_few_samples_has_zero_eigenvalues():
    got = analysis.covariance_stats(np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got.eigenvalues, [1, 0, 0])
    assert got.effective_rank == 1
    assert got.distance == pytest.approx((2 / 3) ** 0.5)


@pytest.mark.parametrize("norm_axis", AXES)
def test_gradient_covariances_example_by_example(norm_axis):
    rng = np.random.default_rng(4)
    x, dy, V = rng.normal(size=(20, 6)), rng.normal(size=(20, 5)), rng.normal(size=(5, 6))
    dy[:, 3] = 0  # a dead output: left out per output
    m = rng.normal(size=5 if norm_axis == "per_output" else 6)
    of_W, of_V = analysis.gradient_covariances(x, dy, V, m, norm_axis)
    alive = [0, 1, 2, 4] if norm_axis == "per_output" else range(6)
    assert len(of_W) == len(of_V) == len(alive)
    for k, i in enumerate(alive):
        v = rows(V, norm_axis)[i]
        g = np.stack([rows(np.outer(d, e), norm_axis)[i] for d, e in zip(dy, x, strict=True)])
        np.testing.assert_allclose(
            of_W[k].eigenvalues, analysis.covariance_stats(g).eigenvalues, atol=1e-12
        )
        P = np.eye(len(v)) - np.outer(v, v) / (v @ v)
        dv = m[i] / np.linalg.norm(v) * g @ P
        expected = analysis.covariance_stats(dv)
        np.testing.assert_allclose(of_V[k].eigenvalues, expected.eigenvalues, atol=1e-10)


def test_detached_covariances_are_only_scaled():
    rng = np.random.default_rng(5)
    x, dy, V = rng.normal(size=(20, 6)), rng.normal(size=(20, 5)), rng.normal(size=(5, 6))
    of_W, of_V = analysis.gradient_covariances(
        x, dy, V, np.ones(5), "per_output", norm_grad="detached"
    )
    for a, b in zip(of_W, of_V, strict=True):
        assert a.effective_rank == pytest.approx(b.effective_rank)
        assert a.distance == pytest.approx(b.distance)


def test_errors():
    W0 = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"W: expected shape \(3, 4\).*got shape \(4, 3\)"):
        analysis.magnitude_change(W0, W0.T, "per_output")
    with pytest.raises(ValueError, match=r"b: expected shape \(3,\).*got shape \(2,\)"):
        analysis.spearman(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="rate: expected a finite number of at least 0"):
        analysis.scenarios(W0, W0, "per_output", rate=-1.0)
    for few in (np.ones((1, 3)), np.ones((5, 3)), np.ones((0, 3))):
        with pytest.raises(ValueError, match="samples: expected two or more that differ"):
            analysis.covariance_stats(few)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3\) \(\(n, d_out\)\)"):
        analysis.gradient_covariances(
            np.ones((2, 4)), np.ones((2, 4)), W0, np.ones(3), "per_output"
        )
    with pytest.raises(ValueError, match=r"x: expected shape \(2, 4\) \(\(n, d_in\)\)"):
        analysis.gradient_covariances(
            np.ones((2, 3)), np.ones((2, 3)), W0, np.ones(3), "per_output"
        )


def independent(W0, W, norm_axis):
    """Growth and turn of every vector, as Eq. 3 and 4 say."""
    a, b = (np.asarray(M, np.float64) for M in (rows(W0, norm_axis), rows(W, norm_axis)))
    la, lb = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return lb - la, 1 - (a * b).sum(1) / (la * lb)


def to_forty_digits(W0, A, B, norm_axis):
    """Growth and turn from W0 to W0 + B @ A, by mpmath."""
    mp = pytest.importorskip("mpmath").mp.clone()
    mp.dps = 40
    W0, A, B = (mp.matrix(np.asarray(M, float).tolist()) for M in (W0, A, B))
    W = W0 + B * A
    if norm_axis == "per_input":
        W0, W = W0.T, W.T
    growth, turn = [], []
    for i in range(W.rows):
        w0, w = W0[i, :], W[i, :]
        n0, n = mp.norm(w0), mp.norm(w)
        growth.append(float(n - n0))
        turn.append(float(1 - (w0 * w.T)[0] / (n0 * n)))
    return growth, turn


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("with_m", [False, True])
@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0])
def test_an_adapters_changes_equal_those_of_its_dense_weight(norm_axis, with_m, size):
    rng = np.random.default_rng(3)
    W0, A, B = rng.normal(size=(13, 9)), rng.normal(size=(3, 9)), size * rng.normal(size=(13, 3))
    W = W0 + 0.7 * B @ A
    m = None
    if with_m:
        m = rng.normal(size=13 if norm_axis == "per_output" else 9)  # some negative
        W = analysis_recompose(W, m, norm_axis)
    got = analysis.adapter_changes(W0, A, B, 0.7, m=m, norm_axis=norm_axis, block=4)
    growth, turn = independent(W0, W, norm_axis)
    np.testing.assert_allclose(got.growth, growth, atol=1e-10)
    np.testing.assert_allclose(got.turn, turn, atol=1e-10)
    dense = analysis.changes(W0, W, norm_axis)
    for ours, theirs in zip(got, dense, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)
    if with_m:
        assert (got.turn > 1).any()  # a negative magnitude turns a vector about


def analysis_recompose(V, m, norm_axis):
    axis = 1 if norm_axis == "per_output" else 0
    return V / np.linalg.norm(V, axis=axis, keepdims=True) * np.expand_dims(m, axis)


@pytest.mark.parametrize("norm_axis", AXES)
def test_an_adapters_changes_where_it_nearly_cancels_w0_or_w0_is_zero(norm_axis):
    rng = np.random.default_rng(4)
    A, B = rng.normal(size=(2, 5)), rng.normal(size=(6, 2))
    W0 = -B @ A
    keep = (slice(None), slice(2, None)) if norm_axis == "per_input" else (slice(2, None),)
    W0[keep] = rng.normal(size=W0[keep].shape)  # elsewhere V cancels but for 1e-7
    W0 += 1e-7 * rng.normal(size=W0.shape)
    W0[(slice(None), 3) if norm_axis == "per_input" else 3] = 0
    got = analysis.adapter_changes(W0, A, B, 1.0, norm_axis=norm_axis)
    dense = analysis.changes(W0, W0 + B @ A, norm_axis)
    for ours, theirs in zip(got, dense, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-10)
    assert got.before[3] == 0 and got.turn[3] == 1
    got = analysis.adapter_changes(W0, A, B, 1.0, m=np.ones(len(got.turn)), norm_axis=norm_axis)
    assert got.turn[3] == 1 and got.growth[3] == 1


@pytest.mark.parametrize("norm_axis", AXES)
def test_small_changes_keep_their_digits(norm_axis):
    rng = np.random.default_rng(5)
    W0, A = rng.normal(size=(5, 8)), rng.normal(size=(2, 8))
    B = 1e-6 * rng.normal(size=(5, 2))
    growth, turn = to_forty_digits(W0, A, B, norm_axis)
    got = analysis.adapter_changes(W0, A, B, 1.0, norm_axis=norm_axis)
    np.testing.assert_allclose(got.turn, turn, rtol=1e-9)
    np.testing.assert_allclose(got.growth, growth, rtol=1e-9, atol=1e-20)
    dense = analysis.changes(W0, W0 + B @ A, norm_axis)  # W itself holds B @ A to ten digits
    np.testing.assert_allclose(dense.turn, turn, rtol=1e-6)  # 1 - cos would have four
    np.testing.assert_allclose(dense.growth, growth, atol=1e-14)


@pytest.mark.parametrize("norm_axis", AXES)
def test_changes_by_an_adapter_that_cancels_inside_itself(norm_axis):
    rng = np.random.default_rng(5)
    W0, a, b = rng.normal(size=(5, 8)), rng.normal(size=(1, 8)), rng.normal(size=(5, 1))
    A, B = np.concatenate([a, a + 1e-8 * rng.normal(size=a.shape)]), np.hstack([b, -b])
    A, B = (A, B) if norm_axis == "per_output" else (np.concatenate([a, -a]), b + 1e-8 * B)
    growth, turn = to_forty_digits(W0, 1e4 * A, 1e3 * B, norm_axis)
    got = analysis.adapter_changes(W0, 1e4 * A, 1e3 * B, 1.0, norm_axis=norm_axis)
    np.testing.assert_allclose(got.turn, turn, rtol=1e-6)
    np.testing.assert_allclose(got.growth, growth, rtol=1e-6)


def test_small_changes_keep_their_digits_in_float32():
    rng = np.random.default_rng(5)
    W0 = rng.normal(size=(5, 40)).astype(np.float32)
    A, B = rng.normal(size=(2, 40)).astype("f4"), (1e-5 * rng.normal(size=(5, 2))).astype("f4")
    growth, turn = to_forty_digits(W0, A, B, "per_output")
    got = analysis.adapter_changes(W0, A, B, 1.0)
    assert max(turn) < 1e-8  # below what float32 can take from 1
    np.testing.assert_allclose(got.turn, turn, rtol=1e-5)
    np.testing.assert_allclose(got.growth, growth, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("norm_axis", AXES)
def test_an_adapters_changes_need_little_memory_beside_w0(norm_axis):
    rng = np.random.default_rng(6)
    W0 = rng.normal(size=(2000, 500)).astype(np.float16)  # to be read in float64, 8 MB
    A, B = rng.normal(size=(2, 500)), rng.normal(size=(2000, 2))
    want = analysis.adapter_changes(W0, A, B, 0.1, norm_axis=norm_axis)
    tracemalloc.start()
    try:
        got = analysis.adapter_changes(W0, A, B, 0.1, norm_axis=norm_axis, block=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * W0.nbytes
    np.testing.assert_allclose(got.turn, want.turn, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": np.ones((2, 5))}, r"A: expected shape \(2, 4\)"),
        ({"m": np.ones(4)}, r"m: expected shape \(10,\)"),
        ({"block": 0}, "block: expected"),
        ({"scale": np.nan}, "scale: expected"),
        ({"norm_axis": "rows"}, "norm_axis: expected"),
    ],
)
def test_an_adapters_changes_name_a_bad_argument(change, words):
    good = {"W0": np.ones((10, 4)), "A": np.ones((2, 4)), "B": np.ones((10, 2)), "scale": 1.0}
    with pytest.raises(ValueError, match=words):
        analysis.adapter_changes(**{**good, **change})


def test_growth_by_pythagoras():
    w0, aside = np.array([[3.0, 0.0, 0.0]]), np.array([[0.0, 4.0, 0.0]])
    found = analysis.changes(w0, w0 + aside, "per_output")
    assert found.growth[0] == pytest.approx(2)  # 5 - 3
    assert analysis.right_angle_growth(found.before, found.turn)[0] == pytest.approx(2)
    assert found.right_angle_ratio == pytest.approx(1)
    kept = analysis.changes(w0, (w0 + aside) * 0.6, "per_output")  # turned, not grown
    assert kept.right_angle_ratio == pytest.approx(0, abs=1e-12)
    assert analysis.right_angle_growth(np.ones(2), np.array([1.0, 1.5])).tolist() == [np.inf] * 2
    about = analysis.changes(np.eye(2), np.array([[-1.0, 0.0], [1.0, 1.0]]), "per_output")
    assert about.right_angle_ratio == pytest.approx(1)  # the vector turned about is left out


@pytest.mark.parametrize("norm_axis", AXES)
def test_equal_lengths_keep_the_angles(norm_axis):
    rng = np.random.default_rng(7)
    W0 = rng.normal(size=(6, 4))
    W = W0 + rng.normal(size=(6, 4)) * rng.uniform(0.1, 3, size=(6, 4))
    same = (slice(None), 2) if norm_axis == "per_input" else 2
    W[same] = W0[same]
    before = rows(W - W0, norm_axis)
    after = rows(analysis.equal_lengths(W0, W, norm_axis) - W0, norm_axis)
    lengths = np.linalg.norm(before, axis=1)
    moved = lengths > 0
    assert moved.sum() == len(lengths) - 1 and not after[~moved].any()
    np.testing.assert_allclose(np.linalg.norm(after[moved], axis=1), lengths.mean())
    np.testing.assert_allclose(
        after[moved] / lengths.mean(), before[moved] / lengths[moved, None], atol=1e-12
    )


def test_random_low_rank_has_its_rank_and_length():
    rng = np.random.default_rng(8)
    W0 = rng.normal(size=(9, 7))
    update = analysis.random_low_rank(W0, 3, 2.5, rng) - W0
    assert np.linalg.matrix_rank(update) == 3
    assert np.linalg.norm(update) == pytest.approx(2.5)


def test_correlate_equals_scipys():
    stats = pytest.importorskip("scipy.stats", exc_type=ImportError)
    rng = np.random.default_rng(9)
    x = rng.normal(size=12)
    y = 3 + 0.5 * x + rng.normal(size=12)
    got, fit = analysis.correlate(x, y), stats.linregress(x, y)
    interval = stats.pearsonr(x, y).confidence_interval(0.95)
    assert got.r == pytest.approx(fit.rvalue)
    assert (got.slope, got.intercept) == (pytest.approx(fit.slope), pytest.approx(fit.intercept))
    assert (got.low, got.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (got.n, got.spearman) == (12, analysis.spearman(x, y))


def test_correlate_where_it_has_nothing_to_say():
    flat = analysis.correlate(np.full(5, 0.1), np.arange(5.0))
    assert np.isnan([flat.r, flat.low, flat.spearman, flat.slope]).all() and flat.n == 5
    rounding = np.array([0.1 + 0.2, 0.3, 0.1 + 0.2, 0.3])  # apart by one rounding
    assert np.ptp(rounding) > 0 and np.isnan(analysis.correlate(rounding, np.arange(4.0)).r)
    few = analysis.correlate(np.arange(3.0), np.array([0.0, 2.0, 1.0]))
    assert np.isnan([few.low, few.high]).all() and few.r == pytest.approx(0.5)
    with pytest.raises(ValueError, match="x: expected two points or more, got 1"):
        analysis.correlate(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=r"y: expected shape \(3,\)"):
        analysis.correlate(np.arange(3.0), np.arange(4.0))


@pytest.mark.parametrize("power", [-300, -82, -9, 9, 160, 300])
def test_correlate_at_any_scale(power):
    """Values near 1e160 once gave r = 0, near 1e-82 a ZeroDivisionError."""
    rng = np.random.default_rng(13)
    x, y = rng.normal(size=(2, 9)) + 0.3
    plain = analysis.correlate(x, y)
    scaled = analysis.correlate(x * 10.0**power, y * 10.0**power)
    assert scaled[:6] == pytest.approx(plain[:6], rel=1e-12)
    assert scaled.intercept / 10.0**power == pytest.approx(plain.intercept, rel=1e-12)
    mixed = analysis.correlate(x * 1e-150, y * 1e150)
    assert mixed.r == pytest.approx(plain.r) and mixed.slope / 1e300 == pytest.approx(plain.slope)
    assert analysis.correlate(np.array([0.0, 5e-324]), np.array([1.7e308, 0.0])).r == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_correlate_refuses_what_is_no_number(bad):
    """NaN once gave r = -1 with the interval [-1, -1]."""
    good, spoilt = np.arange(5.0), np.array([1, bad, 3, 4, 5])
    for function, first, second in ((analysis.correlate, "x", "y"), (analysis.spearman, "a", "b")):
        with pytest.raises(ValueError, match=f"{first}: expected finite values, got 1"):
            function(spoilt, good)
        with pytest.raises(ValueError, match=f"{second}: expected finite values, got 1"):
            function(good, spoilt)


def test_least_significant_is_where_the_interval_touches_zero():
    for n in (5, 6, 24, 100):
        r = analysis.least_significant(n)
        x = np.linspace(-1, 1, n)
        aside = np.abs(x) - np.abs(x).mean()  # uncorrelated with x
        x, aside = x / np.linalg.norm(x), aside / np.linalg.norm(aside)
        found = analysis.correlate(x, r * x + np.sqrt(1 - r * r) * aside)
        assert found.r == pytest.approx(r) and found.low == pytest.approx(0, abs=1e-9)
    assert np.isnan(analysis.least_significant(3))


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(10)
    hits = 0
    for seed in range(200):
        found = analysis.bootstrap_mean(rng.normal(size=20), draws=500, seed=seed)
        hits += found.low < 0 < found.high
    assert 0.86 < hits / 200 < 0.99
    values = [1.0, 2.0, np.nan, 6.0]
    found = analysis.bootstrap_mean(values)
    assert (found.mean, found.n, found.sd) == (3.0, 3, pytest.approx(np.std([1, 2, 6], ddof=1)))
    assert found == analysis.bootstrap_mean(values) and 1 <= found.low < 3 < found.high <= 6
    assert analysis.bootstrap_mean([np.nan]).n == 0


def test_students_interval():
    pytest.importorskip("scipy", exc_type=ImportError)
    found = analysis.student_mean([1.0, 2.0, np.nan, 3.0, 4.0, 5.0])
    half = 2.776445 * np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5)  # t of 4 degrees, 97.5 %
    assert (found.mean, found.n) == (3.0, 5)
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    rng = np.random.default_rng(10)
    means = [analysis.student_mean(rng.normal(size=5)) for _ in range(400)]
    assert 0.92 < np.mean([m.low < 0 < m.high for m in means]) < 0.98
    assert np.isnan(analysis.student_mean([1.0]).low) and analysis.student_mean([]).n == 0


def test_correlations_in_four_ways_by_hand():
    rng = np.random.default_rng(11)
    steps, dM, dD = [5, 10, 15, 20, 25, 30, 35, 40], rng.uniform(size=(8, 3)), None
    dD = rng.uniform(size=(8, 3))
    found = analysis.correlations(steps, dM, dD)
    at = [1, 3, 5, 7]  # steps 10, 20, 30, 40

    def r(x, y):
        return pytest.approx(np.corrcoef(x, y)[0, 1])

    assert [c.r for c in found["pooled"]] == [r(dD[at].ravel(), dM[at].ravel())]
    assert [c.r for c in found["late"]] == [r(dD[[5, 7]].ravel(), dM[[5, 7]].ravel())]
    assert [c.r for c in found["within step"]] == [r(dD[i], dM[i]) for i in at]
    assert [c.r for c in found["within layer"]] == [r(dD[:, i], dM[:, i]) for i in range(3)]
    assert [c.n for way in found.values() for c in way] == [12, 6, *[3] * 4, *[8] * 3]
    assert set(found) == set(analysis.WAYS) - {"within matrix"}
    with pytest.raises(ValueError, match=r"steps: expected .* none at \[13.3"):
        analysis.correlations(steps, dM, dD, checkpoints=3)
    with pytest.raises(ValueError, match="steps: expected 8, one for each row"):
        analysis.correlations(steps[:-1], dM, dD)


def tuned(method, recorder_settings=None, **settings):
    rng = np.random.default_rng(12)
    base = nn.MLP.init((5, 7, 6, 3), rng)
    model = nn.adapt(base, method, None, rank=2, rng=rng, **settings)
    recorder = analysis.Recorder(base, ("layers.0", "layers.1"), **(recorder_settings or {}))
    x, y = rng.normal(size=(40, 5)).astype("f4"), rng.integers(3, size=40)
    batches = ((x, y) for _ in range(6))
    training.fit(
        model, nn.classification, batches, steps=6, rate=0.05, callbacks=[recorder], progress=False
    )
    return base, model, recorder.recording


@pytest.mark.parametrize("method", ["full", "lora", "dora", "magnitude"])
@pytest.mark.parametrize("norm_axis", AXES)
def test_a_recording_equals_the_dense_weights(method, norm_axis):
    settings = {} if method in ("full", "lora") else {"norm_axis": norm_axis}
    base, model, recording = tuned(method, {"steps": [2, 6], "norm_axis": norm_axis}, **settings)
    assert recording.steps == [2, 6] and recording.names == ["layers.0", "layers.1"]
    assert recording.dM.shape == recording.dD.shape == recording.growth.shape == (2, 2)
    after = nn.merge(model)
    for i, name in enumerate(recording.names):
        W0, W = base.layers[i].weight, after.layers[i].weight
        growth, turn = independent(W0, W, norm_axis)
        np.testing.assert_allclose(recording.last(name).growth, growth, atol=3e-7)
        np.testing.assert_allclose(recording.last(name).turn, turn, atol=3e-7)
        assert recording.dM[1, i] == pytest.approx(np.abs(growth).mean(), abs=3e-7)
        assert recording.dD[1, i] == pytest.approx(turn.mean(), abs=3e-7)
        assert recording.growth[1, i] == pytest.approx(growth.mean(), abs=3e-7)
        assert recording.dM[1, i] > 0
    assert (recording.dM[0] != recording.dM[1]).all()


def test_a_recorder_takes_every_step_but_the_start_unless_told():
    _, _, recording = tuned("dora")
    assert recording.steps == [1, 2, 3, 4, 5, 6]
    assert recording.only("s.1").names == ["layers.1"]
    np.testing.assert_array_equal(recording.only("s.1").dD, recording.dD[:, 1:])
    with pytest.raises(ValueError, match="endings: expected some of"):
        recording.only("attn.q")
    with pytest.raises(ValueError, match="name: expected"):
        recording.last("layers.2")


def test_a_recorder_reads_adapters_of_another_axis_or_strength_as_they_are():
    base, model, recording = tuned("dora", {"norm_axis": "per_input"}, norm_axis="per_output")
    W = nn.merge(model).layers[0].weight
    growth, _ = independent(base.layers[0].weight, W, "per_input")
    np.testing.assert_allclose(recording.last("layers.0").growth, growth, atol=3e-7)
    recorder = analysis.Recorder(base, "layers.0")
    recorder(1, nn.set_strength(model, 0.0))
    assert recorder.recording.dM.max() < 1e-7 and recorder.recording.dD.max() < 1e-7


def test_a_recorder_names_targets_that_are_not_there():
    base = nn.MLP.init((5, 7, 3), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"targets: expected names among \['layers.0'.*'attn.q'"):
        analysis.Recorder(base, ("attn.q",))

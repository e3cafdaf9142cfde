"""ΔM, ΔD, the S1/S2 argument, and covariance statistics, each against a few lines of NumPy."""

import numpy as np
import pytest

from minidora import analysis

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

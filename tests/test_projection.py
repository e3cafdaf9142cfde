"""Eq. 6 as a projector: what it removes, what it leaves, and what a step does."""

import numpy as np
import pytest

from minidora import dora, norms, projection

AXES = ("per_output", "per_input")
AXIS = {"per_output": 1, "per_input": 0}


def case(seed=0, shape=(5, 8)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape) * 3


def vectors(M, norm_axis):
    return M if norm_axis == "per_output" else M.T


@pytest.mark.parametrize("norm_axis", AXES)
def test_project_equals_the_explicit_projector_of_each_vector(norm_axis):
    G, V = case()
    got = vectors(projection.project(G, V, norm_axis), norm_axis)
    for g, v, p in zip(vectors(G, norm_axis), vectors(V, norm_axis), got, strict=True):
        by_hand = np.eye(len(v)) - np.outer(v, v) / (v @ v)
        np.testing.assert_allclose(projection.projector(v), by_hand, atol=1e-14)
        np.testing.assert_allclose(p, by_hand @ g, atol=1e-13)


def test_a_projector_is_symmetric_idempotent_and_takes_v_to_zero():
    v = np.array([1.0, -2.0, 2.0])
    P = projection.projector(v)
    np.testing.assert_allclose(P, P.T, atol=1e-15)
    np.testing.assert_allclose(P @ P, P, atol=1e-15)
    np.testing.assert_allclose(P @ v, 0, atol=1e-15)
    assert np.trace(P) == pytest.approx(2)


def test_eps_stands_in_the_projector():
    np.testing.assert_allclose(projection.projector(np.array([3.0]), 4.0), [[1 - 9 / 25]])
    G, V = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])
    np.testing.assert_allclose(projection.project(G, V, "per_output", 4.0), [[1 - 9 / 25, 2]])
    radial, _ = projection.split(G, V, "per_output", 4.0)
    np.testing.assert_allclose(radial, [[9 / 25, 0]])
    dV = projection.direction_gradient(G, V, np.array([10.0]), "per_output", eps=4.0)
    np.testing.assert_allclose(dV, [[2 * (1 - 9 / 25), 4]])


@pytest.mark.parametrize("norm_axis", AXES)
def test_radial_and_tangential_parts(norm_axis):
    G, V = case(1)
    radial, tangential = projection.split(G, V, norm_axis)
    np.testing.assert_allclose(radial + tangential, G, atol=1e-15)
    np.testing.assert_allclose((tangential * V).sum(AXIS[norm_axis]), 0, atol=1e-13)
    lengths = norms(radial, norm_axis) ** 2 + norms(tangential, norm_axis) ** 2
    np.testing.assert_allclose(lengths, norms(G, norm_axis) ** 2, rtol=1e-13)
    assert np.abs(radial).max() > 0.1
    np.testing.assert_array_equal(projection.project(G, V, norm_axis), tangential)


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_direction_gradient_is_the_layers(norm_axis, norm_grad):
    """With A = I and scale = 1, the layer's dB is dV."""
    rng = np.random.default_rng(2)
    W0, B = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    m = rng.normal(size=4 if norm_axis == "per_output" else 6)
    x, dy = rng.normal(size=(7, 6)), rng.normal(size=(7, 4))
    _, cache = dora.dora_forward(x, W0, np.eye(6), B, m, 1.0, norm_axis=norm_axis)
    expected = dora.dora_backward(dy, cache, norm_grad=norm_grad).dB
    got = projection.direction_gradient(dy.T @ x, W0 + B, m, norm_axis, norm_grad=norm_grad)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    default = projection.direction_gradient(dy.T @ x, W0 + B, m, norm_axis)
    assert np.allclose(default, got) == (norm_grad == "exact")


@pytest.mark.parametrize("norm_axis", AXES)
def test_a_tangential_step_can_only_lengthen(norm_axis):
    G, V = case(3)
    dV = projection.project(G, V, norm_axis)
    for rate in (1e-3, 0.1, -2.0):
        step = projection.step(V, dV, rate, norm_axis)
        expected = np.hypot(step.norm_before, rate * norms(dV, norm_axis))
        np.testing.assert_allclose(step.norm_after, expected, rtol=1e-12)
        assert (step.norm_after > step.norm_before).all()
        np.testing.assert_allclose(np.cos(step.angle), step.norm_before / expected, atol=1e-12)


def test_step_by_hand():
    V, dV = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, -1.0], [0.0, 3.0]])
    step = projection.step(V, dV, 1.0, "per_output")
    np.testing.assert_allclose(step.norm_before, [2, 1])
    np.testing.assert_allclose(step.norm_after, [2**0.5, 2])
    np.testing.assert_allclose(step.angle, [np.pi / 4, np.pi])


def test_a_projector_has_the_dtype_of_its_vector():
    assert projection.projector(np.ones(3, "float32")).dtype == np.float32


def test_step_adds_no_eps():
    V, dV = np.array([[1e-12, 0.0]]), np.array([[0.0, 1e-12]])
    step = projection.step(V, dV, 1.0, "per_output")
    assert step.norm_before[0] == 1e-12
    assert step.norm_after[0] == pytest.approx(2**0.5 * 1e-12, rel=1e-12, abs=0)
    V, dV = np.array([[1.0, 0.0]]), np.array([[0.0, 1e-12]])
    assert projection.step(V, dV, 1.0, "per_output").angle[0] == pytest.approx(1e-12, abs=0)


def test_small_angles_keep_their_digits():
    step = projection.step(np.array([[1.0, 0.0]]), np.array([[0.0, 1e-9]]), 1.0, "per_output")
    assert step.angle[0] == pytest.approx(1e-9, rel=1e-12, abs=0)


@pytest.mark.parametrize("norm_axis", AXES)
def test_zero_vectors(norm_axis):
    G, V = case(4)
    index = (1, slice(None)) if norm_axis == "per_output" else (slice(None), 1)
    V[index] = 0
    np.testing.assert_array_equal(projection.project(G, V, norm_axis)[index], G[index])
    step = projection.step(V, G, 0.1, norm_axis)
    assert step.norm_before[1] == 0 and step.angle[1] == 0


def test_errors():
    G, V = case()
    with pytest.raises(ValueError, match=r"^G: expected shape \(5, 8\) \(the shape of V\), got"):
        projection.split(G.T, V, "per_output")
    with pytest.raises(ValueError, match=r"^V: expected 2 dimensions, got shape \(8,\)"):
        projection.project(G, V[0], "per_output")
    with pytest.raises(ValueError, match=r"^v: expected 1 dimensions, got shape \(5, 8\)"):
        projection.projector(V)
    with pytest.raises(ValueError, match=r"^m: expected shape \(5,\) \(one per vector, per_output"):
        projection.direction_gradient(G, V, np.ones(8), "per_output")
    with pytest.raises(ValueError, match="^norm_grad: expected 'exact' or 'detached', got 'none'"):
        projection.direction_gradient(G, V, np.ones(5), "per_output", norm_grad="none")
    with pytest.raises(ValueError, match=r"^dV: expected shape \(5, 8\) \(the shape of V\), got"):
        projection.step(V, G[:1], 0.1, "per_output")
    with pytest.raises(ValueError, match=r"^V: expected 2 dimensions, got shape \(8,\)"):
        projection.step(V[0], G[0], 0.1, "per_output")
    with pytest.raises(ValueError, match="^rate: expected a finite number"):
        projection.step(V, G, np.nan, "per_output")
    with pytest.raises(ValueError, match="^norm_axis: expected"):
        projection.split(G, V, "rows")

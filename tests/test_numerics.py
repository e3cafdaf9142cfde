"""DESIGN's numerical rules, one test or more for each, for both layers."""

import numpy as np
import pytest

from minidora import dora, factored, norms
from minidora.evidence.gradcheck import relative_error

AXES, GRADS = ("per_output", "per_input"), ("exact", "detached")
pytestmark = [
    pytest.mark.parametrize("layer", [dora, factored], ids=["textbook", "factored"]),
    pytest.mark.parametrize("norm_axis", AXES),
]


def arguments(norm_axis, d_out=6, d_in=9, r=2, n=5, seed=0, dtype="float64"):
    """Arguments of a layer in the middle of training."""
    rng = np.random.default_rng(seed)
    shapes = {"x": (n, d_in), "W0": (d_out, d_in), "A": (r, d_in), "B": (d_out, r)}
    inputs = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    inputs["m"] = norms(inputs["W0"], norm_axis) * rng.uniform(0.5, 1.5, size=1)
    inputs = {name: a.astype(dtype) for name, a in inputs.items()}
    return inputs, rng.normal(size=(n, d_out)).astype(dtype)


def run(layer, inputs, dy, norm_axis, norm_grad="exact", **settings):
    """y and all gradients by name."""
    settings = {"scale": 0.7, "norm_axis": norm_axis, **settings}
    y, cache = layer.dora_forward(**inputs, **settings)
    grads = layer.dora_backward(dy, cache, norm_grad=norm_grad)._asdict()
    return {"y": y, **{name: g for name, g in grads.items() if g is not None}}


def in_float64(inputs, dy, norm_axis, norm_grad="exact", **settings):
    """The textbook's answer in float64 to the same, already rounded, arguments."""
    wide = {name: a.astype("float64") for name, a in inputs.items()}
    return run(dora, wide, dy.astype("float64"), norm_axis, norm_grad, **settings)


def vector(norm_axis, i):
    return (i, slice(None)) if norm_axis == "per_output" else (slice(None), i)


@pytest.mark.parametrize("norm_grad", GRADS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_zero_vector_starts_at_one_and_can_learn(layer, norm_axis, norm_grad, dtype):
    inputs, dy = arguments(norm_axis, dtype=dtype)
    inputs["W0"][vector(norm_axis, 2)] = 0
    A, B, m = dora.init(inputs["W0"], 2, np.random.default_rng(1), norm_axis=norm_axis)
    inputs |= {"A": A, "B": B, "m": m}
    found = run(layer, inputs, dy, norm_axis, norm_grad)
    assert all(np.isfinite(a).all() for a in found.values())
    np.testing.assert_allclose(
        found["y"], inputs["x"] @ inputs["W0"].T, atol=1e-2 if dtype == "float16" else 1e-5
    )
    # m / c = 1: what moves V there is of the size it has at every other vector
    G = dy.astype("float64").T @ inputs["x"].astype("float64")
    expected = 0.7 * (G @ A.T.astype("float64"))
    if norm_axis == "per_output":
        np.testing.assert_allclose(
            found["dB"][2].astype("float64"), expected[2], rtol=2e-2, atol=2e-2
        )
        assert np.abs(found["dB"][2]).max() > 0.01


@pytest.mark.parametrize("size", [1e-13, 1e-12, 1e-10, 1e-6])
def test_near_zero_vectors(layer, norm_axis, size):
    inputs, dy = arguments(norm_axis)
    index = vector(norm_axis, 2)
    inputs["W0"][index] *= size
    inputs["B" if norm_axis == "per_output" else "A"][index] = 0  # V stays that small
    inputs["m"] = norms(inputs["W0"], norm_axis)
    found = run(layer, inputs, dy, norm_axis)
    expected = in_float64(inputs, dy, norm_axis)
    for name, a in found.items():
        assert np.isfinite(a).all()
        assert relative_error(a, expected[name]) < 1e-9, name


@pytest.mark.parametrize("value", [0.0, -1.5])
@pytest.mark.parametrize("norm_grad", GRADS)
def test_magnitudes_of_zero_and_below(layer, norm_axis, value, norm_grad):
    inputs, dy = arguments(norm_axis)
    with_norm = run(layer, inputs, dy, norm_axis, norm_grad)
    inputs["m"][2] = value
    found = run(layer, inputs, dy, norm_axis, norm_grad)
    # dm does not depend on m at all, so m = 0 gives no 0/0
    np.testing.assert_allclose(found["dm"], with_norm["dm"], rtol=1e-12)
    expected = in_float64(inputs, dy, norm_axis, norm_grad)
    for name, a in found.items():
        assert relative_error(a, expected[name]) < 1e-12, name
    if value == 0 and norm_axis == "per_output":
        assert not found["y"][:, 2].any() and not found["dB"][2].any()


@pytest.mark.parametrize("size", [1e-20, 1e18])
def test_extreme_W0_in_float32(layer, norm_axis, size):
    inputs, dy = arguments(norm_axis, dtype="float32", d_in=300)
    inputs["W0"] = (inputs["W0"] * np.float32(size)).astype("float32")
    A, B, m = dora.init(inputs["W0"], 2, np.random.default_rng(1), norm_axis=norm_axis)
    B += np.float32(size) * inputs["B"]
    inputs |= {"A": A, "B": B, "m": m}
    expected = in_float64(inputs, dy, norm_axis)
    found = run(layer, inputs, dy, norm_axis)
    for name, a in found.items():
        assert a.dtype == np.float32
        assert np.isfinite(a).all() and (a != 0).any(), name
        assert relative_error(a, expected[name]) < 1e-5, name


@pytest.mark.parametrize("value", [5.0, 1e-4])
def test_float16_vectors_that_would_overflow_or_vanish(layer, norm_axis, value):
    """4096 × 5.0 squares to 102,400, above float16's 65,504; 1e-4 squares to 0."""
    shape = (3, 4096) if norm_axis == "per_output" else (4096, 3)
    W0 = np.full(shape, value, "float16")
    A, B, m = dora.init(W0, 2, np.random.default_rng(0), norm_axis=norm_axis)
    assert m.dtype == np.float32
    np.testing.assert_allclose(m, 64 * float(np.float16(value)), rtol=1e-6)
    x = np.full((2, shape[1]), 1e-3, "float16")
    y, cache = layer.dora_forward(x, W0, A, B, m, 1.0, norm_axis=norm_axis)
    assert y.dtype == np.float16
    exact = x.astype("float64") @ W0.T.astype("float64")
    np.testing.assert_allclose(y, exact, rtol=2e-3, atol=1e-7)
    grads = layer.dora_backward(np.full(y.shape, 0.01, "float16"), cache)
    assert all(np.isfinite(g).all() for g in grads if g is not None)
    assert grads.dm.dtype == np.float32
    merged = dora.dora_weight(W0, A, B, m, 1.0, norm_axis=norm_axis)
    np.testing.assert_array_equal(merged, W0)


@pytest.mark.parametrize("norm_grad", GRADS)
def test_V_that_cancels_W0_to_1e_minus_7(layer, norm_axis, norm_grad):
    inputs, dy = arguments(norm_axis)
    rng = np.random.default_rng(2)
    index = vector(norm_axis, 2)
    # Row 2 of B @ A * 0.7 is minus row 2 of W0, but for 1e-7 of it (or column 2)
    if norm_axis == "per_output":
        inputs["A"][0] = inputs["W0"][2]
        inputs["B"][2] = [-(1 - 1e-7) / 0.7, 0]
    else:
        inputs["B"][:, 0] = inputs["W0"][:, 2]
        inputs["A"][:, 2] = [-(1 - 1e-7) / 0.7, 0]
    inputs["m"] = rng.normal(size=inputs["m"].shape)
    V = inputs["W0"] + 0.7 * inputs["B"] @ inputs["A"]
    ratio = np.linalg.norm(inputs["W0"][index]) / np.linalg.norm(V[index])
    assert 0.9e7 < ratio < 1.1e7
    found = run(layer, inputs, dy, norm_axis, norm_grad)
    textbook = in_float64(inputs, dy, norm_axis, norm_grad)
    for name, a in found.items():
        bound = 100 * np.finfo("float64").eps * ratio
        assert relative_error(a, textbook[name]) < bound, name


def test_rank_above_both_dimensions(layer, norm_axis):
    inputs, dy = arguments(norm_axis, d_out=3, d_in=4, r=11)
    expected = in_float64(inputs, dy, norm_axis)
    for name, a in run(layer, inputs, dy, norm_axis).items():
        assert relative_error(a, expected[name]) < 1e-12, name


def test_scale_zero_is_the_base_with_its_magnitudes(layer, norm_axis):
    inputs, dy = arguments(norm_axis)
    found = run(layer, inputs, dy, norm_axis, scale=0.0)
    assert not found["dA"].any() and not found["dB"].any()
    c = norms(inputs["W0"], norm_axis)
    g = np.expand_dims(inputs["m"] / c, 1 if norm_axis == "per_output" else 0)
    np.testing.assert_allclose(found["y"], inputs["x"] @ (g * inputs["W0"]).T, rtol=1e-12)


@pytest.mark.parametrize("norm_grad", GRADS)
def test_float32_at_d_in_4096_stays_within_1e_minus_5(layer, norm_axis, norm_grad):
    inputs, dy = arguments(norm_axis, d_out=64, d_in=4096, r=16, n=32, dtype="float32")
    inputs["W0"] /= np.float32(64)
    inputs["A"] /= np.float32(64)
    inputs["B"] /= np.float32(4)
    settings = {"scale": 2.0}
    expected = in_float64(inputs, dy, norm_axis, norm_grad, **settings)
    for name, a in run(layer, inputs, dy, norm_axis, norm_grad, **settings).items():
        assert a.dtype == np.float32
        assert relative_error(a, expected[name]) < 1e-5, name
    _, cache = layer.dora_forward(**inputs, **settings, norm_axis=norm_axis)
    V = inputs["W0"].astype("float64") + 2.0 * (
        inputs["B"].astype("float64") @ inputs["A"].astype("float64")
    )
    assert relative_error(cache.c.reshape(-1), norms(V, norm_axis)) < 1e-5


def test_eps_changes_nothing_above_1e_minus_4(layer, norm_axis):
    inputs, dy = arguments(norm_axis)
    inputs["W0"] *= 1e-3
    inputs["B"] *= 1e-3
    without = run(layer, inputs, dy, norm_axis, eps=0.0)
    for name, a in run(layer, inputs, dy, norm_axis).items():
        assert relative_error(a, without[name]) < 1e-14, name


def test_a_numpy_scalar_does_not_promote_float32(layer, norm_axis):
    inputs, dy = arguments(norm_axis, dtype="float32")
    found = run(layer, inputs, dy, norm_axis, scale=np.float64(0.7), eps=np.float64(1e-12))
    assert {a.dtype for a in found.values()} == {np.dtype("float32")}


# --- B @ A that cancels inside itself ----------------------------------------------------------


def cancelling(norm_axis, kappa, dtype, length=1.0):
    """A layer whose update is about `kappa` times shorter than the parts it is a sum of."""
    rng = np.random.default_rng(5)
    d_out, d_in, n = 48, 64, 8
    a, b = rng.normal(size=(2, d_in)), rng.normal(size=(d_out, 2))
    if norm_axis == "per_output":  # the rows of A nearly equal, and B's columns opposite
        A, B = np.concatenate([a, a + rng.normal(size=a.shape) / kappa]), np.hstack([b, -b])
    else:
        A, B = np.concatenate([a, -a]), np.hstack([b, b + rng.normal(size=b.shape) / kappa])
    inputs = {
        "x": rng.normal(size=(n, d_in)),
        "W0": rng.normal(size=(d_out, d_in)),
        "A": A * kappa**0.5 * length,
        "B": B * kappa**0.5 / length,
        "m": rng.normal(size=d_out if norm_axis == "per_output" else d_in),
    }
    inputs = {name: array.astype(dtype) for name, array in inputs.items()}
    return inputs, rng.normal(size=(n, d_out)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kappa", [1.0, 10.0, 1e2, 1e3, 1e4])
def test_an_update_that_cancels_inside_itself(layer, norm_axis, kappa, dtype):
    """The error grows with κ = ‖A‖‖B‖ / ‖BA‖ as the textbook's does, not with its square."""
    inputs, dy = cancelling(norm_axis, kappa, dtype)
    wide = {name: array.astype(np.longdouble) for name, array in inputs.items()}
    settings = {"scale": 1.0, "norm_axis": norm_axis}
    _, expected_cache = dora.dora_forward(**wide, **settings)
    expected = run(dora, wide, dy.astype(np.longdouble), norm_axis, scale=1.0)
    _, cache = layer.dora_forward(**inputs, **settings)
    eps = np.finfo(dtype).eps
    assert relative_error(cache.c.ravel(), expected_cache.c.ravel()) < (10 + 2 * kappa) * eps
    for name, array in run(layer, inputs, dy, norm_axis, scale=1.0).items():
        assert relative_error(array, expected[name]) < (50 + 4 * kappa) * eps, name


@pytest.mark.parametrize("length", [1e20, 1e-20, 1e30])
def test_an_adapter_of_extreme_lengths(layer, norm_axis, length):
    """A · 1e20 with B / 1e20 is the same update, and float32 holds both."""
    inputs, dy = cancelling(norm_axis, 10.0, "float32", length)
    expected = in_float64(inputs, dy, norm_axis, scale=1.0)
    for name, array in run(layer, inputs, dy, norm_axis, scale=1.0).items():
        assert relative_error(array, expected[name]) < 1e-5, name


def test_the_example_that_lost_its_norm(layer, norm_axis):
    W0, A = np.eye(2, 3, dtype="f4"), np.array([[100, 37, 11], [100, 37.01, 11]], "f4")
    B = np.array([[30, -30], [20, -20]], "f4")
    m = np.ones(2 if norm_axis == "per_output" else 3, "f4")
    _, cache = layer.dora_forward(np.eye(3, dtype="f4"), W0, A, B, m, 1.0, norm_axis=norm_axis)
    expected = norms(W0.astype("f8") + B.astype("f8") @ A.astype("f8"), norm_axis)
    np.testing.assert_allclose(cache.c.ravel(), expected, rtol=2e-4)

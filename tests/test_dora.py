"""Eq. 5-7 and 11: the textbook and the factored layer, forward and backward; the merged weight."""

import numpy as np
import pytest

from minidora import dora, factored, norms
from minidora.evidence.cases import dora_cases
from minidora.evidence.gradcheck import relative_error

AXES, GRADS = ("per_output", "per_input"), ("exact", "detached")
CASES = [
    pytest.param(axis, case, id=f"{axis}: {case.name}")
    for axis in AXES
    for case in dora_cases(np.random.default_rng(11), axis)
]
by_case = pytest.mark.parametrize("norm_axis, case", CASES)
by_mode = pytest.mark.parametrize("norm_grad", GRADS)


@pytest.fixture(params=[dora, factored], ids=["textbook", "factored"])
def layer(request):
    """Both layers: the same signatures, the same answers."""
    return request.param


def grads_of(layer, case, norm_grad):
    _, cache = layer.dora_forward(**case.inputs, **case.settings)
    return layer.dora_backward(case.dy, cache, norm_grad=norm_grad)._asdict()


def plain_case(norm_axis):
    return next(dora_cases(np.random.default_rng(3), norm_axis))


@pytest.mark.parametrize("norm_axis", AXES)
def test_the_cases_hold_magnitudes_of_zero_and_below(norm_axis):
    magnitudes = [case.inputs["m"] for case in dora_cases(np.random.default_rng(11), norm_axis)]
    assert sum((m == 0).any() for m in magnitudes) > 5
    assert sum((m < 0).any() for m in magnitudes) > 5


@by_case
def test_forward_vector_by_vector(layer, norm_axis, case):
    """Eq. 5 in loops, nothing shared with the layer."""
    x, W0, A, B, m = (case.inputs[name] for name in "x W0 A B m".split())
    V = W0 + case.settings["scale"] * np.einsum("or,ri->oi", B, A)
    W, eps = np.empty_like(V), case.settings.get("eps", 1e-12)
    for i in range(len(m)):
        index = (i, slice(None)) if norm_axis == "per_output" else (slice(None), i)
        W[index] = m[i] * V[index] / (sum(v * v for v in V[index]) + eps**2) ** 0.5
    mask = case.settings.get("mask", np.ones_like(x))
    expected = x @ W0.T + (x * mask) @ (W - W0).T + case.inputs.get("bias", 0)
    y, _ = layer.dora_forward(**case.inputs, **case.settings)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    assert y.shape == case.dy.shape


@pytest.mark.parametrize("norm_axis", AXES)
def test_exact_and_detached_differ_in_dA_and_dB_alone(layer, norm_axis):
    case = plain_case(norm_axis)
    exact, detached = (grads_of(layer, case, norm_grad) for norm_grad in GRADS)
    for name in ("dx", "dm", "dbias"):
        np.testing.assert_array_equal(exact[name], detached[name])
    for name in ("dA", "dB"):
        assert relative_error(detached[name], exact[name]) > 0.05


@pytest.mark.parametrize("norm_axis", AXES)
def test_the_exact_gradient_is_orthogonal_to_every_vector_of_V(layer, norm_axis):
    """With A = I and scale = 1, dB is dV itself: Eq. 6 leaves nothing of it along V."""
    rng = np.random.default_rng(4)
    W0, B, A = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), np.eye(7)
    m = norms(W0, norm_axis)
    x, dy = rng.normal(size=(6, 7)), rng.normal(size=(6, 5))
    _, cache = layer.dora_forward(x, W0, A, B, m, 1.0, norm_axis=norm_axis)
    V, axis = W0 + B, 1 if norm_axis == "per_output" else 0
    exact = layer.dora_backward(dy, cache).dB
    np.testing.assert_allclose((exact * V).sum(axis), 0, atol=1e-12)
    detached = layer.dora_backward(dy, cache, norm_grad="detached").dB
    assert np.abs((detached * V).sum(axis)).min() > 1e-3


@pytest.mark.parametrize("norm_axis", AXES)
def test_vectors_of_one_entry_have_no_direction_to_learn(layer, norm_axis):
    rng = np.random.default_rng(9)
    d_out, d_in = (6, 1) if norm_axis == "per_output" else (1, 6)
    W0, A, B = rng.normal(size=(d_out, d_in)), rng.normal(size=(1, d_in)), np.ones((d_out, 1))
    _, cache = layer.dora_forward(
        rng.normal(size=(4, d_in)), W0, A, B, np.ones(6), 0.5, norm_axis=norm_axis
    )
    grads = layer.dora_backward(rng.normal(size=(4, d_out)), cache)
    np.testing.assert_allclose(grads.dA, 0, atol=1e-12)
    np.testing.assert_allclose(grads.dB, 0, atol=1e-12)


# --- the start, and why it proves little -------------------------------------------------------


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_training_starts_at_the_base(norm_axis, dtype):
    rng = np.random.default_rng(5)
    W0 = rng.normal(size=(6, 9)).astype(dtype)
    W0[2], W0[:, 4] = 0, 0
    A, B, m = dora.init(W0, 3, rng, norm_axis=norm_axis)
    assert A.shape == (3, 9) and B.shape == (6, 3) and not B.any()
    assert m.dtype == np.result_type(dtype, np.float32)
    np.testing.assert_array_equal(m, norms(W0, norm_axis))
    merged = dora.dora_weight(W0, A, B, m, 2.0, norm_axis=norm_axis)
    np.testing.assert_array_equal(merged, W0)
    assert merged.dtype == W0.dtype


def wrong_axis(W0, A, B, m, scale):
    """Normalises columns although m was made for rows, as a square W0 permits."""
    V = W0 + scale * B @ A
    return m / norms(V, "per_input") * V


def wrong_norm(W0, A, B, m, scale):
    """Divides by the norms of W0, not of V."""
    return (m / norms(W0, "per_output"))[:, None] * (W0 + scale * B @ A)


def starts_at_base(weight, W0, norm_axis="per_output"):
    A, B, _ = dora.init(W0, 2, np.random.default_rng(0))
    return np.allclose(weight(W0, A, B, norms(W0, norm_axis), 0.7), W0)


def test_identity_at_init_sees_neither_a_wrong_axis_nor_a_wrong_norm():
    """Both bugs pass the check most ports stop at; B != 0 shows both."""
    rng = np.random.default_rng(6)
    W0 = rng.normal(size=(5, 5))
    assert starts_at_base(wrong_norm, W0)
    assert starts_at_base(wrong_axis, W0, "per_input")  # consistently wrong: m made that way too
    A, B = rng.normal(size=(2, 5)), rng.normal(size=(5, 2))
    right = dora.dora_weight(W0, A, B, norms(W0, "per_output"), 0.7)
    assert relative_error(wrong_norm(W0, A, B, norms(W0, "per_output"), 0.7), right) > 0.1
    assert relative_error(wrong_axis(W0, A, B, norms(W0, "per_input"), 0.7), right) > 0.1


# --- merged weight and back --------------------------------------------------------------------


@pytest.mark.parametrize("norm_axis", AXES)
def test_magnitudes_come_back_from_the_merged_weight_with_their_sign(norm_axis):
    case = plain_case(norm_axis)
    W0, A, B, m = (case.inputs[name] for name in "W0 A B m".split())
    m = m.copy()
    m[0], m[1] = -2.5, 0.0
    W = dora.dora_weight(W0, A, B, m, 0.7, norm_axis=norm_axis)
    back = dora.recover_magnitude(W, W0, A, B, 0.7, norm_axis=norm_axis)
    assert relative_error(back, m) < 1e-12
    np.testing.assert_allclose(norms(W, norm_axis), np.hypot(m, 1e-12), rtol=1e-12)


def test_a_zero_vector_tells_nothing_of_its_magnitude():
    W0, A, B = np.zeros((2, 3)), np.ones((1, 3)), np.array([[0.0], [1.0]])
    W = dora.dora_weight(W0, A, B, np.array([5.0, 5.0]), 1.0)
    np.testing.assert_allclose(dora.recover_magnitude(W, W0, A, B, 1.0), [0, 5])


def test_recovered_magnitudes_are_summed_in_float64_and_use_eps():
    row = np.full((1, 2**20), 1, "float32")
    row[0, 0] = 2**12  # its square swallows a float32 sum of ones
    A, B = np.zeros((1, 2**20), "float32"), np.zeros((1, 1), "float32")
    (m,) = dora.recover_magnitude(row, row, A, B, 1.0)
    assert m == np.float32((2.0**24 + 2**20 - 1) ** 0.5)
    small = np.array([[3.0]])
    (m,) = dora.recover_magnitude(small, small, np.zeros((1, 1)), np.zeros((1, 1)), 1.0, eps=4.0)
    assert m == 9 / 5


def test_init_uses_the_eps_asked_for():
    _, _, m = dora.init(np.array([[3.0]]), 1, np.random.default_rng(0), eps=4.0)
    assert m == 5


@pytest.mark.parametrize("wide", ["x", "W0", "A", "B"])
def test_arithmetic_runs_in_the_widest_dtype(layer, wide):
    case = plain_case("per_output")
    inputs = {**case.astype("float32").inputs}
    inputs[wide] = inputs[wide].astype("float64")
    y, cache = layer.dora_forward(**inputs, scale=0.7)  # per_output is the default
    assert y.dtype == inputs["x"].dtype
    assert cache.weights.m.dtype == cache.c.dtype == cache.rows.x.dtype == np.float64
    grads = layer.dora_backward(case.dy, cache)  # and so is exact
    names = ("x", "A", "B", "m", "bias")
    assert [g.dtype for g in grads] == [inputs[name].dtype for name in names]
    expected, _ = dora.dora_forward(**inputs, scale=0.7, norm_axis="per_output")
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_recovered_magnitudes_of_float16_are_float32():
    W0, A, B = (np.full(s, 0.5, "float16") for s in ((2, 3), (1, 3), (2, 1)))
    back = dora.recover_magnitude(W0, W0, A, B, 1.0)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, norms(W0, "per_output"), rtol=1e-6)


# --- mask, bias, dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize("norm_axis", AXES)
def test_a_mask_of_zeros_is_the_base_and_of_ones_is_no_mask(layer, norm_axis):
    case = plain_case(norm_axis)
    x, W0, bias = (case.inputs[name] for name in ("x", "W0", "bias"))
    closed, cache = layer.dora_forward(**case.inputs, **case.settings, mask=np.zeros_like(x))
    np.testing.assert_allclose(closed, x @ W0.T + bias, atol=1e-13)
    grads = layer.dora_backward(case.dy, cache)
    np.testing.assert_allclose(grads.dx, case.dy @ W0, atol=1e-13)
    assert not grads.dm.any() and not grads.dA.any() and not grads.dB.any()
    opened, _ = layer.dora_forward(**case.inputs, **case.settings, mask=np.ones_like(x))
    unmasked, _ = layer.dora_forward(**case.inputs, **case.settings)
    np.testing.assert_allclose(opened, unmasked, atol=1e-13)


def test_bias_arrives_as_it_is(layer):
    case = plain_case("per_output")
    without = {name: a for name, a in case.inputs.items() if name != "bias"}
    y, _ = layer.dora_forward(**case.inputs, **case.settings)
    bare, cache = layer.dora_forward(**without, **case.settings)
    np.testing.assert_allclose(y - bare, np.broadcast_to(case.inputs["bias"], y.shape), atol=1e-13)
    assert layer.dora_backward(case.dy, cache).dbias is None


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_result_has_the_dtype_of_its_own_array(layer, norm_axis, dtype):
    case = list(dora_cases(np.random.default_rng(2), norm_axis))[1].astype(dtype)
    settings = {**case.settings, "scale": np.float64(0.7), "eps": np.float64(1e-12)}
    y, cache = layer.dora_forward(**case.inputs, **settings)
    grads = layer.dora_backward(case.dy, cache)
    assert {a.dtype for a in (y, grads.dx, grads.dA, grads.dB, grads.dbias)} == {np.dtype(dtype)}
    assert grads.dm.dtype == np.result_type(dtype, np.float32)


def test_mixed_dtypes_go_back_to_their_own(layer):
    case = plain_case("per_output")
    inputs = {**case.inputs, "x": case.inputs["x"].astype("float32")}
    y, cache = layer.dora_forward(**inputs, **case.settings)
    grads = layer.dora_backward(case.dy.astype("float32"), cache)
    assert y.dtype == grads.dx.dtype == np.float32
    assert grads.dA.dtype == grads.dm.dtype == np.float64


def test_nothing_passed_in_is_changed(layer):
    case = list(dora_cases(np.random.default_rng(2), "per_output"))[1]
    for array in (*case.inputs.values(), case.settings["mask"], case.dy):
        array.flags.writeable = False  # NumPy itself refuses a write
    _, cache = layer.dora_forward(**case.inputs, **case.settings)
    layer.dora_backward(case.dy, cache)


def test_leading_dimensions_are_only_a_shape(layer):
    case = plain_case("per_output")
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 4, 9)), rng.normal(size=(2, 3, 4, 6))
    rest = {name: a for name, a in case.inputs.items() if name != "x"}
    y, cache = layer.dora_forward(x, **rest, **case.settings)
    flat_y, flat_cache = layer.dora_forward(x.reshape(-1, 9), **rest, **case.settings)
    np.testing.assert_array_equal(y.reshape(-1, 6), flat_y)
    grads, flat = (
        layer.dora_backward(d, c) for d, c in ((dy, cache), (dy.reshape(-1, 6), flat_cache))
    )
    assert grads.dx.shape == x.shape
    np.testing.assert_array_equal(grads.dx.reshape(-1, 9), flat.dx)
    np.testing.assert_array_equal(grads.dA, flat.dA)

"""Eq. 1: LoRA's start, its delta, and its gradients."""

import numpy as np
import pytest

from minidora import lora
from minidora.evidence.cases import lora_cases

CASES = list(lora_cases(np.random.default_rng(7)))
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def grads_of(case):
    _, cache = lora.lora_forward(**case.inputs, **case.settings)
    return lora.lora_backward(case.dy, cache)._asdict()


@by_case
def test_forward_equals_the_dense_sum_of_weights(case):
    x, W0, A, B = (case.inputs[name] for name in "x W0 A B".split())
    mask = case.settings.get("mask", np.ones_like(x))
    y, _ = lora.lora_forward(**case.inputs, **case.settings)
    expected = x @ W0.T + (x * mask) @ (case.settings["scale"] * B @ A).T
    np.testing.assert_allclose(y, expected + case.inputs.get("bias", 0), rtol=0, atol=1e-12)
    assert y.shape == case.dy.shape


def test_init_is_kaiming_uniform_and_zero():
    A, B = lora.init(50, 400, 8, np.random.default_rng(0), np.float32)
    assert A.shape == (8, 400) and B.shape == (50, 8)
    assert A.dtype == B.dtype == np.float32
    assert not B.any()
    bound = 1 / 20  # 1 / sqrt(d_in)
    assert 0.99 * bound < np.abs(A).max() <= bound
    assert A.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert abs(A.mean()) < 0.05 * bound


def test_init_has_the_bound_of_torchs_kaiming_uniform():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    weight = torch.empty(64, 100)
    torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
    A, _ = lora.init(3, 100, 64, np.random.default_rng(0))
    assert np.abs(A).max() == pytest.approx(weight.abs().max().item(), rel=0.01)


def test_init_repeats_from_its_seed():
    first, second = (lora.init(3, 4, 2, np.random.default_rng(5))[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_smallest_layer():
    A, B = lora.init(1, 1, 1, np.random.default_rng(0))
    assert A.shape == B.shape == (1, 1)


def test_scaling():
    assert lora.scaling(18, 9) == 2
    assert lora.scaling(18, 9, rslora=True) == 6
    assert lora.scaling(3, 1) == 3
    assert isinstance(lora.scaling(np.float64(16), 4), float)


def test_delta():
    A, B = np.array([[1.0, 2.0, 3.0]]), np.array([[10.0], [20.0]])
    np.testing.assert_array_equal(lora.lora_delta(A, B, 0.5), [[5, 10, 15], [10, 20, 30]])


def test_delta_is_computed_in_the_widest_dtype_and_comes_back_in_Bs():
    # 300 * 300 overflows float16, and a third is not the same third in float32
    half = lora.lora_delta(np.full((1, 2), 300, "float16"), np.full((3, 1), 300, "float16"), 1e-2)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, 900, rtol=1e-3)
    narrow, wide = np.full((1, 1), 3, "float32"), np.full((1, 1), 1 / 3)
    assert lora.lora_delta(wide, narrow, 1.0).dtype == np.float32
    assert lora.lora_delta(narrow, wide, 1.0)[0, 0] == 1.0
    # two terms cancel to 1e-9: lost if A were rounded to B's float32
    A, B = np.array([[1.0], [1 + 1e-9]]), np.array([[-1.0, 1.0]], "float32")
    assert lora.lora_delta(A, B, 1.0)[0, 0] == np.float32(1 + 1e-9 - 1)
    assert lora.lora_delta(B.T, A.T, 1.0)[0, 0] == 1 + 1e-9 - 1


def test_float16_is_computed_in_float32():
    x, A, B = np.full((1, 2), 200.0), np.full((1, 2), 200.0), np.full((1, 1), 1e-3)
    W0 = np.zeros((1, 2))
    half = [a.astype("float16") for a in (x, W0, A, B)]
    y, cache = lora.lora_forward(*half, 1.0)  # x @ A.T is 80,000, above float16's 65,504
    assert y.dtype == np.float16
    assert y[0, 0] == pytest.approx(80, rel=2e-3)
    grads = lora.lora_backward(np.full((1, 1), 0.01, "float16"), cache)
    assert {g.dtype for g in (grads.dx, grads.dA, grads.dB)} == {np.dtype("float16")}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(dtype):
    case = CASES[1].astype(dtype)
    settings = {**case.settings, "scale": np.float64(0.7)}  # a NumPy scalar would promote
    y, cache = lora.lora_forward(**case.inputs, **settings)
    grads = lora.lora_backward(case.dy, cache)
    assert {a.dtype for a in (y, *grads)} == {np.dtype(dtype)}


@pytest.mark.parametrize("wide", ["x", "W0", "A", "B"])
def test_arithmetic_runs_in_the_widest_dtype(wide):
    inputs = CASES[0].astype("float32").inputs
    inputs = {**inputs, wide: inputs[wide].astype("float64")}
    y, cache = lora.lora_forward(**inputs, scale=0.7)
    assert cache.weights.W0.dtype == cache.rows.x.dtype == cache.h.dtype == np.float64
    assert cache.weights.m is None
    assert y.dtype == inputs["x"].dtype
    grads = lora.lora_backward(CASES[0].dy, cache)
    assert [g.dtype for g in grads] == [inputs[n].dtype for n in ("x", "A", "B", "bias")]


def test_without_a_bias_there_is_no_gradient_of_one():
    case = next(case for case in CASES if "bias" not in case.inputs)
    assert grads_of(case)["dbias"] is None

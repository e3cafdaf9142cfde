"""Eq. 2: norms, decompose, recompose, both axes."""

import numpy as np
import pytest

from minidora import decompose, norms, recompose
from minidora.decomposition import EPS, squared_norms

AXES = ("per_output", "per_input")
W = np.array([[3.0, 4.0, 0.0], [5.0, 0.0, 12.0]])


@pytest.mark.parametrize(
    "norm_axis, expected", [("per_output", [5, 13]), ("per_input", [34**0.5, 4, 12])]
)
def test_norms_by_hand(norm_axis, expected):
    np.testing.assert_allclose(norms(W, norm_axis), expected, rtol=1e-15)


@pytest.mark.parametrize("norm_axis", AXES)
def test_norms_equal_numpys(norm_axis):
    V = np.random.default_rng(0).normal(size=(7, 4))
    expected = np.linalg.norm(V, axis=1 if norm_axis == "per_output" else 0)
    np.testing.assert_allclose(norms(V, norm_axis), expected, rtol=1e-14)


@pytest.mark.parametrize("norm_axis", AXES)
def test_decompose_gives_unit_vectors_and_recompose_gives_them_back(norm_axis):
    V = np.random.default_rng(1).normal(size=(5, 8)) * 3
    m, V_unit = decompose(V, norm_axis)
    np.testing.assert_allclose(norms(V_unit, norm_axis), 1, rtol=1e-14)
    np.testing.assert_allclose(m, norms(V, norm_axis))
    np.testing.assert_allclose(recompose(m, V_unit, norm_axis), V, rtol=1e-14)


def test_eps_stands_inside_the_root():
    assert norms(np.array([[3.0]]), "per_output", 4.0) == 5.0
    assert norms(np.zeros((1, 3)), "per_output") == EPS == 1e-12


@pytest.mark.parametrize("norm_axis", AXES)
def test_a_zero_vector_has_no_direction_and_comes_back(norm_axis):
    V = np.eye(3)
    V[1, 1] = 0
    m, V_unit = decompose(V, norm_axis)
    np.testing.assert_array_equal(m, [1, EPS, 1])
    np.testing.assert_array_equal(recompose(m, V_unit, norm_axis), V)


@pytest.mark.parametrize(
    "value, dtype", [(5.0, "float16"), (1e-4, "float16"), (1e18, "float32"), (1e-20, "float32")]
)
def test_squares_neither_overflow_nor_vanish(value, dtype):
    row = np.full((1, 4096), value, dtype)
    exact = np.hypot(np.float64(row[0, 0]) * 64, EPS)
    (c,) = norms(row, "per_output")
    assert c.dtype == np.float32
    assert c == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    V = np.random.default_rng(2).normal(size=(3, 4)).astype(dtype)
    m, V_unit = decompose(V, "per_input")
    assert m.dtype == np.result_type(dtype, np.float32)  # a magnitude is never stored in float16
    assert V_unit.dtype == recompose(m, V_unit, "per_input").dtype == V.dtype


def test_norms_accumulate_in_float64():
    # 2**12 squares of 1 plus one of 2**-13: float32 sums lose the small one
    row = np.ones((1, 4097), np.float32)
    row[0, 0] = 2.0**-13
    exact = np.sqrt(4096 + 2.0**-26)
    assert norms(row, "per_output")[0] == np.float32(exact)
    big = np.full((1, 10**6), 0.1, np.float32)
    assert norms(big, "per_output")[0] == pytest.approx(float(np.float32(0.1)) * 1e3, rel=1e-7)


def test_more_than_float64_stays_more_than_float64():
    W = np.full((1, 3), np.longdouble(1) / 3)
    if np.finfo(W.dtype).eps == np.finfo(np.float64).eps:
        pytest.skip("long double is double on this machine")
    assert squared_norms(W, "per_output").dtype == W.dtype
    assert abs(squared_norms(W, "per_output")[0] - np.longdouble(1) / 3) < 1e-18

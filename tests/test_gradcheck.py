"""The checker is checked: it must reject what is wrong and say where."""

import numpy as np
import pytest

from minidora.evidence.gradcheck import Difference, central_differences, compare, relative_error


def test_relative_error_is_on_the_scale_of_the_array():
    assert relative_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert relative_error([0.0, 0.25], [0.0, 0.0]) == 0.25
    assert relative_error([], []) == 0.0
    assert relative_error([np.nan, 1.0], [1.0, 1.0]) == np.inf
    assert relative_error([1.0, 1.0], [np.inf, 1.0]) == np.inf


def test_central_differences_of_a_known_function():
    def f(a, b):
        return np.sin(a) @ b

    rng = np.random.default_rng(0)
    a, b, dy = rng.normal(size=(3, 4)), rng.normal(size=(4, 2)), rng.normal(size=(3, 2))
    grads = central_differences(f, {"a": a, "b": b}, dy)
    expected = {"da": np.cos(a) * (dy @ b.T), "db": np.sin(a).T @ dy}
    compare(grads, expected, 1e-9).raise_if_failed()


def test_central_differences_leave_the_inputs_alone():
    a = np.array([1.0, 2.0])
    a.flags.writeable = False
    grads = central_differences(lambda a: a**2, {"a": a}, np.ones(2))
    np.testing.assert_allclose(grads["da"], [2, 4], rtol=1e-9)


def test_a_large_value_moves_by_more():
    grads = central_differences(lambda a: a**2, {"a": np.array([1e8])}, np.ones(1))
    np.testing.assert_allclose(grads["da"], [2e8], rtol=1e-9)


def test_the_step_is_the_one_asked_for():
    (cubed,) = central_differences(lambda a: a**3, {"a": np.array([0.0])}, np.ones(1), step=0.5)[
        "da"
    ]
    assert cubed == 0.25  # the error of the step itself: step²


def test_the_verdict_of_an_agreement():
    verdict = compare({"dA": np.array([[1.0, 2.0]])}, {"dA": np.array([[1.0, 2.0]])}, 1e-9)
    assert verdict.ok
    verdict.raise_if_failed()
    assert "agrees" in str(verdict) and "DIFFERS" not in str(verdict)


def test_the_verdict_of_a_difference_names_it_and_shows_both_values():
    got, right = np.zeros((2, 3)), np.zeros((2, 3))
    got[1, 2], right[1, 2], right[0, 0] = 0.125, 0.75, 2.0
    got[0, 0] = 2.0
    verdict = compare({"dA": got, "dx": np.ones(2)}, {"dA": right, "dx": np.ones(2)}, 1e-9)
    worst = verdict.worst
    assert (worst.name, worst.shape, worst.max_abs, worst.max_rel) == ("dA", (2, 3), 0.625, 0.3125)
    assert (worst.worst, worst.got, worst.expected, worst.ok) == ((1, 2), 0.125, 0.75, False)
    assert str(worst) == "dA: relative error 3.1e-01, bound 1e-09, at [1, 2] 0.125 for 0.75"
    with pytest.raises(AssertionError, match="gradients differ: dA\n") as failure:
        verdict.raise_if_failed()
    for part in ("(2, 3)", "DIFFERS", "[1, 2]", "0.125", "0.75"):
        assert part in str(failure.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_never_agrees(bad):
    verdict = compare({"dx": np.array([1.0, bad])}, {"dx": np.array([1.0, 2.0])}, 1e9)
    assert not verdict.ok
    assert verdict.differences[0].worst == (1,) and verdict.differences[0].max_abs == np.inf


def test_infinities_in_the_same_place_are_no_agreement():
    both = Difference.between("y", [np.inf, 1.0], [np.inf, 1.0], np.inf)
    assert not both.ok and both.max_rel == np.inf and both.worst == (0,)


def test_a_difference_may_be_held_to_a_unit_of_its_own():
    relative = Difference.between("r", [9.0, 0.0], [10.0, 0.0], 0.1)
    absolute = Difference.between("r", [9.0, 0.0], [10.0, 0.0], 0.1, unit=1.0)
    assert relative.max_rel == 0.1 and relative.ok and absolute.max_rel == 1 and not absolute.ok
    assert Difference.between("r", 3.0, 3.0, 0.0).ok  # numbers are arrays without dimensions
    assert Difference.between("r", [], [], 0.0).ok


def test_tolerance_is_a_bound_of_the_relative_error():
    right = {"dx": np.array([100.0])}
    assert compare({"dx": np.array([100.1])}, right, 1.1e-3).ok
    assert not compare({"dx": np.array([100.1])}, right, 0.9e-3).ok


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match=r"grads: expected the names \['dx', 'dy'\], got \['dx'\]"):
        compare({"dx": np.ones(1)}, {"dx": np.ones(1), "dy": np.ones(1)}, 1e-9)
    with pytest.raises(ValueError, match=r"dx: expected shape \(2,\), got shape \(1,\)"):
        compare({"dx": np.ones(1)}, {"dx": np.ones(2)}, 1e-9)


def test_a_missing_bias_is_no_difference():
    assert compare({"dx": np.ones(1), "dbias": None}, {"dx": np.ones(1)}, 1e-9).ok
    assert compare({"dx": np.ones(1)}, {"dx": np.ones(1), "dbias": None}, 1e-9).ok
    assert compare({"dx": np.ones((0, 2))}, {"dx": np.ones((0, 2))}, 1e-9).ok


def test_a_vanishing_gradient_is_judged_by_its_size():
    noise, none = {"dk": np.array([1e-17])}, {"dk": np.array([3e-17])}
    assert not compare(noise, none, 1e-9).ok
    assert compare(noise, none, 1e-9, vanishing=("dk",)).ok
    assert not compare({"dk": np.array([1e-8])}, none, 1e-9, vanishing=("dk",)).ok
    assert not compare({"dk": np.array([np.nan])}, none, 1e-9, vanishing=("dk",)).ok

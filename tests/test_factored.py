"""The factored layer against the textbook, its guard, and that nothing dense is made."""

import tracemalloc

import numpy as np
import pytest

from minidora import dora, factored, norms
from minidora.decomposition import squared_norms
from minidora.evidence.cases import dora_cases
from minidora.evidence.gradcheck import compare, relative_error

AXES, GRADS = ("per_output", "per_input"), ("exact", "detached")
both_axes = pytest.mark.parametrize("norm_axis", AXES)


def both(inputs, settings, dy, norm_grad="exact"):
    """(y and gradients) of the factored layer, and of the textbook."""
    results = []
    for layer in (factored, dora):
        y, cache = layer.dora_forward(**inputs, **settings)
        results.append({"y": y, **layer.dora_backward(dy, cache, norm_grad=norm_grad)._asdict()})
    results[1] = {name: a for name, a in results[1].items() if a is not None}
    return results


@both_axes
@pytest.mark.parametrize("norm_grad", GRADS)
def test_equals_the_textbook_on_every_awkward_case(norm_axis, norm_grad):
    for case in dora_cases(np.random.default_rng(21), norm_axis):
        ours, textbook = both(case.inputs, case.settings, case.dy, norm_grad)
        compare(ours, textbook, 1e-12).raise_if_failed()


@both_axes
def test_squares_of_W0_may_be_computed_once(norm_axis):
    case = next(dora_cases(np.random.default_rng(22), norm_axis))
    W0_sq = squared_norms(case.inputs["W0"], norm_axis)
    before = W0_sq.copy()
    given, cache = factored.dora_forward(**case.inputs, **case.settings, W0_sq=W0_sq)
    made, _ = factored.dora_forward(**case.inputs, **case.settings)
    np.testing.assert_array_equal(given, made)
    np.testing.assert_array_equal(W0_sq, before)
    doubled, _ = factored.dora_forward(**case.inputs, **case.settings, W0_sq=4 * W0_sq)
    assert relative_error(doubled, made) > 0.1  # it is used, not computed again
    wrong = np.ones(len(W0_sq) + 1)
    with pytest.raises(
        ValueError, match=rf"^W0_sq: expected shape .* \(one per vector, {norm_axis}"
    ):
        factored.dora_forward(**case.inputs, **case.settings, W0_sq=wrong)


def nearly_cancelled(norm_axis, distance, dtype="float64"):
    """A layer whose second and fourth vectors of V are `distance` times W0's, by cancelling."""
    rng = np.random.default_rng(23)
    d_out, d_in = 6, 9
    r = d_in if norm_axis == "per_output" else d_out
    W0 = rng.normal(size=(d_out, d_in)).astype(dtype)
    A = np.eye(r, d_in, dtype=dtype) if norm_axis == "per_output" else W0.copy()
    B = W0.copy() if norm_axis == "per_output" else np.eye(d_out, r, dtype=dtype)
    keep = rng.normal(size=W0.shape).astype(dtype)
    # s B A = update, with s = 0.5
    update = keep.copy()
    chosen = [1, 3]
    index = (chosen, slice(None)) if norm_axis == "per_output" else (slice(None), chosen)
    update[index] = -(1 - distance) * W0[index]
    if norm_axis == "per_output":
        B = update / 0.5
    else:
        A = update / 0.5
    m = rng.normal(size=d_out if norm_axis == "per_output" else d_in).astype(dtype)
    x, dy = rng.normal(size=(5, d_in)).astype(dtype), rng.normal(size=(5, d_out)).astype(dtype)
    inputs = {"x": x, "W0": W0, "A": A.astype(dtype), "B": B.astype(dtype), "m": m}
    return inputs, {"scale": 0.5, "norm_axis": norm_axis}, dy, chosen


@both_axes
@pytest.mark.parametrize("distance", [1e-2, 1e-5, 1e-7])
@pytest.mark.parametrize("norm_grad", GRADS)
def test_where_V_cancels_W0_the_guard_keeps_the_digits(norm_axis, distance, norm_grad):
    inputs, settings, dy, _ = nearly_cancelled(norm_axis, distance)
    ours, textbook = both(inputs, settings, dy, norm_grad)
    bound = 100 * np.finfo(np.float64).eps / distance  # 100 ulp · ‖W0‖ / ‖V‖
    compare(ours, textbook, bound).raise_if_failed()


@both_axes
def test_without_the_guard_the_norm_would_be_lost(norm_axis, monkeypatch):
    """What the guard is for: at 1e-9 the squares cancel to nothing, or below."""
    inputs, settings, dy, chosen = nearly_cancelled(norm_axis, 1e-9)
    V = inputs["W0"] + 0.5 * inputs["B"] @ inputs["A"]
    right = norms(V, norm_axis)
    _, cache = factored.dora_forward(**inputs, **settings)
    np.testing.assert_allclose(cache.c, right, rtol=1e-12)
    monkeypatch.setattr(factored, "GUARD", -np.inf)
    with np.errstate(invalid="ignore"):
        _, cache = factored.dora_forward(**inputs, **settings)
    off = np.abs(cache.c / right - 1)
    assert not (off[chosen] < 0.1).any()


@both_axes
def test_the_guard_recomputes_only_the_vectors_that_need_it(norm_axis, monkeypatch):
    inputs, settings, dy, chosen = nearly_cancelled(norm_axis, 1e-3)
    seen = []

    def watching(W, axis):
        seen.append(W.shape)
        return squared_norms(W, axis)

    W0_sq = squared_norms(inputs["W0"], norm_axis)
    monkeypatch.setattr(factored, "squared_norms", watching)
    factored.dora_forward(**inputs, **settings, W0_sq=W0_sq)
    assert seen == [(2, 9) if norm_axis == "per_output" else (6, 2)]
    seen.clear()
    inputs["B"] = 0 * inputs["B"]
    factored.dora_forward(**inputs, **settings, W0_sq=W0_sq)
    assert seen == []


@both_axes
def test_the_guard_stands_at_a_tenth(norm_axis):
    """‖V‖² = 0.1 (‖W0‖² + ‖sBA‖²) for parallel vectors at 1 - t with (1-t)² = 0.1 (1 + t²)."""
    t = np.roots([0.9, -2, 0.9]).min().real
    for shift, expected in ((1e-6, True), (-1e-6, False)):
        inputs, settings, _, chosen = nearly_cancelled(norm_axis, 1 - t - shift)
        V = inputs["W0"] + 0.5 * inputs["B"] @ inputs["A"]
        positive = squared_norms(inputs["W0"], norm_axis)
        positive = positive + squared_norms(V - inputs["W0"], norm_axis)
        below = (squared_norms(V, norm_axis) < factored.GUARD * positive)[chosen]
        assert (below == expected).all()


@both_axes
@pytest.mark.parametrize("norm_grad", GRADS)
@pytest.mark.parametrize("masked", [False, True])
def test_no_dense_temporary_is_made(norm_axis, norm_grad, masked):
    d, n, r = 512, 16, 4
    rng = np.random.default_rng(0)
    W0 = rng.normal(size=(d, d)).astype(np.float32)
    W0.flags.writeable = False
    A, B, m = dora.init(W0, r, rng, norm_axis=norm_axis)
    x, dy = (rng.normal(size=(n, d)).astype(np.float32) for _ in range(2))
    mask = np.ones_like(x) if masked else None
    W0_sq = squared_norms(W0, norm_axis)
    for given in (W0_sq, None):
        tracemalloc.start()
        _, cache = factored.dora_forward(
            x, W0, A, B, m, 2.0, norm_axis=norm_axis, mask=mask, W0_sq=given
        )
        factored.dora_backward(dy, cache, norm_grad=norm_grad)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # x, y, z, dy and dx are (n, d), W0 / 32 each; one dense temporary would be W0.nbytes
        assert peak < 0.45 * W0.nbytes


@both_axes
def test_W0_is_used_where_it_lies(norm_axis):
    """Also a transposed or a strided W0: same answers, never copied."""
    case = next(dora_cases(np.random.default_rng(24), norm_axis))
    expected, _ = factored.dora_forward(**case.inputs, **case.settings)
    for layout in (np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2]):
        inputs = {name: layout(a) if a.ndim == 2 else a for name, a in case.inputs.items()}
        ours, textbook = both(inputs, case.settings, case.dy)
        compare(ours, textbook, 1e-12).raise_if_failed()
        np.testing.assert_allclose(ours["y"], expected, atol=1e-12)
        _, cache = factored.dora_forward(**inputs, **case.settings)
        assert cache.weights.W0 is inputs["W0"]


def test_small_products_are_summed_in_float64():
    a = np.array([[4096, 1, 1]], "float32")  # 2**24 + 1 is no float32
    (total,) = factored._sum("or,or->o", a, a)
    assert total == 2**24 + 2


def test_a_cast_copies_nothing():
    from minidora._boundary import cast

    a = np.ones(3, "float32")
    assert cast(a, "float32") is a
    assert cast(a, "float64").dtype == np.float64

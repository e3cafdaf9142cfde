"""Hypothesis over shapes, leading dimensions, dtypes, axes, modes and masks."""

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis: pip install hypothesis")

from hypothesis import given
from hypothesis import strategies as st

from minidora import decompose, dora, factored, lora, norms, recompose
from minidora.evidence.check import TOLERANCES
from minidora.evidence.gradcheck import compare, relative_error

sizes = st.integers(1, 9)
leads = st.lists(st.integers(0, 3), max_size=3).map(tuple)
axes = st.sampled_from(["per_output", "per_input"])
dtypes = st.sampled_from(["float16", "float32", "float64"])
seeds = st.integers(0, 2**32 - 1)
scales = st.integers(-16, 16).map(lambda k: k / 4)


def draw(seed, lead, d_out, d_in, rank, norm_axis, *, bias=True, mask=True):
    """Random arguments of a DoRA layer: inputs, mask and cotangent."""
    rng = np.random.default_rng(seed)
    inputs = {
        "x": rng.normal(size=(*lead, d_in)),
        "W0": rng.normal(size=(d_out, d_in)),
        "A": rng.normal(size=(rank, d_in)),
        "B": rng.normal(size=(d_out, rank)),
        "m": rng.normal(size=d_out if norm_axis == "per_output" else d_in),
    }
    if bias:
        inputs["bias"] = rng.normal(size=d_out)
    dropped = (rng.random((*lead, d_in)) < 0.8) / 0.8 if mask else None
    return inputs, dropped, rng.normal(size=(*lead, d_out))


@given(seeds, leads, sizes, sizes, sizes, scales, axes, st.sampled_from(["exact", "detached"]))
def test_gradients_equal_autograds(seed, lead, d_out, d_in, rank, scale, norm_axis, norm_grad):
    witness = pytest.importorskip("minidora.evidence.by_autograd", exc_type=ImportError)
    inputs, mask, dy = draw(seed, lead, d_out, d_in, rank, norm_axis)
    # eps of 0.5 keeps vectors of one entry from having gradients that are zero but for rounding
    settings = {"scale": scale, "norm_axis": norm_axis, "mask": mask, "eps": 0.5}
    y, cache = dora.dora_forward(**inputs, **settings)
    assert y.shape == dy.shape
    grads = dora.dora_backward(dy, cache, norm_grad=norm_grad)._asdict()
    expected = witness.dora_gradients(dy, inputs, settings, norm_grad=norm_grad)
    compare(grads, expected, 1e-9).raise_if_failed()


@given(seeds, leads, sizes, sizes, sizes, scales, st.booleans(), st.booleans())
def test_lora_gradients_equal_autograds(seed, lead, d_out, d_in, rank, scale, bias, mask):
    witness = pytest.importorskip("minidora.evidence.by_autograd", exc_type=ImportError)
    inputs, dropped, dy = draw(seed, lead, d_out, d_in, rank, "per_output", bias=bias, mask=mask)
    del inputs["m"]
    settings = {"scale": scale, "mask": dropped}
    _, cache = lora.lora_forward(**inputs, **settings)
    grads = lora.lora_backward(dy, cache)._asdict()
    compare(grads, witness.lora_gradients(dy, inputs, settings), 1e-9).raise_if_failed()


@given(seeds, leads, sizes, sizes, sizes, axes, dtypes)
def test_narrow_dtypes_stay_near_float64(seed, lead, d_out, d_in, rank, norm_axis, dtype):
    inputs, mask, dy = draw(seed, lead, d_out, d_in, rank, norm_axis)
    narrow = {name: a.astype(dtype) for name, a in inputs.items()}
    wide = {name: a.astype("float64") for name, a in narrow.items()}
    mask, dy = mask.astype(dtype), dy.astype(dtype)
    results = []
    for arguments, cast in ((narrow, dtype), (wide, "float64")):
        settings = {"scale": 0.7, "norm_axis": norm_axis, "mask": mask.astype(cast), "eps": 0.5}
        y, cache = dora.dora_forward(**arguments, **settings)
        grads = dora.dora_backward(dy.astype(cast), cache)._asdict()
        results.append({"y": y, **grads})
    for name, value in results[0].items():
        right = results[1][name]
        # On the scale of the arguments, 1, where a gradient is smaller because terms cancel
        error = np.abs(value.astype("float64") - right).max(initial=0)
        bound = TOLERANCES[dtype] * max(1.0, np.abs(right).max(initial=0))
        assert error <= bound, (name, error, bound)


@given(seeds, sizes, sizes, sizes, scales, axes)
def test_merge_and_recover(seed, d_out, d_in, rank, scale, norm_axis):
    inputs, _, _ = draw(seed, (), d_out, d_in, rank, norm_axis)
    W0, A, B, m = (inputs[name] for name in ("W0", "A", "B", "m"))
    W = dora.dora_weight(W0, A, B, m, scale, norm_axis=norm_axis)
    back = dora.recover_magnitude(W, W0, A, B, scale, norm_axis=norm_axis)
    assert relative_error(back, m) < 1e-12


@given(seeds, leads, sizes, sizes, sizes, scales, axes)
def test_the_merged_weight_is_the_layer(seed, lead, d_out, d_in, rank, scale, norm_axis):
    inputs, _, _ = draw(seed, lead, d_out, d_in, rank, norm_axis)
    y, _ = dora.dora_forward(**inputs, scale=scale, norm_axis=norm_axis)
    x, bias = inputs.pop("x"), inputs.pop("bias")
    W = dora.dora_weight(**inputs, scale=scale, norm_axis=norm_axis)
    np.testing.assert_allclose(y, x @ W.T + bias, rtol=0, atol=1e-11)


@given(seeds, sizes, sizes, axes, dtypes)
def test_decompose_recompose_round_trip(seed, d_out, d_in, norm_axis, dtype):
    W = np.random.default_rng(seed).normal(size=(d_out, d_in)).astype(dtype)
    m, V_unit = decompose(W, norm_axis)
    ulp = np.finfo(dtype).eps
    assert relative_error(recompose(m, V_unit, norm_axis), W.astype("float64")) <= 2 * ulp
    np.testing.assert_allclose(norms(V_unit, norm_axis), 1, rtol=4 * ulp)


@given(seeds, sizes, sizes, sizes, axes, dtypes)
def test_identity_at_init(seed, d_out, d_in, rank, norm_axis, dtype):
    rng = np.random.default_rng(seed)
    W0 = rng.normal(size=(d_out, d_in)).astype(dtype)
    A, B, m = dora.init(W0, rank, rng, norm_axis=norm_axis)
    np.testing.assert_array_equal(dora.dora_weight(W0, A, B, m, 2.0, norm_axis=norm_axis), W0)


@given(
    seeds,
    leads,
    sizes,
    sizes,
    sizes,
    scales,
    axes,
    st.sampled_from(["exact", "detached"]),
    st.booleans(),
    st.booleans(),
)
def test_factored_equals_textbook(
    seed, lead, d_out, d_in, rank, scale, norm_axis, norm_grad, bias, mask
):
    """To 1e-10, or to 100 ulp times the largest ‖W0‖ / ‖V‖ where the guard fires."""
    inputs, dropped, dy = draw(seed, lead, d_out, d_in, rank, norm_axis, bias=bias, mask=mask)
    settings = {"scale": scale, "norm_axis": norm_axis, "mask": dropped}
    results = []
    for layer in (factored, dora):
        y, cache = layer.dora_forward(**inputs, **settings)
        grads = layer.dora_backward(dy, cache, norm_grad=norm_grad)._asdict()
        results.append({"y": y, **{name: g for name, g in grads.items() if g is not None}})
    update = scale * inputs["B"] @ inputs["A"]
    c = norms(inputs["W0"] + update, norm_axis)
    cancelled = (norms(inputs["W0"], norm_axis) + norms(update, norm_axis)) / c
    guarded = cancelled[cancelled**2 > 1 / factored.GUARD].max(initial=0)
    bound = max(1e-10, 100 * np.finfo("float64").eps * guarded)
    for name, value in results[0].items():
        right = results[1][name]
        # exact dA and dB of one-entry vectors are zero but for rounding: on the scale of 1 / c
        size = max(np.abs(right).max(initial=0), (1 / c).max())
        assert np.abs(value - right).max(initial=0) <= bound * size, name

"""Bad input: the error names the argument, what was expected and what came."""

import re

import numpy as np
import pytest

from minidora import decomposition, dora, factored, lora

GOOD = {
    "x": np.ones((2, 3, 7)),
    "W0": np.ones((5, 7)),
    "A": np.ones((2, 7)),
    "B": np.ones((5, 2)),
    "m": np.ones(5),
    "scale": 0.5,
    "bias": np.ones(5),
    "mask": np.ones((2, 3, 7)),
}


@pytest.fixture(params=[dora, factored], ids=["textbook", "factored"])
def layer(request):
    """Both layers complain alike."""
    return request.param


WRONG_SHAPES = [
    ("x", np.ones((2, 3, 6)), "expected shape (..., 7) for d_in = 7, got shape (2, 3, 6)"),
    ("x", np.float64(1.0), "expected shape (..., 7) for d_in = 7, got shape ()"),
    ("W0", np.ones((5, 7, 1)), "expected 2 dimensions, got shape (5, 7, 1)"),
    ("W0", np.ones(7), "expected 2 dimensions, got shape (7,)"),
    (
        "A",
        np.ones((2, 6)),
        "expected shape (2, 7) ((r, d_in) beside W0 of shape (5, 7)), got shape (2, 6)",
    ),
    ("A", np.ones(7), "expected 2 dimensions, got shape (7,)"),
    (
        "B",
        np.ones((2, 5)),
        "expected shape (5, 2) ((d_out, r) beside W0 (5, 7) and A (2, 7)), got shape (2, 5)",
    ),
    (
        "B",
        np.ones((5, 3)),
        "expected shape (5, 2) ((d_out, r) beside W0 (5, 7) and A (2, 7)), got shape (5, 3)",
    ),
    ("m", np.ones(7), "expected shape (5,) (one per vector, per_output), got shape (7,)"),
    ("m", np.ones((5, 1)), "expected shape (5,) (one per vector, per_output), got shape (5, 1)"),
    ("bias", np.ones(7), "expected shape (5,) (d_out), got shape (7,)"),
    ("mask", np.ones((2, 7)), "expected shape (2, 3, 7) (the shape of x), got shape (2, 7)"),
]


@pytest.mark.parametrize("name, value, message", WRONG_SHAPES)
def test_wrong_shapes(layer, name, value, message):
    message = f"^{re.escape(f'{name}: {message}')}$"
    with pytest.raises(ValueError, match=message):
        layer.dora_forward(**{**GOOD, name: value})
    if name != "m":
        arguments = {key: a for key, a in GOOD.items() if key != "m"}
        with pytest.raises(ValueError, match=message):
            lora.lora_forward(**{**arguments, name: value})


def test_m_is_counted_along_the_axis_asked_for(layer):
    with pytest.raises(ValueError, match=r"m: expected shape \(7,\).*per_input.*got shape \(5,\)"):
        layer.dora_forward(**GOOD, norm_axis="per_input")


@pytest.mark.parametrize("name", ["x", "W0", "A", "B", "m", "bias", "mask"])
@pytest.mark.parametrize("dtype", ["int64", "object", "complex128", "bool"])
def test_dtypes_that_are_not_floating(layer, name, dtype):
    message = rf"^{name}: expected a real floating dtype, got dtype {dtype}"
    with pytest.raises(TypeError, match=message):
        layer.dora_forward(**{**GOOD, name: GOOD[name].astype(dtype)})


@pytest.mark.parametrize("name", ["x", "W0", "A", "B", "m"])
def test_none_for_an_array(layer, name):
    with pytest.raises(TypeError, match=f"^{name}: expected a real floating dtype, got dtype obj"):
        layer.dora_forward(**{**GOOD, name: None})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scale_that_is_not_finite(layer, value):
    with pytest.raises(ValueError, match=f"^scale: expected a finite number, got {value}"):
        layer.dora_forward(**{**GOOD, "scale": value})
    with pytest.raises(ValueError, match="^alpha: expected a finite number"):
        lora.scaling(value, 4)


@pytest.mark.parametrize("value", ["1", None, 1j, True, np.ones(1)])
def test_scale_that_is_no_number(layer, value):
    with pytest.raises(TypeError, match="^scale: expected a real number, got"):
        layer.dora_forward(**{**GOOD, "scale": value})


@pytest.mark.parametrize("value", ["column", "per_row", "", None, 1])
def test_unknown_norm_axis(layer, value):
    message = f"^norm_axis: expected 'per_output' or 'per_input', got {re.escape(repr(value))}"
    for call in (
        lambda: layer.dora_forward(**GOOD, norm_axis=value),
        lambda: dora.init(GOOD["W0"], 2, np.random.default_rng(0), norm_axis=value),
        lambda: decomposition.norms(GOOD["W0"], value),
        lambda: decomposition.decompose(GOOD["W0"], value),
        lambda: decomposition.recompose(GOOD["m"], GOOD["W0"], value),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("value", ["Exact", "none", None, True])
def test_unknown_norm_grad(layer, value):
    _, cache = layer.dora_forward(**GOOD)
    with pytest.raises(ValueError, match="^norm_grad: expected 'exact' or 'detached', got"):
        layer.dora_backward(np.ones((2, 3, 5)), cache, norm_grad=value)


@pytest.mark.parametrize("value", [-1e-12, np.nan, np.inf])
def test_eps_that_makes_no_sense(layer, value):
    with pytest.raises(ValueError, match="^eps: expected a finite number of at least 0, got"):
        layer.dora_forward(**GOOD, eps=value)


@pytest.mark.parametrize("dy", [np.ones((2, 3, 7)), np.ones((6, 5)), np.ones(5)])
def test_dy_of_the_wrong_shape(layer, dy):
    _, cache = layer.dora_forward(**GOOD)
    got = re.escape(str(dy.shape))
    message = rf"^dy: expected shape \(2, 3, 5\) \(the shape of y\), got shape {got}$"
    with pytest.raises(ValueError, match=message):
        layer.dora_backward(dy, cache)
    with pytest.raises(TypeError, match="dy: expected a real floating dtype, got dtype int64"):
        layer.dora_backward(np.ones((2, 3, 5), int), cache)


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one(rank):
    rng = np.random.default_rng(0)
    message = f"^rank: expected at least 1, got {rank}"
    with pytest.raises(ValueError, match=message):
        lora.init(5, 7, rank, rng)
    with pytest.raises(ValueError, match=message):
        dora.init(GOOD["W0"], rank, rng)
    with pytest.raises(ValueError, match=message):
        lora.scaling(8, rank)


@pytest.mark.parametrize("rank", [1.0, "2", None, True])
def test_rank_that_is_no_whole_number(rank):
    with pytest.raises(TypeError, match="rank: expected a whole number, got"):
        lora.init(5, 7, rank, np.random.default_rng(0))


def test_init_boundary():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="^d_out: expected at least 1, got 0"):
        lora.init(0, 7, 2, rng)
    with pytest.raises(ValueError, match="^d_in: expected at least 1, got 0"):
        lora.init(5, 0, 2, rng)
    with pytest.raises(TypeError, match="^dtype: expected a real floating dtype, got int32"):
        lora.init(5, 7, 2, rng, np.int32)
    with pytest.raises(TypeError, match="^rng: expected a numpy.random.Generator, got int"):
        lora.init(5, 7, 2, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_where_a_layer_is_built(value):
    W0 = np.ones((5, 7))
    W0[3, 4] = W0[4, 1] = value
    message = rf"^W0: expected finite values, got 2 that are not, the first {value} at \(3, 4\)"
    with pytest.raises(ValueError, match=message):
        dora.init(W0, 2, np.random.default_rng(0))


def test_decomposition_boundary():
    with pytest.raises(TypeError, match="^W: expected a real floating dtype, got dtype int64"):
        decomposition.norms([[3, 4]], "per_output")
    with pytest.raises(ValueError, match=r"^W: expected 2 dimensions, got shape \(3,\)"):
        decomposition.decompose(np.ones(3), "per_output")
    with pytest.raises(
        ValueError, match=r"^m: expected shape \(2,\) \(one per vector, per_output\)"
    ):
        decomposition.recompose(np.ones(3), np.ones((2, 3)), "per_output")
    with pytest.raises(ValueError, match=r"m: expected shape \(3,\).*got shape \(2,\)"):
        decomposition.recompose(np.ones(2), np.ones((2, 3)), "per_input")
    with pytest.raises(ValueError, match=r"^V_unit: expected 2 dimensions, got shape \(3,\)"):
        decomposition.recompose(np.ones(3), np.ones(3), "per_output")


def test_init_checks_W0():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^W0: expected 2 dimensions, got shape \(7,\)"):
        dora.init(np.ones(7), 2, rng)
    with pytest.raises(TypeError, match="^W0: expected a real floating dtype, got dtype int64"):
        dora.init(np.ones((5, 7), int), 2, rng)


def test_delta_boundary():
    A, B = np.ones((2, 7)), np.ones((5, 2))
    message = r"^B: expected shape \(5, 2\) \(\(d_out, r\) beside A of shape \(2, 7\)\), got shape"
    with pytest.raises(ValueError, match=message):
        lora.lora_delta(A, np.ones((5, 3)), 1.0)
    with pytest.raises(ValueError, match=r"^B: expected 2 dimensions, got shape \(5,\)"):
        lora.lora_delta(A, np.ones(5), 1.0)
    with pytest.raises(ValueError, match=r"^A: expected 2 dimensions, got shape \(2,\)"):
        lora.lora_delta(A[:, 0], B, 1.0)
    with pytest.raises(TypeError, match="^A: expected a real floating dtype, got dtype int64"):
        lora.lora_delta(A.astype(int), B, 1.0)
    with pytest.raises(ValueError, match="^scale: expected a finite number, got nan"):
        lora.lora_delta(A, B, np.nan)


def test_merging_boundary():
    W0, A, B, m = (GOOD[name] for name in ("W0", "A", "B", "m"))
    with pytest.raises(ValueError, match=r"^m: expected shape \(5,\).*got shape \(4,\)"):
        dora.dora_weight(W0, A, B, m[:4], 0.5)
    with pytest.raises(ValueError, match=r"^W: expected shape \(5, 7\) \(the shape of W0\), got"):
        dora.recover_magnitude(W0.T, W0, A, B, 0.5)


def test_features_are_floating_and_of_the_right_number():
    from minidora._boundary import features

    with pytest.raises(TypeError, match="^x: expected a real floating dtype, got dtype int64"):
        features(np.ones((2, 3), int), 3)
    with pytest.raises(
        ValueError, match=r"^x: expected shape \(\.\.\., 4\) for d_in = 4, got shape"
    ):
        features(np.ones((2, 3)), 4)

"""Rescaling: the same function with other norms, and whatever it must refuse."""

import numpy as np
import pytest

from minidora import nn
from minidora.decomposition import norms
from minidora.nn.rescale import rescale

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def networks(dtype="float64"):
    """A transformer and an MLP with biases that are not zero, and inputs for each."""
    rng = np.random.default_rng(0)
    transformer = nn.Transformer.init(11, 12, 3, 4, 7, rng, dtype=dtype)
    mlp = nn.MLP.init((5, 8, 6, 9, 3), rng, dtype=dtype)
    for model in (transformer, mlp):
        for array in nn.parameters(model).values():
            array += (0.3 * rng.normal(size=array.shape)).astype(dtype)
    x = rng.normal(size=(20, 5)).astype(dtype)
    return {"transformer": (transformer, rng.integers(11, size=(6, 7))), "mlp": (mlp, x)}


@pytest.mark.parametrize("by", ["layer", "row"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["transformer", "mlp"])
def test_the_function_is_the_same_to_rounding(name, dtype, by):
    model, x = networks(dtype)[name]
    before = {path: array.copy() for path, array in nn.parameters(model).items()}
    rescaled = rescale(model, 3.0, np.random.default_rng(1), by=by)
    y, expected = rescaled.forward(x)[0], model.forward(x)[0]
    assert y.dtype == dtype
    assert np.abs(y - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()
    for path, array in nn.parameters(model).items():  # the given model is as it was
        np.testing.assert_array_equal(array, before[path])
    assert list(nn.trained(rescaled)) == list(nn.trained(model))


def ratios(model, rescaled, path):
    """The factor of each row of one layer's weight."""
    old, new = (norms(nn.parameters(m)[f"{path}.weight"], "per_output") for m in (model, rescaled))
    return new / old


def test_layers_take_even_factors_in_a_seeded_order():
    model, _ = networks()["transformer"]
    first, again, other = (rescale(model, 2.0, np.random.default_rng(s)) for s in (3, 3, 4))
    even = np.geomspace(0.5, 2, 4)
    orders = []
    for name, counterpart in (("q", "k"), ("v", "o")):
        for rescaled in (first, again, other):
            alphas = []
            for i in range(4):
                of_rows = ratios(model, rescaled, f"blocks.{i}.attn.{name}")
                back = ratios(model, rescaled, f"blocks.{i}.attn.{counterpart}")
                np.testing.assert_allclose(of_rows, of_rows[0])
                np.testing.assert_allclose(of_rows * back, 1)
                alphas.append(of_rows[0])
            np.testing.assert_allclose(sorted(alphas), even)
            orders.append(tuple(np.argsort(alphas)))
    assert orders[0] == orders[1] and orders[3] == orders[4]  # seeded
    assert orders[0] != orders[2] and orders[0] != orders[3]  # α and β by themselves


def test_heads_take_factors_of_their_own():
    model, tokens = networks()["transformer"]
    rescaled = rescale(model, 2.0, np.random.default_rng(3), by="head")
    y, expected = rescaled.forward(tokens)[0], model.forward(tokens)[0]
    assert np.abs(y - expected).max() <= 1e-12 * np.abs(expected).max()
    old, new = nn.parameters(model), nn.parameters(rescaled)
    for i in range(4):
        at = f"blocks.{i}.attn"
        for name in "qv":
            heads = ratios(model, rescaled, f"{at}.{name}").reshape(3, 4)
            np.testing.assert_allclose(heads, heads[:, :1].repeat(4, 1))
            np.testing.assert_allclose(sorted(heads[:, 0]), np.geomspace(0.5, 2, 3))
        betas = ratios(model, rescaled, f"{at}.v")
        np.testing.assert_allclose(new[f"{at}.o.weight"] * betas, old[f"{at}.o.weight"])
    with pytest.raises(ValueError, match="by: expected 'layer' or 'row' for an MLP, got 'head'"):
        rescale(networks()["mlp"][0], 2.0, np.random.default_rng(3), by="head")


def test_rows_take_factors_of_their_own():
    model, _ = networks()["transformer"]
    rescaled = rescale(model, 2.0, np.random.default_rng(3), by="row")
    even, orders = np.geomspace(0.5, 2, 12), set()
    for i in range(4):
        at = f"blocks.{i}.attn"
        alphas = ratios(model, rescaled, f"{at}.q")
        np.testing.assert_allclose(alphas * ratios(model, rescaled, f"{at}.k"), 1)
        np.testing.assert_allclose(sorted(alphas), even)
        old, new = nn.parameters(model), nn.parameters(rescaled)
        betas = ratios(model, rescaled, f"{at}.v")
        np.testing.assert_allclose(new[f"{at}.o.weight"] * betas, old[f"{at}.o.weight"])
        orders |= {tuple(np.argsort(alphas)), tuple(np.argsort(betas))}
    assert len(orders) == 8


def test_biases_go_with_their_rows_and_everything_else_is_shared():
    model, _ = networks()["transformer"]
    rescaled = rescale(model, 2.0, np.random.default_rng(3), by="row")
    old, new = nn.parameters(model), nn.parameters(rescaled)
    for path in old:
        layer, _, array = path.rpartition(".")
        if layer.endswith((".q", ".k", ".v")) and array == "bias":
            np.testing.assert_allclose(new[path], old[path] * ratios(model, rescaled, layer))
        elif layer.endswith((".q", ".k", ".v", ".o")) and array == "weight":
            assert not np.shares_memory(old[path], new[path])
        else:
            np.testing.assert_array_equal(new[path], old[path])
            assert layer.endswith(".o") or new[path] is old[path]


def test_the_last_layer_of_an_mlp_takes_back_and_gives_nothing():
    model, _ = networks()["mlp"]
    rescaled = rescale(model, 2.0, np.random.default_rng(3), by="row")
    old, new = nn.parameters(model), nn.parameters(rescaled)
    np.testing.assert_array_equal(new["layers.3.bias"], old["layers.3.bias"])
    taken_back = old["layers.3.weight"] / new["layers.3.weight"]
    np.testing.assert_allclose(taken_back, np.broadcast_to(taken_back[0], taken_back.shape))
    np.testing.assert_allclose(sorted(taken_back[0]), np.geomspace(0.5, 2, 9))
    np.testing.assert_allclose(new["layers.2.bias"] / old["layers.2.bias"], taken_back[0])
    np.testing.assert_allclose(sorted(ratios(model, rescaled, "layers.0")), np.geomspace(0.5, 2, 8))


def test_a_spread_of_one_changes_nothing():
    model, _ = networks()["transformer"]
    rescaled = rescale(model, 1, np.random.default_rng(0))
    for path, array in nn.parameters(rescaled).items():
        np.testing.assert_array_equal(array, nn.parameters(model)[path])


def test_rescaled_models_adapt_merge_and_have_no_biases_to_lose():
    rng = np.random.default_rng(2)
    model, x = networks()["transformer"]
    for block in model.blocks:
        block.attn.q.bias, block.attn.q.trainable = None, ("weight",)
    adapted = nn.adapt(rescale(model, 2.0, rng), "dora", ("q", "v"), rank=2, rng=rng)
    np.testing.assert_allclose(adapted.forward(x)[0], model.forward(x)[0], rtol=1e-10, atol=1e-10)
    merged = rescale(nn.merge(adapted), 2.0, rng)
    np.testing.assert_allclose(merged.forward(x)[0], model.forward(x)[0], rtol=1e-10, atol=1e-10)


def test_attention_alone_and_a_model_without_a_path():
    rng = np.random.default_rng(2)
    attention, x = nn.Attention.init(6, 2, rng, dtype="float64"), rng.normal(size=(2, 5, 6))
    rescaled = rescale(attention, 2.0, rng, by="row")
    assert not np.allclose(rescaled.q.weight, attention.q.weight)
    np.testing.assert_allclose(rescaled.forward(x)[0], attention.forward(x)[0], rtol=1e-12)


def test_errors_name_what_was_expected():
    rng = np.random.default_rng(0)
    model, _ = networks()["transformer"]
    for spread in (0, 0.5, -2, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="spread: expected a finite number of at least 1"):
            rescale(model, spread, rng)
    with pytest.raises(ValueError, match="by: expected 'layer' or 'row' or 'head', got 'column'"):
        rescale(model, 2, rng, by="column")
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator, got int"):
        rescale(model, 2, 0)
    with pytest.raises(ValueError, match="ReLU between an MLP's layers, got GELU"):
        rescale(nn.MLP.init((2, 3, 2), rng, activation=nn.GELU()), 2, rng)
    for bare in (nn.Linear.init(2, 3, rng), nn.MLP.init((2, 3), rng)):
        with pytest.raises(ValueError, match=r"expected attention or an MLP of two layers or more"):
            rescale(bare, 2, rng)
    adapted = nn.adapt(model, "lora", ("v",), rank=2, rng=rng)
    with pytest.raises(ValueError, match=r"got a LoRALinear at 'blocks.0.attn.v'; rescale first"):
        rescale(adapted, 2, rng)

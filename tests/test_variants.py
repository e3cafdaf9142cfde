"""DVoRA and QDoRA: by hand, shared and quantised memory, adapt, merge, files, bad input."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from minidora import dora, nf4, nn
from minidora.evidence.gradcheck import compare, relative_error
from minidora.evidence.networks import CASES, backward, forward
from minidora.nn.variants import shared_pair

VARIANTS = [name for name in CASES if "DVoRA" in name or "QDoRA" in name]


@pytest.mark.parametrize("name", VARIANTS)
def test_witnesses_agree_to_1e_9(name):
    witness = pytest.importorskip("minidora.evidence.networks_by_autograd", exc_type=ImportError)
    for seed in range(3):
        for case in CASES[name](np.random.default_rng(seed)):
            y, cache = forward(**case.inputs, **case.settings)
            assert relative_error(y, witness.value(case.inputs, case.settings)) < 1e-13
            expected = witness.network_gradients(case.dy, case.inputs, case.settings)
            expected = {name: g for name, g in expected.items() if name[1:] in case.trained}
            given = {"vanishing": case.vanishing}
            compare(backward(case.dy, cache), expected, 1e-9, **given).raise_if_failed()


def test_the_check_covers_them():
    from minidora.evidence.check import REGISTRY

    assert len(VARIANTS) == 7 and {*VARIANTS} <= {function.name for function in REGISTRY}


def linear(rng, dtype=np.float64, d_in=12, d_out=10):
    base = nn.Linear.init(d_in, d_out, rng, dtype=dtype)
    base.bias += rng.normal(size=d_out).astype(dtype)
    return base


def network(rng, dtype=np.float64):
    return nn.Transformer.init(7, 8, 2, 2, 6, rng, dtype=dtype)


def moved(model, rng):
    for array in nn.trained(model).values():
        array += (0.3 * rng.normal(size=array.shape)).astype(array.dtype)
    return model


# DVoRA


@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_dvora_is_dora_whose_pair_is_scaled_row_by_row(norm_axis, norm_grad):
    rng = np.random.default_rng(0)
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    layer = moved(nn.adapt(linear(rng), "dvora", rank=3, rng=rng, **settings), rng)
    A, B = np.diag(layer.d) @ layer.A, np.diag(layer.b) @ layer.B
    x, dy = rng.normal(size=(4, 12)), rng.normal(size=(4, 10))
    y, cache = dora.dora_forward(
        x, layer.W0, A, B, layer.m, 1.0, bias=layer.bias, norm_axis=norm_axis
    )
    g = dora.dora_backward(dy, cache, norm_grad=norm_grad)
    mine, cache = layer.forward(x)
    dx, grads = layer.backward(dy, cache)
    assert relative_error(mine, y) < 1e-14 and relative_error(dx, g.dx) < 1e-13
    assert grads.keys() == {"d", "b", "m"}
    assert relative_error(grads["m"], g.dm) < 1e-13
    assert relative_error(grads["d"], np.diag(g.dA @ layer.A.T)) < 1e-12
    assert relative_error(grads["b"], np.diag(g.dB @ layer.B.T)) < 1e-12
    W = dora.dora_weight(layer.W0, A, B, layer.m, 1.0, norm_axis=norm_axis)
    assert relative_error(layer.merged(), W) < 1e-14
    assert relative_error(nn.set_strength(layer, 0.5).merged(), (W + layer.W0) / 2) < 1e-14


def test_dvora_starts_as_published_and_where_the_base_stands():
    rng = np.random.default_rng(1)
    base = linear(rng, d_in=300, d_out=200)
    layer = nn.adapt(base, "dvora", rank=50, rng=rng)
    assert (layer.d == 0.1).all() and not layer.b.any() and layer.scale == 1
    np.testing.assert_allclose(layer.m, np.sqrt((base.weight**2).sum(1)), rtol=1e-15)
    for array, fan in ((layer.A, 300), (layer.B, 50)):  # Kaiming: uniform, of variance 2 / fan_in
        assert 0.99 < np.abs(array).max() / (6 / fan) ** 0.5 <= 1
        assert array.var() == pytest.approx(2 / fan, rel=0.05)
        assert abs(array.mean()) < 0.05 * (6 / fan) ** 0.5
        assert not array.flags.writeable
    x = rng.normal(size=(3, 300))
    np.testing.assert_allclose(layer.forward(x)[0], base.forward(x)[0], atol=1e-13)
    assert (nn.adapt(base, "dvora", rank=2, rng=rng, d_init=1e-7).d == 1e-7).all()
    assert nn.adapt(base, "dvora", rank=2, rng=rng, alpha=32).scale == 1
    narrow = nn.adapt(linear(rng, np.float32), "dvora", rank=2, rng=rng)
    assert {array.dtype for array in nn.parameters(narrow).values()} == {np.dtype(np.float32)}


def test_all_layers_share_one_pair_the_very_arrays():
    rng = np.random.default_rng(2)
    base = network(rng)
    model = nn.adapt(base, "dvora", {"q": {}, "up": {}, "down": {}, "v": "dora"}, rank=3, rng=rng)
    layers = [layer for _, layer in nn.walk(model) if isinstance(layer, nn.DVoRALinear)]
    assert len(layers) == 6
    A, B = layers[0].A, layers[0].B
    assert A.shape == (3, 32) and B.shape == (32, 3)  # as wide as down, as tall as up
    layers += [la for _, la in nn.walk(nn.set_strength(model, 0.5)) if type(la) is nn.DVoRALinear]
    assert len(layers) == 12
    for layer in layers:
        assert layer.A is A and layer.B is B
        for part, whole in zip(layer.cut(), (A, B), strict=True):
            assert np.shares_memory(part, whole)
    for part, whole in zip(layers[0].cut(), (A[:, :8], B[:8]), strict=True):
        np.testing.assert_array_equal(part, whole)  # q takes the first columns and rows
    copied = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in copied:
        pairs = {id(a.A) for _, a in nn.walk(other) if isinstance(a, nn.DVoRALinear)}
        assert len(pairs) == 1 and not other.blocks[0].up.A.flags.writeable


def test_a_shared_pair_is_counted_once():
    rng = np.random.default_rng(3)
    base = network(rng)
    before = sum(array.size for array in nn.parameters(base).values())
    model = nn.adapt(base, "dvora", ("q", "up"), rank=3, rng=rng)
    few = 2 * ((3 + 8 + 8) + (3 + 32 + 32))
    every = before + few + 3 * 8 + 32 * 3
    assert nn.trainable_summary(model).startswith(
        f"trainable params: {few:,d} || all params: {every:,d} ||"
    )


def test_what_dvora_trains_is_a_setting():
    rng = np.random.default_rng(4)
    base = linear(rng)
    layer = nn.adapt(base, "dvora", rank=3, rng=rng, train=("b", "bias"))
    x = rng.normal(size=(2, 12))
    _, grads = layer.backward(layer.forward(x)[0], layer.forward(x)[1])
    assert grads.keys() == {"b", "bias"} and layer.bias is not base.bias
    with pytest.raises(ValueError, match="^train: expected 'd' or 'b' or 'm' or 'bias', got 'A'"):
        nn.adapt(base, "dvora", rng=rng, train="A")


def test_dvora_errors():
    rng = np.random.default_rng(5)
    base = network(rng)
    with pytest.raises(ValueError, match=r"^rank: expected one for all .*, got \[2, 4\]"):
        nn.adapt(base, "dvora", {"q": {"rank": 4}, "v": {}}, rank=2, rng=rng)
    with pytest.raises(ValueError, match="^d_init: expected another number than 0"):
        nn.adapt(base, "dvora", d_init=0, rng=rng)
    with pytest.raises(TypeError, match="^rng: expected a numpy.random.Generator, got NoneType"):
        nn.adapt(base, "dvora")
    with pytest.raises(ValueError, match="^rank: expected at least 1, got 0"):
        shared_pair([(2, 3)], 0, rng, np.float64)
    with pytest.raises(ValueError, match="^groups: expected None with method 'dvora', got some"):
        nn.adapt(base, "dvora", groups=("rows", 2), rng=rng)
    assert all(array.flags.writeable for array in nn.parameters(base).values())
    layer = nn.adapt(linear(rng), "dvora", rank=3, rng=rng)
    arrays = (layer.W0, None, layer.A, layer.B, layer.d, layer.b, layer.m)
    assert nn.DVoRALinear(*arrays).scale == 1 and nn.DVoRALinear(*arrays).norm_grad == "exact"
    for changed, message in (
        ({"A": layer.A[:, 1:]}, "^A: expected 12 or more for W0, got 11"),
        ({"B": layer.B[1:]}, "^B: expected 10 or more for W0, got 9"),
        ({"B": layer.B[:, 1:]}, r"^B: expected shape \(10, 3\) .* beside A of shape \(3, 12\)"),
        (
            {"d": layer.d[1:]},
            r"^d: expected shape \(3,\) \(one for each row of A\), got",
        ),
        (
            {"b": layer.b[1:]},
            r"^b: expected shape \(10,\) \(one for each row of W0\), got",
        ),
        ({"m": np.ones(12)}, r"^m: expected shape \(10,\) \(one per vector, per_output\), got"),
        ({"norm_axis": "rows"}, "^norm_axis: expected 'per_output' or 'per_input', got 'rows'"),
        ({"norm_grad": "no"}, "^norm_grad: expected 'exact' or 'detached', got 'no'"),
        ({"A": layer.A[0]}, r"^A: expected 2 dimensions, got shape \(12,\)"),
        ({"B": layer.B[0]}, r"^B: expected 2 dimensions, got shape \(3,\)"),
        ({"W0": layer.W0[0]}, r"^W0: expected 2 dimensions, got shape \(12,\)"),
        ({"b": layer.b * np.nan}, "^b: expected finite values, got 10"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(layer, **changed)


# QDoRA


@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_qdora_is_dora_around_the_dequantised_weight(norm_axis, norm_grad, dtype):
    rng = np.random.default_rng(6)
    base = linear(rng, dtype)
    given = {"norm_axis": norm_axis, "norm_grad": norm_grad, "strength": 0.7, "block": 16}
    layer = nn.adapt(base, "qdora", rank=3, rng=rng, train=("A", "B", "m", "bias"), **given)
    W0 = nf4.dequantise(nf4.quantise(base.weight, 16), dtype)
    np.testing.assert_array_equal(layer.m, dora.norms(W0, norm_axis))  # not the base's own norms
    moved(layer, rng)
    twin = nn.DoRALinear(
        W0, layer.bias, layer.A, layer.B, layer.m, layer.scale, norm_axis, norm_grad
    )
    twin = replace(twin, strength=0.7, trainable=layer.trainable)
    x, dy = rng.normal(size=(4, 12)).astype(dtype), rng.normal(size=(4, 10)).astype(dtype)
    (y, cache), (expected, twin_cache) = layer.forward(x), twin.forward(x)
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == dtype
    (dx, grads), (twin_dx, twin_grads) = layer.backward(dy, cache), twin.backward(dy, twin_cache)
    np.testing.assert_array_equal(dx, twin_dx)
    assert grads.keys() == twin_grads.keys() == {"A", "B", "m", "bias"}
    for name in grads:
        np.testing.assert_array_equal(grads[name], twin_grads[name])
    merged = nn.merge(layer)
    assert type(merged) is nn.Linear and merged.weight.dtype == dtype
    np.testing.assert_array_equal(merged.weight, twin.merged())
    np.testing.assert_allclose(
        nn.set_strength(layer, 0).forward(x)[0], x @ W0.T + layer.bias, rtol=1e-4
    )


def arrays_in(cache):
    """Every array that a cache holds."""
    if isinstance(cache, np.ndarray):
        yield cache
    elif isinstance(cache, tuple):
        for part in cache:
            yield from arrays_in(part)


def test_a_qdora_layer_keeps_codes_and_no_weight():
    rng = np.random.default_rng(7)
    base = linear(rng, np.float32, d_in=256, d_out=192)
    layer = nn.adapt(base, "qdora", rank=2, rng=rng)
    assert "weight" not in nn.parameters(layer) and "W0" not in nn.parameters(layer)
    sizes = {name: a.nbytes for name, a in nn.parameters(layer).items()}
    assert sizes["codes"] == 256 * 192 // 2 and sizes["absmax"] == 4 * 256 * 192 // 64
    assert not any(
        isinstance(a, np.ndarray) and a.ndim == 2 and a.size > 999 for a in vars(layer).values()
    )
    y, cache = layer.forward(rng.normal(size=(3, 256)).astype("f4"))
    assert max(array.size for array in arrays_in(cache)) < 256 * 192 / 8
    q = layer.quantised()
    np.testing.assert_array_equal(layer.W0, nf4.dequantise(q))
    assert (q.shape, q.block) == ((192, 256), 64)
    assert nf4.block_errors(base.weight, q).max() <= nf4.HALF_GAP * (1 + 1e-6) * q.absmax.max()
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for name in ("codes", "absmax"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(other, name)[0] = 0
        np.testing.assert_array_equal(other.merged(), layer.merged())


def test_weights_in_codes_are_counted_two_a_byte():
    rng = np.random.default_rng(8)
    base = linear(rng, d_in=64, d_out=10)
    layer = nn.adapt(base, "qdora", rank=2, rng=rng)
    few = 2 * 64 + 10 * 2 + 10
    every = few + 640 + 10 + 10  # W0, absmax, bias
    assert f"trainable params: {few} || all params: {every} ||" in nn.trainable_summary(layer)


def test_quantising_the_merged_weight_again_loses_no_more_than_half_a_gap_of_each_block():
    worst, ratios = 0.0, []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        base = linear(rng, np.float32, d_in=200, d_out=130)
        layer = moved(nn.adapt(base, "qdora", rank=4, rng=rng, block=32), rng)
        merged, again = layer.merged(), layer.requantised()
        errors = nf4.block_errors(merged, again)
        worst = max(worst, float((errors / again.absmax).max()))
        lost = np.linalg.norm(merged - nf4.dequantise(again)) / np.linalg.norm(merged)
        ratios.append(lost)
        assert again.block == layer.block and again.shape == merged.shape
        later = nn.adapt(
            nn.merge(layer), "qdora", rank=4, rng=rng, block=32
        )  # what one goes on with
        np.testing.assert_array_equal(later.codes, again.codes)
    assert 0.14 < worst <= nf4.HALF_GAP * (1 + 1e-6)
    assert 0.05 < min(ratios) and max(ratios) < 0.12  # of normal weights, about 9 %


def test_unchanged_qdora_quantises_to_the_same_codes():
    rng = np.random.default_rng(9)
    layer = nn.adapt(linear(rng, np.float32, d_in=128), "qdora", rank=2, rng=rng)
    again = layer.requantised()
    np.testing.assert_array_equal(again.codes, layer.codes)
    np.testing.assert_allclose(again.absmax, layer.absmax, rtol=1e-6)


def test_qdora_takes_groups():
    rng = np.random.default_rng(10)
    layer = nn.adapt(linear(rng), "qdora", rank=2, rng=rng, groups=("rows", 5))
    assert layer.m.shape == (2,) and layer.groups == ("rows", 5)


def test_qdora_errors():
    rng = np.random.default_rng(11)
    base = linear(rng)
    with pytest.raises(ValueError, match="^quantiser: expected 'nf4', got 'int8'"):
        nn.adapt(base, "qdora", quantiser="int8", rng=rng)
    for block, error in ((0, "at least 1"), (-64, "at least 1"), (63, "an even number")):
        with pytest.raises(ValueError, match=f"^block: expected {error}, got {block}"):
            nn.adapt(base, "qdora", block=block, rng=rng)
    with pytest.raises(TypeError, match="^block: expected a whole number, got float 64.0"):
        nn.adapt(base, "qdora", block=64.0, rng=rng)
    layer = nn.adapt(base, "qdora", rank=3, rng=rng)
    for changed, error, message in (
        (
            {"codes": layer.codes[1:]},
            ValueError,
            r"^codes: expected shape \(60,\) \(W \(10, 12",
        ),
        ({"absmax": layer.absmax[1:]}, ValueError, r"^absmax: expected shape \(2,\) .* 64\), got"),
        ({"block": 63}, ValueError, "^block: expected an even number, got 63"),
        ({"codes": layer.codes / 2}, TypeError, "^codes: expected dtype uint8, got float"),
        ({"absmax": layer.absmax * np.nan}, ValueError, "^absmax: expected finite values, got 2"),
        ({"m": np.ones(12)}, ValueError, r"^m: expected shape \(10,\)"),
    ):
        with pytest.raises(error, match=message):
            replace(layer, **changed)
    with pytest.raises(ValueError, match="^model: expected plain .* QDoRALinear; merge first"):
        nn.thaw(layer)


# Files


@pytest.mark.parametrize("method", ["dvora", "qdora"])
@pytest.mark.parametrize("train", [None, "m"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_files_keep_the_variants(method, train, dtype, tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora.training import checkpoint

    rng = np.random.default_rng(12)
    base, tokens = network(rng, dtype), rng.integers(7, size=(2, 6))
    given = {"rank": 2, "rng": rng, "train": train, "norm_grad": "detached"}
    model = moved(nn.adapt(base, method, ("q", "up", "down"), **given), rng)
    y, _ = model.forward(tokens)
    checkpoint.save(tmp_path / "model", model)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    checkpoint.save(tmp_path / "base", base)
    loads = {
        "model": checkpoint.load(tmp_path / "model").model,
        "mapped": checkpoint.load(tmp_path / "model", memory_map=True).model,
        "adapter": checkpoint.load_adapter(tmp_path / "adapter", base).model,
    }
    for loaded in loads.values():
        np.testing.assert_array_equal(loaded.forward(tokens)[0], y)
        assert nn.trained(loaded).keys() == nn.trained(model).keys()
        assert type(loaded.blocks[1].up) is type(model.blocks[1].up)
    checkpoint.verify(tmp_path / "model", loads["mapped"])
    again = nn.adapt(base, method, ("q", "up", "down"), **given)
    with pytest.raises(ValueError, match="is not what this file was saved with"):
        checkpoint.verify(tmp_path / "model", moved(again, rng))


def test_a_shared_pair_is_stored_once_and_shared_again(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    from minidora.training import checkpoint

    rng = np.random.default_rng(13)
    base = network(rng)
    model = nn.adapt(base, "dvora", ("q", "up"), rank=2, rng=rng)
    for kind, load in (
        ("save", lambda path: checkpoint.load(path).model),
        ("save_adapter", lambda path: checkpoint.load_adapter(path, base).model),
    ):
        path = tmp_path / kind
        getattr(checkpoint, kind)(path, model)
        stored = safetensors.load(path.read_bytes())
        assert sum(name.endswith((".A", ".B")) for name in stored) == 2
        loaded = load(path)
        layers = [layer for _, layer in nn.walk(loaded) if isinstance(layer, nn.DVoRALinear)]
        assert len(layers) == 4
        assert all(la.A is layers[0].A and la.B is layers[0].B for la in layers)


def test_an_adapter_belongs_to_the_weight_that_was_quantised(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs safetensors")
    from minidora.training import checkpoint

    rng = np.random.default_rng(14)
    base = network(rng, np.float32)
    model = nn.adapt(base, "qdora", ("q", "up"), rank=2, rng=rng)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    stored = safetensors.load((tmp_path / "adapter").read_bytes())
    assert not any(name.endswith(("codes", "absmax")) for name in stored)  # the base gives them
    other = nn.thaw(base)
    other.blocks[0].attn.q.weight *= 1.5
    with pytest.raises(
        ValueError, match=r"adapter belongs to another base: 'blocks.0.attn.q.absmax' differs"
    ):
        checkpoint.load_adapter(tmp_path / "adapter", other)
    other = nn.thaw(base)
    W = other.blocks[1].up.weight
    W[2, 3] = -W[2, 3]
    with pytest.raises(
        ValueError, match=r"adapter belongs to another base: 'blocks.1.up.codes' differs"
    ):
        checkpoint.load_adapter(tmp_path / "adapter", other)
    with pytest.raises(ValueError, match="expected a base with an array"):
        checkpoint.load_adapter(tmp_path / "adapter", nn.MLP.init((3, 2), rng))


def test_a_peft_folder_has_no_place_for_dvora_nor_gains(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora import peft

    rng = np.random.default_rng(15)
    base = network(rng)
    with pytest.raises(ValueError, match="^blocks.0.attn.q: PEFT has no DVoRALinear; merge"):
        peft.save_adapter(tmp_path / "a", nn.adapt(base, "dvora", ("q",), rng=rng))
    with pytest.raises(ValueError, match="^blocks.0.attn.q: PEFT has no QDoRALinear; merge"):
        peft.save_adapter(tmp_path / "a", nn.adapt(base, "qdora", ("q",), rng=rng))
    model = nn.adapt(base, "dora", {"q": {}, "ln1": "gain"}, rng=rng)
    with pytest.raises(ValueError, match=r"^trainable: .* got \['blocks.0.ln1.gain'"):
        peft.save_adapter(tmp_path / "a", model)


@pytest.mark.parametrize("how", ["dvora", {"q": "qdora", "ln1": "gain_dora"}])
def test_they_learn(how):
    from minidora.training import AdamW

    rng = np.random.default_rng(16)
    base = network(rng)
    tokens, targets = rng.integers(7, size=(4, 6)), rng.integers(7, size=(4, 6))
    targets_of = ("q", "up") if isinstance(how, str) else how
    model = nn.adapt(base, "dvora", targets_of, rank=4, rng=rng)
    optimizer, losses = AdamW(), []
    for _ in range(30):
        logits, cache = model.forward(tokens)
        loss, dlogits = nn.cross_entropy(logits, targets)
        losses.append(loss)
        optimizer.step(nn.trained(model), model.backward(dlogits, cache)[1], 0.01)
    assert losses[-1] < losses[0] - 0.05

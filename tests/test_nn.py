"""Networks: witnesses end to end, adapt, merge, strength, dropout, names, frozen bases, errors."""

import copy
import hashlib
import pickle

import numpy as np
import pytest

from minidora import nn
from minidora.evidence.gradcheck import central_differences, compare, relative_error
from minidora.evidence.networks import CASES, backward, forward

ALL = [(name, case) for name, make in CASES.items() for case in make(np.random.default_rng(5))]


def by_case(wanted):
    """Parametrize over the cases for which wanted(case) holds."""
    cases = [pytest.param(case, id=f"{name}: {case.name}") for name, case in ALL if wanted(case)]
    return pytest.mark.parametrize("case", cases)


METHODS = ("full", "lora", "dora", "magnitude")


def gradients(case):
    _, cache = forward(**case.inputs, **case.settings)
    return backward(case.dy, cache)


@by_case(lambda case: True)
def test_value_and_gradients_equal_autograds(case):
    witness = pytest.importorskip("minidora.evidence.networks_by_autograd", exc_type=ImportError)
    y, _ = forward(**case.inputs, **case.settings)
    assert relative_error(y, witness.value(case.inputs, case.settings)) < 1e-8
    expected = witness.network_gradients(case.dy, case.inputs, case.settings)
    expected = {name: g for name, g in expected.items() if name[1:] in case.trained}
    compare(gradients(case), expected, 1e-8, vanishing=case.vanishing).raise_if_failed()


@by_case(lambda case: case.smooth)  # the detached gradient is no derivative
def test_gradients_equal_central_differences(case):
    fixed = {name: case.inputs[name] for name in case.frozen}

    def y(**moved):
        return forward(**fixed, **moved, **case.settings)[0]

    expected = central_differences(y, case.trained, case.dy)
    compare(gradients(case), expected, 1e-6, vanishing=case.vanishing).raise_if_failed()


@by_case(lambda case: case.settings["targets"] is not None)  # the whole networks
def test_loss_and_gradients_equal_the_pytorch_twins(case):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    from twin import loss_of, tensor, twin_of

    loss, (model, *_) = forward(**case.inputs, **case.settings)
    twin = twin_of(model)
    x, padding = case.inputs.get("x", case.settings["tokens"]), case.settings["padding"]
    x = tensor(x)
    if x.is_floating_point():
        x.requires_grad_()
    logits = twin(x) if padding is None else twin(x, tensor(padding))
    twin_loss = loss_of(logits, tensor(case.settings["targets"]))
    assert float(loss) == pytest.approx(twin_loss.item(), rel=1e-10)
    named = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    if x.is_floating_point():
        named["x"] = x
    twin_grads = torch.autograd.grad(twin_loss, list(named.values()))
    expected = {"d" + n: g.numpy() for n, g in zip(named, twin_grads, strict=True)}
    compare(gradients(case), expected, 1e-8, vanishing=case.vanishing).raise_if_failed()


def small_transformer(rng, dtype=np.float64):
    return nn.Transformer.init(7, 8, 2, 2, 6, rng, dtype=dtype)


def digest(arrays):
    return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}


@pytest.mark.parametrize("method", METHODS)
def test_adapting_shares_the_base_and_starts_where_it_stands(method):
    rng = np.random.default_rng(0)
    base = small_transformer(rng)
    tokens = rng.integers(7, size=(3, 6))
    before, _ = base.forward(tokens)
    model = nn.adapt(base, method, ("q", "v"), rank=2, rng=rng)
    np.testing.assert_allclose(model.forward(tokens)[0], before, atol=1e-12)
    old = list(nn.parameters(base).values())
    for name, array in nn.parameters(model).items():
        shared = any(array is one for one in old)
        added = name in nn.trained(model) or name.rsplit(".", 1)[-1] in ("A", "B", "m")
        assert shared != added, name
        assert array.flags.writeable == added, name
    with pytest.raises(ValueError, match="read-only"):
        base.blocks[0].attn.q.weight += 1


@pytest.mark.parametrize("method", METHODS)
def test_backward_gives_what_trains_and_nothing_else(method):
    rng = np.random.default_rng(1)
    model = nn.adapt(small_transformer(rng), method, ("q", "v"), rank=2, rng=rng)
    logits, cache = model.forward(rng.integers(7, size=(2, 4)))
    dx, grads = model.backward(np.ones_like(logits), cache)
    assert dx is None
    assert grads.keys() == nn.trained(model).keys()
    for name, grad in grads.items():
        assert grad.shape == nn.trained(model)[name].shape
        assert grad.dtype == nn.trained(model)[name].dtype


def test_what_trains_low_down_gets_its_gradient_although_nothing_below_does():
    rng = np.random.default_rng(19)
    base = small_transformer(rng)
    tokens = rng.integers(7, size=(2, 4))
    logits, cache = base.forward(tokens)
    _, every = base.backward(logits, cache)
    for part in ("ln1", "attn.q", "up", "ln2"):
        model = nn.merge(base)  # shares the arrays, nothing trains
        layer = dict(nn.walk(model))[f"blocks.0.{part}"]
        layer.trainable = ("gain",) if part.startswith("ln") else ("weight",)
        _, grads = model.backward(*model.forward(tokens))
        (name,) = grads
        np.testing.assert_allclose(grads[name], every[name], atol=1e-14)


def moved(model, rng):
    """An adapted model as after some training."""
    for array in nn.trained(model).values():
        array += 0.3 * rng.normal(size=array.shape)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
def test_merging_keeps_the_function(method, norm_axis):
    rng = np.random.default_rng(2)
    base = small_transformer(rng)
    targets = ("q", "up", "blocks.1.down")
    model = nn.adapt(base, method, targets, rank=2, rng=rng, norm_axis=norm_axis)
    moved(model, rng)
    tokens = rng.integers(7, size=(3, 6))
    for strength in (1.0,) if method == "full" else (1.0, 0.4, 0.0):
        at = model if method == "full" else nn.set_strength(model, strength)
        merged = nn.merge(at)
        assert not any("W0" in name for name in nn.parameters(merged))
        assert not nn.trained(merged)
        out = at.forward(tokens)[0]
        np.testing.assert_allclose(merged.forward(tokens)[0], out, atol=1e-11)
        if strength == 0:
            np.testing.assert_array_equal(merged.forward(tokens)[0], base.forward(tokens)[0])
            np.testing.assert_allclose(out, base.forward(tokens)[0], atol=1e-14)


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_strength_is_a_line_from_the_base_through_the_adapted_layer(method):
    rng = np.random.default_rng(3)
    base = nn.Linear.init(6, 4, rng, dtype=np.float64)
    model = moved(nn.adapt(base, method, rank=2, rng=rng), rng)
    x = rng.normal(size=(5, 6))
    zero, half, one = (nn.set_strength(model, s).forward(x)[0] for s in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(zero, base.forward(x)[0])  # exactly
    np.testing.assert_allclose(half, (zero + one) / 2, atol=1e-13)
    assert relative_error(one, zero) > 0.01


@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
@pytest.mark.parametrize("strength, dropout", [(1.0, 0.0), (0.4, 0.0), (0.7, 0.5)])
def test_dora_at_rank_0_trains_the_magnitude_alone(norm_axis, strength, dropout):
    rng = np.random.default_rng(30)
    base = nn.Linear.init(6, 4, rng, dtype=np.float64)
    base.bias += rng.normal(size=4)
    settings = {"norm_axis": norm_axis, "strength": strength, "dropout": dropout}
    layer = moved(nn.adapt(base, "magnitude", train=("m", "bias"), **settings), rng)
    assert layer.A.shape == (0, 6) and layer.B.shape == (4, 0) and layer.scale == 1
    assert set(nn.parameters(layer)) == {"W0", "bias", "A", "B", "m"}
    x, dy = rng.normal(size=(3, 6)), rng.normal(size=(3, 4))
    mask = strength * np.ones((3, 6))
    if dropout:
        mask *= (np.random.default_rng(1).random(x.shape, np.float32) >= dropout) / (1 - dropout)
    y, cache = layer.forward(x, rng=np.random.default_rng(1))
    dx, grads = layer.backward(dy, cache)
    # W = m * W0 / ‖W0‖, y = x @ W0.T + (x * mask) @ (W - W0).T + bias
    axis, W0 = 1 if norm_axis == "per_output" else 0, base.weight
    unit = W0 / np.linalg.norm(W0, axis=axis, keepdims=True)
    W = np.expand_dims(layer.m, axis) * unit
    expected = {
        "y": (y, x @ W0.T + (x * mask) @ (W - W0).T + layer.bias),
        "dx": (dx, dy @ W0 + mask * (dy @ (W - W0))),
        "dm": (grads["m"], (dy.T @ (x * mask) * unit).sum(axis)),
        "dbias": (grads["bias"], dy.sum(0)),
        "merged": (layer.merged(), W0 + strength * (W - W0)),
    }
    assert grads.keys() == {"m", "bias"}
    for name, (ours, theirs) in expected.items():
        assert relative_error(ours, theirs) < 2e-15, name


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_a_layer_owns_a_base_that_nothing_can_change(method):
    rng = np.random.default_rng(31)
    layer = moved(nn.adapt(nn.Linear.init(6, 4, rng), method, rank=2, rng=rng), rng)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(ValueError, match="read-only"):
            other.W0[0, 0] = 9
        assert other.m.flags.writeable if method != "lora" else other.A.flags.writeable
        np.testing.assert_array_equal(other.merged(), layer.merged())
    W0 = np.ones((4, 6))
    nn.LoRALinear(W0, None, np.ones((2, 6)), np.ones((4, 2)), 1.0)  # built by hand, frozen too
    assert not W0.flags.writeable


def test_merging_computes_in_the_widest_dtype_and_returns_the_bases():
    rng = np.random.default_rng(32)
    W0 = rng.normal(size=(4, 6)).astype(np.float32)
    A, B = rng.normal(size=(2, 6)), rng.normal(size=(4, 2))
    narrow = (A.astype(np.float16), B.astype(np.float16))
    exact = W0 + 0.5 * 3.0 * narrow[1].astype(float) @ narrow[0].astype(float)
    half = nn.LoRALinear(W0, None, *narrow, 3.0, strength=0.5).merged()
    assert half.dtype == np.float32 and relative_error(half, exact) < 1e-6
    large = nn.LoRALinear(W0, None, *narrow, 1e5)  # whose update float16 cannot hold
    y, _ = large.forward(np.eye(6, dtype=np.float32))
    assert np.isfinite(y).all() and relative_error(large.merged().T, y) < 1e-6
    m = np.ones(4)
    for layer in (nn.LoRALinear(W0, None, A, B, 3.0), nn.DoRALinear(W0, None, A, B, m, 3.0)):
        for strength in (1.0, 0.5):
            assert nn.set_strength(layer, strength).merged().dtype == np.float32
    half = nn.DoRALinear(W0.astype(np.float16), None, *narrow, m, 3.0, strength=5.0)
    V = half.W0.astype(float) + 3.0 * narrow[1].astype(float) @ narrow[0].astype(float)
    W = V / np.linalg.norm(V, axis=1, keepdims=True)
    exact = half.W0 + 5.0 * (W - half.W0)
    np.testing.assert_array_equal(half.merged(), exact.astype(np.float16))  # rounded once
    assert half.merged().dtype == np.float16


def test_dropout_acts_only_with_a_generator_and_on_what_the_adapter_adds():
    rng = np.random.default_rng(4)
    base = nn.Linear.init(50, 4, rng, dtype=np.float64)
    model = moved(nn.adapt(base, "dora", rank=2, rng=rng, dropout=0.5), rng)
    x = rng.normal(size=(8, 50))
    still, _ = model.forward(x)
    np.testing.assert_array_equal(still, model.forward(x)[0])
    first, second = (model.forward(x, rng=np.random.default_rng(s))[0] for s in (0, 1))
    assert relative_error(first, second) > 0.01
    np.testing.assert_array_equal(first, model.forward(x, rng=np.random.default_rng(0))[0])
    many = np.mean([model.forward(x, rng=rng)[0] for _ in range(4000)], 0)
    assert relative_error(many, still) < 0.05  # inverted dropout keeps the mean
    off = nn.set_strength(model, 0.0)
    np.testing.assert_allclose(off.forward(x, rng=rng)[0], base.forward(x)[0], atol=1e-13)


def test_dropout_layer():
    layer, x = nn.Dropout(0.25), np.ones((200, 50), np.float32)
    y, mask = layer.forward(x, rng=np.random.default_rng(0))
    assert set(np.unique(y)) == {np.float32(0), np.float32(4 / 3)}
    assert y.dtype == np.float32 and abs(y.mean() - 1) < 0.03
    np.testing.assert_array_equal(layer.backward(x, mask)[0], y)
    assert layer.forward(x)[0] is x
    with pytest.raises(ValueError, match="^rate: expected 0 or more and below 1, got 1"):
        nn.Dropout(1.0)


def test_targets_choose_method_rank_and_what_trains():
    rng = np.random.default_rng(5)
    model = nn.adapt(
        small_transformer(rng),
        "dora",
        {
            "q": "lora",
            "v": {"rank": 3, "norm_axis": "per_input", "train": ("A", "B")},
            "up": "magnitude",
            "blocks.0.down": {"method": "full"},
            "k": {"rslora": True, "rank": 4, "alpha": 4, "train": ("m", "bias")},
        },
        rank=2,
        rng=rng,
    )
    attn, trained = model.blocks[1].attn, nn.trained(model)
    assert isinstance(attn.q, nn.LoRALinear) and attn.q.A.shape == (2, 8)
    assert isinstance(attn.v, nn.DoRALinear) and attn.v.A.shape == (3, 8)
    assert attn.v.norm_axis == "per_input" and "blocks.1.attn.v.m" not in trained
    assert isinstance(model.blocks[0].up, nn.DoRALinear) and model.blocks[0].up.A.shape == (0, 8)
    assert "blocks.0.down.weight" in trained and "blocks.1.down.weight" not in trained
    assert attn.k.scale == 2.0 and {"blocks.1.attn.k.m", "blocks.1.attn.k.bias"} <= trained.keys()
    assert "blocks.1.attn.k.A" not in trained and isinstance(attn.o, nn.Linear)


def test_trainable_summary_counts_as_peft_does():
    peft = pytest.importorskip("peft", exc_type=ImportError)
    torch = pytest.importorskip("torch", exc_type=ImportError)
    rng = np.random.default_rng(6)
    base = nn.MLP.init((5, 7, 3), rng)
    ours = nn.trainable_summary(nn.adapt(base, "dora", ("layers.0",), rank=2, rng=rng))
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    config = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    few, every = peft.get_peft_model(net, config).get_nb_trainable_parameters()
    assert ours == (
        f"trainable params: {few:,d} || all params: {every:,d} ||"
        f" trainable%: {100 * few / every:.4f}"
    )
    nothing = "trainable params: 0 || all params: 0 || trainable%: 0.0000"
    assert nn.trainable_summary(nn.ReLU()) == nothing


def test_thaw_gives_a_copy_that_trains():
    rng = np.random.default_rng(7)
    base = small_transformer(rng)
    adapted = nn.adapt(base, "lora", ("q",), rank=2, rng=rng)
    free = nn.thaw(base)
    before = digest(nn.parameters(base))
    for array in nn.trained(free).values():
        array += 1
    assert nn.trained(free).keys() == nn.parameters(free).keys()
    assert digest(nn.parameters(base)) == before
    with pytest.raises(
        ValueError, match="^model: expected plain layers .* LoRALinear; merge first"
    ):
        nn.thaw(adapted)
    assert len(nn.trained(nn.thaw(nn.merge(adapted)))) == len(before)


@pytest.mark.parametrize("method", ["lora", "dora", "magnitude"])
def test_a_bias_that_trains_is_a_copy(method):
    rng = np.random.default_rng(15)
    base = nn.Linear.init(6, 4, rng)
    model = nn.adapt(base, method, rank=2, rng=rng, train="bias")
    assert list(nn.trained(model)) == ["bias"]
    model.bias += 1
    assert not base.bias.any() and not base.bias.flags.writeable


def test_a_failed_adapt_leaves_the_model_as_it_was():
    base = nn.MLP.init((5, 7, 3), np.random.default_rng(16))
    base.layers[1].bias = None
    late = {"targets": {"layers.0": {}, "layers.1": {"train": "bias"}}}  # the second layer refuses
    for wrong in ({"rank": 0}, {"rng": None}, {"targets": ("x",)}, {"targets": ()}, late):
        with pytest.raises((ValueError, TypeError)):
            nn.adapt(base, "dora", **{"rng": np.random.default_rng(0), **wrong})
    assert all(array.flags.writeable for array in nn.parameters(base).values())


def test_settings_become_python_numbers():
    rng = np.random.default_rng(17)
    base = nn.Linear.init(6, 4, rng)
    model = nn.adapt(base, "dora", rank=2, rng=rng, strength=np.float64(0.5), alpha=np.float64(4))
    assert type(model.strength) is type(model.scale) is float
    assert nn.merge(model).weight.dtype == model.forward(np.ones((1, 6), "f4"))[0].dtype == "f4"
    assert type(nn.Attention.init(4, np.int64(2), rng).heads) is int


def test_networks_are_float32_or_float64_and_so_are_their_inputs():
    rng = np.random.default_rng(18)
    for make in (
        lambda: nn.MLP.init((5, 3), rng, dtype=np.float16),
        lambda: nn.Transformer.init(7, 8, 2, 2, 6, rng, dtype=np.float16),
        lambda: nn.LayerNorm.init(4, dtype=np.float16),
    ):
        with pytest.raises(ValueError, match="^dtype: expected float32 or float64, got float16"):
            make()
    base = nn.Linear.init(6, 4, rng)
    for layer in (base, nn.adapt(base, "magnitude")):
        with pytest.raises(TypeError, match="^x: expected a real floating dtype, got dtype int64"):
            layer.forward(np.ones((2, 6), int))
        with pytest.raises(
            ValueError, match=r"^x: expected shape \(\.\.\., 6\) for d_in = 6, got shape"
        ):
            layer.forward(np.ones((2, 5)))


def test_names_are_paths():
    model = small_transformer(np.random.default_rng(8))
    names = nn.parameters(model).keys()
    assert {"tok.table", "blocks.1.attn.q.weight", "blocks.0.up.bias", "ln.gain"} <= names
    assert "head.bias" not in names
    paths = dict(nn.walk(model))
    assert paths["blocks.1.attn"] is model.blocks[1].attn and paths[""] is model


def test_a_position_sees_neither_the_future_nor_padding():
    rng = np.random.default_rng(9)
    model = small_transformer(rng)
    tokens = rng.integers(7, size=(1, 6))
    whole = model.forward(tokens)[0]
    np.testing.assert_allclose(model.forward(tokens[:, :4])[0], whole[:, :4], atol=1e-12)
    padding = np.array([[False, True, False, False, False, False]])
    other = tokens.copy()
    other[0, 1] = (tokens[0, 1] + 1) % 7
    first, second = (model.forward(t, padding=padding)[0] for t in (tokens, other))
    np.testing.assert_array_equal(first, model.forward(tokens, padding=padding.tolist())[0])
    with pytest.raises(TypeError, match="^padding: expected True and False, got dtype int64"):
        model.forward(tokens, padding=2 * padding)
    real = ~padding[0]
    np.testing.assert_allclose(first[0, real], second[0, real], atol=1e-12)
    assert relative_error(first[0, 1], second[0, 1]) > 1e-3


def test_attention_to_scores_that_exp_cannot_take():
    rng = np.random.default_rng(14)
    attn = nn.Attention.init(4, 2, rng, dtype=np.float64)
    x = rng.normal(size=(2, 5, 4))
    usual, _ = attn.forward(x)
    attn.q.bias += 1e4 * rng.normal(size=4)  # the largest score takes all, or 0/0 without care
    y, _ = attn.forward(x)
    assert np.isfinite(y).all()
    q, k, v = (getattr(attn, name).forward(x)[0] for name in "qkv")
    head = slice(2, 4)
    scores = q[0, 4, head] @ k[0, :, head].T
    expected = v[0, scores.argmax(), head]
    out = (y[0, 4] - attn.o.bias) @ np.linalg.inv(attn.o.weight).T
    np.testing.assert_allclose(out[head], expected, atol=1e-6)
    assert relative_error(y, usual) > 0.01


def test_sampling():
    rng = np.random.default_rng(10)
    model = small_transformer(rng)
    prompt = np.zeros((3, 1), int)
    greedy = model.sample(prompt, temperature=0)
    assert greedy.shape == (3, 6) and (greedy[0] == greedy[1]).all()
    assert greedy[0, 1] == model.forward(prompt)[0][0, -1].argmax()
    drawn = [model.sample(prompt, rng=np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    many = model.sample(np.zeros((20000, 1), int), rng=rng, steps=1)[:, 1]
    logits = model.forward(prompt)[0][0, -1]
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.bincount(many, minlength=7) / 20000, p, atol=0.015)
    stopped = model.sample(prompt, temperature=0, stop=int(greedy[0, 1]))
    assert stopped.shape == (3, 2)
    with pytest.raises(ValueError, match="^rng: expected a generator for a temperature above 0"):
        model.sample(prompt)
    with pytest.raises(ValueError, match=r"^prompt: expected shape \(batch, t\), got shape \(3,\)"):
        model.sample([0, 1, 2], temperature=0)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[1.0, 2.0, 1.0], [3.0, 1.0, 4.0], [1.0, 1.0, 1.0]]))
    loss, dlogits = nn.cross_entropy(logits, np.array([1, 0, -1]))
    assert loss == pytest.approx(-(np.log(1 / 2) + np.log(3 / 8)) / 2)
    np.testing.assert_allclose(
        dlogits, np.array([[0.25, -0.5, 0.25], [-5 / 8, 1 / 8, 1 / 2], [0, 0, 0]]) / 2
    )
    without_zeros = nn.cross_entropy(logits, np.array([1, 0, 2]), ignore=0)
    without_them = nn.cross_entropy(logits, np.array([1, -1, 2]))
    assert without_zeros[0] == without_them[0]
    np.testing.assert_array_equal(without_zeros[1], without_them[1])
    big, _ = nn.cross_entropy(np.array([[1000.0, 0.0]], np.float32), np.array([1]))
    assert big == 1000


@pytest.mark.parametrize(
    "targets, error, message",
    [
        (np.array([3]), ValueError, r"^targets: expected classes 0 to 2 or -1 to ignore, got 3"),
        (np.array([-2]), ValueError, r"^targets: expected classes 0 to 2 or -1 to ignore, got -2"),
        (np.array([-1]), ValueError, "^targets: expected at least one that counts, got an empty"),
        (np.array([1.0]), TypeError, "^targets: expected whole numbers, got dtype float64"),
        (np.array([[1]]), ValueError, r"^targets: expected shape \(1,\).*got shape \(1, 1\)"),
    ],
)
def test_labels_that_are_no_class(targets, error, message):
    with pytest.raises(error, match=message):
        nn.cross_entropy(np.zeros((1, 3)), targets)


def test_an_empty_batch():
    with pytest.raises(ValueError, match="got an empty batch"):
        nn.cross_entropy(np.zeros((0, 3)), np.zeros(0, int))


def test_tokens_and_shapes_that_make_no_sense():
    model = small_transformer(np.random.default_rng(11))
    for bad in (7, -1):
        with pytest.raises(ValueError, match=f"^tokens: expected 0 to 6, got {bad}"):
            model.forward(np.array([[0, bad]]))
    with pytest.raises(TypeError, match="^tokens: expected whole numbers, got dtype float64"):
        model.forward(np.zeros((1, 2)))
    for shape in ((4,), (1, 7), (1, 0), (0, 3)):
        with pytest.raises(
            ValueError, match=r"^tokens: expected shape \(batch, t\) with batch from 1"
        ):
            model.forward(np.zeros(shape, int))
    with pytest.raises(ValueError, match=r"^padding: expected shape \(1, 2\), like tokens"):
        model.forward(np.zeros((1, 2), int), padding=np.zeros((1, 3), bool))


def test_adapt_errors():
    rng = np.random.default_rng(12)
    base = nn.MLP.init((5, 7, 3), rng)
    with pytest.raises(
        ValueError, match=r"^targets: expected names among \['layers.0', 'layers.1'"
    ):
        nn.adapt(base, "dora", ("q",), rng=rng)
    with pytest.raises(ValueError, match="^method: expected 'full' or 'lora' or 'dora' or 'magn"):
        nn.adapt(base, "adapter", rng=rng)
    with pytest.raises(ValueError, match="^rank: expected at least 1, got 0"):
        nn.adapt(base, "dora", rank=0, rng=rng)
    with pytest.raises(ValueError, match="^alpha: expected a finite number, got inf"):
        nn.adapt(base, "lora", alpha=np.inf, rng=rng)
    with pytest.raises(TypeError, match="^rng: expected a numpy.random.Generator, got NoneType"):
        nn.adapt(base, "dora")
    with pytest.raises(ValueError, match="^train: expected 'A' or 'B' or 'bias', got 'm'"):
        nn.adapt(base, "lora", train=("m",), rng=rng)
    with pytest.raises(ValueError, match="^dropout: expected 0 or more and below 1, got 1.0"):
        nn.adapt(base, "lora", dropout=1.0, rng=rng)
    known = r"expected names among \['alpha', 'block', .* got \['size'\]"
    with pytest.raises(TypeError, match=rf"^targets\['layers.0'\]: {known}"):
        nn.adapt(base, "lora", {"layers.0": {"size": 3}}, rng=rng)
    with pytest.raises(TypeError, match=f"^settings: {known}"):
        nn.adapt(base, "lora", rng=rng, size=3)
    with pytest.raises(TypeError, match="^rslora: expected True or False, got 'no'"):
        nn.adapt(base, "lora", rng=rng, rslora="no")
    with pytest.raises(ValueError, match="^norm_axis: expected 'per_output' or 'per_input'"):
        nn.adapt(base, "dora", norm_axis="rows", rng=rng)
    with pytest.raises(ValueError, match="^norm_grad: expected 'exact' or 'detached'"):
        nn.adapt(base, "dora", norm_grad="frozen", rng=rng)
    with pytest.raises(ValueError, match=r"^train: expected None with method 'full', got \('A',\)"):
        nn.adapt(base, "full", ("layers.0",), train=("A",))
    with pytest.raises(
        ValueError, match="^model: expected adapted layers, got none whose strength"
    ):
        nn.set_strength(base, 0.5)
    adapted = nn.adapt(base, "dora", rng=rng)
    with pytest.raises(ValueError, match="^model: expected linear layers to adapt, got none"):
        nn.adapt(adapted, "dora", rng=rng)
    spoiled = nn.thaw(base)
    spoiled.layers[0].weight[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"^layers.0.weight: expected finite values, got 1"):
        nn.adapt(spoiled, "dora", rng=rng)


def test_layers_are_checked_where_they_are_built():
    W0, A, B, m = np.ones((4, 6)), np.ones((2, 6)), np.ones((4, 2)), np.ones(4)
    with pytest.raises(
        ValueError, match=r"^m: expected shape \(6,\) \(one per vector, per_input\)"
    ):
        nn.DoRALinear(W0, None, A, B, m, 1.0, "per_input")
    with pytest.raises(ValueError, match=r"^B: expected shape \(4, 2\) .*got shape \(2, 4\)"):
        nn.LoRALinear(W0, None, A, B.T, 1.0)
    with pytest.raises(
        ValueError, match=r"^m: expected shape \(4,\) \(one per vector, per_output\)"
    ):
        nn.DoRALinear(W0, None, A[:0], B[:, :0], np.ones(6), 1.0)
    with pytest.raises(ValueError, match="^scale: expected a finite number, got inf"):
        nn.DoRALinear(W0, None, A, B, m, 10**400)
    with pytest.raises(ValueError, match="^scale: expected a finite number, got inf"):
        nn.DoRALinear(W0, None, A, B, m, np.inf)
    A[1, 2] = np.inf
    with pytest.raises(ValueError, match=r"^A: expected finite values, got 1 .*inf at \(1, 2\)"):
        nn.DoRALinear(W0, None, A, B, m, 1.0)


def test_layer_errors():
    rng = np.random.default_rng(13)
    with pytest.raises(ValueError, match="^heads: expected a divisor of d = 8, got 3"):
        nn.Attention.init(8, 3, rng)
    with pytest.raises(ValueError, match="^sizes: expected two or more, got"):
        nn.MLP.init((5,), rng)
    with pytest.raises(ValueError, match=r"^trainable: expected names among \['bias', 'weight'\]"):
        nn.Linear(np.ones((2, 3)), np.ones(2), trainable=("W",))
    for sizes in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="^d_(in|out): expected at least 1, got 0"):
            nn.Linear.init(*sizes, rng)
    with pytest.raises(ValueError, match="^depth: expected at least 1, got 0"):
        nn.Transformer.init(7, 8, 2, 0, 6, rng)

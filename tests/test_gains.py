"""RMSNorm, and gains as magnitude times direction: by hand, adapt, merge, files, bad input."""

import numpy as np
import pytest

from minidora import nn
from minidora.evidence.gradcheck import compare, relative_error
from minidora.evidence.networks import CASES, backward, forward
from minidora.nn.gains import gain_backward, gain_forward, gain_magnitude

GAINS = [name for name in CASES if name.startswith(("RMSNorm", "DoRANorm", "Transformer, gains"))]


@pytest.mark.parametrize("name", GAINS)
def test_witnesses_agree_to_1e_9(name):
    witness = pytest.importorskip("minidora.evidence.networks_by_autograd", exc_type=ImportError)
    for seed in range(3):
        for case in CASES[name](np.random.default_rng(seed)):
            y, cache = forward(**case.inputs, **case.settings)
            assert relative_error(y, witness.value(case.inputs, case.settings)) < 1e-13
            expected = witness.network_gradients(case.dy, case.inputs, case.settings)
            expected = {name: g for name, g in expected.items() if name[1:] in case.trained}
            compare(backward(case.dy, cache), expected, 1e-9).raise_if_failed()


def test_the_check_covers_them():
    from minidora.evidence.check import REGISTRY

    assert len(GAINS) == 6 and {*GAINS} <= {function.name for function in REGISTRY}


def test_rms_norm_by_hand():
    norm = nn.RMSNorm.init(2, dtype=np.float64)
    assert nn.trained(norm).keys() == {"gain"} and norm.gain.tolist() == [1, 1]
    norm = nn.RMSNorm(np.array([2.0, 3.0]), eps=0.5)
    y, cache = norm.forward(np.array([[3.0, 4.0]]))  # mean square 12.5, and eps: 13
    np.testing.assert_allclose(y, np.array([[6, 12]]) / 13**0.5, rtol=1e-15)
    assert norm.backward(np.ones((1, 2)), cache)[1] == {}  # nothing trains
    assert nn.RMSNorm.init(4).gain.dtype == np.float32
    y, _ = nn.RMSNorm.init(4).forward(np.ones((2, 4), np.float32))
    assert y.dtype == np.float32
    with pytest.raises(ValueError, match="^dtype: expected float32 or float64, got float16"):
        nn.RMSNorm.init(4, dtype=np.float16)


def test_rms_norm_equals_pytorchs():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    rng = np.random.default_rng(0)
    x, dy, gain = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=5)
    ours = nn.RMSNorm(gain, trainable=("gain",))
    y, cache = ours.forward(x)
    dx, grads = ours.backward(dy, cache)
    theirs = [torch.from_numpy(a).requires_grad_() for a in (x, gain)]
    out = torch.nn.functional.rms_norm(theirs[0], (5,), theirs[1], eps=1e-5)
    expected = torch.autograd.grad(out, theirs, torch.from_numpy(dy))
    assert relative_error(y, out.detach().numpy()) < 1e-14
    for got, right in zip((dx, grads["gain"]), expected, strict=True):
        assert relative_error(got, right.numpy()) < 1e-14


def test_a_gain_is_a_matrix_of_one_row():
    from minidora import dora

    rng = np.random.default_rng(1)
    m, v, dgain = rng.normal(size=1), rng.normal(size=5), rng.normal(size=5)
    gain, cache = gain_forward(m, v)
    A, B = np.zeros((1, 5)), np.zeros((1, 1))
    np.testing.assert_allclose(gain, dora.dora_weight(v[None], A, B, m, 1.0)[0], rtol=1e-15)
    assert gain_magnitude(v)[0] == pytest.approx(np.linalg.norm(v), rel=1e-15)
    # A of full rank (the identity) makes B the update of v itself
    W0, eye = v[None], np.eye(5)
    _, layer = dora.dora_forward(np.eye(5), W0, eye, np.zeros((1, 5)), m, 1.0)
    for mode in ("exact", "detached"):
        expected = dora.dora_backward(dgain[:, None], layer, norm_grad=mode)
        dm, dv = gain_backward(dgain, cache, norm_grad=mode)
        np.testing.assert_allclose(dm, expected.dm, rtol=1e-14)
        np.testing.assert_allclose(dv, expected.dB[0], rtol=1e-13)
    _, dv = gain_backward(dgain, cache)
    assert abs(dv @ v) < 1e-14  # a direction has no gradient along itself
    with pytest.raises(ValueError, match="^norm_grad: expected 'exact' or 'detached', got 'no'"):
        gain_backward(dgain, cache, norm_grad="no")


def test_numbers_of_any_size_keep_their_dtypes():
    v = np.array([3e20, 4e20], np.float32)  # whose squares float32 cannot hold
    gain, cache = gain_forward(gain_magnitude(v), v)
    assert gain.dtype == np.float32 and relative_error(gain, v) < 1e-6
    half = np.array([3.0, 4.0], np.float16)
    m = gain_magnitude(half)
    gain, cache = gain_forward(m, half)
    dm, dv = gain_backward(np.ones(2, np.float16), cache)
    kinds = [a.dtype for a in (m, gain, dm, dv)]
    assert kinds == [np.float32, np.float16, np.float32, np.float16]
    zero = np.zeros(3)
    m = gain_magnitude(zero)
    gain, cache = gain_forward(m, zero)
    assert not gain.any() and m[0] == 1e-12
    dm, dv = gain_backward(np.ones(3), cache)
    np.testing.assert_array_equal(dv, np.ones(3))  # a dead gain learns as a plain one does


def network(rng):
    model = nn.Transformer.init(7, 8, 2, 2, 6, rng, dtype=np.float64)
    for array in nn.parameters(model).values():
        array += 0.1 * rng.normal(size=array.shape)
    return model


@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_gains_and_linears_are_adapted_in_one_call_and_merged(norm_grad):
    rng = np.random.default_rng(2)
    base, tokens = network(rng), rng.integers(7, size=(3, 6))
    how = {"q": "dora", "v": "lora", "ln1": "gain", "ln2": "gain_dora", "blocks.1.up": "magnitude"}
    model = nn.adapt(base, "full", how, rank=2, rng=rng, norm_grad=norm_grad)
    np.testing.assert_allclose(model.forward(tokens)[0], base.forward(tokens)[0], atol=1e-12)
    block = model.blocks[0]
    assert type(block.ln1) is nn.LayerNorm and type(block.ln2) is nn.DoRANorm
    assert block.ln2.norm_grad == norm_grad and block.ln2.kind == "layer_norm"
    of_norms = {name for name in nn.trained(model) if ".ln" in name}
    assert of_norms == {f"blocks.{i}.{n}" for i in (0, 1) for n in ("ln1.gain", "ln2.m", "ln2.v")}
    before = {name: array.copy() for name, array in nn.parameters(base).items()}
    for array in nn.trained(model).values():
        array += 0.3 * rng.normal(size=array.shape)
    for name, array in nn.parameters(base).items():
        np.testing.assert_array_equal(array, before[name])
    merged = nn.merge(model)
    assert type(merged.blocks[0].ln2) is nn.LayerNorm and not nn.trained(merged)
    np.testing.assert_allclose(merged.forward(tokens)[0], model.forward(tokens)[0], atol=1e-12)
    gain = block.ln2.m * block.ln2.v / np.linalg.norm(block.ln2.v)
    np.testing.assert_allclose(merged.blocks[0].ln2.gain, gain, rtol=1e-14)


def test_every_norm_where_there_are_no_targets():
    rng = np.random.default_rng(3)
    model = nn.adapt(network(rng), "gain")
    names = {f"blocks.{i}.ln{j}.gain" for i in (0, 1) for j in (1, 2)} | {"ln.gain"}
    assert nn.trained(model).keys() == names
    assert nn.trainable_summary(model).startswith("trainable params: 40 ||")
    model = nn.adapt(network(rng), "gain_dora")
    assert nn.trainable_summary(model).startswith("trainable params: 45 ||")  # and one m each
    tuned = nn.adapt(network(rng), "gain", train=("gain", "bias"))  # LN-tuning
    assert {n.rpartition(".")[2] for n in nn.trained(tuned)} == {"gain", "bias"}
    assert len(nn.trained(tuned)) == 10


@pytest.mark.parametrize("method", ["gain", "gain_dora"])
def test_what_trains_is_a_copy_and_the_rest_is_shared_and_frozen(method):
    for kind in (nn.LayerNorm, nn.RMSNorm):
        base = kind.init(5, dtype=np.float64)
        base.gain += np.arange(5)
        model = nn.adapt(base, method)
        for name, array in nn.trained(model).items():
            assert array.flags.writeable and name in ("gain", "m", "v")
            array += 1
        assert base.gain.tolist() == [1, 2, 3, 4, 5] and not base.gain.flags.writeable
        y, cache = model.forward(np.random.default_rng(0).normal(size=(2, 5)))
        _, grads = model.backward(y, cache)
        assert grads.keys() == nn.trained(model).keys()
        if kind is nn.LayerNorm:
            assert model.bias is base.bias
            both = nn.adapt(base, method, train="bias")
            assert nn.trained(both).keys() == {"bias"} and both.bias is not base.bias
            assert both.backward(y, both.forward(y)[1])[1].keys() == {"bias"}


def test_only_m_or_only_v_trains_where_asked():
    base = nn.RMSNorm.init(5, dtype=np.float64)
    x = np.random.default_rng(4).normal(size=(3, 5))
    _, every = (both := nn.adapt(base, "gain_dora")).backward(x, both.forward(x)[1])
    for name in ("m", "v"):
        model = nn.adapt(base, "gain_dora", train=name)
        _, grads = model.backward(x, model.forward(x)[1])
        assert grads.keys() == {name}
        np.testing.assert_array_equal(grads[name], every[name])


@pytest.mark.parametrize("how", [{"ln1": "gain"}, {"ln1": "gain_dora", "q": "dora"}])
@pytest.mark.parametrize("train", [None, "bias"])
def test_files_keep_gains(how, train, tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora.training import checkpoint

    rng = np.random.default_rng(5)
    base, tokens = network(rng), rng.integers(7, size=(2, 6))
    model = nn.adapt(base, "dora", how, rank=2, rng=rng, train=train, norm_grad="detached")
    for array in nn.trained(model).values():
        array += 0.3 * rng.normal(size=array.shape)
    y, _ = model.forward(tokens)
    checkpoint.save(tmp_path / "model", model)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    for loaded in (
        checkpoint.load(tmp_path / "model").model,
        checkpoint.load_adapter(tmp_path / "adapter", base).model,
    ):
        np.testing.assert_array_equal(loaded.forward(tokens)[0], y)
        assert nn.trained(loaded).keys() == nn.trained(model).keys()
        assert getattr(loaded.blocks[0].ln1, "norm_grad", "detached") == "detached"
    rms = nn.adapt(nn.RMSNorm.init(4), "gain_dora")
    checkpoint.save(tmp_path / "rms", rms)
    assert checkpoint.load(tmp_path / "rms").model.kind == "rms_norm"
    plain = nn.RMSNorm(np.ones(4), eps=0.25)
    checkpoint.save(tmp_path / "plain", plain)
    assert checkpoint.load(tmp_path / "plain").model.eps == 0.25


def test_the_norm_layers_eps_is_kept():
    for base in (nn.RMSNorm(np.ones(3), 0.5), nn.LayerNorm(np.ones(3), np.zeros(3), 0.5)):
        model = nn.adapt(base, "gain_dora")
        x = np.array([[1.0, 2.0, 4.0]])
        np.testing.assert_allclose(model.forward(x)[0], base.forward(x)[0], rtol=1e-15)
        assert nn.merge(model).eps == 0.5


def test_methods_on_the_wrong_kind_of_layer():
    rng = np.random.default_rng(6)
    base = network(rng)
    norms = r"^targets: expected names among \['blocks.0.ln1', .*'ln'\] for method"
    for method in ("gain", "gain_dora"):
        with pytest.raises(ValueError, match=f"{norms} '{method}', got 'q', a Linear$"):
            nn.adapt(base, "dora", {"q": method}, rng=rng)
    with pytest.raises(
        ValueError, match=r"\['blocks.0.attn.q'.* for method 'dora', got 'ln1', a LayerNorm$"
    ):
        nn.adapt(base, "dora", ("q", "ln1"), rng=rng)
    with pytest.raises(ValueError, match="for method 'gain', got 'norm1'$"):
        nn.adapt(base, "gain", ("norm1",))
    with pytest.raises(ValueError, match=r"^targets: expected names among .*'ln'\], got none"):
        nn.adapt(base, "gain", ())
    with pytest.raises(ValueError, match="^model: expected norm layers to adapt, got none"):
        nn.adapt(nn.MLP.init((3, 2), rng), "gain")
    with pytest.raises(ValueError, match="^model: expected linear layers to adapt, got none"):
        nn.adapt(nn.LayerNorm.init(3), "dora", rng=rng)
    assert all(array.flags.writeable for array in nn.parameters(base).values())
    adapted = nn.adapt(base, "gain_dora")
    with pytest.raises(ValueError, match="^model: expected norm layers to adapt, got none; is it"):
        nn.adapt(adapted, "gain")
    with pytest.raises(ValueError, match="^model: expected plain layers .* DoRANorm; merge first"):
        nn.thaw(adapted)
    with pytest.raises(
        ValueError, match="^model: expected adapted layers, got none whose strength"
    ):
        nn.set_strength(adapted, 0.5)


def test_bad_settings_and_arrays():
    rms = nn.RMSNorm.init(4, dtype=np.float64)
    for method in ("gain", "gain_dora"):
        with pytest.raises(ValueError, match="^train: expected names of arrays .* got 'bias'"):
            nn.adapt(rms, method, train=("bias",))
    with pytest.raises(ValueError, match="^train: expected 'gain' or 'bias', got 'm'"):
        nn.adapt(rms, "gain", train="m")
    with pytest.raises(ValueError, match="^train: expected 'm' or 'v' or 'bias', got 'gain'"):
        nn.adapt(rms, "gain_dora", train="gain")
    m, v, bias = np.ones(1), np.ones(4), np.ones(4)
    with pytest.raises(ValueError, match="^kind: expected 'layer_norm' or 'rms_norm', got 'batch'"):
        nn.DoRANorm(m, v, bias, "batch")
    with pytest.raises(ValueError, match="^bias: expected None with kind 'rms_norm', got an array"):
        nn.DoRANorm(m, v, bias, "rms_norm")
    with pytest.raises(ValueError, match=r"^bias: expected shape \(4,\) \(like v\), got shape \(3"):
        nn.DoRANorm(m, v, bias[1:])
    with pytest.raises(TypeError, match="^bias: expected a real floating dtype, got dtype object"):
        nn.DoRANorm(m, v)
    with pytest.raises(ValueError, match=r"^m: expected shape \(1,\) \(one for the whole gain\)"):
        nn.DoRANorm(v, v, bias)
    with pytest.raises(ValueError, match=r"^v: expected 1 dimensions, got shape \(1, 4\)"):
        nn.DoRANorm(m, v[None], bias)
    with pytest.raises(TypeError, match="^gain: expected a real floating dtype, got dtype int64"):
        gain_magnitude(np.arange(3))
    with pytest.raises(ValueError, match="^norm_grad: expected 'exact' or 'detached'"):
        nn.DoRANorm(m, v, bias, norm_grad="no")
    with pytest.raises(ValueError, match=r"^v: expected finite values, got 1 .* at \(2,\)"):
        nn.DoRANorm(m, np.where(np.arange(4) == 2, np.inf, v), bias)

import copy
import gc
import pickle
import warnings
import weakref

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
from torch import nn  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

from minidora.pytorch import DoRALinear, clear_cache_  # noqa: E402
from minidora.pytorch import cache as cache_module  # noqa: E402

AXES = ("per_output", "per_input")


def own(norm_axis="per_output", dtype=torch.float64, bias=True, **settings):
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(12, 8, bias, dtype=dtype), 3, 5, norm_axis=norm_axis, **settings)
    nn.init.normal_(layer.lora_B.weight)
    with torch.no_grad():
        layer.lora_magnitude_vector.mul_(torch.rand_like(layer.lora_magnitude_vector) + 0.5)
    return layer.eval()


def accelerated(bias=True):
    hf = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    if tuple(int(part) for part in hf.__version__.split(".")[:2]) < (0, 19):
        pytest.skip(
            f"PEFT {hf.__version__} keeps nothing that train() clears: nor does accelerate_"
        )
    from minidora.pytorch import accelerate_

    torch.manual_seed(0)
    config = hf.LoraConfig(r=3, target_modules=["0"], use_dora=True, init_lora_weights=False)
    model = hf.get_peft_model(nn.Sequential(nn.Linear(12, 8, bias)).double(), config)
    accelerate_(model)
    return model.eval()


MAKERS = {
    "own, per_output": own,
    "own, per_input": lambda **settings: own("per_input", **settings),
    "accelerate_": accelerated,
}
of_each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
X = torch.linspace(-1, 1, 60, dtype=torch.float64).sin().reshape(5, 12)


def parts(model):
    """W0, A, B, m and the base's bias, whichever of the two it is."""
    named = dict(model.named_parameters())
    keys = ("base_layer.weight", "lora_A", "lora_B", "magnitude", "base_layer.bias")
    return {k: next((p for n, p in named.items() if k in n), None) for k in keys}


def fresh(model, x=X):
    """What a copy, which keeps nothing, says."""
    with torch.no_grad():
        return copy.deepcopy(model)(x)


def filled(model, x=X):
    with torch.no_grad():
        return model(x)


def holds(model):
    """Whether something is kept; asking clears it."""
    return clear_cache_(model) == 1


@of_each
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_kept_is_what_would_be_computed(make, bias, monkeypatch):
    model, calls = make(bias=bias), []
    with_gradient = model(X).detach()
    for module in (cache_module, pytest.importorskip("minidora.pytorch.around")):
        norms = module.update_norms
        spy = lambda *args, norms=norms: calls.append(1) or norms(*args)  # noqa: E731
        monkeypatch.setattr(module, "update_norms", spy)
    for x in (X, X, X[:1], X.reshape(5, 1, 12)):
        y = filled(model, x)
        expected = with_gradient[: len(x)].reshape(y.shape)
        assert (y - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert len(calls) == 1  # norms, once
    assert holds(model) and not holds(model)


def set_data(parameter):
    parameter.data = parameter.data * 2


def in_place(parameter):
    with torch.no_grad():
        parameter.mul_(2)


@of_each
@pytest.mark.parametrize("key", ["base_layer.weight", "lora_A", "lora_B", "magnitude"])
@pytest.mark.parametrize("change", [set_data, in_place])
def test_a_change_is_noticed(make, key, change):
    model = make()
    before = filled(model)
    change(parts(model)[key])
    assert torch.equal(filled(model), fresh(model))
    assert not torch.allclose(filled(model), before)


@of_each
def test_a_change_of_the_bias_is_noticed(make):
    model = make()
    filled(model)
    in_place(parts(model)["base_layer.bias"])
    assert torch.equal(filled(model), fresh(model))


@of_each
def test_another_parameter_is_noticed(make):
    model = make()
    filled(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(2 * module.weight.detach(), module.weight.requires_grad)
    assert torch.equal(filled(model), fresh(model))


def test_another_scale_is_noticed():
    model = own()
    filled(model)
    model.scale *= 2
    assert torch.equal(filled(model), fresh(model))
    model = accelerated()
    filled(model)
    model.base_model.model[0].scaling["default"] *= 2
    assert torch.equal(filled(model), fresh(model))


@of_each
def test_writing_through_data_leaves_no_trace_until_it_is_cleared(make):
    model = make()
    before = filled(model)
    parts(model)["lora_B"].data.mul_(3)
    stale = filled(model)
    assert not torch.equal(stale, fresh(model)) and not torch.equal(stale, before)
    assert clear_cache_(model) == 1
    assert torch.equal(filled(model), fresh(model))


@of_each
def test_trained_in_eval_by_an_optimizer_that_writes_through_data(make):
    model = make()
    filled(model)
    for _ in range(3):
        model(X).sum().backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(0.1 * parameter.grad)
        assert torch.equal(filled(model), fresh(model))


@of_each
@pytest.mark.parametrize("event", ["train", "a recorded forward", "load_state_dict", "double"])
def test_what_clears(make, event):
    model = make()
    filled(model)
    if event == "train":
        model.train()
        assert not holds(model)
        return
    if event == "a recorded forward":
        model(X)
        assert not holds(model)
        return
    if event == "load_state_dict":
        model.load_state_dict({k: v * 2 for k, v in model.state_dict().items()})
    else:
        model.float()
        assert filled(model, X.float()).dtype == torch.float32
    x = X if event == "load_state_dict" else X.float()
    assert torch.equal(filled(model, x), fresh(model, x))


def test_merging_clears_and_unmerging_computes_anew():
    for model, layer in ((own(),) * 2, (peft := accelerated(), peft.base_model.model[0])):
        before = filled(model)
        layer.merge()
        assert not holds(model)
        assert torch.allclose(filled(model), before, atol=1e-12)
        layer.unmerge()
        assert torch.equal(filled(model), fresh(model))


@of_each
def test_no_weight_is_held_alive(make):
    model = make()
    filled(model)
    weight = parts(model)["base_layer.weight"]
    memory, tensor = StorageWeakRef(weight.untyped_storage()), weakref.ref(weight)
    for module in model.modules():
        if getattr(module, "_seen", None) is not None:
            module._seen = None  # sum(W0²)'s own mark
        if "weight" in module._parameters and module._parameters["weight"] is weight:
            module.weight = nn.Parameter(torch.zeros_like(weight), requires_grad=False)
    del weight
    gc.collect()
    assert memory.expired() and tensor() is None


def test_memory_used_again_is_not_the_same_memory():
    weight = nn.Parameter(torch.ones(64, 64))
    kept = cache_module.Cache()
    kept.keep("value", 1.0, [weight, None])
    assert kept.holds(1.0, [weight, None]) and not kept.holds(2.0, [weight, None])
    assert not kept.holds(1.0, [weight, weight]) and not kept.holds(1.0, [weight])
    address, version = weight.data_ptr(), weight._version
    for _ in range(50):  # until the allocator gives the same address again
        weight.data = torch.empty(0)
        weight.data = torch.full((64, 64), 2.0)
        if weight.data_ptr() == address:
            break
    assert weight._version == version
    assert not kept.holds(1.0, [weight, None])


@of_each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_nothing(make, copied):
    model = make()
    y = filled(model)
    again = copied(model)
    assert not holds(again) and holds(model)
    assert torch.equal(filled(again), y)


@of_each
def test_inference_mode_and_gradients_after_it(make):
    model = make()
    with torch.inference_mode():
        y = model(X)
        assert torch.equal(model(X), y)
    expected = copy.deepcopy(model)
    for each in (model, expected):
        each(X).square().sum().backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    assert torch.equal(filled(model), fresh(model))


def test_nothing_of_inference_tensors_is_kept():
    with torch.inference_mode():
        model = own()
        model(X)
        assert not holds(model)
    with torch.no_grad():
        assert torch.equal(model(X), model(X)) and not holds(model)


@of_each
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_kept_while_compiling_or_exporting(make):
    model = make()
    with torch.no_grad():
        expected = model(X)
        clear_cache_(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager")
        assert torch.allclose(compiled(X), expected, atol=1e-13) and not holds(model)
        in_place(parts(model)["lora_B"])
        assert torch.allclose(compiled(X), fresh(model), atol=1e-13)
        exported = torch.export.export(model, (X,)).module()
        assert torch.allclose(exported(X), fresh(model), atol=1e-13) and not holds(model)


@of_each
def test_nothing_is_kept_while_tracing_or_of_fake_tensors(make):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = make()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, X, check_trace=False)
        assert not holds(model)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model(mode.from_tensor(X))
        assert not holds(model)
        filled(model)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            y = model(mode.from_tensor(X))
        assert y.shape == (5, 8) and type(y) is not torch.Tensor


@pytest.mark.parametrize("norm_axis", AXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_less_precision_and_under_autocast(norm_axis, dtype):
    model, x = own(norm_axis, dtype), X.to(dtype)
    expected = model(x)
    for _ in range(2):
        y = filled(model, x)
        assert y.dtype == dtype
        error = (y.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error < 8 * torch.finfo(dtype).eps
    model = own(norm_axis, torch.float32)
    for cast in (X.float(), X.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = filled(model, cast), model(cast)
        assert y.dtype == expected.dtype == torch.bfloat16
        assert (y - expected).abs().max() < 0.05 * expected.abs().max()


def test_strength_and_errors_are_doras():
    model = own(strength=0.5)
    assert torch.allclose(filled(model), model(X), atol=1e-13)
    model = own()
    for x in (X[:, :3], X.float(), torch.tensor(1.0).double()):
        with torch.no_grad(), pytest.raises(ValueError, match="^x: expected"):
            model(x)

import copy
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
hf = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
from peft.tuners.lora import variants  # noqa: E402
from torch import nn  # noqa: E402

from minidora.pytorch import accelerate_, clear_cache_, restore_  # noqa: E402
from minidora.pytorch.quantised import values  # noqa: E402
from tests.benchmarks.kept import kept_elements  # noqa: E402

if tuple(int(part) for part in hf.__version__.split(".")[:2]) < (0, 18):
    pytest.skip(f"accelerate_ needs PEFT 0.18, this is {hf.__version__}", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = ("llama", "gpt2", "t5", "vit", "bert", "gpt_neox")


def tiny(family):
    """A model of two layers, what it is called with, and what to adapt in it."""
    tf = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    ids = {"input_ids": torch.arange(14).reshape(2, 7) % 11}
    text = {**TINY, "intermediate_size": 24, "vocab_size": 11}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family == "llama":
        return tf.LlamaModel(tf.LlamaConfig(**text, **ends)), ids, "all-linear"
    if family == "bert":
        return tf.BertModel(tf.BertConfig(**text)), ids, "all-linear"
    if family == "gpt_neox":
        return tf.GPTNeoXModel(tf.GPTNeoXConfig(**text, **ends)), ids, "all-linear"
    if family == "gpt2":
        config = tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=11, n_positions=8, **ends)
        return tf.GPT2Model(config), ids, ["c_attn", "c_proj", "c_fc"]  # Conv1D, fan_in_fan_out
    if family == "t5":
        config = tf.T5Config(d_model=16, d_ff=24, d_kv=8, num_layers=1, num_heads=2, vocab_size=11)
        return tf.T5Model(config), {**ids, "decoder_input_ids": ids["input_ids"]}, "all-linear"
    config = tf.ViTConfig(**TINY, intermediate_size=24, image_size=8, patch_size=4)
    images = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).reshape(2, 3, 8, 8)
    return tf.ViTModel(config), {"pixel_values": images}, "all-linear"


def adapted(model, targets, dropout=0.0, **config):
    """With PEFT's DoRA, nothing of it at its start."""
    torch.manual_seed(1)
    config = {"r": 3, "lora_alpha": 5, "init_lora_weights": False, "use_dora": True, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fan_in_fan_out, which PEFT then sets itself
        model = hf.get_peft_model(
            model, hf.LoraConfig(target_modules=targets, lora_dropout=dropout, **config)
        )
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        elif "base_layer.bias" in name:  # 0 in a new model
            parameter.data.normal_(std=0.1)
    return model


def layer(d_in=12, d_out=8, dropout=0.0, dtype=torch.float64, **config):
    torch.manual_seed(0)
    return adapted(nn.Sequential(nn.Linear(d_in, d_out)).to(dtype), ["0"], dropout, **config)


def gradients(model, *args, **kwargs):
    """The output, and all gradients by name, for a random cotangent and fixed masks."""
    torch.manual_seed(2)
    y = model(*args, **kwargs)
    y = y if isinstance(y, torch.Tensor) else y[0]
    model.zero_grad()
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).sin().reshape(y.shape))
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **found}


def worst(found, expected):
    """The largest of the arrays' relative errors."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n] - e).abs().max() / e.abs().max().clamp_min(1e-30))
        for n, e in expected.items()
    )


class Dense(variants.DoraLinearVariant):
    """Eq. 5 as it is written, for autograd to differentiate, norm included."""

    @staticmethod
    def forward(module, active_adapter, x, result, **kwargs):
        A, B = (part[active_adapter].weight for part in (module.lora_A, module.lora_B))
        weight = module.get_base_layer().weight
        W0 = weight.t() if module.fan_in_fan_out else weight
        V = W0 + module.scaling[active_adapter] * B @ A
        W = (module.lora_magnitude_vector[active_adapter].weight / V.norm(dim=1))[:, None] * V
        return result + module.lora_dropout[active_adapter](x) @ (W - W0).t()


def set_variant(model, variant):
    for module in model.modules():
        for name in getattr(module, "lora_variant", {}):
            module.lora_variant[name] = variant


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_detached_is_pefts_and_exact_is_autograds(family, dropout):
    model, inputs, targets = tiny(family)
    fan_in_fan_out = family == "gpt2"
    model = adapted(model.double(), targets, dropout, fan_in_fan_out=fan_in_fan_out).train()
    peft = gradients(model, **inputs)
    layers = accelerate_(model)
    assert layers == sum(bool(getattr(m, "lora_variant", {})) for m in model.modules()) >= 6
    assert worst(gradients(model, **inputs), peft) <= 1e-12
    set_variant(model, Dense())
    exact = gradients(model, **inputs)
    set_variant(model, variants.DoraLinearVariant())
    accelerate_(model, "exact")
    assert worst(gradients(model, **inputs), exact) <= 1e-12
    assert worst(peft, exact) > 1e-6  # of each other they differ


@pytest.mark.parametrize("family", FAMILIES)
def test_in_eval_a_model_says_what_pefts_says(family):
    model, inputs, targets = tiny(family)
    model = adapted(model.double(), targets, fan_in_fan_out=family == "gpt2").eval()
    with torch.no_grad():
        expected = model(**inputs)[0]
        accelerate_(model)
        for _ in range(2):  # then from what is kept
            assert (model(**inputs)[0] - expected).abs().max() <= 1e-12 * expected.abs().max()
        restore_(model)
        assert torch.equal(model(**inputs)[0], expected)


def quantised(kind, dropout, d_in=64, d_out=32):
    linear = nn.Linear(d_in, d_out)
    if kind == "torchao int8":
        ao = pytest.importorskip(
            "torchao.quantization", reason="needs torchao: pip install torchao"
        )
        model = nn.Sequential(linear)
        ao.quantize_(model, ao.Int8WeightOnlyConfig())
        return adapted(model, ["0"], dropout)
    bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
    if kind == "bitsandbytes nf4":
        base = bnb.nn.Linear4bit(d_in, d_out, quant_type="nf4", compute_dtype=torch.float32)
    else:
        base = bnb.nn.Linear8bitLt(d_in, d_out, has_fp16_weights=False)
    base.load_state_dict(linear.state_dict())
    model = nn.Sequential(base.to("cpu"))
    setattr(model, f"is_loaded_in_{4 if 'nf4' in kind else 8}bit", True)
    return adapted(model, ["0"], dropout)


KINDS = ["bitsandbytes nf4", "bitsandbytes int8", "torchao int8"]


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base(kind, dropout):
    def step(norm_grad):
        torch.manual_seed(0)
        model = quantised(kind, dropout).train()  # anew: on a CPU PEFT's int8 lasts for one step
        x = torch.randn(2, 5, 64, requires_grad=True)
        if norm_grad:
            assert accelerate_(model, norm_grad) == 1
            gradients(model, x)
            x.grad = None
        return gradients(model, x) | {"x": x.grad.clone()}

    peft = step(None)
    assert worst(step("detached"), peft) < 1e-5
    assert worst(step("exact"), peft) > 1e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_in_eval(kind):
    torch.manual_seed(0)
    model = quantised(kind, 0.0)
    module = model.base_model.model[0]
    base, x = module.base_layer, torch.randn(2, 5, 64)
    W0 = values(base).clone()
    accelerate_(model.eval())
    with torch.no_grad():
        found = [model(x) for _ in range(3)]  # bitsandbytes packs 4 bit anew at the first
        A, B = (part["default"].weight for part in (module.lora_A, module.lora_B))
        s, m = module.scaling["default"], module.lora_magnitude_vector["default"].weight
        g = m / (W0 + s * B @ A).norm(dim=1)
        y = (base(x) - base.bias + s * x @ A.t() @ B.t()) * g + base.bias
        for each in found:
            assert (each - y).abs().max() < 1e-3 * y.abs().max()
        assert torch.equal(found[1], found[2])
    assert (values(base) - W0).abs().max() < 2e-3 * W0.abs().max()


def test_exact_on_a_quantised_base_is_autograds():
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
    import bitsandbytes as bnb

    torch.manual_seed(0)
    model = quantised("bitsandbytes nf4", 0.0)
    base = model.base_model.model[0].base_layer
    x = torch.randn(9, 64)
    accelerate_(model, "exact")
    ours = gradients(model, x)
    weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
    plain = nn.Sequential(nn.Linear(64, 32))
    plain[0].load_state_dict({"weight": weight, "bias": base.bias})
    plain = adapted(plain, ["0"])
    plain.load_state_dict(
        {n: p for n, p in model.state_dict().items() if "base_layer" not in n}, strict=False
    )
    set_variant(plain, Dense())
    assert worst(ours, gradients(plain, x)) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_base_runs_once_with_its_hooks(dropout):
    model, x = layer(dropout=dropout), torch.randn(5, 12).double()
    base, calls = model.base_model.model[0].base_layer, []

    def shifted(module, args, y):
        calls.append(1)
        return y + 0.5 * args[0].sum()

    base.register_forward_hook(shifted)
    peft = gradients(model, x)
    calls.clear()
    accelerate_(model)
    assert worst(gradients(model, x), peft) <= 1e-12
    assert len(calls) == 1
    base.forward = lambda x: x[..., :8] * 3  # as some libraries set an instance's own
    ours = gradients(model, x)
    restore_(model)
    assert worst(ours, gradients(model, x)) <= 1e-12


def test_a_trained_bias_of_the_base_gets_pefts_gradient():
    for dropout in (0.0, 0.3):
        model, x = layer(dropout=dropout, bias="lora_only"), torch.randn(5, 12).double()
        peft = gradients(model, x)
        assert "base_model.model.0.base_layer.bias" in peft
        accelerate_(model)
        assert worst(gradients(model, x), peft) <= 1e-12


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 3, 4, 12)])
def test_any_leading_dimensions(shape):
    model, x = layer(), torch.randn(*shape).double()
    expected = model(x).detach().reshape(*shape[:-1], 8)  # PEFT makes (1, d_out) of one vector
    accelerate_(model)
    y = model(x)
    y.sum().backward()
    assert y.shape == expected.shape and torch.allclose(y, expected, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), expected, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_bfloat16_ours_is_no_further_from_the_truth(base, autocast, dropout):
    model = layer(64, 48, dropout, dtype=base)  # A, B and m are float32
    for parameter in model.parameters():
        parameter.data = parameter.bfloat16().to(parameter.dtype)
    x = torch.randn(40, 64).bfloat16().to(base)
    truth = copy.deepcopy(model).double()
    expected = gradients(truth, x.double())

    def errors():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            got = gradients(model, x)
        return {n: float((got[n] - e).abs().max() / e.abs().max()) for n, e in expected.items()}

    theirs = errors()
    accelerate_(model)
    for name, error in errors().items():
        if dropout == 0:  # with it, masks of another dtype differ
            assert error < max(2 * theirs[name], 1e-6 if base == torch.float32 else 5e-3), name
        assert error < 0.02 or dropout


def test_a_float32_adapter_on_a_16_bit_base_is_not_rounded():
    model, x = layer(64, 48, dtype=torch.bfloat16), torch.randn(40, 64).bfloat16()
    peft = gradients(model, x)
    accelerate_(model)
    ours = gradients(model, x)
    for kind in ("lora_A", "lora_B"):
        name = f"base_model.model.0.{kind}.default.weight"
        assert (ours[name] - peft[name]).abs().max() <= 1e-4 * peft[name].abs().max()


def test_several_active_adapters_go_pefts_way_and_say_so():
    model, x = layer(), torch.randn(5, 12).double()
    model.add_adapter("second", hf.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    model.base_model.set_adapter(["default", "second"])
    peft = gradients(model, x)
    assert accelerate_(model) == 1
    with pytest.warns(UserWarning, match="several adapters are active at once"):
        ours = gradients(model, x)
    assert worst(ours, peft) == 0
    gradients(model, x)  # warned once
    model.base_model.set_adapter("default")
    one = gradients(model, x)
    restore_(model)
    assert 0 < worst(one, gradients(model, x)) <= 1e-12


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_hooks_on_the_adapters_own_layers_go_pefts_way(part):
    model, x = layer(), torch.randn(5, 12).double()
    inner, calls = getattr(model.base_model.model[0], part)["default"], []
    accelerate_(model)
    inner.register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="forward hooks: such layers go PEFT's way"):
        gradients(model, x)
    assert calls


def test_a_trained_base_weight_goes_pefts_way():
    model, x = layer(dropout=0.2), torch.randn(5, 12).double()
    model.base_model.model[0].base_layer.weight.requires_grad_()
    peft = gradients(model, x)
    accelerate_(model)
    with pytest.warns(UserWarning, match="a base weight requires a gradient"):
        assert worst(gradients(model, x), peft) == 0


def test_only_this_model_and_what_is_there_now():
    model, other, x = layer(), layer(), torch.randn(5, 12).double()
    theirs = variants.DoraLinearVariant.forward
    assert accelerate_(model) == 1
    module = model.base_model.model[0]
    assert variants.DoraLinearVariant.forward is theirs
    ours = type(module.lora_variant["default"])
    assert type(other.base_model.model[0].lora_variant["default"]) is variants.DoraLinearVariant
    model.add_adapter("later", hf.LoraConfig(r=2, target_modules=["0"], use_dora=True))
    assert type(module.lora_variant["later"]) is variants.DoraLinearVariant
    assert accelerate_(model, "exact") == 1
    assert [v.norm_grad for v in module.lora_variant.values()] == ["exact", "exact"]
    assert type(module.lora_variant["later"]) is ours
    assert restore_(model) == 1 and restore_(model) == 0
    assert {type(v) for v in module.lora_variant.values()} == {variants.DoraLinearVariant}
    assert worst(gradients(model, x), gradients(other, x)) == 0


def test_saved_and_loaded_by_plain_peft_nothing_differs(tmp_path):
    model, x = layer(), torch.randn(5, 12).double()
    keys = list(model.state_dict())
    accelerate_(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    gradients(model, x)
    optimizer.step()
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    base = nn.Sequential(copy.deepcopy(model.base_model.model[0].base_layer))
    plain = hf.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    restore_(model)
    assert torch.equal(plain(x), model.eval()(x))


def test_merging_disabling_and_unloading_are_pefts():
    model, x = layer().eval(), torch.randn(5, 12).double()
    base = model.base_model.model[0].base_layer
    with torch.no_grad():
        adapted_, plain = model(x), base(x)
        accelerate_(model)
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
        assert torch.allclose(model(x), adapted_, atol=1e-12)
        model.merge_adapter()
        assert torch.allclose(model(x), adapted_, atol=1e-12)
        model.unmerge_adapter()
        assert torch.allclose(model(x), adapted_, atol=1e-12)
        merged = model.merge_and_unload()
        assert type(merged[0]) is nn.Linear
        assert torch.allclose(merged(x), adapted_, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_keep_nothing(copied):
    model, x = layer().eval(), torch.randn(5, 12).double()
    accelerate_(model, "exact")
    with torch.no_grad():
        expected = model(x)
        again = copied(model)
        assert clear_cache_(again) == 0
        assert torch.equal(again(x), expected)
    assert worst(gradients(again, x), gradients(model, x)) == 0


def test_a_row_of_zeros_gives_finite_numbers():
    for dropout in (0.0, 0.3):
        model, x = layer(dropout=dropout), torch.randn(5, 12).double()
        module = model.base_model.model[0]
        with torch.no_grad():
            module.base_layer.weight[0] = module.lora_B["default"].weight[0] = 0
            module.lora_magnitude_vector["default"].weight[0] = 0
        assert gradients(model, x)["y"].isnan().any()
        for norm_grad in ("detached", "exact"):
            accelerate_(model, norm_grad)
            assert all(value.isfinite().all() for value in gradients(model, x).values())


@pytest.mark.parametrize("dropout, at_most", [(0.0, 0.55), (0.3, 0.8)])
def test_less_is_kept_for_backward(dropout, at_most):
    model = layer(256, 256, dropout, torch.float32).train()
    x = torch.randn(1024, 256, requires_grad=True)
    given = [x, *model.parameters()]
    peft = kept_elements(lambda: model(x), given)[0]
    for norm_grad in ("detached", "exact"):
        accelerate_(model, norm_grad)
        assert kept_elements(lambda: model(x), given)[0] < at_most * peft


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    model, x = layer(dropout=0.2).train(), torch.randn(5, 12, requires_grad=True).double()
    accelerate_(model, "exact")
    expected = gradients(model, x)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    ours = {n.removeprefix("inner."): g for n, g in gradients(Checkpointed(), x).items()}
    assert worst(ours, expected) <= 1e-12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    model, x = layer().train(training), torch.randn(5, 12).double()
    accelerate_(model, "exact")
    expected = gradients(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    ours = {n.removeprefix("_orig_mod."): g for n, g in gradients(compiled, x).items()}
    assert worst(ours, expected) <= 1e-12
    with torch.no_grad():
        assert torch.allclose(compiled(x), expected["y"], atol=1e-12)


def test_refusals_name_what_is_wrong(monkeypatch):
    model = layer()
    with pytest.raises(ValueError, match="norm_grad: expected one of .*'detached'.*got 'none'"):
        accelerate_(model, "none")
    with pytest.raises(ValueError, match="model: expected linear layers with PEFT's DoRA"):
        accelerate_(layer(use_dora=False))
    for version in ("0.17.1", "0.22.0", "1.0.0.dev0"):
        monkeypatch.setattr(hf, "__version__", version)
        with pytest.raises(RuntimeError, match=f"expected PEFT 0.18 to 0.21, got PEFT {version}"):
            accelerate_(model)
    monkeypatch.undo()

    def otherwise(module, adapter, x):
        raise AssertionError

    monkeypatch.setattr(variants.DoraLinearVariant, "forward", staticmethod(otherwise))
    with pytest.raises(RuntimeError, match=r"DoraLinearVariant.forward of PEFT .*'active_adapter'"):
        accelerate_(model)
    assert type(model.base_model.model[0].lora_variant["default"]) is variants.DoraLinearVariant


def test_embeddings_and_convolutions_stay_pefts():
    torch.manual_seed(0)
    parts = {"e": nn.Embedding(7, 5), "c": nn.Conv1d(4, 4, 3), "l": nn.Linear(5, 6)}
    model = adapted(nn.ModuleDict(parts), ["e", "c", "l"])
    assert accelerate_(model) == 1
    inner = model.base_model.model
    assert type(inner["e"].lora_variant["default"]) is variants.DoraEmbeddingVariant
    assert type(inner["c"].lora_variant["default"]) is variants.DoraConv1dVariant

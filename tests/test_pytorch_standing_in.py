"""DoRALinear where nn.Linear stood: hooks, ties, gathered weights, the meta device, export."""

import copy
import gc
import weakref

import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")

import torch
from test_pytorch import by_axis, by_mode, dense, gradients
from test_pytorch_module import layer
from torch.nn import functional as F

from minidora.evidence.gradcheck import relative_error
from minidora.pytorch import DoRALinear, adapt_, disabled, dora, merge_


def added(x):
    return x.sum(-1, keepdim=True)


@by_axis
@pytest.mark.parametrize("training", [True, False])
def test_hooks_of_the_base_are_honoured(norm_axis, training):
    """What they add to the base's output is added to the layer's; those that look add nothing."""
    made = layer(norm_axis).train(training)
    x, seen = torch.randn(3, 5).double(), []
    with torch.set_grad_enabled(training):
        want = made(x)
        watching = made.base_layer.register_forward_hook(lambda m, args, y: seen.append(y))
        assert torch.equal(made(x), want)
        assert torch.equal(seen[0], F.linear(x, made.base_layer.weight, made.base_layer.bias))
        watching.remove()
        adding = made.base_layer.register_forward_hook(lambda m, args, y: y + added(args[0]))
        torch.testing.assert_close(made(x), want + added(x))
        made.merge()
        torch.testing.assert_close(made(x), want + added(x))
        made.unmerge()
        torch.testing.assert_close(made.to_linear()(x), want + added(x))
        adding.remove()
        before = made.base_layer.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        torch.testing.assert_close(made(x), want + F.linear(x, made.base_layer.weight))
        before.remove()
        assert torch.equal(made(x), want)


def test_a_forward_of_the_bases_own_is_honoured():
    linear, x = torch.nn.Linear(5, 7), torch.randn(3, 5)
    own = linear.forward
    linear.forward = lambda x: own(x) + added(x)
    want = linear(x)
    model = torch.nn.Sequential(linear)
    adapt_(model, "*", 2, 4, verbose=False)
    torch.testing.assert_close(model(x), want)
    with pytest.raises(ValueError, match="to_linear: base_layer has a forward of its own"):
        merge_(model)


class Tied(torch.nn.Module):
    """A language model, as small as can be, whose head has the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 4)
        self.body = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 9, bias=False)
        self.head.weight = self.embedding.weight


class Untied(Tied):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 9, bias=False)

    def get_output_embeddings(self):
        return self.head


def test_heads_are_left_out_of_everything_and_tied_ones_refused_by_name():
    for model in (Tied(), Untied()):
        adapt_(model, "*", 2, 4, verbose=False)
        assert isinstance(model.body, DoRALinear) and type(model.head) is torch.nn.Linear
        assert not model.head.weight.requires_grad
    model = Tied()
    with pytest.raises(ValueError, match="head: its weight is that of embedding too"):
        adapt_(model, ("body", "head"), 2, 4)
    assert type(model.body) is torch.nn.Linear
    with pytest.raises(ValueError, match="train: head shares its weight with embedding"):
        adapt_(model, "body", 2, 4, train="head")
    adapt_(Untied(), "head", 2, 4, verbose=False)


def gathered_alive(make):
    """Bytes of gathered weights alive after a forward of three layers, each then partitioned."""
    model = torch.nn.Sequential(*(make() for _ in range(3)))
    bases = [m for n, m in model.named_modules() if n.endswith("base_layer")]
    whole = {id(m): m.weight.detach().clone() for m in bases}
    alive = weakref.WeakValueDictionary()

    def gather(module, args):
        for m in module.modules():
            if id(m) in whole:
                m.weight.data = whole[id(m)].clone()
                alive[len(alive)] = m.weight.untyped_storage()

    def release(module, args, y):
        for m in module.modules():
            if id(m) in whole:
                m.weight.data = torch.empty(0)

    for module in model:
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
    y = model(torch.randn(4, 32, requires_grad=True))
    gc.collect()
    assert y.requires_grad
    return sum(storage.nbytes() for storage in alive.values())


@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_weights_gathered_for_a_forward_are_not_kept_alive(norm_grad):
    """As DeepSpeed ZeRO-3 does: param.data is gathered before a layer and let go behind it."""

    def ours():
        return DoRALinear(torch.nn.Linear(32, 32), 4, 8, norm_grad=norm_grad)

    assert gathered_alive(ours) == 0


@by_axis
@by_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_adapter_keeps_its_digits_on_a_16_bit_base(norm_axis, norm_grad, dtype):
    """Outside autocast; A and B used to be rounded, which left dA and dB 3e-3.

    The norm's own gradient goes through products of W0's dtype, and has no more digits than these.
    """
    bound = 1e-3 if norm_grad == "exact" and dtype == torch.bfloat16 else 1e-4
    torch.manual_seed(0)
    n, d, r = 64, 256, 8
    low = {
        "x": torch.randn(n, d).to(dtype),
        "W0": (torch.randn(d, d) / 16).to(dtype),
        "A": torch.randn(r, d) / 16,
        "B": 0.1 * torch.randn(d, r),
    }
    low["m"] = low["W0"].float().norm(dim=1 if norm_axis == "per_output" else 0)
    dy = torch.randn(n, d).to(dtype)
    high = {k: v.double().requires_grad_(k != "W0") for k, v in low.items()}
    low = {k: v.requires_grad_(k != "W0") for k, v in low.items()}
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    _, got = gradients(dora, low, dy, **settings)
    _, want = gradients(dense, high, dy.double(), **settings)
    for name in ("A", "B"):
        assert relative_error(got[name].double(), want[name]) < bound, name


@by_axis
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_meta_device(norm_axis, dropout):
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4))
        adapt_(model, "*", 2, 4, norm_axis=norm_axis, dropout=dropout, verbose=False)
        x = torch.randn(3, 5)
        y = model(x)
        assert y.is_meta and y.shape == (3, 4)
        y.sum().backward()
        assert model[0].lora_A.weight.grad.is_meta
        with torch.no_grad():
            assert model.eval()(x).is_meta
    real = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4))
    adapt_(real, "*", 2, 4, norm_axis=norm_axis, verbose=False)
    model.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(3, 5)
    torch.testing.assert_close(model(x), real(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # PyTorch's own
@by_axis
@by_mode
@pytest.mark.parametrize("n", [2, 40])  # joined with A on the way through W0, or not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_export_with_gradients(norm_axis, norm_grad, n, dtype):
    made = layer(norm_axis, dtype=dtype, norm_grad=norm_grad)
    x = torch.randn(n, 5, dtype=dtype)
    with torch.enable_grad():
        program = torch.export.export(made, (x,))
    torch.testing.assert_close(program.module()(x), made(x))


def test_what_train_names_trains_whole():
    def fresh():
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"body": torch.nn.Linear(4, 4)})
        model["classifier"] = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        return model

    model = fresh()
    count = adapt_(model, "*", 2, 4, train=("classifier",), verbose=False)
    assert isinstance(model["body"], DoRALinear) and count == (16 + 4) + (15 + 8)
    assert type(model["classifier"][0]) is torch.nn.Linear
    assert model["classifier"][0].bias.requires_grad
    with pytest.raises(ValueError, match="train: expected patterns of modules .* got 'score'"):
        adapt_(fresh(), "body", 2, 4, train="score")


def trained(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def classifier():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh())
    head = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classifier = body, head

        def forward(self, x):
            return self.classifier(self.body(x))

    return Classifier()


def test_modules_that_train_whole_are_pefts_modules_to_save(tmp_path):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora.pytorch import load_adapter_, save_adapter

    x, model = torch.randn(3, 5), classifier()
    adapt_(model, "*", 2, 4, train=("classifier",), verbose=False)
    want = trained(model)(x)
    save_adapter(tmp_path / "ours", model)
    again = classifier()
    load_adapter_(tmp_path / "ours", again)
    assert torch.equal(again(x), want) and again.classifier[0].weight.requires_grad
    theirs = peft.PeftModel.from_pretrained(classifier(), tmp_path / "ours")
    torch.testing.assert_close(theirs(x), want)
    config = peft.LoraConfig(
        r=2, target_modules=["0"], exclude_modules=["classifier.0"], use_dora=True
    )
    config.modules_to_save = ["classifier"]
    theirs = peft.get_peft_model(classifier(), config)
    want = trained(theirs)(x)
    theirs.save_pretrained(tmp_path / "theirs")
    again = classifier()
    load_adapter_(tmp_path / "theirs", again)
    torch.testing.assert_close(again(x), want)
    wrong = classifier()
    wrong.classifier[2] = torch.nn.Linear(4, 3)
    with pytest.raises(ValueError, match="classifier: expected shapes"):
        load_adapter_(tmp_path / "theirs", wrong)


@by_axis
def test_disabled_gives_the_base_back_for_a_while(norm_axis):
    made = layer(norm_axis)
    model, x = torch.nn.Sequential(made), torch.randn(3, 5).double()
    W0, bias = made.base_layer.weight.detach().clone(), made.bias
    want, base = model(x), F.linear(x, W0, bias)
    for merged in (False, True):
        if merged:
            made.merge()
        with disabled(model):
            with disabled(model):
                assert torch.equal(model(x), base)
            assert torch.equal(model(x), base)
            torch.testing.assert_close(F.linear(x, made.weight, bias), base)
        torch.testing.assert_close(model(x), want)
    with pytest.raises(ValueError, match="model: expected DoRALinear layers"):
        with disabled(torch.nn.Linear(2, 2)):
            pass
    with pytest.raises(KeyError), disabled(model):
        raise KeyError
    torch.testing.assert_close(model(x), want)


def test_a_merged_layer_gives_the_state_that_peft_gives():
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(torch.nn.Sequential(copy.deepcopy(linear)), config)
    made = DoRALinear(linear, 3, 6)
    inner = theirs.base_model.model[0]
    with torch.no_grad():
        made.lora_B.weight.normal_()
        inner.lora_B["default"].weight.copy_(made.lora_B.weight)
        inner.lora_A["default"].weight.copy_(made.lora_A.weight)
    made.merge()
    inner.merge()
    state = {
        name.replace(".default", "").replace("vector.weight", "vector"): value
        for name, value in inner.state_dict().items()
    }
    assert set(made.state_dict()) == set(state)
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_questions_about_the_weight_build_nothing(monkeypatch):
    made, built = layer(), []
    build = DoRALinear.merged_weight
    monkeypatch.setattr(DoRALinear, "merged_weight", lambda self: built.append(1) or build(self))
    weight = made.weight
    assert isinstance(weight, torch.Tensor) and not weight.requires_grad and weight.ndim == 2
    assert (weight.dtype, weight.device.type, weight.shape) == (torch.float64, "cpu", (7, 5))
    assert (weight.size(0), weight.numel(), len(weight), weight.is_floating_point()) == (
        *(7, 35, 7),
        True,
    )
    assert not built
    want, x = build(made), torch.randn(3, 5).double()
    for got in (
        weight + 0,
        weight.detach(),
        weight.data,
        weight[:],
        torch.stack([weight, want])[0],
        torch.from_numpy(made.weight.numpy()),
        torch.tensor(made.weight.tolist(), dtype=torch.float64),
        copy.deepcopy(made.weight),
        torch.eye(7).double() @ made.weight,
    ):
        assert type(got) is torch.Tensor and torch.equal(got, want)
    torch.testing.assert_close(F.linear(x, made.weight), x @ want.T)
    assert "tensor" in repr(made.weight) and built
    assert weight.data_ptr() == weight.data_ptr() != 0


def test_gpt2s_layers_are_refused_with_what_to_do_instead():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(TypeError, match=r"c_attn: .* got a Conv1D; .*accelerate_"):
        adapt_(model, "*", 2, 4)
    with pytest.raises(TypeError, match="c_fc: expected an nn.Linear, got a Conv1D"):
        adapt_(model, "c_fc", 2, 4)
    assert all(p.requires_grad for p in model.parameters())

"""DoRALinear for PyTorch: in place of nn.Linear, in whole models, beside NumPy's and PEFT's."""

import copy
import io

import numpy as np
import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")

import torch
from torch.nn import functional as F

from minidora import nn, training
from minidora.evidence.gradcheck import relative_error
from minidora.pytorch import DoRALinear, adapt_, merge_
from minidora.training import data

AXES = ("per_output", "per_input")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
by_axis = pytest.mark.parametrize("norm_axis", AXES)


def layer(norm_axis="per_output", *, bias=True, dtype=torch.float64, rank=3, seed=0, **settings):
    """A layer as if it had trained a little."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(5, 7, bias=bias, dtype=dtype)
    made = DoRALinear.from_linear(linear, rank, 6, norm_axis=norm_axis, **settings)
    with torch.no_grad():
        made.lora_B.weight.normal_()
        made.lora_magnitude_vector.mul_(1 + 0.3 * torch.randn(made.lora_magnitude_vector.shape))
    return made


@by_axis
def test_it_starts_as_its_base(norm_axis):
    linear = torch.nn.Linear(5, 7)
    x = torch.randn(4, 5)
    want = linear(x)
    made = DoRALinear.from_linear(linear, 2, 4, norm_axis=norm_axis)
    torch.testing.assert_close(made(x), want)
    assert made.base_layer is linear and not linear.weight.requires_grad
    assert [n for n, p in made.named_parameters() if p.requires_grad] == [
        "lora_magnitude_vector",
        "lora_A.weight",
        "lora_B.weight",
    ]
    assert "norm_axis='" + norm_axis in repr(made) and made.scale == 2
    assert DoRALinear(torch.nn.Linear(5, 7), 4, 8, rslora=True).scale == 4


@by_axis
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_merge_and_unmerge(norm_axis, strength):
    made = layer(norm_axis, strength=strength)
    x, original = torch.randn(4, 5).double(), made.base_layer.weight.clone()
    want = made(x)
    if strength == 0:
        assert torch.equal(want, made.base_layer(x))
    made.merge()
    assert made.merged
    torch.testing.assert_close(made(x), want)
    with pytest.warns(UserWarning, match="^merge: the layer is merged already"):
        made.merge()
    linear = made.to_linear()
    torch.testing.assert_close(linear(x), want)
    made.unmerge()
    assert torch.equal(made.base_layer.weight, original) and not made.merged
    torch.testing.assert_close(made(x), want)
    torch.testing.assert_close(made.to_linear()(x), want)
    with pytest.warns(UserWarning, match="unmerge: the layer is not merged"):
        made.unmerge()


def test_merging_what_is_not_finite_is_refused():
    made = layer()
    made.lora_B.weight.data[0, 0] = float("nan")
    before = made.base_layer.weight.clone()
    with pytest.raises(ValueError, match="merge: the merged weight is not finite"):
        made.merge()
    assert torch.equal(made.base_layer.weight, before) and not made.merged


@by_axis
def test_dropout_acts_on_what_the_adapter_sees_and_only_in_training(norm_axis):
    made = layer(norm_axis, dropout=0.4)
    x = torch.randn(3, 5).double()
    W = made.merged_weight()
    torch.manual_seed(1)
    y = made(x)
    torch.manual_seed(1)
    mask = F.dropout(torch.ones_like(x), 0.4)
    base = made.base_layer
    want = F.linear(x, base.weight, base.bias) + (x * mask) @ (W - base.weight).T
    torch.testing.assert_close(y, want)
    assert (mask == 0).any() and (mask > 1).any()
    torch.testing.assert_close(made.eval()(x), F.linear(x, W, base.bias))


@by_axis
def test_the_squares_of_w0_are_computed_once_and_notice_a_change(norm_axis, monkeypatch):
    made = layer(norm_axis)
    x = torch.randn(3, 5).double()
    first = made.squares()
    assert made.squares() is first  # computed once
    changes = {
        "in place": lambda: made.base_layer.weight.mul_(2),
        "loaded": lambda: made.load_state_dict(
            {**made.state_dict(), "base_layer.weight": torch.randn(7, 5).double()}
        ),
        "replaced": lambda: setattr(
            made.base_layer,
            "weight",
            torch.nn.Parameter(torch.randn(7, 5).double(), requires_grad=False),
        ),
    }
    for name, change in changes.items():
        with torch.no_grad():
            change()
        W = made.merged_weight()
        torch.testing.assert_close(made(x), F.linear(x, W, made.base_layer.bias), msg=name)
        assert made.squares() is not first
    assert "W0_sq" not in made.state_dict()


def test_dtype_and_copies_take_everything_along():
    made = layer(dtype=torch.float32)
    x = torch.randn(3, 5)
    want = made(x)
    for other in (copy.deepcopy(made), torch.load(saved(made), weights_only=False)):
        torch.testing.assert_close(other(x), want)
    made.double()
    assert made.squares().dtype == torch.float64
    torch.testing.assert_close(made(x.double()).float(), want)
    made.bfloat16()
    assert made.lora_magnitude_vector.dtype == torch.float32
    torch.testing.assert_close(made(x.bfloat16()).float(), want, rtol=0.05, atol=0.05)
    made.merge()
    original = made._W0.detach().clone()
    made.float()
    made.unmerge()
    torch.testing.assert_close(made.base_layer.weight, original.float())


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return file


def test_a_low_precision_base_has_float32_adapters():
    made = layer(dtype=torch.bfloat16)
    trained = [p for p in made.parameters() if p.requires_grad]
    assert [p.dtype for p in trained] == [torch.float32] * 3
    made(torch.randn(4, 5).bfloat16()).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in trained)


def test_a_stale_sum_of_squares_cannot_come_back_at_an_old_address():
    made = layer(dtype=torch.float32)
    x = torch.randn(3, 5)
    for _ in range(10):  # memory that is given back is soon used again
        made.base_layer.weight.data = made.base_layer.weight.data * 1.5
        torch.testing.assert_close(made(x), F.linear(x, made.weight, made.bias))
    before = made.base_layer.weight.detach().clone()
    made.bfloat16().float()
    assert not torch.equal(made.base_layer.weight, before)
    torch.testing.assert_close(made.squares(), made.base_layer.weight.square().sum(1))


def test_magnitudes_are_not_rounded_on_the_way_through_low_precision():
    made = layer(dtype=torch.float32)
    before = made.lora_magnitude_vector.detach().clone()
    made(torch.randn(3, 5)).sum().backward()
    made.half()
    assert torch.equal(made.lora_magnitude_vector, before)
    made(torch.randn(3, 5).half()).sum().backward()
    torch.optim.AdamW([p for p in made.parameters() if p.requires_grad]).step()
    assert not torch.equal(made.lora_magnitude_vector, before)


def test_it_looks_like_the_linear_layer_it_stands_for():
    made = layer()
    assert (made.in_features, made.out_features) == (5, 7)
    torch.testing.assert_close(made.weight, made.merged_weight())
    assert made.bias is made.base_layer.bias
    encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    adapt_(encoder, ("linear1", "linear2"), rank=2, alpha=4, verbose=False)
    encoder.linear1.lora_B.weight.data.normal_()
    x = torch.randn(2, 3, 8)
    want = encoder(x).detach()
    with torch.no_grad():  # in evaluation PyTorch reads the weights themselves
        torch.testing.assert_close(encoder.eval()(x), want)


def test_sharing_a_weight_is_safe():
    embedding, head = torch.nn.Embedding(7, 5), torch.nn.Linear(5, 7, bias=False)
    head.weight = embedding.weight
    made = DoRALinear(head, 2, 4)
    made.lora_B.weight.data.normal_()
    x, before = torch.randn(3, 5, requires_grad=True), embedding.weight.detach().clone()
    y = made(x)
    made.merge()
    assert torch.equal(embedding.weight, before) and head.weight is not embedding.weight
    torch.testing.assert_close(made(x), y)
    y.sum().backward()  # of a forward before the merge
    torch.testing.assert_close(x.grad, made.weight.sum(0).expand(3, 5))
    made.unmerge()
    assert head.weight is embedding.weight


def test_what_a_merged_layer_refuses():
    made = layer()
    state = {name: value.clone() for name, value in made.state_dict().items()}
    made.merge()
    for name, action in {
        "load_state_dict": lambda: made.load_state_dict(state),
        "strength": lambda: setattr(made, "strength", 0.0),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: .*merged"):
            action()


def test_evaluation_mode_is_taken_over():
    model = Model().eval()
    adapt_(model, "q", rank=2, alpha=4, dropout=0.5, verbose=False)
    assert not model.q.training and model.train().q.training


def test_layers_adapted_before_go_on_training():
    model = Model()
    first = adapt_(model, "q", rank=2, alpha=4, verbose=False)
    second = adapt_(model, "k", rank=2, alpha=4, verbose=False)
    assert second == 2 * first and model.q.lora_A.weight.requires_grad


def test_a_layer_that_cannot_be_adapted_is_named_and_nothing_is_changed():
    class Odd(torch.nn.Linear):
        def forward(self, x):
            return x

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), Odd(3, 3))
    with pytest.raises(TypeError, match="1: expected an nn.Linear, got a Odd"):
        adapt_(model, "*", rank=1, alpha=2)
    assert model[0].weight.requires_grad and type(model[0]) is torch.nn.Linear
    attention = torch.nn.ModuleDict({"mha": torch.nn.MultiheadAttention(8, 2)})
    with pytest.raises(TypeError, match="mha.out_proj: nn.MultiheadAttention reads"):
        adapt_(attention, "*", rank=1, alpha=2)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
    with pytest.raises(TypeError, match="0: expected a plain weight, got a parametrized one"):
        adapt_(torch.nn.Sequential(normed), "*", rank=1, alpha=2)
    bad = torch.nn.Sequential(layer())
    bad[0].lora_B.weight.data[0] = float("inf")
    with pytest.raises(ValueError, match="to_linear: the merged weight is not finite"):
        merge_(bad)
    assert isinstance(bad[0], DoRALinear)
    for empty in (torch.nn.Linear(2, 2), torch.nn.ReLU()):
        with pytest.raises(ValueError, match="model: expected nn.Linear layers inside it"):
            adapt_(empty, "*", rank=1, alpha=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it traces
@pytest.mark.parametrize("norm_axis", AXES)
def test_compile_under_autocast_trains(norm_axis):
    made = layer(norm_axis, dtype=torch.float32)
    x = torch.randn(40, 5)
    trained = [p for p in made.parameters() if p.requires_grad]
    gradients = []
    torch._dynamo.reset()
    try:
        for function in (made, torch.compile(made, fullgraph=True, backend="aot_eager")):
            with torch.autocast("cpu", torch.bfloat16):
                y = function(x)
            gradients.append(torch.autograd.grad(y.float().sum(), trained))
    finally:
        torch._dynamo.reset()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_numpys_whole_numbers_are_ranks():
    assert DoRALinear(torch.nn.Linear(2, 2), np.int64(2), 4).lora_A.out_features == 2


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6, bias=False)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6)
        )
        self.norm = torch.nn.LayerNorm(6)
        self.tied = self.k

    def forward(self, x):
        return self.norm(self.mlp(self.q(x) + self.tied(self.k(x))))


def test_adapt_swaps_freezes_and_counts(capsys):
    model, x = Model(), torch.randn(4, 6)
    want = model(x)
    count = adapt_(model, ("q", "mlp.*", "k"), rank=2, alpha=4)
    assert type(model.q) is type(model.mlp[0]) is type(model.mlp[2]) is DoRALinear
    assert model.tied is model.k and isinstance(model.k, DoRALinear)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition("lora_")[1] for name in trained} == {"lora_"}
    by_hand = 2 * (2 * 12 + 6) + (2 * 14 + 8) + (2 * 14 + 6)
    every = sum(p.numel() for p in model.parameters())
    assert count == by_hand == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert capsys.readouterr().out == (
        f"trainable: {count:,} of {every:,} ({100 * count / every:.2f} %)\n"
    )
    torch.testing.assert_close(model(x), want)
    model(x).square().sum().backward()
    for p in model.parameters():
        if p.requires_grad:
            p.data -= 0.1 * p.grad
    tuned = model(x)
    assert not torch.allclose(tuned, want)
    assert merge_(model) == 4 and type(model.q) is torch.nn.Linear and model.tied is model.k
    torch.testing.assert_close(model(x), tuned)
    assert not any(isinstance(m, DoRALinear) for m in model.modules())


def test_adapt_again_leaves_adapted_layers_alone():
    model = Model()
    adapt_(model, "q", rank=2, alpha=4, verbose=False)
    inner = model.q
    with pytest.raises(ValueError, match="targets: expected patterns of"):
        adapt_(model, "base_layer", rank=2, alpha=4)
    adapt_(model, "*", rank=1, alpha=4, verbose=False)
    assert model.q is inner and isinstance(model.mlp[0], DoRALinear)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"targets": "v_proj"},
            ValueError,
            r"targets: .*\['k', 'mlp.0', 'mlp.2', 'q', 'tied'\], got 'v_proj'",
        ),
        ({"targets": ("q", "nothing")}, ValueError, "got 'nothing'"),
        ({"targets": ()}, ValueError, "targets: expected patterns of .* got none"),
        ({"rank": 0}, ValueError, "rank: expected a whole number above 0, got 0"),
        ({"dropout": 1.0}, ValueError, "dropout: expected 0 or more and below 1"),
        ({"norm_axis": "column"}, ValueError, "norm_axis: expected one of"),
        ({"rslora": "no"}, TypeError, "rslora: expected True or False, got 'no'"),
        ({"keep_output": 1}, TypeError, "keep_output: expected True or False, got 1"),
        ({"strength": None}, TypeError, "strength: expected a number, got None"),
        ({"strenght": 1.0}, TypeError, "strenght"),
        ({"norm_grad": "none"}, ValueError, "norm_grad: expected one of"),
    ],
)
def test_adapt_names_what_is_wrong_and_leaves_the_model(change, error, words):
    model = Model()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(error, match=words):
        adapt_(model, **{"targets": "q", "rank": 2, "alpha": 4, **change})
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert type(model.q) is torch.nn.Linear


def test_layers_that_are_not_linear_are_refused():
    class Quantised(torch.nn.Linear):
        def forward(self, x):
            return x

    for base, words in (
        (torch.nn.Conv2d(1, 1, 1), "expected an nn.Linear, got a Conv2d"),
        (Quantised(2, 2), "expected an nn.Linear, got a Quantised"),
    ):
        with pytest.raises(TypeError, match=words):
            DoRALinear(base, 1, 1)
    whole = torch.nn.Linear(2, 2)
    whole.weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="base_layer: expected a dtype among .* got torch.int8"):
        DoRALinear(whole, 1, 1)
    with pytest.raises(ValueError, match="model: expected DoRALinear layers inside it, got none"):
        merge_(Model())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it traces
@pytest.mark.parametrize("norm_axis", AXES)
def test_one_graph_under_compile_even_where_w0_changes(norm_axis):
    made = layer(norm_axis, dtype=torch.float32)
    x = torch.randn(4, 5)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), made(x))
        with torch.no_grad():
            made.base_layer.weight.mul_(3)
        torch.testing.assert_close(compiled(x), made(x))
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_twenty_steps_of_a_transformer_follow_the_numpy_one(norm_grad, device):
    from twin import loss_of, tensor, twin_of

    rng = np.random.default_rng(0)
    base = nn.Transformer.init(data.VOCABULARY, 16, 2, 2, 8, rng, dtype=np.float64)
    twin = twin_of(base).to(device)
    model = nn.adapt(base, "dora", ("q", "v"), rank=2, alpha=4, rng=rng, norm_grad=norm_grad)
    adapt_(twin, ("q", "v"), rank=2, alpha=4, norm_grad=norm_grad, verbose=False)
    ours = {"A": "lora_A.weight", "B": "lora_B.weight", "m": "lora_magnitude_vector"}
    names = {  # NumPy's name of a parameter: PyTorch's parameter
        name: twin.get_parameter(f"{name.rpartition('.')[0]}.{ours[name.rpartition('.')[2]]}")
        for name in nn.trained(model)
    }
    for name, parameter in names.items():
        parameter.data = tensor(nn.trained(model)[name]).to(device)
    assert sum(p.requires_grad for p in twin.parameters()) == len(names) == 12
    words = data.encode([w for w in data.names("female") if len(w) < 8], 8)
    optimizer = torch.optim.AdamW(names.values(), lr=1e-2, weight_decay=0.01)
    numpy_optimizer = training.AdamW(weight_decay=0.01)
    for _, batch in zip(range(20), data.batches(words, 16, np.random.default_rng(1)), strict=False):
        loss, grads = nn.language_modelling(model, batch)
        logits = twin(tensor(batch.tokens).to(device))
        twin_loss = loss_of(logits, tensor(batch.targets).to(device))
        assert loss == pytest.approx(twin_loss.item(), rel=1e-8)
        numpy_optimizer.step(nn.trained(model), grads, 1e-2)
        optimizer.zero_grad()
        twin_loss.backward()
        optimizer.step()
    for name, parameter in names.items():
        got = parameter.detach().cpu().numpy()
        assert relative_error(got, nn.trained(model)[name]) < 1e-8, name


@pytest.fixture
def peft_pair():
    """The same base twice, adapted by PEFT and by us, with the same parameters."""
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 4)
    ).double()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], use_dora=True)
    theirs = peft.get_peft_model(copy.deepcopy(plain), config, autocast_adapter_dtype=False)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    adapt_(plain, ("0", "2"), rank=3, alpha=6, norm_grad="detached", verbose=False)
    return peft, theirs, plain


def test_names_map_one_to_one_to_pefts(peft_pair):
    peft, theirs, ours = peft_pair
    state = peft.get_peft_model_state_dict(theirs)
    adapters = {n for n, p in ours.named_parameters() if p.requires_grad}
    assert {f"base_model.model.{name}" for name in adapters} == set(state)
    missing = ours.load_state_dict(
        {name.removeprefix("base_model.model."): value for name, value in state.items()},
        strict=False,
    )
    assert missing.unexpected_keys == []


def test_pefts_layer_and_ours_agree(peft_pair):
    peft, theirs, ours = peft_pair
    state = peft.get_peft_model_state_dict(theirs)
    ours.load_state_dict(
        {n.removeprefix("base_model.model."): v for n, v in state.items()}, strict=False
    )
    x = torch.randn(9, 5).double().requires_grad_()
    x_too = x.detach().clone().requires_grad_()
    dy = torch.randn(9, 4).double()
    y, y_too = theirs(x), ours(x_too)
    assert relative_error(y_too.detach(), y.detach()) < 1e-12
    y.backward(dy)
    y_too.backward(dy)
    assert relative_error(x_too.grad, x.grad) < 1e-12
    grads = {
        n.replace(".default", "").removesuffix(".weight").removeprefix("base_model.model."): p.grad
        for n, p in theirs.named_parameters()
        if p.requires_grad
    }
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            want = grads[name.removesuffix(".weight")]
            assert relative_error(parameter.grad, want) < 1e-12, name
            compared += 1
    assert compared == 6


def test_a_setting_that_is_refused_leaves_the_base_as_it_was():
    base = torch.nn.Linear(4, 3)
    for setting in ("strength", "rslora", "keep_output"):
        with pytest.raises(TypeError, match=f"{setting}: expected .* got 'no'"):
            DoRALinear(base, 2, 4, **{setting: "no"})
    assert base.weight.requires_grad and base.bias.requires_grad


def test_adapter_folders_of_torch_models(tmp_path):
    """Subclasses of torch.nn.Linear come back; what a folder cannot hold is refused."""
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    from minidora.pytorch import load_adapter_, save_adapter

    class Named(torch.nn.Linear):
        pass

    def fresh():
        torch.manual_seed(0)
        return torch.nn.Sequential(Named(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))

    model, again = fresh(), fresh()
    adapt_(model, ("0",), 2, 4, verbose=False)
    torch.nn.init.normal_(model[0].lora_B.weight)
    save_adapter(tmp_path / "a", model)
    load_adapter_(tmp_path / "a", again)
    x = torch.randn(5, 4)
    assert torch.equal(model(x), again(x))
    model[2].weight.requires_grad_()
    with pytest.raises(ValueError, match=r"A, B and m alone, but \['2.weight'\] train too"):
        save_adapter(tmp_path / "b", model)
    assert not (tmp_path / "b").exists()


def test_a_float16_folder_trains_in_float32(tmp_path):
    """AdamW's eps, 1e-8, is 0 in float16: a step there divides by it."""
    files = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    from minidora.pytorch import load_adapter_, save_adapter

    def fresh(dtype):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).to(dtype)

    model = fresh(torch.float32)
    adapt_(model, "*", 2, 4, verbose=False)
    save_adapter(tmp_path / "a", model)
    path = tmp_path / "a" / "adapter_model.safetensors"
    halves = {name: array.half() for name, array in files.load_file(path).items()}
    files.save_file(halves, path, metadata={"format": "pt"})
    for dtype in (torch.float32, torch.float16):
        loaded = fresh(dtype)
        load_adapter_(tmp_path / "a", loaded)
        trained = {n: p for n, p in loaded.named_parameters() if p.requires_grad}
        for name, parameter in trained.items():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter.half(), halves[f"base_model.model.{name}"]), name
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
        (1e-6 * loaded(torch.ones(5, 4, dtype=dtype)).float().sum()).backward()
        optimizer.step()
        for name, parameter in trained.items():
            assert (parameter - halves[f"base_model.model.{name}"]).abs().max() < 2e-3, name

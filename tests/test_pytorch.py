"""DoRA for PyTorch against DoRA for NumPy, dense autograd, gradcheck and PEFT, on every device."""

import numpy as np
import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")

import torch
from torch.autograd.gradcheck import GradcheckError
from torch.utils._python_dispatch import TorchDispatchMode

from minidora import factored
from minidora.evidence.cases import dora_cases
from minidora.evidence.gradcheck import relative_error
from minidora.pytorch import DoRALinear, dora, squared_norms
from minidora.pytorch.witness import dora_gradients
from tests.benchmarks.kept import kept_elements

AXES = ("per_output", "per_input")
MODES = ("exact", "detached")
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
on_devices = pytest.mark.parametrize("device", DEVICES)
by_axis = pytest.mark.parametrize("norm_axis", AXES)
by_mode = pytest.mark.parametrize("norm_grad", MODES)


def case(
    norm_axis,
    *,
    n=11,
    d_out=7,
    d_in=5,
    r=3,
    mask=True,
    bias=True,
    seed=0,
    device="cpu",
    dtype=torch.float64,
):
    """Arguments where bugs cannot hide: not square, B and m as they come, scale 0.7."""
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=dtype, device=device)

    t = {
        "x": tensor(n, d_in),
        "W0": tensor(d_out, d_in),
        "A": tensor(r, d_in),
        "B": tensor(d_out, r),
    }
    t["m"] = tensor(d_out if norm_axis == "per_output" else d_in)
    if bias:
        t["bias"] = tensor(d_out)
    if mask:
        t["mask"] = torch.tensor(rng.random((n, d_in)) > 0.3, device=device).to(dtype) * 1.5
    for name in t:
        t[name].requires_grad_(name not in ("W0", "mask"))
    return t, tensor(n, d_out)


def dense(
    x, W0, A, B, m, scale, *, bias=None, norm_axis="per_output", norm_grad="exact", mask=None
):
    """Eq. 5 written out, for PyTorch's autograd."""
    dim = 1 if norm_axis == "per_output" else 0
    V = W0 + scale * B @ A
    c = V.pow(2).sum(dim, keepdim=True).add(1e-24).sqrt()
    W = m.unsqueeze(dim) * V / (c.detach() if norm_grad == "detached" else c)
    y = x @ W0.T + (x if mask is None else x * mask) @ (W - W0).T
    return y if bias is None else y + bias


def gradients(function, t, dy, **settings):
    trained = {name: value for name, value in t.items() if value.requires_grad}
    y = function(
        *(t[k] for k in "x W0 A B m".split()),
        0.7,
        bias=t.get("bias"),
        mask=t.get("mask"),
        **settings,
    )
    grads = torch.autograd.grad(y, list(trained.values()), dy)
    return y, dict(zip(trained, grads, strict=True))


@on_devices
@by_axis
@by_mode
def test_equals_the_numpy_layer_on_every_case(norm_axis, norm_grad, device):
    count = 0
    for drawn in dora_cases(np.random.default_rng(0), norm_axis):
        _, cache = factored.dora_forward(**drawn.inputs, **drawn.settings)
        want = factored.dora_backward(drawn.dy, cache, norm_grad=norm_grad)._asdict()
        got = dora_gradients(
            drawn.dy, drawn.inputs, drawn.settings, norm_grad=norm_grad, device=device
        )
        for name, grad in got.items():
            assert relative_error(grad, want[name]) < 1e-10, (drawn.name, name)
            count += 1
    assert count > 30


@on_devices
@by_axis
@by_mode
@pytest.mark.parametrize("n", [1, 40])
@pytest.mark.parametrize("mask", [False, True])
def test_equals_dense_autograd(norm_axis, norm_grad, n, mask, device):
    t, dy = case(norm_axis, n=n, mask=mask, device=device)
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    y, got = gradients(dora, t, dy, **settings)
    want_y, want = gradients(dense, t, dy, **settings)
    assert relative_error(y.detach().cpu(), want_y.detach().cpu()) < 1e-13
    assert set(got) == {"x", "A", "B", "m", "bias"}
    for name, grad in got.items():
        assert relative_error(grad.cpu(), want[name].cpu()) < 1e-12, name


@by_axis
@pytest.mark.parametrize("mask", [False, True])
def test_gradcheck_takes_the_exact_gradient_and_rejects_the_detached(norm_axis, mask):
    t, _ = case(norm_axis, n=4, mask=mask)

    def function(norm_grad):
        def y(x, A, B, m, bias):
            settings = {"norm_axis": norm_axis, "norm_grad": norm_grad, "mask": t.get("mask")}
            return dora(x, t["W0"], A, B, m, 0.7, bias=bias, **settings)

        return y

    inputs = tuple(t[name] for name in ("x", "A", "B", "m", "bias"))
    assert torch.autograd.gradcheck(function("exact"), inputs)
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(function("detached"), inputs)


@by_axis
def test_leading_dimensions_and_strides_do_not_matter(norm_axis):
    t, dy = case(norm_axis, n=12)
    want_y, want = gradients(dora, t, dy, norm_axis=norm_axis)
    odd = {}
    for name, value in t.items():
        value = value.detach()
        if value.ndim == 2:  # a transposed copy seen through t(): the same values, other strides
            value = value.t().contiguous().t()
            assert not value.is_contiguous()
        odd[name] = value.requires_grad_(t[name].requires_grad)
    y, got = gradients(dora, odd, dy.t().contiguous().t(), norm_axis=norm_axis)
    torch.testing.assert_close(y, want_y)
    for name, grad in got.items():
        torch.testing.assert_close(grad, want[name])
    for lead in ((3, 4), (2, 1, 6), (1, 12)):
        shaped = {
            k: v.detach().reshape(*lead, -1) if k in ("x", "mask") else v for k, v in t.items()
        }
        shaped["x"].requires_grad_()
        y, got = gradients(dora, shaped, dy.reshape(*lead, -1), norm_axis=norm_axis)
        assert y.shape == (*lead, 7) and got["x"].shape == (*lead, 5)
        torch.testing.assert_close(y.reshape(12, 7), want_y)
        torch.testing.assert_close(got["x"].reshape(12, 5), want["x"])
    single = dora(t["x"][0].detach(), t["W0"], t["A"], t["B"], t["m"], 0.7, norm_axis=norm_axis)
    assert single.shape == (7,)


BOUNDS = {  # worst relative error against float64 on the same, rounded arguments
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


@on_devices
@by_axis
@by_mode
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("adapters", ["like W0", "float32"])
def test_low_precision_stays_close_to_float64(norm_axis, norm_grad, dtype, adapters, device):
    t, dy = case(norm_axis, n=64, d_out=96, d_in=80, r=4, mask=False, device=device)
    low, high = {}, {}
    for name, value in t.items():
        kind = torch.float32 if adapters == "float32" and name in ("A", "B", "m") else dtype
        low[name] = value.detach().to(kind).requires_grad_(value.requires_grad)
        high[name] = low[name].detach().double().requires_grad_(value.requires_grad)
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    y, got = gradients(dora, low, dy.to(dtype), **settings)
    want_y, want = gradients(dense, high, dy.to(dtype).double(), **settings)
    assert y.dtype == dtype
    assert relative_error(y.detach().double().cpu(), want_y.detach().cpu()) < BOUNDS[dtype]
    for name, grad in got.items():
        assert grad.dtype == low[name].dtype
        assert relative_error(grad.double().cpu(), want[name].cpu()) < BOUNDS[dtype], name


@by_axis
@by_mode
@pytest.mark.parametrize("mask", [False, True])
def test_float32_parameters_beside_a_float64_x(norm_axis, norm_grad, mask):
    t, dy = case(norm_axis, mask=mask)
    in_float32 = ("A", "B", "m", "bias", "mask")
    low = {k: v.detach().float() if k in in_float32 else v.detach() for k, v in t.items()}
    high = {k: v.double() for k, v in low.items()}
    for given in (low, high):
        for name in ("x", "A", "B", "m", "bias"):
            given[name].requires_grad_()
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    y, got = gradients(dora, low, dy, W0_sq=squared_norms(low["W0"], norm_axis), **settings)
    want_y, want = gradients(dense, high, dy, **settings)
    assert y.dtype == torch.float64 and relative_error(y.detach(), want_y.detach()) < 1e-13
    for name, grad in got.items():
        assert grad.dtype == low[name].dtype
        assert relative_error(grad, want[name]) < (1e-12 if name == "x" else 1e-7), name


@by_axis
@pytest.mark.parametrize("dtype, wide", [("float64", "float64"), ("bfloat16", "float32")])
def test_the_norm_is_kept_in_its_own_dtype_whatever_the_squares_come_in(norm_axis, dtype, wide):
    t, _ = case(norm_axis, mask=False)
    t = {name: value.detach().to(getattr(torch, dtype)) for name, value in t.items()}
    t["A"].requires_grad_()
    narrow = torch.float32 if dtype == "float64" else torch.bfloat16
    W0_sq = squared_norms(t["W0"], norm_axis).to(narrow)
    y = dora(**t, scale=0.7, norm_axis=norm_axis, W0_sq=W0_sq)
    assert y.grad_fn.saved_tensors[5].dtype == getattr(torch, wide)  # g = m / c


@by_axis
@pytest.mark.parametrize(("weights", "size"), [(30.0, 1e-3), (0.1, 3e2)])
def test_the_norms_own_gradient_survives_float16s_range(norm_axis, weights, size):
    t, dy = case(norm_axis, n=64, d_out=32, d_in=24, mask=False)
    low = {}
    for name, value in t.items():
        value = weights * value.detach() if name in ("W0", "B") else value.detach()
        kind = torch.float32 if name in ("A", "B", "m") else torch.float16
        low[name] = value.to(kind).requires_grad_(t[name].requires_grad)
    high = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in low.items()}
    dy = (dy * size).half()
    _, got = gradients(dora, low, dy, norm_axis=norm_axis)
    _, want = gradients(dense, high, dy.double(), norm_axis=norm_axis)
    for name in ("A", "B", "m"):
        assert torch.isfinite(got[name]).all()
        assert relative_error(got[name].double(), want[name]) < 1e-2, name


@by_axis
def test_products_of_v_survive_float16s_range(norm_axis):
    """V @ A.T and B.T @ V leave it here; W0's part of them, x @ V.T and the gradients do not."""
    t, dy = case(norm_axis, n=8, d_out=128, d_in=128, mask=False, bias=False)
    low = {k: (v.detach() * (20 if k in ("A", "B") else 1)).float() for k, v in t.items()}
    low["x"], low["W0"] = (low["x"] / 20).half(), low["W0"].half()
    high = {k: v.double() for k, v in low.items()}
    V = high["W0"] + 0.7 * high["B"] @ high["A"]
    assert min((V @ high["A"].T).max(), (high["B"].T @ V).max()) > torch.finfo(torch.float16).max
    for given in (low, high):
        for name in ("x", "A", "B", "m"):
            given[name].requires_grad_()
    _, got = gradients(dora, low, dy.half(), norm_axis=norm_axis)
    _, want = gradients(dense, high, dy.half().double(), norm_axis=norm_axis)
    for name, grad in got.items():
        assert relative_error(grad.double(), want[name]) < 1e-2, name


@by_axis
@pytest.mark.parametrize(("dy_size", "x_size"), [(1e-4, 1e-4), (1e-3, 1e-2), (100, 30)])
def test_the_magnitudes_gradient_is_summed_beyond_float16s_range(norm_axis, dy_size, x_size):
    t, dy = case(norm_axis, n=256, d_out=32, d_in=64, mask=False, bias=False)
    low = {k: (v.detach() if k in ("A", "B", "m") else v.detach().half()) for k, v in t.items()}
    low["x"] = (t["x"].detach() * x_size).half()
    low = {k: v.float() if k in ("A", "B", "m") else v for k, v in low.items()}
    high = {k: v.double() for k, v in low.items()}
    for given in (low, high):
        for name in ("x", "A", "B", "m"):
            given[name].requires_grad_()
    dy = (dy * dy_size).half()
    _, got = gradients(dora, low, dy, norm_axis=norm_axis)
    _, want = gradients(dense, high, dy.double(), norm_axis=norm_axis)
    assert relative_error(got["m"].double(), want["m"]) < 5e-3


def test_norms_do_not_overflow_or_vanish_in_low_precision():
    W0 = torch.full((2, 4096), 5.0, dtype=torch.float16)
    W0[1] = 1e-4
    assert torch.allclose(
        squared_norms(W0, "per_output").sqrt(), torch.tensor([320.0, 0.0064]), rtol=1e-2
    )
    layer = DoRALinear(linear_of(W0), 2, 4)
    x = torch.randn(3, 4096).half()
    torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=1e-2, atol=1e-3)


def linear_of(weight, bias=None):
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = torch.nn.Parameter(weight)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias)
    return linear


@by_axis
def test_zero_vectors_stay_finite_and_learn(norm_axis):
    W0 = torch.randn(6, 5)
    W0[2], W0[:, 3] = 0, 0
    layer = DoRALinear(linear_of(W0.clone()), 2, 4, norm_axis=norm_axis)
    x = torch.randn(8, 5)
    torch.testing.assert_close(layer(x), x @ W0.T)
    layer(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.requires_grad)
    (layer(x) - torch.randn(8, 6)).square().sum().backward()
    row = layer.lora_B.weight.grad[2] if norm_axis == "per_output" else layer.lora_A.weight.grad
    assert row.isfinite().all()


@by_axis
def test_where_V_cancels_W0_the_floor_keeps_it_finite(norm_axis):
    A, B = torch.randn(2, 5), torch.randn(6, 2)
    W0 = -B @ A
    t = {
        "A": A.requires_grad_(),
        "B": B.requires_grad_(),
        "m": torch.ones(6 if norm_axis == "per_output" else 5, requires_grad=True),
    }
    y = dora(torch.randn(4, 5), W0, t["A"], t["B"], t["m"], 1.0, norm_axis=norm_axis)
    y.sum().backward()
    assert y.abs().max() < 0.01  # roundings of V over a floor of 1e-3 ‖w0‖, not over one another
    assert torch.isfinite(y).all() and all(torch.isfinite(v.grad).all() for v in t.values())


@by_axis
def test_one_output_is_kept_for_backward_and_little_else(norm_axis):
    n, d, r = 512, 1024, 16
    t, dy = case(norm_axis, n=n, d_out=d, d_in=d, r=r, mask=False, bias=False, dtype=torch.float32)
    W0_sq = squared_norms(t["W0"], norm_axis)
    inputs = [*t.values(), W0_sq]
    args = [t[k] for k in "x W0 A B m".split()]
    for norm_grad, bound in (("exact", 1.06), ("detached", 1.06)):
        kept, y = kept_elements(
            lambda mode=norm_grad: dora(
                *args, 2.0, norm_axis=norm_axis, norm_grad=mode, W0_sq=W0_sq
            ),
            inputs,
        )
        most = bound if norm_axis == "per_output" else 0.06  # x * g is made anew
        assert 0.01 < kept / (n * d) <= most
        y.backward(dy)


def test_a_branch_that_is_detached_keeps_nothing():
    x, y = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    kept, _ = kept_elements(lambda: x * (x * (y + 1)).detach(), [x])
    assert kept == 35  # the detached factor, and no y + 1


class Sizes(TorchDispatchMode):
    """Notes the size of every tensor that an operation makes, views of W0 left out."""

    def __init__(self, W0):
        super().__init__()
        self.W0, self.made = W0.untyped_storage().data_ptr(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.W0:
                self.made.append(tensor.numel())
        return out


@by_axis
@by_mode
@pytest.mark.parametrize("mask", [False, True])
def test_nothing_of_the_weights_size_is_made(norm_axis, norm_grad, mask):
    t, dy = case(norm_axis, n=6, d_out=50, d_in=40, r=2, mask=mask)
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    for function, most in ((dora, 50 * 40 / 4), (dense, np.inf)):
        with Sizes(t["W0"]) as sizes:
            gradients(function, t, dy, **settings)
        assert len(sizes.made) > 15 and max(sizes.made) < most
    assert max(sizes.made) == 50 * 40  # the dense one does make it


def test_a_second_derivative_is_refused_clearly():
    t, dy = case("per_output")
    y = dora(*(t[k] for k in "x W0 A B m".split()), 0.7)
    (dx,) = torch.autograd.grad(y.square().sum(), t["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it traces
@by_axis
@by_mode
def test_one_graph_under_compile(norm_axis, norm_grad):
    t, dy = case(norm_axis, n=9)
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    want_y, want = gradients(dora, t, dy, **settings)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(dora, fullgraph=True, backend="aot_eager")
        y, got = gradients(compiled, t, dy, **settings)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(y, want_y)
    for name, grad in got.items():
        torch.testing.assert_close(grad, want[name], msg=name)


@on_devices
@by_axis
def test_autocast(norm_axis, device):
    t, dy = case(norm_axis, n=32, d_out=48, d_in=40, mask=False, device=device, dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        y, got = gradients(dora, t, dy.bfloat16(), norm_axis=norm_axis)
        like = torch.nn.functional.linear(t["x"], t["W0"])
    assert y.dtype == like.dtype == torch.bfloat16
    want_y, want = gradients(dense, t, dy, norm_axis=norm_axis)
    assert relative_error(y.detach().float().cpu(), want_y.detach().cpu()) < 3e-2
    for name, grad in got.items():
        assert grad.dtype == torch.float32
        assert relative_error(grad.cpu(), want[name].cpu()) < 3e-2, name
    # outside, the same in full
    _, full = gradients(dora, t, dy, norm_axis=norm_axis)
    assert relative_error(full["A"].cpu(), want["A"].cpu()) < 1e-4


def quantized():
    return torch.quantize_per_tensor(torch.ones(7, 5), 0.1, 0, torch.qint8)


@on_devices
def test_the_norm_stays_in_float32_under_autocast(device):
    torch.manual_seed(0)
    A, B = (torch.randn(shape).bfloat16().float().to(device) for shape in ((4, 400), (32, 4)))
    W0, m, eye = (t.to(device) for t in (torch.zeros(32, 400), torch.ones(32), torch.eye(400)))
    with torch.autocast(device, torch.bfloat16):
        W = dora(eye, W0, A, B, m, 0.7).T.double()  # the weight, each entry rounded to bfloat16
    off = (W.norm(dim=1) - 1).abs().max()
    assert off < 5e-4  # roundings of entries cancel over a row; one of its norm would be 2e-3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.ones(3, 4)}, ValueError, r"x: expected shape \(\.\.\., 5\), got \(3, 4\)"),
        ({"A": torch.ones(3, 4)}, ValueError, r"A: expected shape \(r, 5\), got \(3, 4\)"),
        ({"B": torch.ones(7, 2)}, ValueError, r"B: expected shape \(7, 3\).* got \(7, 2\)"),
        ({"m": torch.ones(5)}, ValueError, r"m: expected shape \(7,\), per_output, got \(5,\)"),
        ({"bias": torch.ones(5)}, ValueError, r"bias: expected shape \(7,\)"),
        ({"mask": torch.ones(3, 5)}, ValueError, r"mask: expected shape \(11, 5\)"),
        ({"W0": torch.ones(7)}, ValueError, r"W0: expected shape \(d_out, d_in\)"),
        ({"W0": torch.ones(7, 5, requires_grad=True)}, ValueError, "W0: expected a frozen weight"),
        ({"W0": torch.ones(7, 5, dtype=torch.int8)}, TypeError, "W0: expected a dtype among"),
        ({"W0": quantized}, TypeError, "W0: expected a dtype among"),
        ({"W0": np.ones((7, 5))}, TypeError, "W0: expected a tensor, got ndarray"),
        ({"x": torch.ones(11, 5).double()}, ValueError, "x: expected dtype torch.float32, like W0"),
        (
            {"A": torch.ones(3, 5).double()},
            ValueError,
            "A: expected dtype torch.float32, got torch.float64",
        ),
        ({"B": torch.ones(7, 3).half()}, ValueError, "B: expected dtype"),
        (
            {"m": torch.ones(7, device="meta")},
            ValueError,
            "m: expected device cpu, like x, got meta",
        ),
        ({"A": None}, TypeError, "A: expected a tensor, got NoneType"),
        ({"x": None}, TypeError, "x: expected a tensor, got NoneType"),
        ({"scale": "2"}, TypeError, "scale: expected a number, got '2'"),
        ({"scale": float("nan")}, ValueError, "scale: expected a finite number"),
        ({"scale": torch.ones(())}, TypeError, "scale: expected a number"),
        ({"eps": -5}, ValueError, "eps: expected a finite number of at least 0, got -5"),
        ({"eps": float("inf")}, ValueError, "eps: expected a finite number of at least 0, got inf"),
        ({"eps": "small"}, TypeError, "eps: expected a number, got 'small'"),
        ({"norm_axis": "rows"}, ValueError, "norm_axis: expected one of"),
        ({"norm_grad": "full"}, ValueError, "norm_grad: expected one of"),
        ({"W0_sq": torch.ones(5)}, ValueError, r"W0_sq: expected shape \(7,\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_bad_arguments_are_named(change, error, words):
    t, _ = case("per_output", dtype=torch.float32)
    change = {k: v() if callable(v) else v for k, v in change.items()}
    given = {**{k: v.detach() for k, v in t.items()}, "scale": 0.7, **change}
    with pytest.raises(error, match=words):
        dora(**given)

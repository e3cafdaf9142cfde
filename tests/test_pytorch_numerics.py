"""Digits of PyTorch's DoRA where B @ A cancels inside itself, and beside huge and tiny factors."""

import numpy as np
import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")
pytest.importorskip("mpmath", reason="needs mpmath: .[test]")

import torch
from test_pytorch import by_axis, by_mode, case, dense, gradients

from minidora.evidence.gradcheck import relative_error
from minidora.pytorch import dora
from tests.benchmarks.kappa import KAPPAS, adapter, errors, kappa_of

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}


@by_axis
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_the_error_grows_with_kappa_and_no_faster(norm_axis, dtype, kappa):
    given, _ = adapter(kappa, norm_axis, "float64")
    assert kappa_of(given["A"], given["B"]) == pytest.approx(kappa, rel=1e-3)
    for name, error in errors(kappa, norm_axis, dtype, contestants=("torch",))["torch"].items():
        assert error <= 5 * (kappa + 1) * ROUNDING[dtype], name


def unit_rows(W0, A, B, norm_axis, dtype=torch.float32):
    """The weight of norms 1 that V gives, by dora."""
    W0, A, B = (torch.as_tensor(a).to(dtype) for a in (W0, A, B))
    m = torch.ones(W0.shape[0 if norm_axis == "per_output" else 1])
    return dora(torch.eye(W0.shape[1], dtype=dtype), W0, A, B, m, 1.0, norm_axis=norm_axis).T


def expected_rows(W0, A, B, norm_axis):
    W0, A, B = (torch.as_tensor(a).double() for a in (W0, A, B))
    V = W0 + B @ A
    return V / V.norm(dim=1 if norm_axis == "per_output" else 0, keepdim=True)


@by_axis
def test_two_rows_that_nearly_cancel(norm_axis):
    W0 = torch.tensor([[1.0, 0, 0], [0, 1.0, 0.5]])
    A = torch.tensor([[100, 37, 11], [100, 37.01, 11]])
    B = torch.tensor([[30.0, -30.0], [20.0, -20.0]])
    W = unit_rows(W0, A, B, norm_axis)
    assert (W.double() - expected_rows(W0, A, B, norm_axis)).abs().max() < 1e-3


@by_axis
def test_an_adapter_and_one_that_takes_most_of_it_back(norm_axis):
    rng = np.random.default_rng(0)
    W0, A, B = (rng.normal(size=shape) for shape in ((48, 40), (4, 40), (48, 4)))
    A, B = np.concatenate([A, A + 0.2 * rng.normal(size=A.shape)]), np.concatenate([B, -B], 1)
    W = unit_rows(W0, A, B, norm_axis)
    rounded = [torch.as_tensor(a).float() for a in (W0, A, B)]
    assert relative_error(W.double(), expected_rows(*rounded, norm_axis)) < 3e-6


@by_axis
@by_mode
@pytest.mark.parametrize("base", [0.0, 1e-3, 1.0])
def test_what_is_left_of_an_update_that_vanishes_is_no_more_than_roundings(
    norm_axis, norm_grad, base
):
    """κ is infinite: of W0 few digits are left, here and in the dense formula, and never NaN."""
    torch.manual_seed(0)
    A, B, W0 = torch.randn(3, 40), torch.randn(48, 3), base * torch.randn(48, 40)
    t = {"A": torch.cat([A, A]) * 1e3, "B": torch.cat([B, -B], 1), "x": torch.eye(40)}
    t["m"] = torch.ones(48 if norm_axis == "per_output" else 40)
    t = {name: value.requires_grad_() for name, value in t.items()}
    y = dora(W0=W0, scale=0.7, norm_axis=norm_axis, norm_grad=norm_grad, **t)
    grads = torch.autograd.grad(y, list(t.values()), torch.randn(40, 48))
    assert all(torch.isfinite(g).all() for g in grads)
    assert y.abs().max() < 3  # of vectors of length 1


SIZES = {  # of the three components of A; those of B are one over them
    "A huge": (1e20, 1e20, 1e20),
    "B huge": (1e-20, 1e-20, 1e-20),
    "one of each": (1e20, 1.0, 1e-20),
}


@by_axis
@by_mode
@pytest.mark.parametrize("n", [3, 40])  # joined with x on the way through W0, or not
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "dtype, bound", [("float32", 1e-5), ("bfloat16", 3e-2), ("float64", 1e-12)]
)
def test_a_huge_a_beside_a_tiny_b(norm_axis, norm_grad, n, sizes, dtype, bound):
    """B @ A stays as it is, so y and dx do; dA and dB change as B and A do."""
    t, dy = case(norm_axis, n=n, d_out=24, d_in=20, mask=False)
    # powers of two, exact; float64 has a range of its own to leave
    size = torch.tensor(SIZES[sizes]).double().log2().round().exp2()
    size = size**7 if dtype == "float64" else size
    settings = {"norm_axis": norm_axis, "norm_grad": norm_grad}
    low = {k: v.detach().to(getattr(torch, dtype)) for k, v in t.items()}
    dy = dy.to(low["x"].dtype)
    high = {k: v.double().requires_grad_(k != "W0") for k, v in low.items()}
    low["A"], low["B"] = low["A"] * size[:, None].to(dy.dtype), low["B"] / size.to(dy.dtype)
    low = {k: v.requires_grad_(k != "W0") for k, v in low.items()}
    y, got = gradients(dora, low, dy, **settings)
    want_y, want = gradients(dense, high, dy.double(), **settings)
    assert relative_error(y.detach().double(), want_y.detach()) < bound
    got = {name: grad.double() for name, grad in got.items()}
    got["A"], got["B"] = got["A"] * size[:, None], got["B"] / size
    for name, grad in got.items():
        assert relative_error(grad, want[name]) < bound, name


@by_axis
@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("zero", ["A", "B", "both"])
def test_components_of_zeros(norm_axis, n, dtype, bound, zero):
    t, dy = case(norm_axis, n=n, d_out=24, d_in=20, mask=False)
    low = {k: v.detach().to(dtype) for k, v in t.items()}
    low["A"][1] *= zero == "B"
    low["B"][:, 1] *= zero == "A"
    low = {k: v.requires_grad_(k != "W0") for k, v in low.items()}
    high = {k: v.detach().double().requires_grad_(k != "W0") for k, v in low.items()}
    _, got = gradients(dora, low, dy.to(dtype), norm_axis=norm_axis)
    _, want = gradients(dense, high, dy.to(dtype).double(), norm_axis=norm_axis)
    for name, grad in got.items():
        assert relative_error(grad.double(), want[name]) < bound, name

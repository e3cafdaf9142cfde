"""Digits lost where the update B @ A cancels inside itself, by κ = ‖A‖‖B‖ / ‖B A‖.

    python tests/benchmarks/kappa.py [--dtype float32 float64] [--kappa 1 10 ...]

Prints the relative errors (max-norm) of c = ‖V‖, y and every gradient against Eq. 5 to 7 in 50
digits, for the dense formula and the factored one, in NumPy and in PyTorch: a table for each axis
and dtype.
"""

import argparse

import mpmath
import numpy as np
import torch

from minidora import dora, factored
from minidora import pytorch as ours

KAPPAS = (1, 10, 100, 1_000, 10_000)
AXES = ("per_output", "per_input")
QUANTITIES = ("c", "y", "dx", "dA", "dB", "dm")
SCALE = 0.7
mpmath.mp.dps = 50


def adapter(kappa, norm_axis, dtype, *, d_out=40, d_in=32, n=24, seed=0):
    """Arguments of one layer whose update, as large as W0, has this κ; and a cotangent dy.

    B @ A = (b0 + δ b1) a0 - b0 (a0 + δ a1): where δ is small, nearly nothing is left of it.
    """
    rng = np.random.default_rng(seed)
    W0 = rng.normal(size=(d_out, d_in))
    (a0, a1), (b0, b1) = rng.normal(size=(2, d_in)), rng.normal(size=(2, d_out))
    if kappa == 1:
        A, B = a0[None], b0[:, None]
    else:
        delta = 2 / kappa
        for _ in range(40):  # a fixed point: the κ of δ is nearly proportional to 1 / δ
            A, B = np.stack([a0, a0 + delta * a1]), np.stack([b0 + delta * b1, -b0], axis=1)
            delta *= kappa_of(A, B) / kappa
    B *= np.linalg.norm(W0) / np.linalg.norm(B @ A) / SCALE
    d = d_out if norm_axis == "per_output" else d_in
    rest = {"x": rng.normal(size=(n, d_in)), "m": rng.uniform(0.5, 1.5, size=d)}
    given = {name: a.astype(dtype) for name, a in {**rest, "W0": W0, "A": A, "B": B}.items()}
    return given, rng.normal(size=(n, d_out)).astype(dtype)


def kappa_of(A, B):
    """‖A‖‖B‖ / ‖B A‖."""
    return np.linalg.norm(A) * np.linalg.norm(B) / np.linalg.norm(B @ A)


def exact(given, dy, norm_axis):
    """Eq. 5 to 7 in 50 digits, rounded to long doubles at the end."""
    digits = np.frompyfunc(lambda number: mpmath.mpf(float(number)), 1, 1)
    x, W0, A, B, m = (digits(given[name]) for name in ("x", "W0", "A", "B", "m"))
    dy, s, axis = digits(dy), mpmath.mpf(SCALE), 1 if norm_axis == "per_output" else 0
    V = W0 + s * B.dot(A)
    c = np.frompyfunc(mpmath.sqrt, 1, 1)((V * V).sum(axis, keepdims=True) + mpmath.mpf(1e-24))
    g = np.expand_dims(m, axis) / c
    G = dy.T.dot(x)
    along = (G * V).sum(axis, keepdims=True)
    dV = g * (G - V * along / c**2)
    result = {"c": c.ravel(), "y": x.dot((g * V).T), "dx": dy.dot(g * V)}
    result |= {"dA": s * B.T.dot(dV), "dB": s * dV.dot(A.T), "dm": (along / c).ravel()}
    return {name: value.astype(np.longdouble) for name, value in result.items()}


def by_numpy(layer, given, dy, norm_axis):
    """What `minidora.dora` or `minidora.factored` gives."""
    y, cache = layer.dora_forward(**given, scale=SCALE, norm_axis=norm_axis)
    grads = layer.dora_backward(dy, cache)._asdict()
    return {"c": cache.c.ravel(), "y": y, **grads}


def by_torch(function, given, dy, norm_axis):
    """What a function of PyTorch tensors gives that returns y and c."""
    t = {name: torch.from_numpy(a.copy()).requires_grad_(name != "W0") for name, a in given.items()}
    y, c = function(**t, scale=SCALE, norm_axis=norm_axis)
    names = ("x", "A", "B", "m")
    grads = torch.autograd.grad(y, [t[name] for name in names], torch.from_numpy(dy))
    values = {"c": c, "y": y} | {f"d{n}": g for n, g in zip(names, grads, strict=True)}
    return {name: value.detach().numpy() for name, value in values.items()}


def dense(x, W0, A, B, m, scale, norm_axis):
    """Eq. 5 written out, for PyTorch's autograd."""
    dim = 1 if norm_axis == "per_output" else 0
    V = torch.addmm(W0, B, A, alpha=scale)
    c = torch.linalg.vector_norm(V, dim=dim)
    return x @ ((m / c).unsqueeze(dim) * V).T, c


def fused(x, W0, A, B, m, scale, norm_axis):
    """`minidora.pytorch.dora`, and the norms that it keeps for backward."""
    y = ours.dora(x, W0, A, B, m, scale, norm_axis=norm_axis)
    return y, 1 / y.grad_fn.saved_tensors[6][0]  # 1 / c is


CONTESTANTS = {
    "textbook": lambda *case: by_numpy(dora, *case),
    "factored": lambda *case: by_numpy(factored, *case),
    "torch dense": lambda *case: by_torch(dense, *case),
    "torch": lambda *case: by_torch(fused, *case),
}


def errors(kappa, norm_axis, dtype, contestants=tuple(CONTESTANTS), **sizes):
    """{contestant: {quantity: relative error}} at one κ; nan where a value is not finite."""
    given, dy = adapter(kappa, norm_axis, dtype, **sizes)
    expected = exact(given, dy, norm_axis)

    def error(got, want):
        return float(np.abs(got - want).max() / np.abs(want).max())

    with np.errstate(all="ignore"):
        computed = {name: CONTESTANTS[name](given, dy, norm_axis) for name in contestants}
        return {
            name: {key: error(values[key], expected[key]) for key in QUANTITIES}
            for name, values in computed.items()
        }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float64"])
    parser.add_argument("--kappa", nargs="+", type=float, default=KAPPAS)
    options = parser.parse_args(argv)
    for dtype in options.dtype:
        for norm_axis in AXES:
            print(f"\n{dtype}, {norm_axis}\n\n| κ | |", " | ".join(QUANTITIES), "|")
            print("| ---: | --- |" + " ---: |" * len(QUANTITIES))
            for kappa in options.kappa:
                for name, row in errors(kappa, norm_axis, dtype).items():
                    cells = " | ".join(f"{row[key]:.1e}" for key in QUANTITIES)
                    print(f"| {kappa:g} | {name} | {cells} |")


if __name__ == "__main__":
    main()

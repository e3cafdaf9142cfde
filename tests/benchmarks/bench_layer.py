"""One training step of one layer (forward, then all gradients), float32, contestants in turn.

    python tests/benchmarks/bench_layer.py [--rounds N] [--threads N] [--json FILE] [--shapes I ...]

Every round runs every contestant once, in a shuffled order, in this one process with the same
number of threads, and what is reported is the median over the rounds of the ratio to another
contestant of the same round. The floor is the two products no layer with a frozen base avoids,
x @ W0.T and dy @ W0, in NumPy and in PyTorch, whose BLAS libraries differ.
"""

import argparse
import json
import platform
import sys
import time
import tracemalloc
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from kept import kept_elements
from peft import LoraConfig, get_peft_model
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from minidora import dora, factored, lora
from minidora.decomposition import squared_norms
from minidora.evidence import by_autograd

SHAPES = [  # d_in, d_out, n, r
    (1024, 1024, 512, 16),
    (2048, 2048, 256, 16),
    (1024, 1024, 64, 16),
    (256, 256, 2048, 8),
    (512, 512, 512, 64),
    (4096, 4096, 512, 16),
]
NUMPY, TORCH = "NumPy floor", "torch floor"
SCALE = 2.0


def arguments(d_in, d_out, n, r, seed=0):
    """x, dy and the parameters of a layer in the middle of training, float32."""
    rng = np.random.default_rng(seed)
    W0 = (rng.normal(size=(d_out, d_in)) / d_in**0.5).astype(np.float32)
    A, B, m = dora.init(W0, r, rng)
    B += rng.normal(size=B.shape).astype(np.float32) / 100
    m *= rng.uniform(0.8, 1.2, size=m.shape).astype(np.float32)
    x, dy = (rng.normal(size=(n, d)).astype(np.float32) for d in (d_in, d_out))
    return x, dy, W0, A, B, m


def numpy_steps(x, dy, W0, A, B, m):
    """The contestants that run in NumPy; each returns its gradients."""
    W0_sq = squared_norms(W0, "per_output")  # once for each layer, as a frozen base allows

    def factored_step(norm_grad):
        _, cache = factored.dora_forward(x, W0, A, B, m, SCALE, W0_sq=W0_sq)
        return factored.dora_backward(dy, cache, norm_grad=norm_grad)

    def textbook_step():
        _, cache = dora.dora_forward(x, W0, A, B, m, SCALE)
        return dora.dora_backward(dy, cache)

    def lora_step():
        _, cache = lora.lora_forward(x, W0, A, B, SCALE)
        return lora.lora_backward(dy, cache)

    inputs = {"x": x, "W0": W0, "A": A, "B": B, "m": m}
    settings = {"scale": SCALE, "norm_axis": "per_output"}
    return {
        NUMPY: lambda: (x @ W0.T, dy @ W0),
        "factored exact": lambda: factored_step("exact"),
        "factored detached": lambda: factored_step("detached"),
        "minidora LoRA": lora_step,
        "textbook exact": textbook_step,
        "autograd library": lambda: by_autograd.dora_gradients(dy, inputs, settings),
    }


def peft_layer(W0, A, B, m, use_dora):
    """PEFT's own linear layer around W0, holding our parameters."""
    d_out, d_in = W0.shape
    base = torch.nn.Sequential(torch.nn.Linear(d_in, d_out, bias=False))
    base[0].weight.data = torch.from_numpy(W0.copy())
    r = len(A)
    config = LoraConfig(r=r, lora_alpha=SCALE * r, target_modules=["0"], use_dora=use_dora)
    layer = get_peft_model(base, config).base_model.model[0]
    layer.lora_A["default"].weight.data = torch.from_numpy(A.copy())
    layer.lora_B["default"].weight.data = torch.from_numpy(B.copy())
    if use_dora:
        layer.lora_magnitude_vector["default"].weight.data = torch.from_numpy(m.copy())
    return layer


def torch_steps(x, dy, W0, A, B, m):
    """The contestants that run in PyTorch, eager, on the CPU."""
    tx, tdy, tW0 = (torch.from_numpy(a) for a in (x, dy, W0))
    tx = tx.clone().requires_grad_()
    tA, tB, tm = (torch.from_numpy(a.copy()).requires_grad_() for a in (A, B, m))

    def dense():
        V = tW0 + SCALE * tB @ tA
        c = torch.linalg.vector_norm(V, dim=1, keepdim=True)
        y = tx @ (tm[:, None] * V / c).T
        return torch.autograd.grad(y, (tx, tA, tB, tm), tdy)

    def step(layer):
        trained = [tx, *(p for p in layer.parameters() if p.requires_grad)]
        return lambda: torch.autograd.grad(layer(tx), trained, tdy)

    return {
        TORCH: lambda: (tx.detach() @ tW0.T, tdy @ tW0),
        "torch dense exact": dense,
        "PEFT LoRA": step(peft_layer(W0, A, B, m, False)),
        "PEFT DoRA": step(peft_layer(W0, A, B, m, True)),
    }


def check_same_gradients(steps):
    """The contestants must compute the same thing before their times mean anything."""
    ours = steps["factored exact"]()
    for name in ("textbook exact", "autograd library", "torch dense exact"):
        theirs = steps[name]()
        if isinstance(theirs, dict):
            theirs = [theirs["d" + key] for key in ("x", "A", "B", "m")]
        for a, b in zip(ours[:4], theirs, strict=False):
            np.testing.assert_allclose(a, np.asarray(b), rtol=0, atol=1e-4 * np.abs(a).max())
    detached, peft = steps["factored detached"](), steps["PEFT DoRA"]()
    shapes = {np.shape(b): np.asarray(b) for b in peft}
    for a in (detached.dA, detached.dB, detached.dm):
        np.testing.assert_allclose(a, shapes[a.shape], rtol=0, atol=1e-4 * np.abs(a).max())


def measure(shape, rounds, progress):
    """{contestant: seconds of every round}, all contestants in turn in each round."""
    arrays = arguments(*shape)
    steps = numpy_steps(*arrays) | torch_steps(*arrays)
    check_same_gradients(steps)
    return in_turn(steps, rounds, progress)


def in_turn(steps, rounds, progress, clock=time.perf_counter):
    """{contestant: seconds of every round by the clock, or clocks}, each round in a new order."""
    seconds = {name: [] for name in steps}
    shuffle = np.random.default_rng(0)
    for _ in range(rounds):
        for name in shuffle.permutation(list(steps)):
            started = clock()
            steps[name]()
            seconds[name].append(clock() - started)
        progress.update()
    return {name: np.array(times) for name, times in seconds.items()}


def ratio(seconds, name, other):
    """Median over the rounds of the ratio of two contestants of the same round."""
    return float(np.median(seconds[name] / seconds[other]))


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(list(values)))))


def peak_bytes(d, n, r, layer, **modes):
    """Peak of the memory NumPy traces during one step, beyond what is there before it."""
    x, dy, W0, A, B, m = arguments(d, d, n, r)
    extra = {"W0_sq": squared_norms(W0, "per_output")} if layer is factored else {}
    tracemalloc.start()
    _, cache = layer.dora_forward(x, W0, A, B, m, SCALE, **extra)
    layer.dora_backward(dy, cache, **modes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, W0.nbytes


def kept_by_torch(use_dora, n=512, d=1024, r=16):
    """Elements PEFT's layer keeps for backward beyond x and the parameters, in units of n * d."""
    x, _, W0, A, B, m = arguments(d, d, n, r)
    layer, tx = peft_layer(W0, A, B, m, use_dora), torch.from_numpy(x).requires_grad_()
    return kept_elements(lambda: layer(tx), (tx, *layer.parameters()))[0] / (n * d)


def machine():
    """Where and with what the figures were measured."""
    packages = ("numpy", "torch", "peft", "autograd", "minidora")
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    blas = [f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info()]
    versions = {name: version(name) for name in packages}
    return {"cpu": cpu, "python": platform.python_version(), "blas": blas, "versions": versions}


def table(results):
    """Every contestant over NumPy's floor, PyTorch's also over PyTorch's own."""
    names = [name for name in next(iter(results.values())) if name != NUMPY]
    head = ["d_in, d_out, n, r", *names]
    rows = []
    for shape, seconds in results.items():
        cells = []
        for name in names:
            cell = f"{ratio(seconds, name, NUMPY):.2f}"
            if name not in numpy_names() and name != TORCH:
                cell += f" ({ratio(seconds, name, TORCH):.2f})"
            cells.append(cell)
        rows.append([", ".join(map(str, shape)), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def numpy_names():
    tiny = np.ones((1, 1), np.float32)
    return set(numpy_steps(tiny, tiny, tiny, tiny, tiny, np.ones(1, np.float32)))


def summary(results):
    """The ratios that the project sets itself bounds for."""
    over = {
        other: geometric_mean(ratio(s, "factored exact", other) for s in results.values())
        for other in ("PEFT DoRA", "autograd library", "PEFT LoRA", "factored detached")
    }
    over |= {
        f"{name} floor": geometric_mean(ratio(s, "factored exact", floor) for s in results.values())
        for name, floor in (("NumPy", NUMPY),)
    }
    return over


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", type=int, nargs="*", default=range(len(SHAPES)))
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    chosen = [SHAPES[i] for i in options.shapes]
    with threadpool_limits(options.threads), tqdm(total=len(chosen) * options.rounds) as progress:
        results = {shape: measure(shape, options.rounds, progress) for shape in chosen}
    print(f"medians of {options.rounds} rounds, {options.threads} thread(s), over the NumPy floor")
    print("(in brackets: over the torch floor)\n\n" + table(results) + "\n")
    for shape, seconds in results.items():
        over = ratio(seconds, "factored exact", "factored detached")
        print(f"{shape}: factored exact over detached {over:.3f}")
    means = summary(results)
    for other, mean in means.items():
        print(f"factored exact over {other}, geometric mean: {mean:.3f}")
    memory = {}
    for name, layer in (("factored", factored), ("textbook", dora)):
        peak, W0_bytes = peak_bytes(2048, 64, 16, layer)
        memory[name] = peak / W0_bytes
        print(f"peak of a {name} step, d = 2048, n = 64, r = 16: {memory[name]:.3f} of W0's bytes")
    kept = {name: kept_by_torch(flag) for name, flag in (("LoRA", False), ("DoRA", True))}
    for name, value in kept.items():
        print(f"PEFT {name} keeps {value:.3f} n * d_out elements for backward")
    if options.json:
        report = {
            "machine": machine(),
            "threads": options.threads,
            "rounds": options.rounds,
            "median_ms": {
                str(shape): {name: 1e3 * float(np.median(t)) for name, t in seconds.items()}
                for shape, seconds in results.items()
            },
            "over_numpy_floor": {
                str(shape): {name: ratio(seconds, name, NUMPY) for name in seconds}
                for shape, seconds in results.items()
            },
            "geometric_means": means,
            "peak_over_W0_bytes": memory,
            "kept_by_torch_over_n_d_out": kept,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

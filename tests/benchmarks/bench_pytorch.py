"""DoRA for PyTorch: forward and all gradients of one layer, contestants in turn in one process.

    python tests/benchmarks/bench_pytorch.py [--device cpu|cuda] [--rounds N] [--json FILE]

On the CPU: float32, one thread, the shapes of bench_layer.py, wall-clock. On CUDA: bfloat16 and
float32, timed by CUDA events, with the peak of torch's allocator during a step. The floor is the
two products that no layer with a frozen base avoids, x @ W0.T and dy @ W0. Reported are medians
over the rounds of the ratio to another contestant of the same round.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import bench_layer
import numpy as np
import torch
from bench_layer import SCALE, SHAPES, geometric_mean, ratio
from kept import kept_elements
from tqdm import tqdm

from minidora.pytorch import dora, squared_norms

FLOOR = "two dense products"
CUDA_SHAPES = [(4096, 4096, 8192, 16), (4096, 4096, 2048, 64), (8192, 8192, 4096, 384)]
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}


def contestants(shape, device, dtype, compiled=True):
    """{name: a step, returning the gradients of x, A, B and m (or without m)}."""
    arrays = bench_layer.arguments(*shape)
    x, dy, W0, A, B, m = (torch.from_numpy(a).to(device, dtype) for a in arrays)
    x.requires_grad_()
    A, B, m = (t.requires_grad_() for t in (A, B, m))
    W0_sq = squared_norms(W0, "per_output")  # once for each layer, as DoRALinear does

    def step(function, **settings):
        def run():
            y = function(x, W0, A, B, m, SCALE, W0_sq=W0_sq, **settings)
            return torch.autograd.grad(y, (x, A, B, m), dy)

        return run

    def dense():
        V = torch.addmm(W0, B, A, alpha=SCALE)
        c = torch.linalg.vector_norm(V, dim=1, keepdim=True)
        y = x @ (m[:, None] * V / c).T
        return torch.autograd.grad(y, (x, A, B, m), dy)

    def peft(use_dora):
        layer = bench_layer.peft_layer(*arrays[2:], use_dora).to(device, dtype)
        parameters = dict(layer.named_parameters())
        names = ["lora_A.default.weight", "lora_B.default.weight"]
        names += ["lora_magnitude_vector.default.weight"] if use_dora else []
        trained = [x, *(parameters[name] for name in names)]
        return lambda: torch.autograd.grad(layer(x), trained, dy)

    steps = {
        FLOOR: lambda: (x.detach() @ W0.T, dy @ W0),
        "minidora exact": step(dora),
        "minidora detached": step(dora, norm_grad="detached"),
        "PEFT LoRA": peft(False),
        "PEFT DoRA": peft(True),
        "dense exact": dense,
    }
    if compiled:
        torch._dynamo.reset()
        steps["minidora exact, compiled"] = step(torch.compile(dora, fullgraph=True, dynamic=False))
    return steps


def check_same_gradients(steps, dtype):
    """The contestants must compute the same thing before their times mean anything."""
    tolerance = 1e-4 if dtype == torch.float32 else 0.06
    pairs = [("minidora exact", "dense exact"), ("minidora detached", "PEFT DoRA")]
    pairs += [("minidora exact", name) for name in steps if "compiled" in name]
    for ours, theirs in pairs:
        for a, b in zip(steps[ours](), steps[theirs](), strict=True):
            worst = (a.float() - b.float()).abs().max() / b.float().abs().max()
            assert worst < tolerance, (ours, theirs, tuple(a.shape), float(worst))


def in_turn(steps, rounds, device, progress):
    """{contestant: seconds of every round}, each round in a new order."""
    if device == "cpu":
        return bench_layer.in_turn(steps, rounds, progress)
    seconds = {name: [] for name in steps}
    shuffle = np.random.default_rng(0)
    for _ in range(rounds):
        for name in shuffle.permutation(list(steps)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            steps[name]()
            end.record()
            torch.cuda.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
        progress.update()
    return {name: np.array(times) for name, times in seconds.items()}


def peak_bytes(step):
    """Peak of torch's CUDA allocator during one step, beyond what is there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kept_by(norm_grad, shape=(1024, 1024, 512, 16)):
    """Elements kept for backward beside x and the parameters, in units of n * d_out."""
    d_in, d_out, n, r = shape
    x, _, W0, A, B, m = (torch.from_numpy(a) for a in bench_layer.arguments(*shape))
    x, A, B, m = (t.requires_grad_() for t in (x, A, B, m))
    W0_sq = squared_norms(W0, "per_output")
    given = (x, W0, A, B, m)
    run = functools.partial(dora, *given, SCALE, norm_grad=norm_grad, W0_sq=W0_sq)
    return kept_elements(run, (*given, W0_sq))[0] / (n * d_out)


def report_on(results, peaks):
    """The figures as JSON, by dtype and shape."""
    figures = {}
    for (dtype, shape), seconds in results.items():
        figures[f"{dtype}, {shape}"] = {
            "median_ms": {name: 1e3 * float(np.median(t)) for name, t in seconds.items()},
            "over_floor": {name: ratio(seconds, name, FLOOR) for name in seconds},
            "exact_over": {name: ratio(seconds, "minidora exact", name) for name in seconds},
            "peak_bytes": peaks.get((dtype, shape)),
        }
    return figures


def table(results):
    """Every contestant over the floor."""
    names = list(next(iter(results.values())))[1:]
    rows = [["d_in, d_out, n, r", *names], ["---", *["---:"] * len(names)]]
    for (dtype, shape), seconds in results.items():
        cells = [f"{ratio(seconds, name, FLOOR):.2f}" for name in names]
        rows.append([f"{', '.join(map(str, shape))}, {dtype}", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device for 'cuda', PyTorch sees none")
    torch.set_num_threads(options.threads)
    shapes = SHAPES if options.device == "cpu" else CUDA_SHAPES
    results, peaks = {}, {}
    total = len(shapes) * len(DTYPES[options.device]) * options.rounds
    with tqdm(total=total) as progress:
        for dtype in DTYPES[options.device]:
            for shape in shapes:
                steps = contestants(shape, options.device, dtype, not options.no_compile)
                check_same_gradients(steps, dtype)
                key = (str(dtype).removeprefix("torch."), shape)
                results[key] = in_turn(steps, options.rounds, options.device, progress)
                if options.device == "cuda":
                    peaks[key] = {name: peak_bytes(step) for name, step in steps.items()}
                del steps
    print(f"medians of {options.rounds} rounds over the two dense products\n\n{table(results)}\n")
    means = {
        other: geometric_mean(ratio(s, "minidora exact", other) for s in results.values())
        for other in ("PEFT DoRA", "PEFT LoRA", "minidora detached")
    }
    for other, mean in means.items():
        print(f"exact over {other}, geometric mean: {mean:.3f}")
    kept = {mode: kept_by(mode) for mode in ("exact", "detached")}
    kept |= {f"PEFT {n}": bench_layer.kept_by_torch(n == "DoRA") for n in ("LoRA", "DoRA")}
    print("kept for backward, n * d_out elements:", {k: round(v, 3) for k, v in kept.items()})
    if options.json:
        device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
        report = {
            "machine": {**bench_layer.machine(), "device": device},
            "date": time.strftime("%Y-%m-%d"),
            "threads": options.threads,
            "rounds": options.rounds,
            "results": report_on(results, peaks),
            "geometric_means": means,
            "kept_over_n_d_out": kept,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

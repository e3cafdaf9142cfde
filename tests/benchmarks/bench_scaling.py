"""How one PyTorch layer's step scales with d, n and r, beside what counting flops predicts.

    python tests/benchmarks/bench_scaling.py [--rounds N] [--json FILE] [--figure FILE]

Float32, one thread. Time: of this thread on the CPU, forward and all gradients, contestants in turn
in a new order each round, the median over the rounds. Memory: numbers kept for backward beside x
and the parameters. The slope of a line is that of log(time) on log(size) over its upper half; the
flops' slope is that of `flops`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench_layer import SCALE, arguments, machine, peft_layer
from kept import kept_elements
from tqdm import tqdm

from minidora.pytorch import dora, squared_norms

D, N, R = 1024, 512, 16  # what stays while another varies
SWEEPS = {
    "d": [(d, N, R) for d in (256, 512, 1024, 2048, 4096, 8192)],
    "n": [(D, n, R) for n in (64, 256, 1024, 4096)],
    "r": [(D, N, r) for r in (4, 16, 64, 256)],
}


def flops(name, d, n, r):
    """Multiplications and additions of a step's products, for d_in = d_out = d.

    x @ W0.T and dy @ W0 are 4 n d²; LoRA's six products with A or B 12 n d r. The factored norm
    sends r rows through W0, and the exact gradient r more. PEFT's DoRA sends the identity, d rows,
    through A and B for its norm; what it does then with arrays of W0's shape is no product.
    """
    lora = 4 * n * d * d + 12 * n * d * r
    return {
        "PEFT LoRA": lora,
        "minidora detached": lora + 2 * r * d * d + 4 * d * r * r,
        "minidora exact": lora + 4 * r * d * d + 8 * d * r * r,
        "PEFT DoRA": lora + 4 * r * d * d,
    }[name]


def contestants(d, n, r):
    """{name: (forward, what it is differentiated by, what is there anyway)}, and dy."""
    x, dy, W0, A, B, m = arguments(d, d, n, r)
    tx, tdy, tW0 = (torch.from_numpy(a) for a in (x, dy, W0))
    tx.requires_grad_()
    own = [torch.from_numpy(a.copy()).requires_grad_() for a in (A, B, m)]
    W0_sq = squared_norms(tW0, "per_output")  # once for each layer, as DoRALinear does
    found = {
        f"minidora {mode}": (
            lambda mode=mode: dora(tx, tW0, *own, SCALE, norm_grad=mode, W0_sq=W0_sq),
            [tx, *own],
            [tW0, W0_sq],
        )
        for mode in ("exact", "detached")
    }
    for kind in ("LoRA", "DoRA"):
        layer = peft_layer(W0, A, B, m, kind == "DoRA")
        trained = [tx, *(p for p in layer.parameters() if p.requires_grad)]
        found[f"PEFT {kind}"] = (lambda layer=layer: layer(tx), trained, [*layer.parameters()])
    return found, tdy


def measured(shape, rounds, progress):
    """{contestant: (seconds, numbers kept)} of one shape."""
    found, dy = contestants(*shape)
    steps = {
        name: lambda forward=forward, trained=trained: torch.autograd.grad(forward(), trained, dy)
        for name, (forward, trained, _) in found.items()
    }
    seconds = {name: [] for name in steps}
    shuffle = np.random.default_rng(0)
    for _ in range(rounds):
        for name in shuffle.permutation(list(steps)):
            start = time.thread_time()
            steps[name]()
            seconds[name].append(time.thread_time() - start)
        progress.update()
    kept = {
        name: kept_elements(forward, [*trained, *given])[0]
        for name, (forward, trained, given) in found.items()
    }
    return {name: (float(np.median(seconds[name])), float(kept[name])) for name in steps}


def slope(sizes, values):
    """That of log(value) on log(size), over the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def slopes(results):
    """{sweep: {contestant: measured slope of time, and the flops'}}."""
    table = {}
    for axis, shapes in SWEEPS.items():
        sizes = [shape["dnr".index(axis)] for shape in shapes]
        table[axis] = {
            name: {
                "time": slope(sizes, [results[shape][name][0] for shape in shapes]),
                "flops": slope(sizes, [flops(name, *shape) for shape in shapes]),
            }
            for name in results[shapes[0]]
        }
    return table


def draw(results, path):
    """Time and kept numbers over d, n and r, dashed what the flops predict from the last point."""
    from minidora.plotting.style import color_of, figure

    colors = {"minidora exact": "DoRA", "minidora detached": "DoRA detached"}
    with figure(2, 3, (12.0, 6.4)) as (made, axes):
        for column, (axis, shapes) in enumerate(SWEEPS.items()):
            sizes = [shape["dnr".index(axis)] for shape in shapes]
            for k, name in enumerate(results[shapes[0]]):
                color = color_of(colors.get(name, name.removeprefix("PEFT ")), k)
                color = "#D55E00" if name == "PEFT DoRA" else color
                seconds, kept = zip(*(results[shape][name] for shape in shapes), strict=True)
                counted = np.array([flops(name, *shape) for shape in shapes])
                axes[0, column].plot(sizes, seconds, "o-", color=color, label=name)
                axes[0, column].plot(sizes, counted / counted[-1] * seconds[-1], "--", color=color)
                axes[1, column].plot(sizes, np.maximum(kept, 1), "o-", color=color)
            for row, label in enumerate(("seconds a step", "numbers kept for backward")):
                axes[row, column].set(xscale="log", yscale="log", xlabel=axis)
                axes[row, column].set_xticks(sizes, [f"{size:,}" for size in sizes])
                axes[row, column].set_xticks([], minor=True)
                axes[row, 0].set_ylabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=4)
        made.suptitle(f"d = {D}, n = {N}, r = {R} but for what varies; dashed: by flops", x=0.3)
    made.savefig(path, dpi=80)


def main(argv=None):
    """Measure, print the slopes, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    shapes = sorted({shape for sweep in SWEEPS.values() for shape in sweep})
    with tqdm(total=len(shapes) * options.rounds) as progress:
        results = {shape: measured(shape, options.rounds, progress) for shape in shapes}
    table = slopes(results)
    for axis, by_name in table.items():
        for name, found in by_name.items():
            print(f"{axis} {name:<18} time {found['time']:.2f}, flops {found['flops']:.2f}")
    if options.json:
        rows = {", ".join(map(str, shape)): found for shape, found in results.items()}
        report = {"machine": machine(), "rounds": options.rounds, "results": rows, "slopes": table}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    sys.exit(main())

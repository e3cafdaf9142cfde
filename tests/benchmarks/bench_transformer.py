"""One training step (forward, backward, AdamW) of a small transformer, float32, in turn.

    python tests/benchmarks/bench_transformer.py [--rounds N] [--threads N] [--json FILE]

Models: d = 64, 4 blocks, 4 heads, 128 x 16 tokens, vocabulary 28, r = 8 on q and v; and the
lesson's, d = 32, 6 blocks, 4 heads, 32 x 13 tokens, r = 4. Every round runs every contestant once
in a shuffled order, in this process, with the same threads; reported are medians of per-round
ratios. First as a process is, then after `training.keep_memory()`, which acts on all alike.
"""

import argparse
import json
import sys
from pathlib import Path

import autograd.numpy as anp
import numpy as np
import torch
from bench_layer import geometric_mean, in_turn, machine, ratio
from peft import LoraConfig, get_peft_model
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minidora import nn, training
from minidora.evidence import networks_by_autograd
from minidora.evidence.networks import plain_settings

sys.path.insert(0, str(Path(__file__).parent.parent))
from twin import loss_of, twin_of

MODELS = {  # d, depth, heads, batch, t, r
    "d = 64": (64, 4, 4, 128, 16, 8),
    "the lesson's": (32, 6, 4, 32, 13, 4),
}
VOCABULARY = 28
OURS, PEFT_DORA = "minidora DoRA", "PyTorch, PEFT DoRA"


def whole_attention(p, settings, path, x, padding=None):
    """Attention for the autograd library in stacked products, as one would write it for speed."""
    at, heads = f"{path}.", settings[path]["heads"]
    batch, t, d = x.shape

    def split(y):
        return anp.transpose(anp.reshape(y, (batch, t, heads, d // heads)), (0, 2, 1, 3))

    q, k, v = (split(networks_by_autograd.linear(p, settings, at + name, x)) for name in "qkv")
    scores = anp.matmul(q, anp.transpose(k, (0, 1, 3, 2))) * (d // heads) ** -0.5
    scores = scores + np.triu(np.full((t, t), -1e9, np.float32), 1)
    e = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
    out = anp.matmul(e / anp.sum(e, axis=-1, keepdims=True), v)
    out = anp.reshape(anp.transpose(out, (0, 2, 1, 3)), (batch, t, d))
    return networks_by_autograd.linear(p, settings, at + "o", out)


def numpy_step(model, tokens, targets):
    """A training step of minidora."""
    params, optimizer = nn.trained(model), training.AdamW()

    def step():
        logits, cache = model.forward(tokens)
        loss, dlogits = nn.cross_entropy(logits, targets)
        optimizer.step(params, model.backward(dlogits, cache)[1], 1e-4)
        return loss

    return step


def autograd_step(model, tokens, targets):
    """The same by the autograd library, which updates with minidora's AdamW."""
    params, optimizer = nn.trained(model), training.AdamW()
    fixed = {n: a for n, a in nn.parameters(model).items() if n not in params}
    settings = {"witness": ("transformer", plain_settings(model)), "tokens": tokens}
    settings |= {"targets": targets, "padding": None, "seed": None}

    def step():
        loss = [0.0]

        def value(p):
            out = networks_by_autograd.value({**fixed, **p}, settings)
            loss[0] = out
            return out

        vjp, answer = networks_by_autograd.make_vjp(value)(dict(params))
        optimizer.step(params, vjp(np.float32(1)), 1e-4)
        return float(answer)

    return step


def torch_step(module, tokens, targets):
    """A training step of PyTorch, eager."""
    tokens, targets = torch.from_numpy(tokens), torch.from_numpy(targets)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step():
        loss = loss_of(module(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def with_peft(base, r, use_dora):
    """The twin with PEFT's layers on q and v."""
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=["q", "v"], use_dora=use_dora)
    return get_peft_model(twin_of(base), config)


def contestants(d, depth, heads, batch, t, r):
    """{name: step}, all from the same base."""
    rng = np.random.default_rng(0)
    base = nn.Transformer.init(VOCABULARY, d, heads, depth, t, rng)
    tokens, targets = (rng.integers(VOCABULARY, size=(batch, t)) for _ in range(2))
    data = (tokens, targets)
    steps = {"PyTorch, full": torch_step(twin_of(base), *data)}
    for method in ("dora", "lora", "full"):
        model = nn.adapt(base, method, ("q", "v") if method != "full" else None, rank=r, rng=rng)
        name = {"dora": "DoRA", "lora": "LoRA", "full": "full"}[method]
        steps[f"minidora {name}"] = numpy_step(model, *data)
    detached = nn.adapt(base, "dora", ("q", "v"), rank=r, rng=rng, norm_grad="detached")
    steps["minidora DoRA, detached"] = numpy_step(detached, *data)
    model = nn.adapt(base, "dora", ("q", "v"), rank=r, rng=rng)
    steps["autograd library, DoRA"] = autograd_step(model, *data)
    steps[PEFT_DORA] = torch_step(with_peft(base, r, True), *data)
    steps["PyTorch, PEFT LoRA"] = torch_step(with_peft(base, r, False), *data)
    losses = {name: step() for name, step in steps.items()}
    first = losses[OURS]
    assert all(abs(loss - first) < 1e-4 for loss in losses.values()), losses
    return steps


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    networks_by_autograd.attention = networks_by_autograd.FUNCTIONS["attention"] = whole_attention
    report = {"machine": machine(), "threads": options.threads, "rounds": options.rounds}
    total = 2 * len(MODELS) * options.rounds
    columns = []
    with threadpool_limits(options.threads), tqdm(total=total) as progress:
        for kept in (False, True):
            if kept:
                training.keep_memory()
            for model, sizes in MODELS.items():
                seconds = in_turn(contestants(*sizes), options.rounds, progress)
                column = f"{model}, {'memory kept' if kept else 'as it is'}"
                report[column] = {
                    name: {
                        "ms": 1e3 * float(np.median(seconds[name])),
                        "over_peft_dora": ratio(seconds, name, PEFT_DORA),
                        "minidora_dora_over_it": ratio(seconds, OURS, name),
                    }
                    for name in seconds
                }
                columns.append(column)
    names = list(report[columns[0]])
    print(
        f"medians of {options.rounds} rounds, {options.threads} thread(s):"
        " ms a step (over PEFT DoRA)"
    )
    print("| contestant | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name in names:
        figures = [report[column][name] for column in columns]
        cells = [f"{f['ms']:.1f} ({f['over_peft_dora']:.2f})" for f in figures]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for column in columns:
        over = {n: report[column][n]["minidora_dora_over_it"] for n in names}
        print(
            f"{column}: minidora DoRA over PEFT DoRA {over[PEFT_DORA]:.2f},"
            f" over the autograd library {over['autograd library, DoRA']:.2f}"
        )
    means = [report[column][OURS]["over_peft_dora"] for column in columns]
    print(f"geometric mean over PEFT DoRA: {geometric_mean(means):.2f}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

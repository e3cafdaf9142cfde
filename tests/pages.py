"""Every table of figures in the README and in lessons/results, made from the files they rest on.

    python tests/pages.py

writes them anew, each between `<!-- block: NAME -->` and `<!-- end -->`. tests/test_results.py
holds the committed pages to what this makes, so that no figure on them is typed by hand. A new
table is a function with `@block(page)`; the claims of the paper are in tests/claims.py.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = "lessons/results"
BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {}  # name: (page, what makes its text)
SHAPE = "d_in, d_out, n, r"


def block(page: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a function that makes the text of a block of `page`."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        BLOCKS[make.__name__] = (page, make)
        return make

    return register


def text_of(path: str) -> str:
    """The text of a file that a command wrote."""
    return (ROOT / path).read_text(encoding="utf-8")


def file(path: str):
    """The contents of a JSON file, or the list of a file of JSON lines."""
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in text_of(path).splitlines()]
    return json.loads(text_of(path))


def bench(name: str) -> dict:
    """A benchmark's figures."""
    return file(f"tests/benchmarks/bench_{name}.json")


def summary(experiment: str) -> dict:
    """An experiment's summary."""
    return file(f"{RESULTS}/{experiment}.json")["summary"]


def table(head: Iterable[str], rows: Iterable[Iterable[str]], align: str = "---:") -> str:
    """A Markdown table, all columns but the first aligned alike."""
    head = list(head)
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def listed(words: Iterable[str]) -> str:
    """A list in words: "a, b and c"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def machine_of(report: dict) -> str:
    """Where a benchmark ran, and with what."""
    at = report["machine"]
    names = {"numpy": "NumPy", "torch": "PyTorch", "peft": "PEFT", "autograd": "autograd"}
    versions = [f"{names[key]} {v}" for key, v in at["versions"].items() if key in names]
    parts = [at["cpu"], f"Python {at['python']}", *versions]
    return f"{', '.join(parts)}; threads: {report['threads']}; rounds: {report['rounds']}."


# lessons/results/speed.md


def over(shapes: dict[str, dict], names: dict[str, str]) -> str:
    """Ratios by shape; `names` gives each contestant's column."""
    rows = [
        [re.sub(r"^\w+, |[()]", "", shape), *[f"{ratios[name]:.2f}" for name in names]]
        for shape, ratios in shapes.items()
    ]
    return table([SHAPE, *names.values()], rows)


@block(f"{RESULTS}/speed.md")
def layer() -> str:
    """One layer in NumPy."""
    names = ("factored exact", "factored detached", "minidora LoRA", "textbook exact")
    names += ("autograd library", "PEFT LoRA", "PEFT DoRA", "torch dense exact")
    report = bench("layer")
    shapes = over(report["over_numpy_floor"], {name: name for name in names})
    return f"{machine_of(report)}\n\n{shapes}"


@block(f"{RESULTS}/speed.md")
def layer_means() -> str:
    """What the six shapes come to, and the memory of a step."""
    report = bench("layer")
    means, peak = report["geometric_means"], report["peak_over_W0_bytes"]
    return f"""Geometric means over the six shapes, the factored exact gradient's time over that of

- PEFT DoRA, whose gradient is the detached one: {means["PEFT DoRA"]:.2f};
- the autograd library: {means["autograd library"]:.2f};
- PEFT LoRA: {means["PEFT LoRA"]:.2f};
- its own detached mode: {means["factored detached"]:.2f}.

Peak memory of a step at d = 2048, n = 64, r = 16, in units of W0's bytes: \
factored {peak["factored"]:.2f}, textbook {peak["textbook"]:.1f}."""


@block(f"{RESULTS}/speed.md")
def layer_in_pytorch() -> str:
    """One layer in PyTorch."""
    report = bench("pytorch")
    names = {f"minidora {mode}": mode for mode in ("exact", "detached", "exact, compiled")}
    names |= {name: name for name in ("PEFT LoRA", "PEFT DoRA", "dense exact")}
    shapes = {shape: found["over_floor"] for shape, found in report["results"].items()}
    return f"{machine_of(report)}\n\n{over(shapes, names)}"


@block(f"{RESULTS}/speed.md")
def layer_in_pytorch_means() -> str:
    """What the six shapes come to, and what is kept for backward."""
    report = bench("pytorch")
    means, kept = report["geometric_means"], report["kept_over_n_d_out"]
    return f"""Geometric means over the six shapes, the exact gradient's time over that of PEFT \
DoRA: {means["PEFT DoRA"]:.2f}; of PEFT LoRA: {means["PEFT LoRA"]:.2f}; of our detached mode: \
{means["minidora detached"]:.2f}.

Numbers kept for backward beside x and the parameters, in units of n · d_out, at 512 × 1024, \
r = 16: exact {kept["exact"]:.2f}, detached {kept["detached"]:.2f}, PEFT DoRA \
{kept["PEFT DoRA"]:.2f}, PEFT LoRA {kept["PEFT LoRA"]:.3f}."""


@block(f"{RESULTS}/speed.md")
def transformer() -> str:
    """A training step of a transformer."""
    report = bench("transformer")
    models = [key for key in report if key.startswith(("d = ", "the lesson"))]
    rows = []
    for name in report[models[0]]:
        measured = [report[model][name] for model in models]
        cells = [f"{found['over_peft_dora']:.2f} ({found['ms']:.1f} ms)" for found in measured]
        rows.append([name, *cells])
    return f"{machine_of(report)}\n\n{table(['contestant', *models], rows)}"


@block(f"{RESULTS}/speed.md")
def minilm_step() -> str:
    """A training step of MiniLM: time and memory, NumPy's parts, its GELU."""
    report = bench("minilm")
    threads = report["step"]
    rows = []
    for case, of_case in report["memory"].items():
        for name, used in of_case.items():
            times = [threads[n][case][name] for n in threads]
            cells = [f"{t['cpu_ratio']:.2f} ({t['cpu_ms']:.0f} ms)" for t in times]
            cells += [f"{t['wall_ratio']:.2f}" for t in times]
            cells += [f"{used[kind] / 2**20:.0f} MB" for kind in ("kept_bytes", "peak_bytes")]
            rows.append([f"{case}: {name}", *cells])
    head = [f"{clock}, threads: {n}" for clock in ("CPU time", "wall-clock") for n in threads]
    head = ["trained: contestant", *head, "kept", "peak"]
    shares = sorted(report["parts"].items(), key=lambda part: -part[1])
    parts = {name: f"{name} {100 * share:.1f} %" for name, share in shares}
    products = parts.pop("products with the frozen weights")
    gelu = {name: f"{times['cpu_ratio']:.1f}" for name, times in report["gelu"].items()}
    return f"""{machine_of(report | {"threads": listed(threads)})}

{table(head, rows)}

Of the CPU time of NumPy's step, DoRA on all linears: {listed(parts.values())}. For scale, the \
{products}.

GELU on 1024 × 1536 numbers, over PyTorch's: forward {gelu["ExactGELU"]} (with scipy's erf \
{gelu["scipy's erf"]}), forward and backward {gelu["ExactGELU, both"]}."""


@block(f"{RESULTS}/speed.md")
def keep_output() -> str:
    """What keeping y in place of x @ V.T saves."""
    kept = file(f"{RESULTS}/recorded.json")["keep_output"]["kept_over_n_d"]
    rows = [[place, *[f"{number:.2f}" for number in numbers]] for place, numbers in kept.items()]
    return table(["where", "without", "with keep_output", "saved"], rows)


# lessons/results/conformance.md


@block(f"{RESULTS}/speed.md")
def adapter() -> str:
    """Memory and time of `minidora adapter` on a 7B layout."""
    found, sizes = bench("adapter"), bench("adapter")["bytes_of"]
    head = ["command", "memory", *(f"over the {n}'s {sizes[n] / 1e6:.0f} MB" for n in sizes)]
    rows = [
        [
            *(f"`{what}`", f"{found[what]['memory'] / 1e6:.0f} MB"),
            *(f"{ratio:.2f}" for ratio in found[what]["memory_over"].values()),
            *(f"{found[what][n]:.0f} s" for n in ("core_seconds", "seconds")),
        ]
        for what in ("report", "check")
    ]
    size = f"{found['layers']} layers, {found['bytes'] / 1e9:.1f} GB of weights"
    return f"{size}.\n\n{table([*head, 'of a core', 'of the clock'], rows)}"


@block(f"{RESULTS}/conformance.md")
def peers() -> str:
    """The matrix of implementations and clauses."""
    from minidora.kit.clauses import CLAUSES

    report = file(f"{RESULTS}/conformance.json")
    rows = [row for row in report["rows"] if not row["missing"]]
    signs = {"pass": "✓", "fail": "✗", None: ""}
    head = ["clause", *[f"{row['name']} {row['version'].split(' ')[0]}" for row in rows]]
    judged = [clause for clause in CLAUSES if clause in rows[0]["clauses"]]
    lines = [
        [f"{c} {CLAUSES[c].text}", *[signs[row["clauses"][c]] for row in rows]] for c in judged
    ]
    about = f"Kit {report['kit']}, Python {report['python']}, {report['date']}."
    return f"{about}\n\n{table(head, lines, ':-:')}"


def foreign() -> dict[str, list[str]]:
    """The clauses that each layer of another library fails."""
    rows = file(f"{RESULTS}/conformance.json")["rows"]
    ours = ("minidora", "dora")
    return {row["name"]: list(row["failed"]) for row in rows if not row["name"].startswith(ours)}


# lessons/results/checks.md


def is_layer(function: str) -> bool:
    """Whether it is LoRA or DoRA itself, of rows or any groups, and no network."""
    layers = ("lora", "dora", "factored", "granularity", "factored, groups", "both axes")
    return function in layers


def worst(functions: Callable[[str], bool], witness: str) -> tuple[str, str]:
    """The worst relative error of some functions against a witness, and its bound."""
    lines = [
        line
        for line in file(f"{RESULTS}/check.json")["lines"]
        if functions(line["function"]) and line["witness"] == witness
    ]
    if not lines:
        return "-", "-"
    error, bound = (max(line[key] for line in lines) for key in ("max_rel", "tolerance"))
    return f"{error:.1e}", f"{bound:.0e}".replace("e-0", "e-")


@block(f"{RESULTS}/checks.md")
def gradients() -> str:
    """Every gradient against every witness, by kind."""
    witnesses = {"autograd": "the autograd library", "torch cpu": "PyTorch"}
    witnesses |= {"central differences": "central differences"}
    witnesses |= {"minidora.pytorch cpu": "`minidora.pytorch`, which is held against NumPy's"}
    rows = []
    for witness, title in witnesses.items():
        layers, networks = (worst(kind, witness) for kind in (is_layer, lambda n: not is_layer(n)))
        rows.append([title, *layers, *networks])
    head = [
        "witness",
        "LoRA and DoRA, textbook and factored, rows and groups",
        "bound",
        "layers and networks",
        "bound",
    ]
    report = file(f"{RESULTS}/check.json")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"""{table(head, rows)}

{len(report["lines"])} lines, {report["dtype"]}, seed {report["seed"]}; {versions}."""


@block(f"{RESULTS}/checks.md")
def mutation() -> str:
    """How many broken formulas the fast tests notice."""
    counts = file(f"{RESULTS}/mutation.json")
    share = 100 * counts["killed"] / counts["total"]
    return f"""Killed: {counts["killed"]:,} of {counts["total"]:,} mutants ({share:.1f} %). \
Ran out of time: {counts["timeout"]}. Survived: {counts["survived"]}. In lines that these tests \
do not run: {counts["no_tests"]}."""


@block(f"{RESULTS}/checks.md")
def faults() -> str:
    """What the stress command printed, a line for each kind of fault."""
    lines = re.findall(r"^(.+?): (\d+): (.+) \(\d+ s\)$", text_of(f"{RESULTS}/stress.txt"), re.M)
    rows = [[kind, f"{int(count):,}", came] for kind, count, came in lines]
    return table(["fault", "how many", "what came of it"], rows, "---")


@block(f"{RESULTS}/checks.md")
def processes() -> str:
    """Gradients in two processes against one."""
    found = [line for line in file(f"{RESULTS}/distributed.jsonl") if line["what"] == "gradients"]
    ways = {"ddp": "DistributedDataParallel", "fsdp": "FSDP2"}
    ways |= {"fsdp, checkpointed": "FSDP2 with activation checkpointing"}
    rows = []
    for axis in ("per_output", "per_input"):
        for how, title in ways.items():
            of_this = [line for line in found if (line["axis"], line["how"]) == (axis, how)]
            errors = {line["mode"]: line["error"] for line in of_this}
            rows.append([f"{title}, {axis}", *[f"{errors[m]:.0e}" for m in ("exact", "detached")]])
    return table(["how, norm_axis", "exact", "detached"], rows)


# README.md


def of_figure_2(method: str) -> str:
    """A method's correlations of ΔM with ΔD over q and over v, under decay, on unequal norms."""
    from slopes import SETTINGS, pooled

    intervals = pooled("decay", SETTINGS["decay, unequal norms"][method])
    return listed(f"{mean:+.2f}" for mean, _, _ in intervals).replace("-", "−")


def loss_at_the_highest_rate(method: str) -> str:
    """What the highest learning rate costs beside the best one, least and most over the ranks."""
    costs = []
    for name, group in summary("sweep").items():
        if name.startswith(f"{method}, "):
            losses = [by_rate[-1] for by_rate in group["test by rate"]]
            costs.append(sum(losses) / len(losses) - group["test"]["mean"])
    return f"{min(costs):.2f} to {max(costs):.2f}"


@block("README.md")
def headlines() -> str:
    """Ten results, each with its page."""
    from minilm import clear_signs, largest_difference

    (_, clear, right), (single, _) = clear_signs(), largest_difference()
    step = bench("minilm")["step"]["1"]["DoRA, all linears"]["minidora"]["cpu_ratio"]
    numpy, torch = (bench(name)["geometric_means"] for name in ("layer", "pytorch"))
    peak = bench("layer")["peak_over_W0_bytes"]
    minilm = bench("models")["training"]["MiniLM-L6"]["accelerate_ detached"]
    autograd, pytorch, central = (
        worst(lambda _: True, witness)[0]
        for witness in ("autograd", "torch cpu", "central differences")
    )
    layers = foreign().values()
    failed = [clauses for clauses in layers if clauses]
    nan = sum("Z3" in clauses for clauses in layers)
    rank_1 = summary("sweep")["DoRA, rank 1"]["difference"]["mean"]
    rows = {
        "Hand-derived gradients against witnesses, float64, worst relative error": (
            f"the autograd library {autograd}, PyTorch {pytorch}, central differences {central}",
            "checks",
        ),
        "The fast layer in NumPy, exact gradient": (
            f"{numpy['PEFT DoRA']:.2f} of the time of PEFT's DoRA, "
            f"{numpy['PEFT LoRA']:.2f} of its LoRA",
            "speed",
        ),
        "What the exact gradient costs beside the detached one": (
            f"{numpy['factored detached']:.2f} of its time; a step peaks at {peak['factored']:.2f} "
            f"of W0's bytes, the textbook's at {peak['textbook']:.1f}",
            "speed",
        ),
        "The PyTorch layer, exact; PEFT's DoRA by `accelerate_`, a step of MiniLM": (
            f"{torch['PEFT DoRA']:.2f} of the time of PEFT's DoRA; "
            f"{minilm['cpu_over_dora']:.2f} of its time, {minilm['kept_over_dora']:.2f} of what it "
            "keeps",
            "speed",
        ),
        "PEFT, torchtune, LyCORIS, mlx-lm and AdapterHub against the kit": (
            f"{len(failed)} of {len(layers)} layers fail; {nan} give NaN for a row of zeros",
            "conformance",
        ),
        "Figure 2, r of ΔM with ΔD, q and v; in the paper LoRA +0.83, full −0.62, DoRA −0.31": (
            f"with weight decay on norms that differ {of_figure_2('LoRA')}; {of_figure_2('FT')}; "
            f"{of_figure_2('DoRA')}; without decay none is negative",
            "figure2",
        ),
        "The law behind it on the real weights of MiniLM": (
            f"{right} of {clear} clear signs at the last checkpoint are as it says",
            "minilm",
        ),
        "The largest network tuned by these gradients": (
            f"MiniLM, 22.6 million numbers; hidden states within {single:.0e} (float32) of "
            f"transformers'; a DoRA step {step:.2f} of the time of PyTorch with PEFT",
            "minilm",
        ),
        "DoRA ahead of LoRA at every rank (figure 5)": (
            f"in part: loss {rank_1:+.3f} nats at rank 1, not told apart at 2 to 16".replace(
                "-", "−"
            ),
            "claims",
        ),
        "A learning rate that is too high (0.16, ranks 1 to 16)": (
            f"costs LoRA {loss_at_the_highest_rate('LoRA')} nats, "
            f"DoRA {loss_at_the_highest_rate('DoRA')}",
            "claims",
        ),
    }
    lines = [
        [what, result, f"[{page}]({RESULTS}/{page}.md)"] for what, (result, page) in rows.items()
    ]
    return table(["what", "result", "page"], lines, "---")


def wrapped(name: str, text: str) -> str:
    """A block as it stands on its page."""
    return f"<!-- block: {name} -->\n{text}\n<!-- end -->"


def main() -> None:
    """Write every block on its page."""
    import components  # noqa: F401  registers its blocks, and those of `slopes` and `claims`
    import minilm  # noqa: F401

    for name, (page, make) in BLOCKS.items():
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        place = re.compile(rf"<!-- block: {name} -->.*?<!-- end -->", re.S)
        text = wrapped(name, make())
        new, count = place.subn(lambda _, text=text: text, old)
        assert count == 1, f"{page}: expected <!-- block: {name} --> and <!-- end --> once"
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{page}: {name}")


if __name__ == "__main__":
    import pages  # the module that claims.py adds its blocks to; this one is __main__

    pages.main()

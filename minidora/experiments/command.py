"""`minidora experiments run | table | verify`."""

import os
from argparse import Namespace
from pathlib import Path

from .. import _command, training
from . import tensor_parallel, untrained
from .registry import EXPERIMENTS
from .store import read, run, table
from .verify import verify

PAGES = {
    "tensor_parallel": tensor_parallel.page,
    "untrained": untrained.page,
}  # counted, so that they need no file

PACKAGES = ("tqdm", "safetensors", "sklearn")  # that training the networks takes


def add_arguments(experiments: _command.Parser) -> None:
    """The experiments' subcommands and their options, on their parser."""
    subcommands = experiments.subcommands()

    def add(name: str, purpose: str, example: str, run: _command.Command) -> _command.Parser:
        example = f"minidora experiments {name} {example}"
        return _command.add(subcommands, name, purpose, example, run)

    purpose = "run what is missing of an experiment, and print its table"
    running = add("run", purpose, "figure2 --seeds 4 --out figure2.json", run_experiment)
    running.add_argument("name", choices=EXPERIMENTS, metavar="NAME", help="one of those below")
    lines = [f"  {name:12} {experiment.about}" for name, experiment in EXPERIMENTS.items()]
    running.epilog = "\n".join(["experiments:", *lines, "", str(running.epilog)])
    one_or_more = _command.at_least(1)
    running.add_argument("--seeds", type=one_or_more, metavar="N", help="for every network")
    running.add_argument(
        "--out", type=_command.new_file, metavar="FILE", help="resumed if it exists (NAME.json)"
    )
    running.add_argument(
        "--jobs", type=one_or_more, metavar="N", default=os.cpu_count(), help="default: all cores"
    )
    running.add_argument("--short", action="store_true", help="few steps, one seed (figure2)")
    showing = add("table", "print a file's summary as Markdown", "figure2.json", show_table)
    showing.add_argument("file", metavar="FILE", help=f"of results, or {', '.join(PAGES)}")
    purpose = "draw the figures of the experiments on decay, from a folder of results"
    drawing = add("draw", purpose, "lessons/results --out lessons/figures", draw_figures)
    drawing.add_argument("folder", type=Path, metavar="FOLDER", help="that holds decay*.json")
    drawing.add_argument("--out", type=Path, metavar="FOLDER", default=Path(), help="default: here")
    purpose = "run one seed of a file anew, and compare every figure"
    checking = add("verify", purpose, "figure2.json --seed 0", verify_file)
    checking.add_argument("file", type=Path, metavar="FILE", help="of results")
    checking.add_argument(
        "--seed", type=_command.at_least(0), metavar="N", help="default: the first in the file"
    )


def run_experiment(arguments: Namespace) -> int:
    """Run what is missing, seed by seed, and print the table."""
    _command.require(*PACKAGES)
    training.keep_memory()
    out = arguments.out or Path(f"{arguments.name}.json")
    options = {"seeds": arguments.seeds, "short": arguments.short, "jobs": arguments.jobs}
    try:
        results = run(arguments.name, out, **options)
    except KeyboardInterrupt:
        kept = f"{out} keeps the seeds that were finished"
        raise KeyboardInterrupt(kept if out.exists() else "no seed was finished") from None
    print(table(results))
    print(f"\n{out}: {len(results['seeds'])} seeds, {results['seconds']:.0f} s")
    return 0


def show_table(arguments: Namespace) -> int:
    """Print the table of a file, or a page."""
    page = PAGES.get(arguments.file)
    print(page().rstrip("\n") if page else table(read(Path(arguments.file))))
    return 0


def draw_figures(arguments: Namespace) -> int:
    """Write slopes.png and collapse.png, and say where."""
    _command.require("matplotlib")
    from .. import plotting
    from . import decay_figures

    if not arguments.out.is_dir():
        raise ValueError(f"--out: expected a folder that exists, got {arguments.out}")
    names = ("decay", "decay_interventions")
    decay, interventions = (read(arguments.folder / f"{name}.json") for name in names)
    figures = {
        "slopes": plotting.slopes(decay_figures.panels(decay)),
        "collapse": plotting.collapse(*decay_figures.collapsed(decay, interventions)),
    }
    for name, figure in figures.items():
        path = arguments.out / f"{name}.png"
        figure.savefig(path, dpi=100, metadata={"Software": None})
        print(path)
    return 0


def verify_file(arguments: Namespace) -> int:
    """Print each figure's error beside its tolerance; 0 where all agree."""
    _command.require(*PACKAGES)
    training.keep_memory()
    compared = verify(arguments.file, seed=arguments.seed)
    for figure in compared:
        mark = "ok" if figure.ok else "DIFFERS"
        errors = f"{figure.max_rel:8.1e} of {figure.tolerance:.0e}"
        print(f"{figure.name:<64} {errors}  {mark}")
    differing = sum(not figure.ok for figure in compared)
    verdict = f"{len(compared)} figures, {differing} differ" if differing else "all agree"
    print(f"{arguments.file}: {verdict}")
    return 1 if differing else 0

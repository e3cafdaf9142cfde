"""Running an experiment so that a killed one keeps its finished seeds, and its results' file.

The file is one JSON document: experiment, config, versions, seconds, seeds (every figure of every
run, by seed), summary (empty until all seeds are there). It is written whole after each seed; a
later run with the same configuration leaves out the seeds it finds there.
"""

import json
import platform
import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from .._boundary import positive_int
from .._files import write_whole
from .experiment import Seeds, Settings
from .networks import pretrained
from .registry import EXPERIMENTS
from .runs import Figures, measure
from .workers import interrupts_held, workers

PARTS = ("experiment", "config", "versions", "seconds", "seeds", "summary")
Results = dict[str, Any]


def versions() -> dict[str, str]:
    """What the figures were made with."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    return {
        "minidora": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "machine": platform.machine(),
        "system": platform.system(),
    }


def read(path: Path) -> Results:
    """The results in a file. Raises ValueError that names the file where it holds none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a file of results, found none")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected results as JSON, got {error}") from None
    missing = [key for key in PARTS if not isinstance(results, dict) or key not in results]
    if missing or results["experiment"] not in EXPERIMENTS:
        raise ValueError(f"{path}: expected results with {PARTS}, none of {missing or 'a name'}")
    return results


def runs_of(config: Settings, seed: int) -> list[str]:
    """The runs that this seed has: a network may have fewer seeds than another."""
    counts = config["seeds"]
    return [name for name, run in config["runs"].items() if seed < counts[run["network"]]]


def asked(config: Settings) -> dict[str, list[str]]:
    """The runs of every seed that the configuration asks for."""
    seeds = range(max(config["seeds"].values()))
    return {str(seed): names for seed in seeds if (names := runs_of(config, seed))}


def covered(results: Results) -> Seeds:
    """The figures of the seeds asked for that are whole; a file may hold others besides."""
    seeds = results["seeds"]
    return {
        seed: {name: seeds[seed][name] for name in names}
        for seed, names in asked(results["config"]).items()
        if seeds.get(seed, {}).keys() >= set(names)
    }


def finished(results: Results) -> Seeds:
    """The figures that the configuration asks for. Raises ValueError where one is missing."""
    seeds, total = covered(results), len(asked(results["config"]))
    if len(seeds) < total or not results["summary"]:
        raise ValueError(
            f"{results['experiment']} was interrupted, {len(seeds)} of {total} seeds are there;"
            " run it again to go on"
        )
    return seeds


def table(results: Results) -> str:
    """The summary as Markdown. Raises ValueError where the run was interrupted."""
    finished(results)
    return EXPERIMENTS[results["experiment"]].table(results["summary"])


def run(
    experiment: str,
    path: Path,
    *,
    seeds: int | None = None,
    short: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> Results:
    """Run what is missing of an experiment and write its results to `path`; returns them.

    seeds: how many, for every network; the configuration's unless given. Others that are in the
    file stay there and out of the summary. jobs: processes, each with one BLAS thread. Pretrained
    bases are kept in the folder `bases` beside `path`. Raises ValueError where `path` holds results
    of another configuration.
    """
    path = Path(path)
    positive_int("jobs", jobs)
    if not path.parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {path}")
    config = EXPERIMENTS[experiment].configured(short=short)
    if seeds is not None:
        config["seeds"] = dict.fromkeys(config["networks"], positive_int("seeds", seeds))
    results = _begun(path, experiment, config)
    started, before = time.monotonic(), results["seconds"]
    for seed, figures in _measured(results, path.parent / "bases", jobs, progress):
        by_seed = results["seeds"] | {seed: figures}
        results["seeds"] = {seed: by_seed[seed] for seed in sorted(by_seed, key=int)}
        results["seconds"] = round(before + time.monotonic() - started, 1)
        write_whole(path, as_text(results).encode())
    results["summary"] = EXPERIMENTS[experiment].summed_up(config, covered(results))
    write_whole(path, as_text(results).encode())
    return results


def as_text(results: Results) -> str:
    """The JSON document: one line for each run of each seed, so that a change can be read."""
    head = {key: results[key] for key in PARTS if key not in ("seeds", "summary")}
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "seeds": {\n'
    text += ",\n".join(
        f'  "{seed}": {{\n'
        + ",\n".join(
            f"   {json.dumps(name, ensure_ascii=False)}: {json.dumps(figures, ensure_ascii=False)}"
            for name, figures in runs.items()
        )
        + "\n  }"
        for seed, runs in results["seeds"].items()
    )
    return text + f'\n }},\n "summary": {json.dumps(results["summary"], ensure_ascii=False)}\n}}\n'


def _begun(path: Path, experiment: str, config: Settings) -> Results:
    """The results so far: those in the file, if it is of this configuration."""
    fresh = {
        "experiment": experiment,
        "config": config,
        "versions": versions(),
        "seconds": 0.0,
        "seeds": {},
        "summary": {},
    }
    if not path.exists():
        return fresh
    old = read(path)
    same = all(old["config"][key] == config[key] for key in ("networks", "runs"))
    if old["experiment"] != experiment or not same:
        raise ValueError(
            f"{path}: expected results of {experiment} as configured now, got other ones;"
            " choose another --out, or remove the file"
        )
    if old["versions"] != fresh["versions"] and old["seeds"]:
        raise ValueError(
            f"{path}: expected seeds made with {fresh['versions']}, got some made with"
            f" {old['versions']}; choose another --out, or remove the file"
        )
    return {**old, "config": config, "summary": {}}


def _measured(
    results: Results, folder: Path, jobs: int, progress: bool
) -> Iterator[tuple[str, dict[str, Figures]]]:
    """(seed, {run: figures}) of each seed not done yet, as soon as it is whole."""
    from tqdm.auto import tqdm

    config, done = results["config"], covered(results)
    wanted = {seed: names for seed, names in asked(config).items() if seed not in done}
    by_seed: Seeds = {seed: {} for seed in wanted}
    total = sum(map(len, wanted.values()))
    with tqdm(total=total, desc="runs", disable=not progress, smoothing=0.05) as bar:
        for seed, name, figures in _figures(config, wanted, folder, jobs):
            by_seed[seed][name] = figures
            bar.update()
            if len(by_seed[seed]) == len(wanted[seed]):
                yield seed, {name: by_seed[seed][name] for name in wanted[seed]}


Job = tuple[Settings, str, str, Path]  # configuration, seed, run, folder of bases


def _figures(
    config: Settings, wanted: dict[str, list[str]], folder: Path, jobs: int
) -> Iterator[tuple[str, str, Figures]]:
    """(seed, run, its figures), in one process or, in any order, in several."""
    tasks: list[Job] = [
        (config, seed, name, folder) for seed, names in wanted.items() for name in names
    ]
    if jobs == 1:
        yield from map(_measure, tasks)
        return
    with workers(jobs) as pool:
        # every base before any run, so that no base is pretrained twice
        pairs = {(seed, config["runs"][name]["network"]) for _, seed, name, _ in tasks}
        with interrupts_held():
            bases = [pool.submit(_base, config, *pair, folder) for pair in sorted(pairs)]
        for base in bases:
            base.result()
        with interrupts_held():
            measured = [pool.submit(_measure, task) for task in tasks]
        for figures in as_completed(measured):
            yield figures.result()


def _base(config: Settings, seed: str, network: str, folder: Path) -> None:
    pretrained(config["networks"][network], int(seed), folder)


def _measure(job: Job) -> tuple[str, str, Figures]:
    config, seed, name, folder = job
    settings = config["runs"][name]
    return seed, name, measure(config["networks"][settings["network"]], settings, int(seed), folder)

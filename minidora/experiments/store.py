"""Running an experiment so that a killed one keeps its finished seeds, and its results' file.

The file is one JSON document: experiment, config, versions, seconds, seeds (every figure of every
run, by seed), summary (empty until all seeds are there). It is written whole after each seed; a
later run with the same configuration leaves out the seeds it finds there.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .. import __version__
from .._boundary import positive_int
from .._files import write_whole
from .configs import EXPERIMENTS
from .networks import pretrained
from .runs import measure
from .summaries import summary

PARTS = ("experiment", "config", "versions", "seconds", "seeds", "summary")


def versions() -> dict[str, str]:
    """What the figures were made with."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "minidora": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}",
        "machine": platform.machine(),
        "system": platform.system(),
    }


def read(path: Path) -> dict:
    """The results in a file. Raises ValueError that names the file where it holds none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: expected a file of results, found none")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected results as JSON, got {error}") from None
    missing = [key for key in PARTS if not isinstance(found, dict) or key not in found]
    if missing or found["experiment"] not in EXPERIMENTS:
        raise ValueError(f"{path}: expected results with {PARTS}, none of {missing or 'a name'}")
    return found


def run(
    experiment: str,
    path: Path,
    *,
    seeds: int | None = None,
    short: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> dict:
    """Run what is missing of an experiment and write its results to `path`; returns them.

    seeds: how many, for every network; the configuration's unless given. jobs: processes, each with
    one BLAS thread. Pretrained bases are kept in the folder `bases` beside `path`. Raises
    ValueError where `path` holds results of another configuration.
    """
    path = Path(path)
    positive_int("jobs", jobs)
    if not path.parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {path}")
    config = json.loads(json.dumps(EXPERIMENTS[experiment](short)))  # as the file will hold it
    if seeds is not None:
        config["seeds"] = dict.fromkeys(config["networks"], positive_int("seeds", seeds))
    results = _begun(path, experiment, config)
    started, before = time.monotonic(), results["seconds"]
    for seed, found in _measured(config, results["seeds"], path.parent / "bases", jobs, progress):
        results["seeds"][str(seed)] = found
        results["seeds"] = dict(sorted(results["seeds"].items(), key=lambda item: int(item[0])))
        results["seconds"] = round(before + time.monotonic() - started, 1)
        write_whole(path, as_text(results).encode())
    results["summary"] = summary(experiment, config, results["seeds"])
    write_whole(path, as_text(results).encode())
    return results


def as_text(results: dict) -> str:
    """The JSON document: one line for each run of each seed, so that a change can be read."""
    head = {key: results[key] for key in PARTS if key not in ("seeds", "summary")}
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2] + ',\n "seeds": {\n'
    text += ",\n".join(
        f'  "{seed}": {{\n'
        + ",\n".join(
            f"   {json.dumps(name, ensure_ascii=False)}: {json.dumps(found, ensure_ascii=False)}"
            for name, found in runs.items()
        )
        + "\n  }"
        for seed, runs in results["seeds"].items()
    )
    return text + f'\n }},\n "summary": {json.dumps(results["summary"], ensure_ascii=False)}\n}}\n'


def _begun(path: Path, experiment: str, config: dict) -> dict:
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


def _measured(config, done, folder, jobs, progress) -> Iterator[tuple[int, dict]]:
    """(seed, {run: figures}) of each seed not done yet, as soon as it is whole."""
    from tqdm.auto import tqdm

    wanted = {
        seed: names
        for seed in range(max(config["seeds"].values()))
        if (names := runs_of(config, seed)) and done.get(str(seed), {}).keys() != set(names)
    }
    found: dict[int, dict] = {seed: {} for seed in wanted}
    total = sum(map(len, wanted.values()))
    with tqdm(total=total, desc="runs", disable=not progress, smoothing=0.05) as bar:
        for seed, name, figures in _figures(config, wanted, folder, jobs):
            found[seed][name] = figures
            bar.update()
            if len(found[seed]) == len(wanted[seed]):
                yield seed, {name: found[seed][name] for name in wanted[seed]}


def runs_of(config: dict, seed: int) -> list[str]:
    """The runs that this seed has: a network may have fewer seeds than another."""
    counts = config["seeds"]
    return [name for name, run in config["runs"].items() if seed < counts[run["network"]]]


def _figures(config, wanted, folder, jobs) -> Iterator[tuple[int, str, dict]]:
    """(seed, run, its figures), in one process or, in any order, in several."""
    tasks = [(config, seed, name, folder) for seed, names in wanted.items() for name in names]
    if jobs == 1:
        yield from map(_one, tasks)
        return
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ |= threads  # for the processes to come
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        networks = {(seed, config["runs"][name]["network"]) for _, seed, name, _ in tasks}
        bases = [pool.submit(_base, config, *pair, folder) for pair in sorted(networks)]
        for base in bases:
            base.result()
        try:
            for future in as_completed([pool.submit(_one, task) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _base(config, seed, network, folder) -> None:
    pretrained(config["networks"][network], seed, folder)


def _one(task) -> tuple[int, str, dict]:
    config, seed, name, folder = task
    settings = config["runs"][name]
    return seed, name, measure(config["networks"][settings["network"]], settings, seed, folder)

"""Holding a file of results against a fresh run of one of its seeds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..evidence.gradcheck import Difference
from .registry import EXPERIMENTS
from .runs import Figures, measure
from .store import finished, read

TOLERANCES = {
    "loss": 2e-3,
    "accuracy": 1e-2,
    "choose_loss": 2e-3,
    "dM": 1e-2,
    "dD": 1e-2,
    "growth": 1e-2,
    "right_angle_sums": 1e-2,
}
"""Of each kind of figure, relative to the largest of its list: float32 trajectories part ways a
little between BLAS builds."""
CORRELATION = 0.05  # absolute, for everything else: correlations, and ratios about 1


def verify(path: Path, *, seed: int | None = None, progress: bool = True) -> list[Difference]:
    """Run one seed of a file anew, pretraining included, and compare every figure of it.

    seed: the first of the file unless given. Raises ValueError that names the file where the run
    was interrupted, the summary is not what the seeds come to, or the seed is not in it; and
    KeyboardInterrupt as it comes, for nothing is written.
    """
    from tqdm.auto import tqdm

    results = read(path)
    config = results["config"]
    try:
        seeds = finished(results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    key = next(iter(seeds)) if seed is None else str(seed)
    if key not in seeds:
        raise ValueError(f"{path}: expected a seed among {list(seeds)}, got {key}")
    if EXPERIMENTS[results["experiment"]].summed_up(config, seeds) != results["summary"]:
        raise ValueError(f"{path}: the summary is not what the seeds in the file come to")
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        bar = tqdm(seeds[key].items(), desc=f"seed {key}", disable=not progress, leave=False)
        for name, kept in bar:
            settings = config["runs"][name]
            network = config["networks"][settings["network"]]
            differences += compare(name, measure(network, settings, int(key), Path(folder)), kept)
    return differences


def compare(run: str, fresh: Figures, kept: Figures) -> list[Difference]:
    """Each kind of figure of a run, fresh against kept."""
    worst: dict[str, float] = {}
    for kind, a, b in _leaves(fresh, kept, "result"):
        error = _error(a, b, relative=kind in TOLERANCES)
        worst[kind] = max(worst.get(kind, 0.0), error, key=_nan_last)
    return [
        Difference(f"{run}: {kind}", (), error, 1.0, TOLERANCES.get(kind, CORRELATION))
        for kind, error in worst.items()
    ]


def _nan_last(error: float) -> float:
    return np.inf if np.isnan(error) else error


def _leaves(a: Any, b: Any, kind: str) -> Iterator[tuple[str, Any, Any]]:
    """(kind of figure, a figure or list of figures, the other): lists of numbers whole."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _leaves(a[key], b[key], key)
    else:
        yield kind, a, b


def _error(a: Any, b: Any, *, relative: bool) -> float:
    """Largest difference; NaN where the two are not figures of the same shape."""
    if a == b:
        return 0.0
    try:
        a, b = (np.array(values, float) for values in (a, b))
    except (TypeError, ValueError):
        return np.nan
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return np.nan
    error = np.nanmax(np.abs(a - b))
    return float(error / np.nanmax(np.abs(b)) if relative else error)

"""Holding a file of results against a fresh run of one of its seeds."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .networks import pretrained
from .runs import measure, rounded
from .store import read, runs_of
from .summaries import summary

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


class Comparison(NamedTuple):
    """One kind of figure of one run: the largest error over the lists of it, and its tolerance."""

    run: str
    figure: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the fresh figures agree; NaN, for a missing one, does not."""
        return self.error <= self.tolerance


def verify(path: Path, *, seed: int | None = None, progress: bool = True) -> list[Comparison]:
    """Run one seed of a file anew, pretraining included, and compare every figure of it.

    seed: the first of the file unless given. Raises ValueError that names the file where its
    summary is not what its seeds come to, or the seed is not in it.
    """
    from tqdm.auto import tqdm

    results = read(path)
    seeds, config = results["seeds"], results["config"]
    key = str(seed) if seed is not None else min(seeds, key=int, default="none")
    if key not in seeds:
        raise ValueError(f"{path}: expected a seed among {sorted(seeds)}, got {key}")
    if rounded(summary(results["experiment"], config, seeds)) != results["summary"]:
        raise ValueError(f"{path}: the summary is not what the seeds in the file come to")
    names = runs_of(config, int(key))
    if names != list(seeds[key]):
        raise ValueError(f"{path}: expected the runs {names} of seed {key}, got {list(seeds[key])}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(names, desc=f"seed {key}", disable=not progress, leave=False):
            settings = config["runs"][name]
            network = config["networks"][settings["network"]]
            pretrained(network, int(key), Path(folder))
            fresh = measure(network, settings, int(key), Path(folder))
            found += compare(name, fresh, seeds[key][name])
    return found


def compare(run: str, fresh: dict, kept: dict) -> list[Comparison]:
    """Each kind of figure of a run, fresh against kept."""
    worst: dict[str, float] = {}
    for path, a, b in _leaves(fresh, kept, ("result",)):
        figure = next(part for part in reversed(path) if isinstance(part, str))
        relative = figure in TOLERANCES
        worst[figure] = max(worst.get(figure, 0.0), _error(a, b, relative), key=_nan_last)
    return [
        Comparison(run, figure, error, TOLERANCES.get(figure, CORRELATION))
        for figure, error in worst.items()
    ]


def _nan_last(error: float) -> float:
    return np.inf if np.isnan(error) else error


def _leaves(a, b, path: tuple):
    """(path, one figure or list of figures, the other): lists of numbers are taken whole."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _leaves(a[key], b[key], (*path, key))
    else:
        yield path, a, b


def _error(a, b, relative: bool) -> float:
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

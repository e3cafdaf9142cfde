"""The control that learns nothing: random vectors, random updates of one length, and decay."""

from collections.abc import Sequence

import numpy as np

from ..analysis.predictions import correlations_of, mean_correlations, untrained
from .tables import markdown

PULLS = (0, 0.003, 0.01, 0.03, 0.1, 0.3)  # Σ rate λ; Λ is 1 - exp of minus that
DRAWS = 100


def last(norms: np.ndarray, u: float, decay: float, d: int, over: str) -> tuple[float, float]:
    """Mean and standard deviation over draws of r at the last checkpoint, over layers or within."""
    rng = np.random.default_rng(0)
    draws = (
        correlations_of(untrained(norms, [u], [1 - np.exp(-decay)], d, rng)) for _ in range(DRAWS)
    )
    mean = mean_correlations(draws)
    return getattr(mean, over), mean.sd[mean._fields.index(over)]


def _row(label: str, norms: np.ndarray, u: float, d: int, over: str) -> list[str]:
    cells = [last(norms, u, decay, d, over) for decay in PULLS]
    return [label, *(f"{mean:+.2f} ± {sd:.2f}".replace("-", "−") for mean, sd in cells)]


def rows() -> Sequence[Sequence[str]]:
    """Layers whose norms go from 1/2 to 2, and one matrix whose rows do, at two lengths each."""
    layers = np.repeat(np.geomspace(0.5, 2, 6)[:, None], 32, 1)  # (6, 32)
    matrix = np.geomspace(0.5, 2, 200)[None]  # (1, 200)
    return [
        _row("six layers, d = 32, u = 0.08", layers, 0.08, 32, "last"),
        _row("six layers, d = 32, u = 0.5", layers, 0.5, 32, "last"),
        _row("one matrix of 200, d = 32, u = 0.05", matrix, 0.05, 32, "within"),
        _row("one matrix of 200, d = 384, u = 0.5", matrix, 0.5, 384, "within"),
    ]


def page() -> str:
    """What the control gives, as Markdown."""
    table = markdown(["r of ΔM with ΔD", *(f"Σ rate λ = {pull:g}" for pull in PULLS)], rows())
    return PAGE.format(draws=DRAWS, table=table)


PAGE = """# Figure 2 without any learning

Written by `minidora experiments table untrained`. Random vectors w0, whose norms go from 1/2 to 2,
become (1 - Λ) w0 + u e, with e a random direction: decay, and an update of one length u that knows
nothing of any task. ΔM and ΔD are measured from the vectors before and after; means and standard
deviations of the correlation over {draws} draws, over layers or over the vectors of one matrix.

{table}

The slope turns with decay as it does in a network that is fine-tuned ([figure2.md](figure2.md)): by
itself it is no sign of how a method learns.
"""

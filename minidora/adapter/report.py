"""What an adapter does to a model: ΔM, ΔD, slopes and flipped vectors, by layer and by kind."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._boundary import Array
from .._command import printable
from .._files import FilePath
from ..analysis.correlation import Correlation, correlate
from .findings import UNREADABLE, examine
from .formats import read, weights_of
from .tensors import read_model


class Row(NamedTuple):
    """How the vectors of one layer have moved, or the layers of one kind."""

    layer: str  # its path, or how many layers
    kind: str  # the last part of its name: q_proj
    vectors: int
    dM: float  # ΔM, for a kind its mean over the layers; and so ΔD
    dD: float
    slope: float | None  # of |growth| against turn over the vectors, or ΔM against ΔD over layers
    r: float | None
    flipped: int  # vectors that point away from where they did


class Report(NamedTuple):
    """A row for each layer, one for each kind, and what it took."""

    layers: list[Row]
    kinds: list[Row]
    left_out: list[str]  # layers with other arrays than A and B, or with magnitudes of groups
    megabytes: float  # of the base's weights, read once
    seconds: float


def report(adapter: FilePath, base: FilePath) -> Report:
    """Measure what an adapter does to the weights of its base, a few rows in memory at a time.

    Raises ValueError or FileNotFoundError that names the file, or the adapter and the layer, where
    that cannot be said; `check` says more.
    """
    begun, opened = time.perf_counter(), read(adapter)
    weights = weights_of(read_model(Path(base)), opened.layers)
    rows, left_out, size = [], [], 0
    for path, layer in opened.layers.items():
        if (weight := weights.get(path)) is None:
            raise ValueError(f"{base}: expected a weight for the adapter's {path!r}, got none")
        findings, held = examine(layer, weight)
        for finding in findings:
            if finding.kind in UNREADABLE:
                raise ValueError(f"{adapter}: {path!r}: {finding.kind}: {finding.evidence}")
        if held is None or (held.m is not None and held.m.size not in weight.shape):
            left_out.append(path)
            continue
        moved = held.moved(weight, held.axis, held.m)
        if not np.isfinite(moved).all():
            raise ValueError(f"{weight.file}: {weight.name!r}: its vectors' changes are not finite")
        kind = weight.name.removesuffix(".weight").rpartition(".")[2]
        line = _slope_and_r(moved.correlation if len(moved.turn) > 1 else None)
        flipped = int((moved.turn > 1).sum())
        rows.append(Row(path, kind, len(moved.turn), moved.dM, moved.dD, *line, flipped))
        size += weight.size
    kinds = [_of_kind(rows, kind) for kind in dict.fromkeys(row.kind for row in rows)]
    return Report(rows, kinds, left_out, size / 1e6, time.perf_counter() - begun)


def points(rows: list[Row], kind: str) -> tuple[Array, Array, Correlation | None]:
    """ΔD and ΔM of the layers of one kind, and the line through them if there are two or more."""
    dD, dM = (np.array([getattr(r, n) for r in rows if r.kind == kind]) for n in ("dD", "dM"))
    return dD, dM, correlate(dD, dM) if len(dD) > 1 else None


def _of_kind(rows: list[Row], kind: str) -> Row:
    """What the layers of one kind come to."""
    alike, (dD, dM, line) = [row for row in rows if row.kind == kind], points(rows, kind)
    vectors, flipped = sum(row.vectors for row in alike), sum(row.flipped for row in alike)
    layers, dM_mean, dD_mean = f"{len(alike)} of them", float(dM.mean()), float(dD.mean())
    return Row(layers, kind, vectors, dM_mean, dD_mean, *_slope_and_r(line), flipped)


def _slope_and_r(line: Correlation | None) -> tuple[float | None, float | None]:
    """NaN, which JSON does not know, as None."""
    return (line.slope, line.r) if line and math.isfinite(line.r) else (None, None)


def text(measured: Report) -> str:
    """All layers as a table, then the kinds, what was left out, and what it took."""
    lines: list[tuple[str, ...]] = [tuple(Row._fields)]
    for row in (*measured.layers, *measured.kinds):
        numbers = ["-" if x is None else f"{x:.3g}" for x in row[3:7]]
        lines.append((*map(printable, row[:2]), str(row.vectors), *numbers, str(row.flipped)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    table.insert(1 + len(measured.layers), "")
    table += [f"left out: {printable(path)}" for path in measured.left_out]
    return "\n".join(
        [*table, f"{measured.megabytes:.1f} MB of weights in {measured.seconds:.1f} s"]
    )

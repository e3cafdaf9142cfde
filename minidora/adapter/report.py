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

    layer: str  # its path, or how many there are
    kind: str  # the last part of its name: q_proj
    vectors: int
    dM: float  # ΔM, of a kind its mean over the layers; and so ΔD
    dD: float
    slope: float | None  # of |growth| against turn over the vectors, or ΔM against ΔD over layers
    r: float | None
    flipped: int  # vectors that point away from where they did


class Report(NamedTuple):
    """A row for each layer and one for each kind."""

    layers: list[Row]
    kinds: list[Row]
    left_out: list[str]  # layers with other arrays than A and B, or with magnitudes of groups
    seconds: float


def report(adapter: FilePath, base: FilePath) -> Report:
    """Measure what an adapter does to the weights of its base, a few rows in memory at a time.

    Raises ValueError or FileNotFoundError that names the file, or the adapter and the layer, where
    that cannot be said; `check` says more.
    """
    begun, opened = time.perf_counter(), read(adapter)
    weights = weights_of(read_model(Path(base)), opened.layers)
    rows, left_out = [], []
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
        line = _line(moved.turn, np.abs(moved.growth))
        flipped = int((moved.turn > 1).sum())
        rows.append(Row(path, kind, len(moved.turn), moved.dM, moved.dD, *_ends(line), flipped))
    if not rows:
        raise ValueError(f"{adapter}: expected a layer with A and B, got none that can be measured")
    kinds = [_of_kind(rows, kind) for kind in dict.fromkeys(row.kind for row in rows)]
    return Report(rows, kinds, left_out, time.perf_counter() - begun)


def points(rows: list[Row], kind: str) -> tuple[Array, Array, Correlation | None]:
    """ΔD and ΔM of the layers of one kind, and the line through them if they are three or more."""
    dD, dM = (np.array([getattr(r, n) for r in rows if r.kind == kind]) for n in ("dD", "dM"))
    return dD, dM, _line(dD, dM)


def _of_kind(rows: list[Row], kind: str) -> Row:
    """What the layers of one kind come to."""
    alike, (dD, dM, line) = [row for row in rows if row.kind == kind], points(rows, kind)
    vectors, flipped = sum(row.vectors for row in alike), sum(row.flipped for row in alike)
    means = float(dM.mean()), float(dD.mean())
    return Row(f"all {len(alike)}", kind, vectors, *means, *_ends(line), flipped)


def _line(x: Array, y: Array) -> Correlation | None:
    line = correlate(x, y) if len(x) > 2 else None
    return line if line and math.isfinite(line.r) else None


def _ends(line: Correlation | None) -> tuple[float | None, float | None]:
    return (line.slope, line.r) if line else (None, None)


def text(measured: Report) -> str:
    """All layers as a table, then the kinds, what was left out, and what it took."""
    lines: list[tuple[str, ...]] = [tuple(Row._fields)]
    for row in (*measured.layers, *measured.kinds):
        numbers = ("-" if x is None else f"{x:.3g}" for x in row[3:7])
        lines.append((*map(printable, row[:2]), str(row.vectors), *numbers, str(row.flipped)))
    form = "  ".join(f"{{:{max(map(len, column))}}}" for column in zip(*lines, strict=True))
    table = [form.format(*line).rstrip() for line in lines]
    table.insert(1 + len(measured.layers), "")
    table += [f"left out: {printable(path)}" for path in measured.left_out]
    return "\n".join([*table, f"{len(measured.layers)} layers in {measured.seconds:.1f} s"])

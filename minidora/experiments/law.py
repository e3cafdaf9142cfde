"""A run held against the law of `analysis.decay`: measured and predicted correlations."""

from fnmatch import fnmatch
from typing import Any

import numpy as np

from .. import analysis
from .._boundary import Array
from ..analysis.decay import update_of
from ..analysis.movement import Changes
from ..analysis.predictions import (
    Correlations,
    correlations_of,
    mean_correlations,
    moves_of,
    predicted_correlations,
)
from ..nn.layer import walk
from ..nn.linear import DoRALinear
from .networks import Model, Settings
from .tuning import pulls_at

SELECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer": {"q": ("attn.q",), "v": ("attn.v",)},
    "mlp": {"hidden": ("layers.0", "layers.1", "layers.2")},
}
"""The layers that a correlation is over, by the endings of their names."""

DRAWS = 20


def held_against_the_law(
    recording: analysis.Recording,
    columns: analysis.Recording,
    base: Model,
    model: Model,
    steps: int,
    settings: Settings,
    rng: np.random.Generator,
    pulled: float | None = None,
) -> dict[str, Any]:
    """ΔM and ΔD at the checkpoints, and for each selection of layers what the law says of them.

    The law gets the norms before tuning, Λ at the checkpoints, and of what the gradients did only
    one length u at each checkpoint, the mean over all vectors (for DoRA also mean and standard
    deviation of p, what m moved by); directions, ρ and the p of each vector are drawn. columns:
    the same run along the inputs. pulled: the Λ at the end, where it had to be measured.
    """
    pulls = np.array(pulls_at(steps, settings, recording.steps))
    if pulled is not None:
        pulls = pulls * (pulled / pulls[-1] if pulls[-1] else 0)
    dora = any(isinstance(layer, DoRALinear) for _, layer in walk(model))
    if not _decays(recording.names[0], dora, settings):
        pulls = 0 * pulls
    kind = "mlp" if hasattr(base, "layers") else "transformer"
    points = {key: getattr(recording, key).tolist() for key in ("dM", "dD")}
    return {
        "recording": {"steps": recording.steps, "names": recording.names, **points},
        "law": {
            label: _selected(recording.only(*endings), base, pulls, dora, rng)
            | {"columns": correlations_of_layers(columns.only(*endings))}
            for label, endings in SELECTIONS[kind].items()
        },
    }


def _decays(name: str, dora: bool, settings: Settings) -> bool:
    """Whether the norm of this layer's vectors decays: DoRA's m, FT's weight, never LoRA's W0."""
    if settings["adapt"]["method"] == "lora":
        return bool(settings.get("decaying_base"))
    norm = f"{name}.{'m' if dora else 'weight'}"
    return not any(fnmatch(norm, pattern) for pattern in settings.get("spared", ()))


def _selected(
    recording: analysis.Recording,
    base: Model,
    pulls: Array,
    dora: bool,
    rng: np.random.Generator,
) -> dict[str, Any]:
    moves = moves_of(recording)  # (checkpoints, layers, vectors)
    layers: dict[str, Any] = dict(walk(base))
    dimension = layers[recording.names[-1]].weight.shape[1]
    flipped = moves.turn[-1] > 1
    turn, growth = (np.ma.masked_array(a[-1], flipped) for a in (moves.turn, moves.growth))
    lengths, step = _typical(moves, pulls, dora)
    return {
        "measured": _three(correlations_of(moves)),
        "signed": _three(correlations_of(moves, signed=True)),
        "predicted": _three(_predicted(moves, lengths, step, pulls, dimension, rng)),
        "pulls": pulls.tolist(),
        "lengths": lengths.tolist(),
        "step": None if step is None else step.tolist(),
        "norm": float(moves.before[-1].mean()),
        "flipped": int(flipped.sum()),
        "of": int(flipped.size),
        "dD": float(moves.turn[-1].mean()),
        "dM": float(np.abs(moves.growth[-1]).mean()),
        "dD of the rest": float(turn.mean()),
        "dM of the rest": float(np.abs(growth).mean()),
    }


def correlations_of_layers(recording: analysis.Recording) -> float:
    """The pooled correlation alone, for layers that need not have as many vectors."""
    return analysis.correlate(recording.dD.ravel(), recording.dM.ravel()).r


def _three(correlations: Correlations) -> list[float]:
    """Pooled, over the last checkpoint, within matrices."""
    return list(correlations[:3])


def _typical(moves: Changes, pulls: Array, dora: bool) -> tuple[Array, Array | None]:
    """u at each checkpoint, (checkpoints,), and for DoRA mean and deviation of p, (checkpoints, 2).

    DoRA's V does not show in W but by its direction: u = m tan, as if at a right angle to w0.
    """
    if not dora:
        return update_of(moves, pulls[:, None, None]).lengths.mean((1, 2)), None
    about = moves.turn > 1
    cos = np.maximum(1 - np.where(about, 2 - moves.turn, moves.turn), 0.05)
    lengths = moves.before * np.sqrt(1 / cos**2 - 1)
    m = np.where(about, -1, 1) * (moves.before + moves.growth)
    p = m - (1 - pulls[:, None, None]) * moves.before
    return lengths.mean((1, 2)), np.stack([p.mean((1, 2)), p.std((1, 2))], 1)


def _predicted(
    moves: Changes,
    lengths: Array,
    step: Array | None,
    pulls: Array,
    dimension: int,
    rng: np.random.Generator,
) -> Correlations:
    norms = moves.before[-1]
    if step is None:
        return predicted_correlations(
            norms, lengths, pulls, dimension=dimension, draws=DRAWS, rng=rng
        )
    mean, sd = (column[:, None, None] for column in step.T)
    return mean_correlations(
        predicted_correlations(
            norms,
            lengths,
            pulls,
            step=mean + sd * rng.normal(size=norms.shape),
            dimension=dimension,
            draws=1,
            rng=rng,
        )
        for _ in range(DRAWS)
    )

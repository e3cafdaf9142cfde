"""One run: a base, adapted, tuned and measured. Settings in, plain numbers out."""

from pathlib import Path
from typing import Any

import numpy as np

from .. import analysis, nn
from .._boundary import Array
from ..nn.layer import trained, walk
from ..nn.linear import Linear
from .grouped import GroupRecorder, against_the_law, spread_gains
from .law import held_against_the_law
from .networks import Model, Settings, Task, judge, pretrained, rows, task, train
from .tuning import (
    CoupledAdam,
    DecayingBase,
    keep_positive,
    optimizer_of,
    schedule_of,
    weight_decay_of,
    with_own_base,
)
from .watching import watched

Figures = dict[str, Any]
"""What one run of one seed came to."""


def measure(network: Settings, settings: Settings, seed: int, folder: Path | None) -> Figures:
    """Tune one network as `settings` say and return its figures, rounded to five digits.

    settings: adapt (arguments of `nn.adapt`), rate, and where they matter: optimizer ("adamw" or
    "sgd", momentum 0.9), weight_decay (none unless given), m_rate (a factor on m's learning rate),
    fraction (of the training data), record (targets, and how many times), vectors (keep those of
    the last step), controls, watch (rows of a layer's input to look at gradients on), and what
    `tuning` takes: pull (Λ at the end, in place of weight_decay), spared (patterns that do not
    decay, beside biases and gains), schedule, decaying_base, positive (m stays so), and rescale
    (the spread of `nn.rescale`, before adapting); law (hold the movements against
    `analysis.decay`); heads (heads and gains as the vectors, each rescaled by itself). What the
    network's settings name too, such as task, holds for the tuning in place of theirs.
    """
    base = pretrained(network, seed, folder)
    if "rescale" in settings:
        given = np.random.default_rng(2000 + seed)
        if "heads" in settings:
            base = spread_gains(
                nn.rescale(base, settings["rescale"], given, by="head"), settings["rescale"], given
            )
        else:
            base = nn.rescale(base, settings["rescale"], given)
    network = network | {key: settings[key] for key in network if key in settings}
    on = task(network, network["task"], seed)
    fewer = slice(int(len(on.train[0]) * settings.get("fraction", 1)))
    on = Task(rows(on.train, fewer), on.choose, on.test, on.loss)
    rng = np.random.default_rng(1000 + seed)
    model = nn.adapt(base, rng=rng, **settings["adapt"])
    if settings.get("decaying_base"):
        model = with_own_base(model)
    result: Figures = {"trained": sum(array.size for array in trained(model).values())}
    if "watch" in settings:
        result["start"] = watched(model, on, settings["watch"])
    try:
        history, recording, *columns = _tune(model, base, network, settings, on, rng, result)
    except FloatingPointError as error:
        return {**result, "diverged": str(error)}
    result |= {"choose": judge(model, on.choose), "test": judge(model, on.test)}
    if "watch" in settings:
        result["end"] = watched(model, on, settings["watch"])
    if recording and settings.get("law"):
        (across,), steps = columns, network["tune_steps"]
        result |= held_against_the_law(
            recording, across, base, model, steps, settings, rng, result.get("pulled")
        )
    elif "heads" in settings:
        result["heads"] = against_the_law(columns[0], network["tune_steps"], settings, rng)
    elif recording:
        result["recording"] = described(recording, vectors=settings.get("vectors", False))
        result["recording"]["choose_loss"] = list(history.evaluations.values())
        result["recording"]["within_r_per_input"] = _across(base, model, recording.names)
        if settings.get("controls"):
            result["controls"] = _controls(base, model, recording.names, rng)
    return rounded(result)


def _tune(
    model: Model,
    base: Model,
    network: Settings,
    settings: Settings,
    on: Task,
    rng: np.random.Generator,
    result: Figures,
) -> tuple[Any, ...]:
    """Tune in place: the history and, where asked for, the recording; adds to the result.

    Returns (history, recording), and with `law` the recording along the columns.
    """
    steps, recording = network["tune_steps"], None
    schedule, optimizer = schedule_of(steps, settings), optimizer_of(steps, settings)
    watching: dict[str, Any] = {"callbacks": []}
    columns: list[Any] = []
    if settings.get("decaying_base"):
        decay = weight_decay_of(steps, settings)
        watching["callbacks"].append(DecayingBase(schedule, decay))
    if settings.get("positive"):
        watching["callbacks"].append(keep_positive)
    if "record" in settings:
        every = steps // settings["record"]["times"]
        checkpoints = range(every, steps + 1, every)
        recorder = analysis.Recorder(base, settings["record"]["targets"], steps=checkpoints)
        recording = recorder.recording
        watching["callbacks"].append(recorder)
        if settings.get("law"):
            across = analysis.Recorder(
                base, settings["record"]["targets"], steps=checkpoints, norm_axis="per_input"
            )
            watching["callbacks"].append(across)
            columns = [across.recording]
        else:
            watching |= {"evaluate": lambda tuned: judge(tuned, on.choose)["loss"], "every": every}
    if "heads" in settings:
        columns = [GroupRecorder(base, [steps * k // 4 for k in (1, 2, 3, 4)])]
        watching["callbacks"].append(columns[0])
    history = train(model, network, on, steps, schedule, rng, optimizer, **watching)
    if isinstance(optimizer, CoupledAdam):
        ends = tuple(f"{target}.weight" for target in settings["record"]["targets"])
        result["pulled"] = float(
            np.mean([v for n, v in optimizer.pulled.items() if n.endswith(ends)])
        )
    return history, recording, *columns


def described(recording: analysis.Recording, *, vectors: bool) -> Figures:
    """A recording as JSON can hold it: matrices at every step, figures of vectors at the last."""
    last = {name: recording.last(name) for name in recording.names}
    correlations = [changes.correlation for changes in last.values()]
    figures = {
        "steps": recording.steps,
        "names": recording.names,
        "dM": recording.dM.tolist(),
        "dD": recording.dD.tolist(),
        "growth": recording.growth.tolist(),
        "right_angle_sums": [list(changes.right_angle_sums) for changes in last.values()],
        "within_r": [correlation.r for correlation in correlations],
        "within_spearman": [correlation.spearman for correlation in correlations],
    }
    if vectors:
        figures["vectors"] = {
            name: {key: value.tolist() for key, value in changes._asdict().items()}
            for name, changes in last.items()
        }
    return figures


def weights(model: Model, names: list[str]) -> dict[str, Array]:
    """The matrices that some linear layers, plain or adapted, stand for."""
    layers: dict[str, Any] = dict(walk(model))
    return {
        name: layers[name].weight if isinstance(layers[name], Linear) else layers[name].merged()
        for name in names
    }


def _across(base: Model, model: Model, names: list[str]) -> list[float]:
    """The correlation within each matrix along the axis that DoRA does not normalise."""
    before, after = weights(base, names), weights(model, names)
    return [
        analysis.changes(before[name], after[name], "per_input").correlation.r for name in names
    ]


def _controls(
    base: Model, model: Model, names: list[str], rng: np.random.Generator
) -> dict[str, list[float]]:
    """The correlation within each matrix with update lengths made equal, and without learning."""
    before, after = weights(base, names), weights(model, names)
    layers: dict[str, Any] = dict(walk(model))
    correlations: dict[str, list[float]] = {"equal lengths": [], "random low rank": []}
    for name in names:
        W0, W = before[name], after[name]
        length = float(np.linalg.norm(W.astype(np.float64) - W0))
        for control, changed in {
            "equal lengths": analysis.equal_lengths(W0, W, "per_output"),
            "random low rank": analysis.random_low_rank(W0, len(layers[name].A), length, rng),
        }.items():
            r = analysis.changes(W0, changed, "per_output").correlation.r
            correlations[control].append(r)
    return correlations


def rounded(value: Any) -> Any:
    """Nested figures with every float at five significant digits, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value

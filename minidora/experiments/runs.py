"""One run: a base, adapted, tuned and measured. Settings in, plain numbers out."""

from pathlib import Path

import numpy as np

from .. import analysis, nn, training
from ..nn.layer import Layer, trained, walk
from ..nn.linear import Linear
from .networks import Task, judge, pretrained, task, train
from .watching import watched


def measure(network: dict, settings: dict, seed: int, folder: Path | None) -> dict:
    """Tune one network as `settings` say and return its figures, rounded to five digits.

    settings: adapt (arguments of `nn.adapt`), rate, and where they matter: optimizer ("adamw" or
    "sgd", momentum 0.9), weight_decay (none unless given), m_rate (a factor on m's learning rate),
    task, fraction (of the training data), record (targets, and how many times), vectors (keep those
    of the last step), controls, watch (rows of a layer's input to look at gradients on).
    """
    network = {**network, "task": settings.get("task", network["task"])}
    base, on = pretrained(network, seed, folder), task(network, network["task"], seed)
    on = _part(on, settings.get("fraction", 1))
    rng = np.random.default_rng(1000 + seed)
    model = nn.adapt(base, rng=rng, **settings["adapt"])
    result: dict = {"trained": sum(array.size for array in trained(model).values())}
    if "watch" in settings:
        result["start"] = watched(base, model, on, settings["watch"])
    try:
        history, recording = _tuned(model, base, network, settings, on, rng)
    except FloatingPointError as error:
        return {**result, "diverged": str(error)}
    result |= {"choose": judge(model, on.choose), "test": judge(model, on.test)}
    if "watch" in settings:
        result["end"] = watched(base, model, on, settings["watch"])
    if recording:
        result["recording"] = described(recording, vectors=settings.get("vectors", False))
        result["recording"]["choose_loss"] = list(history.evaluations.values())
        result["recording"]["within_r_per_input"] = _along_inputs(base, model, recording.names)
    if settings.get("controls"):
        result["controls"] = _controls(base, model, recording.names, rng)
    return rounded(result)


def _part(on: Task, fraction: float) -> Task:
    rows = slice(int(len(on.train[0]) * fraction))
    fewer = [array[rows] for array in on.train]
    make = getattr(type(on.train), "_make", tuple)
    return Task(make(fewer), on.choose, on.test, on.loss)


def _tuned(model, base, network, settings, on, rng):
    """Tune in place: the history and, where asked for, the recording."""
    steps, factors = network["tune_steps"], {"*.m": settings.get("m_rate", 1)}
    if settings.get("optimizer", "adamw") == "sgd":
        optimizer = training.SGD(momentum=0.9, rates=factors)
    else:
        decay = settings.get("weight_decay", 0.0)
        optimizer = training.AdamW(weight_decay=decay, rates=factors)
    more, recorder = {}, None
    if "record" in settings:
        every = steps // settings["record"]["times"]
        at = range(every, steps + 1, every)
        recorder = analysis.Recorder(base, settings["record"]["targets"], steps=at)
        more = {
            "callbacks": [recorder],
            "evaluate": lambda m: judge(m, on.choose)["loss"],
            "every": every,
        }
    history = train(model, network, on, steps, settings["rate"], rng, optimizer, **more)
    return history, recorder and recorder.recording


def described(recording: analysis.Recording, *, vectors: bool) -> dict:
    """A recording as JSON can hold it: matrices at every step, figures of vectors at the last."""
    last = {name: recording.last(name) for name in recording.names}
    found = {
        "steps": recording.steps,
        "names": recording.names,
        "dM": recording.dM.tolist(),
        "dD": recording.dD.tolist(),
        "growth": recording.growth.tolist(),
        "right_angle_sums": [list(changes.right_angle_sums) for changes in last.values()],
        "within_r": [changes.correlation.r for changes in last.values()],
        "within_spearman": [changes.correlation.spearman for changes in last.values()],
    }
    if vectors:
        found["vectors"] = {
            name: {key: value.tolist() for key, value in changes._asdict().items()}
            for name, changes in last.items()
        }
    return found


def weights(model: Layer, names: list[str]) -> dict[str, np.ndarray]:
    """The matrices that some linear layers, plain or adapted, stand for."""
    layers = dict(walk(model))
    return {
        name: layers[name].weight if isinstance(layers[name], Linear) else layers[name].merged()
        for name in names
    }


def _along_inputs(base, model, names) -> list[float]:
    """The correlation within each matrix along the axis that DoRA does not normalise."""
    before, after = weights(base, names), weights(model, names)
    return [
        analysis.changes(before[name], after[name], "per_input").correlation.r for name in names
    ]


def _controls(base, model, names, rng) -> dict[str, list[float]]:
    """The correlation within each matrix with update lengths made equal, and without learning."""
    before, after = weights(base, names), weights(model, names)
    found: dict[str, list[float]] = {"equal lengths": [], "random low rank": []}
    for name in names:
        W0, W = before[name], after[name]
        rank = dict(walk(model))[name].A.shape[0]
        update = float(np.linalg.norm(W.astype(np.float64) - W0))
        for control, changed in {
            "equal lengths": analysis.equal_lengths(W0, W, "per_output"),
            "random low rank": analysis.random_low_rank(W0, rank, update, rng),
        }.items():
            found[control].append(analysis.changes(W0, changed, "per_output").correlation.r)
    return found


def rounded(value):
    """Nested figures with every float at five significant digits, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value

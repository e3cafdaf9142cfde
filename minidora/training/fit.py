"""The training loop."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._boundary import Array, number, positive_int
from ..nn.layer import Grads, Layer, trained, walk
from .optim import AdamW, Optimizer, Schedule, clip_by_norm, constant

Loss = Callable[[Any, Any, np.random.Generator | None], tuple[float, Grads]]
"""loss(model, batch, rng) gives the loss and the gradients by name."""


@dataclass
class History:
    """What happened, by step. evaluations: {step: whatever `evaluate` returned}."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    evaluations: dict[int, object] = field(default_factory=dict)
    interrupted: bool = False


def fit(
    model: Layer,
    loss: Loss,
    batches: Iterable[Any],
    *,
    steps: int,
    start: int = 0,
    optimizer: Optimizer | None = None,
    rate: float | Schedule = 1e-3,
    clip: float | None = None,
    rng: np.random.Generator | None = None,
    evaluate: Callable[[Layer], object] | None = None,
    every: int = 100,
    callbacks: Iterable[Callable[[int, Layer], None]] = (),
    progress: bool | str = True,
) -> History:
    """Train, in place, what trains in a model; returns the history.

    loss: (model, batch, rng) -> (loss, grads by name), such as `nn.cross_entropy` between a forward
    and a backward makes. Steps count from `start`, so that a run can go on. batches: endless, or as
    many. rate: a number or a schedule. clip: a limit on the gradients' global norm. rng goes to the
    loss, for dropout. evaluate(model) runs every `every` steps and at the end; each callback gets
    (step, model) before the first step and after every step. progress: a tqdm bar, with that name
    where it is a string.

    Raises FloatingPointError naming step and parameter when a loss or gradient is not finite, and
    ValueError when batches run out. Ctrl-C ends training and returns what there is so far, with
    `history.interrupted` set.
    """
    positive_int("steps", steps)
    positive_int("every", every)
    optimizer = AdamW() if optimizer is None else optimizer
    schedule = rate if callable(rate) else constant(number("rate", rate, minimum=0))
    params, history, callbacks = trained(model), History(), tuple(callbacks)
    if not 0 <= start < steps:
        raise ValueError(f"start: expected from 0 to below steps = {steps}, got {start}")
    if not params:
        raise ValueError("model: expected arrays that train, got none; see `adapt` and `thaw`")
    _check_ready(model, params, rng)
    for callback in callbacks:
        callback(start, model)
    bar = _progress(steps - start, progress)
    try:
        for step, batch in enumerate(_exactly(batches, steps - start), start):
            value, grads = loss(model, batch, rng)
            _check_finite(step, value, grads)
            if missing := sorted(params.keys() - grads.keys()):
                raise ValueError(f"loss: expected gradients of all that trains, none of {missing}")
            if clip is not None:
                history.grad_norms.append(clip_by_norm(grads, clip))
            history.losses.append(value)
            history.rates.append(schedule(step))
            optimizer.step(params, grads, schedule(step))
            for callback in callbacks:
                callback(step + 1, model)
            if evaluate and ((step + 1) % every == 0 or step + 1 == steps):
                history.evaluations[step + 1] = evaluate(model)
            bar.update()
            if (step + 1) % 20 == 0:
                bar.set_postfix_str(f"loss {np.mean(history.losses[-20:]):.3f}", refresh=False)
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        bar.close()
    return history


def _exactly(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """`steps` batches; ValueError where there are fewer."""
    source = iter(batches)
    for step in range(steps):
        try:
            yield next(source)
        except StopIteration:
            raise ValueError(f"batches: expected {steps} for as many steps, got {step}") from None


def _check_ready(model: Layer, params: dict[str, Array], rng: np.random.Generator | None) -> None:
    """Raise ValueError for what would fail, or silently do nothing, later on."""
    frozen = [name for name, array in params.items() if not array.flags.writeable]
    if frozen:
        raise ValueError(
            f"model: {frozen[0]!r} should train but is read-only, for the model has been adapted;"
            " train the adapted model, or thaw(model)"
        )
    rates = [getattr(layer, "dropout", 0) or getattr(layer, "rate", 0) for _, layer in walk(model)]
    if rng is None and any(rates):
        raise ValueError("rng: expected a generator, since the model has dropout, got None")


def _check_finite(step: int, value: float, grads: Grads) -> None:
    if not np.isfinite(value):
        raise FloatingPointError(f"loss: expected a finite number at step {step}, got {value}")
    for name, grad in grads.items():
        if not np.isfinite(np.vdot(grad, grad)) and not np.isfinite(grad).all():
            raise FloatingPointError(
                f"gradient of {name}: expected finite numbers at step {step}, got"
                f" {int((~np.isfinite(grad)).sum())} that are not; lower the learning rate?"
            )


class _NoBar:
    """Stands in for a progress bar."""

    def update(self) -> None:
        """Show nothing."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


def _progress(steps: int, progress: bool | str) -> Any:
    """A tqdm bar that disappears in logs, or nothing where it is off or tqdm is not installed."""
    if not progress:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=steps, desc=progress if isinstance(progress, str) else "fit", leave=False)

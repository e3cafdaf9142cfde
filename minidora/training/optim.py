"""AdamW, SGD, clipping, and schedules of the learning rate.

Optimizers update arrays in place, by name: `step(params, grads)` takes the dicts that
`nn.trained(model)` and `backward` give. Read-only arrays refuse, which is how a frozen base stays
frozen.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch

import numpy as np

from .._boundary import Array, cast, number, positive_int

Schedule = Callable[[int], float]


def constant(rate: float, *, warmup: int = 0) -> Schedule:
    """`rate` at every step, after a linear rise over `warmup` steps. Steps count from 0."""
    return _schedule(rate, math.inf, warmup, lambda part: 1.0)


def linear(rate: float, steps: int, *, warmup: int = 0) -> Schedule:
    """From `rate` down to 0 at `steps` in a line, after a linear rise over `warmup` steps.

    >>> [linear(1.0, 4)(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return _schedule(rate, positive_int("steps", steps), warmup, lambda part: 1 - part)


def cosine(rate: float, steps: int, *, warmup: int = 0) -> Schedule:
    """From `rate` to 0 at `steps` in half a cosine, after a linear rise over `warmup` steps."""
    half_cosine = lambda part: 0.5 * (1 + math.cos(math.pi * part))  # noqa: E731
    return _schedule(rate, positive_int("steps", steps), warmup, half_cosine)


def _schedule(rate: float, steps: float, warmup: int, shape: Callable[[float], float]) -> Schedule:
    """`rate` times shape(part), where part of the steps after the warm-up, 0 to 1, is over."""
    rate = number("rate", rate, minimum=0)
    if number("warmup", warmup, minimum=0) >= steps:
        raise ValueError(f"warmup: expected from 0 to below steps = {steps}, got {warmup}")

    def rate_at(step: int) -> float:
        if step < warmup:
            return rate * ((step + 1) / warmup)
        return rate * shape(min(1.0, (step - warmup) / (steps - warmup)))

    return rate_at


def clip_by_norm(grads: dict[str, Array], limit: float) -> float:
    """Scale all gradients in place so that their global norm is at most `limit`.

    Returns the norm before, sqrt(sum of all squares), which need not fit the gradients' dtype.
    """
    limit = number("limit", limit, minimum=0)
    total = math.hypot(*(_norm(grad) for grad in grads.values()))
    if total > limit:
        for grad in grads.values():
            grad *= grad.dtype.type(limit / total)
    return total


def _norm(grad: Array) -> float:
    """‖grad‖, where its square overflows too."""
    square = float(np.vdot(grad, grad))
    if math.isfinite(square) or not np.isfinite(grad).all():
        return math.sqrt(square)
    largest = float(np.abs(grad).max())
    unit = grad.astype(np.float64) / largest
    return largest * math.sqrt(float(np.vdot(unit, unit)))


class Optimizer:
    """Learning rates by name, the count of steps, and state arrays that a checkpoint can hold.

    rates: factors on the learning rate by pattern of the name, such as {"*.m": 0.1}; the first that
    fits counts.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, rates: Mapping[str, float] | None = None) -> None:
        self.rates = {p: number(f"rates[{p!r}]", f, minimum=0) for p, f in (rates or {}).items()}
        self.steps = 0
        self.state: dict[str, dict[str, Array]] = {slot: {} for slot in self.slots}

    def rate_of(self, name: str, rate: float) -> float:
        """The learning rate of one parameter."""
        return rate * next((f for p, f in self.rates.items() if fnmatch(name, p)), 1.0)

    def step(self, params: dict[str, Array], grads: dict[str, Array], rate: float) -> None:
        """Move every parameter that has a gradient, in place.

        Raises ValueError for a gradient whose name is no parameter, FloatingPointError that names
        the parameter where numbers become too large.
        """
        unknown = grads.keys() - params.keys()
        if unknown:
            raise ValueError(f"grads: expected names among {sorted(params)}, got {sorted(unknown)}")
        self.steps += 1
        with np.errstate(over="raise"):
            for name, grad in grads.items():
                try:
                    self.update(name, params[name], grad, self.rate_of(name, rate))
                except FloatingPointError as error:
                    largest = np.abs(grad).max()
                    raise FloatingPointError(
                        f"{name}: expected a step of finite numbers, got {error}, for a gradient"
                        f" of up to {largest:.3g}"
                    ) from None

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """Move one parameter in place."""
        raise NotImplementedError

    def slot(self, slot: str, name: str, p: Array) -> Array:
        """A state array of one parameter, zero at first, in float32 at least."""
        arrays = self.state[slot]
        if name not in arrays:
            arrays[name] = np.zeros(p.shape, np.result_type(p, np.float32))
        return arrays[name]


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay (Loshchilov and Hutter 2019).

    As torch.optim.AdamW computes it. weight_decay acts on every parameter, except on those whose
    name fits a pattern in no_decay, such as "*.bias" or ("*.bias", "*.m"). A second moment that
    float32 cannot hold goes on in float64, so that the step stays finite.
    """

    slots = ("first", "second")

    def __init__(
        self,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_decay: str | Iterable[str] = (),
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(rates)
        if np.shape(betas) != (2,) or not all(0 <= number("betas", b) < 1 for b in betas):
            raise ValueError(f"betas: expected two numbers of 0 or more and below 1, got {betas!r}")
        self.betas = tuple(float(b) for b in betas)
        self.eps = number("eps", eps, minimum=0)
        self.weight_decay = number("weight_decay", weight_decay, minimum=0)
        self.no_decay = (no_decay,) if isinstance(no_decay, str) else tuple(no_decay)

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """p -= rate * (first / sqrt(second) + weight_decay * p), moments bias-corrected."""
        b1, b2 = self.betas
        square = _squared(grad)
        first, second = self.slot("first", name, p), self.slot("second", name, p)
        second = self.state["second"][name] = cast(second, np.result_type(second, square))
        if self.weight_decay and not any(fnmatch(name, pattern) for pattern in self.no_decay):
            p *= p.dtype.type(1 - rate * self.weight_decay)
        first += (1 - b1) * (grad - first)
        second *= b2
        square *= 1 - b2
        second += square
        size = np.sqrt(second)
        size *= (1 - b2**self.steps) ** -0.5
        size += self.eps
        np.divide(first, size, out=size)
        size *= rate / (1 - b1**self.steps)
        p -= size


def _squared(grad: Array) -> Array:
    """grad², in float64 where its own dtype, or float32, cannot hold it."""
    try:
        return np.square(grad, dtype=np.result_type(grad, np.float32))
    except FloatingPointError:
        return np.square(grad, dtype=np.float64)


class SGD(Optimizer):
    """Gradient descent: velocity = momentum * velocity + grad, p -= rate * velocity."""

    slots = ("velocity",)

    def __init__(
        self,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(rates)
        self.momentum = number("momentum", momentum, minimum=0)
        self.weight_decay = number("weight_decay", weight_decay, minimum=0)

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """Move one parameter in place; weight decay is added to the gradient, as in torch's SGD."""
        if self.weight_decay:
            grad = grad + self.weight_decay * p
        if self.momentum:
            velocity = self.slot("velocity", name, p)
            velocity *= self.momentum
            velocity += grad
            grad = velocity
        p -= p.dtype.type(rate) * grad

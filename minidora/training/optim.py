"""AdamW, SGD, clipping, and schedules of the learning rate.

Optimizers update arrays in place, by name: `step(params, grads)` takes the dicts that
`nn.trained(model)` and `backward` give. Read-only arrays refuse, which is how a frozen base stays
frozen.
"""

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatch

import numpy as np

from .._boundary import Array, number, positive_int

Schedule = Callable[[int], float]


def constant(rate: float, *, warmup: int = 0) -> Schedule:
    """`rate` at every step, after a linear rise over `warmup` steps. Steps count from 0."""
    return _with_warmup(number("rate", rate, minimum=0), warmup, lambda step: 1.0)


def linear(rate: float, steps: int, *, warmup: int = 0) -> Schedule:
    """From `rate` down to 0 at `steps` in a line, after a linear rise over `warmup` steps.

    >>> [linear(1.0, 4)(step) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    left = _after_warmup(steps, warmup)
    return _with_warmup(
        number("rate", rate, minimum=0), warmup, lambda step: max(0.0, 1 - step / left)
    )


def cosine(rate: float, steps: int, *, warmup: int = 0) -> Schedule:
    """From `rate` to 0 at `steps` in half a cosine, after a linear rise over `warmup` steps."""
    left = _after_warmup(steps, warmup)
    return _with_warmup(
        number("rate", rate, minimum=0),
        warmup,
        lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / left))),
    )


def _after_warmup(steps: int, warmup: int) -> int:
    if not 0 <= warmup < positive_int("steps", steps):
        raise ValueError(f"warmup: expected from 0 to below steps = {steps}, got {warmup}")
    return steps - warmup


def _with_warmup(rate: float, warmup: int, shape: Schedule) -> Schedule:
    return lambda step: rate * ((step + 1) / warmup if step < warmup else shape(step - warmup))


def clip_by_norm(grads: dict[str, Array], limit: float) -> float:
    """Scale all gradients in place so that their global norm is at most `limit`.

    Returns the norm before, sqrt(sum of all squares).
    """
    limit = number("limit", limit, minimum=0)
    total = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
    if total > limit:
        for g in grads.values():
            g *= g.dtype.type(limit / total)
    return total


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

        Raises ValueError for a gradient whose name is no parameter.
        """
        unknown = grads.keys() - params.keys()
        if unknown:
            raise ValueError(f"grads: expected names among {sorted(params)}, got {sorted(unknown)}")
        self.steps += 1
        for name, grad in grads.items():
            self.update(name, params[name], grad, self.rate_of(name, rate))

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """Move one parameter in place."""
        raise NotImplementedError

    def slot(self, slot: str, name: str, p: Array) -> Array:
        """A state array of one parameter, zero at first."""
        return self.state[slot].setdefault(name, np.zeros_like(p))


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay (Loshchilov and Hutter 2019).

    As torch.optim.AdamW computes it. weight_decay acts on every parameter, except on those whose
    name fits a pattern in no_decay, such as ("*.bias", "*.m").
    """

    slots = ("first", "second")

    def __init__(
        self, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, no_decay=(), rates=None
    ) -> None:
        super().__init__(rates)
        self.betas = tuple(number("betas", b, minimum=0) for b in betas)
        if max(self.betas) >= 1:
            raise ValueError(f"betas: expected two numbers below 1, got {betas!r}")
        self.eps = number("eps", eps, minimum=0)
        self.weight_decay = number("weight_decay", weight_decay, minimum=0)
        self.no_decay = tuple(no_decay)

    def update(self, name: str, p: Array, grad: Array, rate: float) -> None:
        """p -= rate * (first / sqrt(second) + weight_decay * p), moments bias-corrected."""
        b1, b2 = self.betas
        first, second = self.slot("first", name, p), self.slot("second", name, p)
        if self.weight_decay and not any(fnmatch(name, fits) for fits in self.no_decay):
            p *= p.dtype.type(1 - rate * self.weight_decay)
        first += (1 - b1) * (grad - first)
        second *= b2
        second += (1 - b2) * np.square(grad)
        size = np.sqrt(second)
        size *= (1 - b2**self.steps) ** -0.5
        size += self.eps
        np.divide(first, size, out=size)
        size *= rate / (1 - b1**self.steps)
        p -= size


class SGD(Optimizer):
    """Gradient descent: velocity = momentum * velocity + grad, p -= rate * velocity."""

    slots = ("velocity",)

    def __init__(self, *, momentum=0.0, weight_decay=0.0, rates=None) -> None:
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

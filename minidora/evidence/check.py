"""`python -m minidora check`: every hand-derived gradient against every witness there is.

Witnesses: the autograd library (`by_autograd`), central differences of the function itself,
and PyTorch (`by_torch`) on each device. A new function joins by one `register` line.
"""

import importlib.util
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import dora, factored, granularity, lora
from .._boundary import one_of
from . import networks
from .cases import (
    GROUPINGS,
    Case,
    bora_cases,
    dora_cases,
    factored_groups,
    grouped_cases,
    lora_cases,
)
from .frozen import with_frozen_norm
from .gradcheck import Difference, Verdict, aligned, central_differences, compare

TOLERANCES = {
    # relative (max-norm) bounds against a float64 witness fed the same, already rounded, inputs
    "float64": 1e-9,
    "float32": 1e-5,  # a few dozen roundings of 6e-8
    "float16": 2e-3,  # computed in float32; the result itself is rounded to 5e-4
}
CENTRAL_TOLERANCE = 1e-6
Gradients = dict[str, NDArray]
Mode = dict[str, str]  # norm_grad, where there is one
INSTALL = {"autograd": "pip install autograd", "torch": 'pip install "torch>=2.6,<2.14"'}


@dataclass(frozen=True)
class Function:
    """A forward and its hand-derived backward, and the witnesses' name for it."""

    name: str
    forward: Callable
    backward: Callable
    witness: str  # by_autograd.<witness>_gradients, and so in by_torch
    cases: Callable[[np.random.Generator, Any], Iterator[Case]]  # given an axis, or None
    norm_axes: tuple[str | None, ...] = (None,)
    norm_grads: tuple[str | None, ...] = (None,)
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)  # by dtype


LAYERS = ("lora", "dora", "grouped", "bora")
"""What a layer by itself is called by its witnesses."""

REGISTRY: list[Function] = []


def register(function: Function) -> None:
    """Add a function to what `python -m minidora check` checks."""
    REGISTRY.append(function)


register(Function("lora", lora.lora_forward, lora.lora_backward, "lora", lora_cases))
BOTH = ("exact", "detached")
AXES = ("per_output", "per_input")
register(Function("dora", dora.dora_forward, dora.dora_backward, "dora", dora_cases, AXES, BOTH))
fast = (factored.dora_forward, factored.dora_backward)
register(Function("factored", *fast, "dora", dora_cases, AXES, BOTH))
grouped = (granularity.dora_forward, granularity.dora_backward, "grouped")
# the dm of a large group is one sum, whose terms cancel: a few digits less in float32
OF_GROUPS = TOLERANCES | {"float32": 1e-4}
register(Function("granularity", *grouped, grouped_cases, GROUPINGS, BOTH, OF_GROUPS))
OF_ONE_AXIS = ("rows", "columns", "whole", "whole per_input")
in_groups = (*fast, "grouped", factored_groups, OF_ONE_AXIS, BOTH, OF_GROUPS)
register(Function("factored, groups", *in_groups))
both = (granularity.bora_forward, granularity.bora_backward, "bora")
register(Function("both axes", *both, bora_cases, norm_grads=BOTH))
for name, cases in networks.CASES.items():
    network = (networks.forward, networks.backward, "network", cases)
    register(Function(name, *network, tolerances=networks.TOLERANCES))


@dataclass(frozen=True)
class Witness:
    """An independent source of gradients, or the reason why it is not here."""

    name: str
    gradients: Callable[[Function, Case, Mode], Gradients]
    missing: str = ""  # the command that installs it
    tolerance: float | None = None  # None: by dtype
    only: tuple[str, ...] = (
        "lora",
        "dora",
        "grouped",
        "bora",
        "network",
    )  # PyTorch's networks stand in the tests


def _absent(function: Function, case: Case, mode: Mode) -> Gradients:
    raise ModuleNotFoundError("this witness is not installed")


def _central(function: Function, case: Case, mode: Mode) -> Gradients:
    forward = function.forward
    if mode.get("norm_grad") == "detached":
        forward = with_frozen_norm(forward, case)
    fixed = {name: case.inputs[name] for name in case.frozen if name in case.inputs}

    def y(**moved: NDArray) -> NDArray:
        return forward(**fixed, **moved, **case.settings)[0]

    return central_differences(y, case.trained, case.dy)


def witnesses(device: str = "auto") -> list[Witness]:
    """Every witness for `device`: "cpu", "cuda" or "auto" (both, where there is a GPU).

    Raises ValueError for "cuda" where PyTorch sees no CUDA device.
    """
    one_of("device", device, ("auto", "cpu", "cuda"))
    central = Witness("central differences", _central, tolerance=CENTRAL_TOLERANCE)
    return [_autograd_witness(), central, *_torch_witnesses(device)]


def _autograd_witness() -> Witness:
    """The autograd library, where it is installed."""
    if not importlib.util.find_spec("autograd"):
        return Witness("autograd", _absent, INSTALL["autograd"])
    from . import by_autograd, networks_by_autograd

    def held(function: Function, case: Case, mode: Mode) -> Gradients:
        module = networks_by_autograd if function.witness == "network" else by_autograd
        gradients = getattr(module, f"{function.witness}_gradients")
        return gradients(case.dy, case.inputs, case.settings, **mode)

    return Witness("autograd", held)


def _torch_witnesses(device: str) -> list[Witness]:
    """PyTorch on the devices asked for."""
    if not importlib.util.find_spec("torch"):
        if device == "cuda":
            raise ValueError(f"device: 'cuda' needs PyTorch: {INSTALL['torch']}")
        return [Witness("torch", _absent, INSTALL["torch"])]
    import torch

    from ..pytorch import witness
    from . import by_torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("device: expected a CUDA device for 'cuda', PyTorch sees none; use 'cpu'")
    devices = {"cpu": ["cpu"], "cuda": ["cuda"], "auto": ["cpu", "cuda"] if cuda else ["cpu"]}

    def on(place: str, name: str, module: ModuleType, only: tuple[str, ...]) -> Witness:
        def held(function: Function, case: Case, mode: Mode) -> Gradients:
            gradients = getattr(module, f"{function.witness}_gradients")
            return gradients(case.dy, case.inputs, case.settings, **mode, device=place)

        return Witness(f"{name} {place}", held, only=only)

    # minidora.pytorch is not independent of a derivation, but of the code
    pairs = (
        ("torch", by_torch, ("lora", "dora", "grouped", "bora")),
        ("minidora.pytorch", witness, ("dora",)),
    )
    return [on(place, *pair) for place in devices[device] for pair in pairs]


@dataclass(frozen=True)
class Check:
    """One function, in one mode, on one case, against one witness."""

    function: Function
    axis: str | None
    norm_grad: str | None
    witness: Witness
    case: Case
    dtype: str

    def __str__(self) -> str:
        mode = filter(None, (self.function.name, self.norm_grad, self.axis))
        return f"{', '.join(mode)}, against {self.witness.name}: {self.case.name}"

    @property
    def tolerance(self) -> float:
        """The bound of every relative error."""
        return self.witness.tolerance or self.function.tolerances[self.dtype]

    def verdict(self) -> Verdict:
        """Every gradient of the case held against the witness's."""
        exact = self.witness.tolerance is not None  # differences are taken in float64
        function, case = self.function, self.case if exact else self.case.astype(self.dtype)
        mode = {} if self.norm_grad is None else {"norm_grad": self.norm_grad}
        _, cache = function.forward(**case.inputs, **case.settings)
        grads = function.backward(case.dy, cache, **mode)
        grads = grads if isinstance(grads, dict) else grads._asdict()
        expected = self.witness.gradients(function, case.astype(np.float64), mode)
        expected = {name: grad for name, grad in expected.items() if name[1:] in case.trained}
        return compare(grads, expected, self.tolerance, vanishing=case.vanishing)


def checks(present: Iterable[Witness], *, dtype: str = "float64", seed: int = 0) -> Iterator[Check]:
    """Every registered function x axis x kind of gradient x witness x case there is."""
    for function in (f for f in REGISTRY if dtype in f.tolerances):
        for axis in function.norm_axes:
            cases = list(function.cases(np.random.default_rng(seed), axis))
            for norm_grad in function.norm_grads:
                for witness in (w for w in present if function.witness in w.only):
                    for case in cases:
                        if case.smooth or witness.tolerance is None:
                            yield Check(function, axis, norm_grad, witness, case, dtype)


COLUMNS = ("function", "mode", "axis", "gradient", "witness")
"""What a line of the table is a check of."""


@dataclass(frozen=True)
class Result:
    """What `run` gives: a verdict over all cases for each line, and the witnesses not installed."""

    dtype: str
    seed: int
    lines: list[Verdict]
    missing: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with every witness that ran."""
        return bool(self.lines) and all(line.ok for line in self.lines)

    def as_json(self) -> str:
        """The result as JSON, with the versions it was made with."""
        lines = [
            {
                **line.about,
                "tolerance": line.worst.tolerance,
                "max_rel": line.worst.max_rel,
                "worst_case": line.worst.name,
                "cases": len(line.differences),
                "ok": line.ok,
            }
            for line in self.lines
        ]
        return json.dumps(
            {
                "ok": self.ok,
                "dtype": self.dtype,
                "seed": self.seed,
                "versions": versions(),
                "not_installed": self.missing,
                "lines": lines,
            },
            indent=1,
        )


def run(*, device: str = "auto", dtype: str = "float64", seed: int = 0) -> Result:
    """Check every registered function against every witness, over all its cases."""
    one_of("dtype", dtype, TOLERANCES)
    every = witnesses(device)
    present = [witness for witness in every if not witness.missing]
    by_line: dict[tuple[str, ...], list[Difference]] = {}
    for check in checks(present, dtype=dtype, seed=seed):
        for difference in check.verdict().differences:
            # a network's dblocks.0.attn.q.A and all other dA share a line
            short = "d" + difference.name[1:].rsplit(".", 1)[-1]
            case = check.case.name
            case = case if short == difference.name else f"{case}, {difference.name}"
            mode = (check.function.name, check.norm_grad or "", check.axis or "")
            line = by_line.setdefault((*mode, short, check.witness.name), [])
            line.append(replace(difference, name=case))
    lines = [
        Verdict(tuple(differences), dict(zip(COLUMNS, line, strict=True)))
        for line, differences in by_line.items()
    ]
    return Result(dtype, seed, lines, {w.name: w.missing for w in every if w.missing})


def table(result: Result) -> str:
    """The result as text: a line each, then the witnesses that are missing, then the verdict."""
    rows: list[tuple[str, ...]] = [(*COLUMNS, "max rel error", "bound", "verdict")]
    for line in result.lines:
        error, bound = f"{line.worst.max_rel:.1e}", f"{line.worst.tolerance:.0e}"
        verdict = "agrees" if line.ok else f"DIFFERS (case: {line.worst.name})"
        rows.append((*(value or "-" for value in line.about.values()), error, bound, verdict))
    text = [aligned(rows)]
    text += [f"not installed: {name} ({command})" for name, command in result.missing.items()]
    bad = sum(not line.ok for line in result.lines)
    summary = f"{len(result.lines)} gradients held against witnesses in {result.dtype}, "
    return "\n".join([*text, summary + ("all agree" if result.ok else f"{bad} DIFFER")])


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    versions = {"python": platform.python_version()}
    for package in ("minidora", "numpy", "autograd", "torch"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions

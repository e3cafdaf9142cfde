"""`python -m minidora check`: every hand-derived gradient against every witness there is.

Witnesses: the autograd library (`by_autograd`), central differences of the function itself,
and PyTorch (`by_torch`) on each device. A new function joins by one `register` line.
"""

import importlib.util
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from .. import dora, factored, lora
from .._boundary import EPS, one_of
from ..decomposition import norms
from . import networks
from .cases import Case, dora_cases, lora_cases
from .gradcheck import central_differences, compare

TOLERANCES = {
    # relative (max-norm) bounds against a float64 witness fed the same, already rounded, inputs
    "float64": 1e-9,
    "float32": 1e-5,  # a few dozen roundings of 6e-8
    "float16": 2e-3,  # computed in float32; the result itself is rounded to 5e-4
}
CENTRAL_TOLERANCE = 1e-6
INSTALL = {"autograd": "pip install autograd", "torch": 'pip install "torch>=2.6,<2.14"'}


@dataclass(frozen=True)
class Function:
    """A forward and its hand-derived backward, and the witnesses' name for it."""

    name: str
    forward: Callable
    backward: Callable
    witness: str  # by_autograd.<witness>_gradients, and so in by_torch
    cases: Callable[[np.random.Generator, str | None], Iterator[Case]]
    norm_axes: tuple[str | None, ...] = (None,)
    norm_grads: tuple[str | None, ...] = (None,)
    tolerances: Mapping[str, float] = field(default_factory=lambda: TOLERANCES)  # by dtype


REGISTRY: list[Function] = []


def register(function: Function) -> None:
    """Add a function to what `python -m minidora check` checks."""
    REGISTRY.append(function)


register(Function("lora", lora.lora_forward, lora.lora_backward, "lora", lora_cases))
MODES = (dora_cases, ("per_output", "per_input"), ("exact", "detached"))
register(Function("dora", dora.dora_forward, dora.dora_backward, "dora", *MODES))
register(Function("factored", factored.dora_forward, factored.dora_backward, "dora", *MODES))
for name, cases in networks.CASES.items():
    network = (networks.forward, networks.backward, "network", cases)
    register(Function(name, *network, tolerances=networks.TOLERANCES))


def with_frozen_norm(forward: Callable, case: Case) -> Callable:
    """`forward` as a function whose norm stays what it is at `case`: m grows as ‖V‖ does.

    y depends on m / ‖V‖ alone, so replacing m by m * ‖V‖ / ‖V at case‖ cancels the norm. This
    gives central differences something to differentiate that has Eq. 11 as its derivative.
    """
    scale, norm_axis = case.settings["scale"], case.settings["norm_axis"]
    eps = case.settings.get("eps", EPS)

    def norm(W0, A, B):
        return norms(W0 + scale * B @ A, norm_axis, eps)

    c = norm(*(case.inputs[name] for name in ("W0", "A", "B")))

    def frozen(W0, A, B, m, **rest):
        return forward(W0=W0, A=A, B=B, m=m * norm(W0, A, B) / c, **rest)

    return frozen


@dataclass(frozen=True)
class Witness:
    """An independent source of gradients, or the reason why it is not here."""

    name: str
    gradients: Callable[[Function, Case, dict], dict] | None
    missing: str = ""
    tolerance: float | None = None  # None: by dtype
    only: tuple[str, ...] = ("lora", "dora", "network")  # PyTorch's networks stand in the tests


def _central(function: Function, case: Case, mode: dict) -> dict:
    forward = function.forward
    if mode.get("norm_grad") == "detached":
        forward = with_frozen_norm(forward, case)
    fixed = {name: case.inputs[name] for name in case.frozen if name in case.inputs}

    def y(**moved):
        return forward(**fixed, **moved, **case.settings)[0]

    return central_differences(y, case.trained, case.dy)


def witnesses(device: str = "auto") -> list[Witness]:
    """Every witness for `device`: "cpu", "cuda" or "auto" (both, where there is a GPU).

    Raises ValueError for "cuda" where PyTorch sees no CUDA device.
    """
    one_of("device", device, ("auto", "cpu", "cuda"))
    found = [Witness("central differences", _central, tolerance=CENTRAL_TOLERANCE)]
    if importlib.util.find_spec("autograd"):
        from . import by_autograd, networks_by_autograd

        def held(function, case, mode):
            module = networks_by_autograd if function.witness == "network" else by_autograd
            gradients = getattr(module, f"{function.witness}_gradients")
            return gradients(case.dy, case.inputs, case.settings, **mode)

        found.insert(0, Witness("autograd", held))
    else:
        found.insert(0, Witness("autograd", None, INSTALL["autograd"]))
    return found + _torch_witnesses(device)


def _torch_witnesses(device: str) -> list[Witness]:
    """PyTorch on the devices asked for."""
    if not importlib.util.find_spec("torch"):
        if device == "cuda":
            raise ValueError(f"device: 'cuda' needs PyTorch: {INSTALL['torch']}")
        return [Witness("torch", None, INSTALL["torch"])]
    import torch

    from ..pytorch import witness
    from . import by_torch

    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("device: expected a CUDA device for 'cuda', PyTorch sees none; use 'cpu'")
    devices = {"cpu": ["cpu"], "cuda": ["cuda"], "auto": ["cpu", "cuda"] if cuda else ["cpu"]}

    def on(where, name, module, only):
        def held(function, case, mode):
            gradients = getattr(module, f"{function.witness}_gradients")
            return gradients(case.dy, case.inputs, case.settings, **mode, device=where)

        return Witness(f"{name} {where}", held, only=only)

    found = []
    for where in devices[device]:
        found.append(on(where, "torch", by_torch, ("lora", "dora")))
        # not independent of a derivation, but of the code: DoRA for PyTorch against DoRA for NumPy
        found.append(on(where, "minidora.pytorch", witness, ("dora",)))
    return found


@dataclass
class Line:
    """One row of the table: the worst of all cases."""

    function: str
    mode: str
    axis: str
    gradient: str
    witness: str
    tolerance: float
    max_rel: float = -1.0
    worst_case: str = ""
    cases: int = 0

    @property
    def ok(self) -> bool:
        """Whether every case agrees within the tolerance."""
        return self.max_rel <= self.tolerance


@dataclass
class Result:
    """What `run` found: `lines`, and the witnesses that are not installed."""

    dtype: str
    seed: int
    lines: list[Line] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every gradient agrees with every witness that ran."""
        return bool(self.lines) and all(line.ok for line in self.lines)

    def as_json(self) -> str:
        """The result as JSON, with the versions it was made with."""
        lines = [{**asdict(line), "ok": line.ok} for line in self.lines]
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
    present = witnesses(device)
    result = Result(dtype, seed, missing={w.name: w.missing for w in present if w.missing})
    present = [w for w in present if not w.missing]
    for function in (f for f in REGISTRY if dtype in f.tolerances):
        for axis in function.norm_axes:
            cases = list(function.cases(np.random.default_rng(seed), axis))
            for norm_grad in function.norm_grads:
                mode = {} if norm_grad is None else {"norm_grad": norm_grad}
                for witness in present:
                    if function.witness in witness.only:
                        lines = _lines(function, axis, mode, witness, cases, dtype)
                        result.lines.extend(lines)
    return result


def _lines(function, axis, mode, witness, cases, dtype) -> list[Line]:
    """A line for each gradient of one function, axis, mode and witness."""
    central = witness.tolerance is not None
    tolerance = witness.tolerance or function.tolerances[dtype]
    lines: dict[str, Line] = {}
    for case in cases:
        if central and not case.smooth:
            continue
        rounded = case if central else case.astype(dtype)
        _, cache = function.forward(**rounded.inputs, **rounded.settings)
        grads = function.backward(rounded.dy, cache, **mode)
        grads = grads if isinstance(grads, dict) else grads._asdict()
        expected = witness.gradients(function, rounded.astype(np.float64), mode)
        expected = {n: e for n, e in expected.items() if n[1:] in case.trained}
        for row in compare(grads, expected, tolerance, vanishing=case.vanishing).rows:
            # a network's dblocks.0.attn.q.A and all other dA share a line
            short = "d" + row.name[1:].rsplit(".", 1)[-1]
            if short not in lines:
                where = (function.name, mode.get("norm_grad", ""), axis or "", short)
                lines[short] = Line(*where, witness.name, tolerance)
            line = lines[short]
            line.cases += 1
            if row.max_rel > line.max_rel:
                line.max_rel = row.max_rel
                line.worst_case = case.name if short == row.name else f"{case.name}, {row.name}"
    return list(lines.values())


def table(result: Result) -> str:
    """The result as text: a line each, then the witnesses that are missing, then the verdict."""
    head = ("function", "mode", "axis", "gradient", "witness", "max rel error", "bound", "verdict")
    rows = [head] + [
        (
            line.function,
            line.mode or "-",
            line.axis or "-",
            line.gradient,
            line.witness,
            f"{line.max_rel:.1e}",
            f"{line.tolerance:.0e}",
            "agrees" if line.ok else f"DIFFERS (case: {line.worst_case})",
        )
        for line in result.lines
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    text += [f"not installed: {name} ({command})" for name, command in result.missing.items()]
    bad = sum(not line.ok for line in result.lines)
    summary = f"{len(result.lines)} gradients held against witnesses in {result.dtype}, "
    return "\n".join([*text, summary + ("all agree" if result.ok else f"{bad} DIFFER")])


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    found = {"python": platform.python_version()}
    for package in ("minidora", "numpy", "autograd", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""Every case put to an implementation, and every answer held against the expected one."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evidence.gradcheck import Difference
from .compare import as_array, judged
from .diagnosis import credible, diagnose
from .files import KitCase, left_out, load
from .optimizer import update
from .protocol import (
    ANSWERS,
    ARRAYS,
    Alternatives,
    Request,
    check_alternatives,
    described,
    escaped,
    in_dtype,
    made,
)
from .report import CaseResult, Report, Variant, ranked

SETTINGS = ("alpha", "strength", "stride", "padding", "slices", "ranks")


def run(
    implementation: Any,
    cases: Iterable[KitCase] | None = None,
    *,
    each: Callable[[CaseResult], object] | None = None,
) -> Report:
    """Put the cases (all of the kit by default) to an Implementation; returns a Report.

    each: called with every CaseResult as it comes; words that it returns end the run, and say
    why. Whatever the implementation raises is a failure of that case. Raises ValueError for
    alternatives that SPEC.md does not know, and for case files that were changed.
    """
    implementation = made(implementation)
    about = described(implementation)
    cases = load() if cases is None else list(cases)
    chosen = check_alternatives(about["alternatives"])
    report = Report(about["kit"], about["name"], about["version"], chosen)
    report.selection = bool(left_out(cases))
    asked = [case for case in cases if case.since <= about["kit"]]
    for variant in (v for case in asked for v in variants(case, chosen)):
        result = answered(implementation, variant, chosen)
        report.results.append(result)
        why = each(result) if each else None
        report.stopped = str(why or getattr(implementation, "stopped", ""))
        if report.stopped:
            break
    report.results = credible(report.results)
    return ranked(report)


def variants(case: KitCase, chosen: Alternatives) -> Iterator[Variant]:
    """The dtypes and gradients of a case that an implementation chooses; at least one."""
    if any(value not in chosen.get(name, ()) for name, value in case.requires.items()):
        yield Variant(case, case.dtypes[0], None)  # to be skipped
        return
    has_gradients = {"dA", "A"} & case.expected.keys()
    modes = chosen.get("norm_grad", (None,)) if has_gradients else (None,)
    alone = chosen["layout"] == ("in_out",) and "layout" not in case.requires
    for dtype in [d for d in case.dtypes if d in chosen["dtype"]] or case.dtypes[:1]:
        for norm_grad in modes:
            yield Variant(case, dtype, norm_grad, alone and case.kind == "linear")


@np.errstate(all="ignore")  # answers may be of any size
def answered(implementation: Any, variant: Variant, chosen: Alternatives) -> CaseResult:
    """One variant put to the implementation."""
    missing = not_chosen(variant, chosen)
    if missing:
        return CaseResult(variant=variant, skipped=(missing,))
    talk = _Talk(implementation, variant)
    if "steps" in variant.case.gives:
        talk.steps()
    else:
        talk.once()
    differences = tuple(talk.differences())
    names: list[str] = []
    if not all(d.ok for d in differences):
        names = diagnose(variant.case, variant.dtype, variant.norm_grad, talk.got, differences)
    return CaseResult(
        differences,
        variant=variant,
        skipped=tuple(dict.fromkeys(talk.skipped)),
        errors=tuple(dict.fromkeys(talk.errors)),
        diagnoses=tuple(names),
        unanswered=tuple(dict.fromkeys(talk.unanswered)),
    )


def not_chosen(variant: Variant, chosen: Alternatives) -> str:
    """Why the implementation is not asked this, or nothing."""
    case = variant.case
    for name, value in {**case.requires, "dtype": variant.dtype}.items():
        if value not in chosen.get(name, ()):
            return f"{name} {value}"
    if "steps" in case.gives and variant.norm_grad is None:
        return "norm_grad (no gradients)"
    return ""


class _Talk:
    """The questions of one variant, and what came of them."""

    def __init__(self, implementation: Any, variant: Variant):
        self.implementation, self.variant, self.case = implementation, variant, variant.case
        self.inputs = dict(variant.case.inputs)
        self.got: dict = {}
        self.skipped: list[str] = []
        self.errors: list[str] = []
        self.unanswered: list[str] = []

    def request(self, op: str) -> Request:
        """The question for the inputs as they are now; its arrays are the implementation's own."""
        case, dtype = self.case, self.variant.dtype
        named = {k: v for k, v in case.requires.items() if k not in ("strength", "dtype")}
        settings = {n: case.settings[n] for n in SETTINGS if n in case.settings}
        arrays = {n: in_dtype(a, dtype, n) for n, a in self.inputs.items() if n in ARRAYS}
        if self.variant.turned:
            named["layout"], arrays["W0"] = "in_out", np.ascontiguousarray(arrays["W0"].T)
        about: dict[str, Any] = {"dtype": dtype, "norm_grad": self.variant.norm_grad}
        about |= {"kind": case.kind, "scale": case.scale}
        return Request(op, case.name, **(about | named | settings | arrays))

    def ask(self, op: str) -> Any:
        """The answer; None where there is none, and then why is in `skipped` or `errors`."""
        method = getattr(self.implementation, op, None)
        if method is None:
            self.unanswered.append(op)
            self.skipped.append(f"{op} (no such method)")
            return None
        try:
            answer = method(self.request(op))
        except NotImplementedError as missing:
            self.unanswered.append(op)
            self.skipped.append(escaped(missing) or op)
            return None
        except (Exception, SystemExit) as error:  # whatever it raises: the run goes on
            self.errors.append(escaped(f"{op}: {type(error).__name__}: {error}", 400))
            return None
        if answer is None:
            self.errors.append(f"{op}: answered None")
        return answer

    def once(self) -> None:
        """init_magnitude, forward, merge and backward, as far as the case has them."""
        case = self.case
        if "m" not in case.inputs or "init" in case.gives:
            m = self.ask("init_magnitude")
            if m is not None and "m" in case.expected:
                self.got["m"] = m
            if "m" not in case.inputs:
                W0, by_column = case.inputs["W0"], case.requires["norm_axis"] == "per_input"
                own = self.numbers("m", m, W0[0] if by_column else W0[:, 0])
                if own is None:
                    return
                self.inputs["m"] = own
        for op in ("forward", "merge"):
            if op in case.gives:
                answer = self.ask(op)
                if answer is not None:
                    self.got[ANSWERS[op]] = answer if op == "forward" else self.turned_back(answer)
        if "backward" in case.gives:
            self.got.update(self.gradients([n for n in case.expected if n.startswith("d")]))

    def turned_back(self, W: Any) -> Any:
        """A merged weight as the case has it."""
        return np.transpose(W) if self.variant.turned and as_array(W) is not None else W

    def numbers(self, name: str, answer: Any, like: NDArray) -> NDArray | None:
        """An answer to go on with; None where it has not the shape of `like`."""
        array = as_array(answer)
        if array is not None and array.shape == like.shape:
            return array
        if answer is not None:
            self.errors.append(str(judged(name, answer, like, float("inf"))))
        return None

    def gradients(self, names: list[str]) -> dict:
        """These gradients; one that is missing stays away."""
        if self.variant.norm_grad is None:
            self.skipped.append("backward (norm_grad is not among its alternatives)")
            return {}
        answer = self.ask("backward")
        if answer is None:
            return {}
        if not isinstance(answer, dict):
            kind = type(answer).__name__
            self.errors.append(f"backward: expected a dict of gradients, got {kind}")
            return {}
        missing = [name for name in names if answer.get(name) is None]
        if missing:
            had = escaped(", ".join(map(str, answer)), 100) or "nothing"
            self.errors.append(f"backward: {', '.join(missing)} missing; the answer has {had}")
        return {name: answer[name] for name in names if name not in missing}

    def steps(self) -> None:
        """Two steps of the case's optimizer with the implementation's gradients."""
        if hasattr(self.implementation, "after_steps"):  # it has the answers, as `Results` has
            self.got = self.ask("after_steps") or {}
            return
        settings = self.case.settings["optimizer"]
        after: dict[str, list] = {name: [] for name in "ABm"}
        state: dict[str, dict] = {name: {} for name in "ABm"}
        target = self.case.inputs["target"]
        self.ask("merge")  # a weight that is kept from now on will be wrong below
        for step in (1, 2):
            y = self.numbers("y", self.ask("forward"), target)
            if y is None:
                return
            self.inputs["dy"] = y - target
            gradients = self.gradients([f"d{name}" for name in after])
            for name, values in after.items():
                value = np.asarray(self.inputs[name], np.float64)
                gradient = self.numbers(f"d{name}", gradients.get(f"d{name}"), value)
                if gradient is None:
                    return
                self.inputs[name] = update(value, gradient, state[name], step, settings)
                values.append(self.inputs[name])
        self.got = {name: np.stack(values) for name, values in after.items()}
        merged = self.ask("merge")  # of the parameters as they are now
        if merged is not None:
            self.got["W"] = self.turned_back(merged)

    def differences(self) -> Iterator[Difference]:
        """Every output that came, held against what was expected."""
        norm_grad = self.variant.norm_grad
        tolerance = self.case.tolerances[self.variant.dtype]
        tolerance = float("inf") if tolerance is None else tolerance
        for name, expected in self.case.expected.items():
            if name in self.got:
                expected = expected[norm_grad] if isinstance(expected, dict) else expected
                yield judged(name, self.got[name], expected, tolerance)

"""Every function of the registry, on every axis and case, in every mode, against every witness."""

import pytest

from minidora.evidence import networks
from minidora.evidence.cases import GROUPINGS
from minidora.evidence.check import Check, Witness, checks, witnesses
from minidora.evidence.gradcheck import relative_error


def twin_loss(case):
    """The loss of a whole network written again in PyTorch, and what of it trains, by name."""
    pytest.importorskip("torch", exc_type=ImportError)
    from twin import loss_of, tensor, twin_of

    _, (model, *_) = networks.forward(**case.inputs, **case.settings)
    twin, padding = twin_of(model), case.settings["padding"]
    x = tensor(case.inputs.get("x", case.settings["tokens"]))
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    if x.is_floating_point():
        trained["x"] = x.requires_grad_()
    logits = twin(x) if padding is None else twin(x, tensor(padding))
    return loss_of(logits, tensor(case.settings["targets"])), trained


def twin_gradients(function, case, mode):
    """The twin as a witness."""
    loss, trained = twin_loss(case)
    loss.backward()
    return {"d" + name: array.grad.numpy() for name, array in trained.items()}


TWIN = Witness("the PyTorch twin", twin_gradients, only=("network",))
CHECKS = [*checks(witnesses("cpu"), seed=11)]
CHECKS += [c for c in checks([TWIN], seed=11) if c.case.settings["targets"] is not None]
NETWORKS = [c for c in CHECKS if c.function.witness == "network" and c.witness.name == "autograd"]
WHOLE = [c for c in CHECKS if c.witness is TWIN]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_every_gradient_equals_the_witnesss(check: Check):
    if check.witness.missing:
        pytest.skip(f"{check.witness.name} is not installed: {check.witness.missing}")
    verdict = check.verdict()
    assert verdict.differences
    verdict.raise_if_failed()


@pytest.mark.parametrize("check", NETWORKS, ids=str)
def test_every_networks_value_is_autograds(check: Check):
    autograd = pytest.importorskip("minidora.evidence.networks_by_autograd", exc_type=ImportError)
    inputs, settings = check.case.inputs, check.case.settings
    y, _ = networks.forward(**inputs, **settings)
    assert relative_error(y, autograd.value(inputs, settings)) < 1e-8


@pytest.mark.parametrize("check", WHOLE, ids=str)
def test_every_whole_networks_loss_is_the_twins(check: Check):
    loss, _ = networks.forward(**check.case.inputs, **check.case.settings)
    assert float(loss) == pytest.approx(twin_loss(check.case)[0].item(), rel=1e-10)


def test_the_checks_are_all_there_and_as_strict_as_they_should_be():
    names = {(c.function.name, c.norm_grad, c.axis) for c in CHECKS}
    modes = [(grad, axis) for grad in ("exact", "detached") for axis in ("per_output", "per_input")]
    layers = {(name, *mode) for name in ("dora", "factored") for mode in modes}
    layers |= {("granularity", grad, kind) for grad, _ in modes for kind in GROUPINGS}
    own = ("rows", "columns", "whole", "whole per_input")
    layers |= {("factored, groups", grad, kind) for grad, _ in modes for kind in own}
    layers |= {("both axes", grad, None) for grad, _ in modes}
    assert names == layers | {(name, None, None) for name in ("lora", *networks.CASES)}
    by_layer = {c.witness.name for c in CHECKS if c.function.name == "factored"}
    assert {"autograd", "central differences"} <= by_layer
    assert len({c.function.name for c in WHOLE}) >= 8
    for c in CHECKS:
        of_values = 1e-8 if c.function.witness == "network" else 1e-9
        assert c.tolerance == (1e-6 if c.witness.name == "central differences" else of_values)

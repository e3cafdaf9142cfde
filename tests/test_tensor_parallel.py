"""The split layer equals the whole one, and sends what is said and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from minidora import dora
from minidora.experiments import tensor_parallel

AXES = ("per_output", "per_input")
N, D_OUT, D_IN, R = 5, 12, 8, 3


def arguments(axis):
    rng = np.random.default_rng(0)
    shapes = {"W0": (D_OUT, D_IN), "A": (R, D_IN), "B": (D_OUT, R)}
    a = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    a["m"] = rng.normal(size=D_OUT if axis == "per_output" else D_IN)
    a["scale"] = 0.7
    return a, rng.normal(size=(N, D_IN)), rng.normal(size=D_OUT), rng.normal(size=(N, D_OUT))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("by", tensor_parallel.SPLITS)
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("mode", ["exact", "detached"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_split_layer_equals_the_whole(workers, by, axis, mode, biased):
    a, x, bias, dy = arguments(axis)
    bias = bias if biased else None
    y0, cache0 = dora.dora_forward(x, **a, bias=bias, norm_axis=axis)
    expected = dora.dora_backward(dy, cache0, norm_grad=mode)
    team = tensor_parallel.split(**a, workers=workers, by=by, norm_axis=axis)
    y, cache = tensor_parallel.dora_forward(x, team, bias=bias)
    grads = tensor_parallel.dora_backward(dy, cache, norm_grad=mode)
    np.testing.assert_allclose(y, y0, rtol=0, atol=1e-10 * np.abs(y0).max())
    for name in expected._fields:
        a1, a0 = getattr(grads, name), getattr(expected, name)
        if a0 is None:
            assert a1 is None
        else:
            assert a1.shape == a0.shape
            assert np.abs(a1 - a0).max() <= 1e-10 * np.abs(a0).max(), name
    counted = tensor_parallel.counted(D_OUT, D_IN, R, N, by, axis)
    assert team.sent == (counted if workers > 1 else {})


@pytest.mark.parametrize("by", tensor_parallel.SPLITS)
@pytest.mark.parametrize("axis", AXES)
def test_dora_sends_vectors_and_r_by_r_products_alone(by, axis):
    sent = tensor_parallel.counted(D_OUT, D_IN, R, N, by, axis)
    of_lora = {"rows": {"dx", "dA"}, "columns": {"y", "dB"}}[by]
    extra = {name: size for name, size in sent.items() if name not in of_lora}
    assert set(extra.values()) <= {R * R, D_OUT if axis == "per_output" else D_IN}
    whole = (by == "rows") == (axis == "per_output")
    assert (extra == {}) == whole


def test_workers_hold_their_parts_alone():
    a, *_ = arguments("per_output")
    team = tensor_parallel.split(**a, workers=4, by="rows")
    assert [w.W0.shape for w in team.workers] == [(3, 8)] * 4 and team.workers[0].m.shape == (3,)
    with pytest.raises(ValueError, match="workers: expected a divisor of 12, got 5"):
        tensor_parallel.split(**a, workers=5, by="rows")
    with pytest.raises(ValueError, match="by: expected 'rows' or 'columns', got 'blocks'"):
        tensor_parallel.split(**a, workers=2, by="blocks")


def test_a_norm_that_is_not_added_up_would_be_seen(monkeypatch):
    """The classic mistake, planted: each worker takes the norm of its own part."""
    a, x, bias, _ = arguments("per_output")
    y0, _ = dora.dora_forward(x, **a, bias=bias)
    total = tensor_parallel.Team.total

    def mute(team, name, parts):
        return parts[0] if name == "norm" else total(team, name, parts)

    monkeypatch.setattr(tensor_parallel.Team, "total", mute)
    team = tensor_parallel.split(**a, workers=2, by="columns")
    y, _ = tensor_parallel.dora_forward(x, team, bias=bias)
    assert np.abs(y - y0).max() > 0.05 * np.abs(y0).max()


def test_the_page_says_how_it_is_written_and_is_that():
    page = Path(__file__).parent.parent / "lessons" / "results" / "tensor_parallel.md"
    text = page.read_text(encoding="utf-8")
    assert text == tensor_parallel.page()
    assert "`minidora experiments table tensor_parallel`" in text
    assert tensor_parallel._bytes({"dx": 10, "dA": 3, "norm": 2}).tolist() == [20, 12, 8]

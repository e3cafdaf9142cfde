"""A magnitude for any group: against the page, by hand, at the edges, in networks and files."""

import tracemalloc

import numpy as np
import pytest

from minidora import dora, factored, granularity, nn, peft
from minidora._boundary import axis_of
from minidora.analysis import Recorder
from minidora.evidence.cases import GROUPINGS, dora_cases, factored_groups, grouped_cases
from minidora.evidence.gradcheck import compare, relative_error
from minidora.training import checkpoint

GRADS = ("exact", "detached")
by_mode = pytest.mark.parametrize("norm_grad", GRADS)


def layer(seed=0, d_out=4, d_in=6):
    rng = np.random.default_rng(seed)
    shapes = {"x": (5, d_in), "W0": (d_out, d_in), "A": (2, d_in), "B": (d_out, 2)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}, rng


@by_mode
@pytest.mark.parametrize("norm_axis", ["per_output", "per_input"])
def test_rows_and_columns_are_the_page_to_the_bit(norm_axis, norm_grad):
    for case in dora_cases(np.random.default_rng(1), norm_axis):
        y, cache = dora.dora_forward(**case.inputs, **case.settings)
        right = dora.dora_backward(case.dy, cache, norm_grad=norm_grad)
        settings = {n: value for n, value in case.settings.items() if n != "norm_axis"}
        ours, cache = granularity.dora_forward(**case.inputs, **settings, groups=norm_axis)
        np.testing.assert_array_equal(ours, y)
        grads = granularity.dora_backward(case.dy, cache, norm_grad=norm_grad)
        for name, array in right._asdict().items():
            np.testing.assert_array_equal(getattr(grads, name), array, err_msg=name)


def test_heads_by_hand():
    """Two heads of two rows: each head's block has the length of its m, and m's sign."""
    given, _ = layer()
    V = given["W0"] + 0.7 * given["B"] @ given["A"]
    m = np.array([3.0, -2.0])
    arrays = [given[name] for name in ("W0", "A", "B")]
    W = granularity.dora_weight(*arrays, m, 0.7, groups=("rows", 2))
    for head, rows in enumerate((slice(0, 2), slice(2, 4))):
        unit = V[rows] / np.linalg.norm(V[rows])
        np.testing.assert_allclose(W[rows], m[head] * unit, rtol=1e-14)
    back = granularity.recover_magnitude(W, *arrays, 0.7, groups=("rows", 2))
    np.testing.assert_allclose(back, m, rtol=1e-14)


@pytest.mark.parametrize("groups", ["whole", ("columns", 3), ("rows", 4), "per_input"])
def test_starts_at_the_base(groups):
    given, rng = layer(2)
    A, B, m = granularity.init(given["W0"], 2, rng, groups=groups)
    assert m.shape == granularity.norms(given["W0"], groups).shape
    W = granularity.dora_weight(given["W0"], A, B, m, 0.7, groups=groups)
    np.testing.assert_allclose(W, given["W0"], rtol=1e-14)


@by_mode
@pytest.mark.parametrize("kind", ["rows", "columns", "whole", "whole per_input"])
def test_the_fast_layer_takes_groups_of_its_own_axis(kind, norm_grad):
    for case in factored_groups(np.random.default_rng(3), kind):
        ours, cache = factored.dora_forward(**case.inputs, **case.settings)
        grads = factored.dora_backward(case.dy, cache, norm_grad=norm_grad)
        settings = {n: value for n, value in case.settings.items() if n != "norm_axis"}
        y, cache = granularity.dora_forward(**case.inputs, **settings)
        right = granularity.dora_backward(case.dy, cache, norm_grad=norm_grad)
        expected = {n: a for n, a in right._asdict().items() if a is not None}
        compare({"y": ours, **grads._asdict()}, {"y": y, **expected}, 1e-12).raise_if_failed()


@pytest.mark.parametrize("distance", [1e-2, 1e-6])
@pytest.mark.parametrize("groups", [("rows", 2), "whole"])
def test_the_guard_of_a_group_keeps_the_digits(groups, distance):
    """All of V cancels W0, then one head alone."""
    rng = np.random.default_rng(4)
    W0, A = rng.normal(size=(200, 6)), np.eye(6)
    x, dy = rng.normal(size=(3, 6)), rng.normal(size=(3, 200))
    for lost in (slice(0, 200), slice(0, 2)):
        B = rng.normal(size=W0.shape)
        B[lost] = -(1 - distance) * W0[lost]
        m = rng.normal(size=granularity.norms(W0, groups).shape)
        y, cache = factored.dora_forward(x, W0, A, B, m, 1.0, groups=groups)
        grads = factored.dora_backward(dy, cache)
        right, cache = granularity.dora_forward(x, W0, A, B, m, 1.0, groups=groups)
        expected = granularity.dora_backward(dy, cache)
        bound = 1e2 * np.finfo(float).eps / distance  # 100 ulp of ‖W0‖ / ‖V‖
        assert relative_error(y, right) < bound
        assert relative_error(grads.dm, expected.dm) < bound


def test_a_whole_that_cancels_is_remade_in_blocks():
    """No array of W0's size is made, even where every vector lost its digits."""
    rng = np.random.default_rng(5)
    d = 1024
    x, m = rng.normal(size=(2, d)).astype("float32"), np.ones(1, "float32")
    A, B = (rng.normal(size=shape).astype("float32") for shape in ((4, d), (d, 4)))
    W0 = B @ A  # of rank 4, so that a small update cancels all of it
    W0_sq = (W0.astype(float) ** 2).sum(1)
    tracemalloc.start()
    y, cache = factored.dora_forward(x, W0, A, -0.9999 * B, m, 1.0, groups="whole", W0_sq=W0_sq)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < W0.nbytes / 2
    V = W0 - 0.9999 * (B.astype(float) @ A.astype(float))
    np.testing.assert_allclose(cache.c, np.linalg.norm(V), rtol=1e-2)


@by_mode
def test_both_axes_by_hand(norm_grad):
    given, rng = layer(6)
    m_in, m_out = rng.normal(size=6), rng.normal(size=4)
    arrays = [given[name] for name in ("W0", "A", "B")]
    V = given["W0"] + 0.7 * given["B"] @ given["A"]
    U = m_in * V / np.linalg.norm(V, axis=0)
    W = m_out[:, None] * U / np.linalg.norm(U, axis=1, keepdims=True)
    ours = granularity.bora_weight(*arrays, m_in, m_out, 0.7)
    np.testing.assert_allclose(ours, W, rtol=1e-13)
    y, cache = granularity.bora_forward(given["x"], *arrays, m_in, m_out, 0.7)
    np.testing.assert_allclose(y, given["x"] @ W.T, rtol=1e-12)
    start = granularity.bora_weight(
        given["W0"],
        given["A"],
        0 * given["B"],
        granularity.norms(given["W0"], "per_input"),
        granularity.norms(given["W0"], "per_output"),
        0.7,
    )
    np.testing.assert_allclose(start, given["W0"], rtol=1e-14)


def test_a_common_factor_of_the_inner_magnitude_drops_out():
    given, rng = layer(7)
    m_in, m_out, dy = rng.normal(size=6), rng.normal(size=4), rng.normal(size=(5, 4))
    arrays = [given[name] for name in ("W0", "A", "B")]
    W = granularity.bora_weight(*arrays, m_in, m_out, 0.7)
    louder = granularity.bora_weight(*arrays, 3.7 * m_in, m_out, 0.7)
    assert relative_error(louder, W) < 1e-15
    _, cache = granularity.bora_forward(given["x"], *arrays, m_in, m_out, 0.7)
    dm_in = granularity.bora_backward(dy, cache).dm_in
    assert abs(dm_in @ m_in) < 1e-14 * np.linalg.norm(dm_in) * np.linalg.norm(m_in)
    detached = granularity.bora_backward(dy, cache, norm_grad="detached").dm_in
    assert abs(detached @ m_in) > 0.01 * np.linalg.norm(detached) * np.linalg.norm(m_in)


def test_a_gain_on_a_heads_output_is_a_magnitude_of_o_s_columns():
    """The same function; not the same training, for m = γ c: one step of SGD differs by c²."""
    rng = np.random.default_rng(8)
    W0, x, dy = rng.normal(size=(6, 6)), rng.normal(size=(5, 6)), rng.normal(size=(5, 6))
    gain = np.array([1.3, -0.4])  # of two heads of three
    c = granularity.norms(W0, ("columns", 3))
    empty = np.zeros((0, 6)), np.zeros((6, 0))
    y, cache = granularity.dora_forward(x, W0, *empty, gain * c, 1.0, groups=("columns", 3))
    scaled = x * np.repeat(gain, 3)
    np.testing.assert_allclose(y, scaled @ W0.T, rtol=1e-13)
    dgain = ((dy @ W0) * x).reshape(5, 2, 3).sum((0, 2))
    dm = granularity.dora_backward(dy, cache).dm
    np.testing.assert_allclose(dm, dgain / c, rtol=1e-12)
    # γ + rate dγ against (m + rate dm) / c
    assert relative_error(dm / c, dgain) > 0.5


def test_and_of_v_s_rows_only_if_its_bias_is_scaled_too():
    rng = np.random.default_rng(9)
    base = nn.Linear.init(6, 6, rng, dtype=np.float64)
    base.bias += rng.normal(size=6)
    x = rng.normal(size=(5, 6))
    adapted = nn.adapt(base, "magnitude", groups=("rows", 3))
    gain = np.array([1.5, 0.5])
    adapted.m[...] = gain * adapted.m
    y, head = adapted.forward(x)[0], np.repeat(gain, 3)
    np.testing.assert_allclose(y, head * (base.forward(x)[0] - base.bias) + base.bias, rtol=1e-12)
    assert relative_error(y, head * base.forward(x)[0]) > 0.1


def test_what_a_head_s_magnitude_is_the_product_of_q_and_k_decides():
    """(α q, k / α) is the same attention: q's and k's magnitudes are free, that of q kᵀ is not."""
    rng = np.random.default_rng(10)
    attention = nn.Attention.init(6, 2, rng, dtype=np.float64)
    x, alpha = rng.normal(size=(2, 5, 6)), np.repeat([3.0, 0.2], 3)
    y, _ = attention.forward(x)
    q, k = attention.q, attention.k
    other = nn.Attention(
        nn.Linear(alpha[:, None] * q.weight, alpha * q.bias),
        nn.Linear(k.weight / alpha[:, None], k.bias / alpha),
        attention.v,
        attention.o,
        attention.heads,
    )
    np.testing.assert_allclose(other.forward(x)[0], y, rtol=1e-12)
    before, after = (granularity.norms(a.q.weight, ("rows", 3)) for a in (attention, other))
    np.testing.assert_allclose(after / before, [3.0, 0.2], rtol=1e-12)
    products = [
        [np.linalg.norm(a.q.weight[h].T @ a.k.weight[h]) for h in (slice(0, 3), slice(3, 6))]
        for a in (attention, other)
    ]
    np.testing.assert_allclose(*products, rtol=1e-12)


ADAPTED = {
    "heads of rows": {"method": "dora", "groups": ("rows", 3)},
    "heads of columns": {"method": "dora", "groups": ("columns", 3), "norm_grad": "detached"},
    "the whole": {"method": "magnitude", "groups": "whole"},
    "the whole, per input": {"method": "dora", "groups": "whole", "norm_axis": "per_input"},
    "both axes": {"method": "bora"},
}


@pytest.mark.parametrize("name", ADAPTED)
def test_in_a_network_merged_saved_and_loaded(name, tmp_path):
    rng = np.random.default_rng(11)
    base = nn.Transformer.init(7, 6, 2, 1, 5, rng)
    tokens = rng.integers(7, size=(3, 5))
    model = nn.adapt(base, targets=("q", "o"), rank=2, alpha=3, rng=rng, **ADAPTED[name])
    before = base.forward(tokens)[0]
    np.testing.assert_allclose(model.forward(tokens)[0], before, atol=1e-5)
    for array in nn.trained(model).values():
        array += rng.normal(size=array.shape).astype(array.dtype)
    y = model.forward(tokens)[0]
    assert np.abs(y - before).max() > 1e-2
    np.testing.assert_allclose(nn.merge(model).forward(tokens)[0], y, atol=2e-5)
    np.testing.assert_array_equal(nn.set_strength(model, 0).forward(tokens)[0], before)
    checkpoint.save(tmp_path / "model", model)
    again = checkpoint.load(tmp_path / "model").model
    np.testing.assert_array_equal(again.forward(tokens)[0], y)
    assert getattr(again.blocks[0].attn.q, "groups", None) == ADAPTED[name].get("groups")
    checkpoint.save_adapter(tmp_path / "adapter", model)
    loaded = checkpoint.load_adapter(tmp_path / "adapter", base).model
    np.testing.assert_array_equal(loaded.forward(tokens)[0], y)
    with pytest.raises(ValueError, match=r"attn\.[qo]: (groups: )?PEFT has (no|one)"):
        peft.save_adapter(tmp_path / "peft", model)
    recorder = Recorder(base, ("q",), steps=[1])
    recorder(1, model)  # a vector's own m is not to be had: by the merged weight
    turned = recorder.recording.last("blocks.0.attn.q")
    W = nn.merge(model).blocks[0].attn.q.weight
    grown = np.linalg.norm(W, axis=1) - np.linalg.norm(base.blocks[0].attn.q.weight, axis=1)
    np.testing.assert_allclose(turned.growth, grown, atol=1e-5)


def test_a_target_has_its_own_groups():
    rng = np.random.default_rng(12)
    base = nn.Transformer.init(7, 6, 2, 1, 5, rng)
    model = nn.adapt(
        base,
        "dora",
        {"q": {"groups": ("rows", 3)}, "o": {"groups": ("columns", 2)}, "v": {}},
        rank=1,
        rng=rng,
    )
    attn = model.blocks[0].attn
    assert [len(layer.m) for layer in (attn.q, attn.o, attn.v)] == [2, 3, 6]
    assert attn.o.norm_axis == "per_input" and attn.v.groups is None


W0 = np.ones((4, 6))
BAD = [
    (("rows", 3), r"groups: expected a block size that divides the 4 rows of W0 \(4, 6\), got 3"),
    (("columns", 4), "groups: expected a block size that divides the 6 columns"),
    (("rows", 0), "groups: expected at least 1, got 0"),
    ("heads", r"groups: expected 'per_output', 'per_input', \('rows', k\).* got 'heads'"),
    (("heads", 2), r"groups: expected 'per_output'.* got \('heads', 2\)"),
    (("rows",), "groups: expected 'per_output'"),
]


@pytest.mark.parametrize(("groups", "message"), BAD)
def test_bad_groups_are_named(groups, message):
    with pytest.raises(ValueError, match=message):
        granularity.norms(W0, groups)
    with pytest.raises(ValueError, match="groups"):
        nn.adapt(
            nn.Linear(W0.astype("float32")), "dora", rng=np.random.default_rng(0), groups=groups
        )


def test_groups_of_the_other_axis_a_wrong_m_and_a_fraction():
    given, rng = layer(13)
    with pytest.raises(ValueError, match="expected rows or 'whole' for norm_axis 'per_output'"):
        factored.dora_forward(**given, m=np.ones(3), scale=1.0, groups=("columns", 2))
    with pytest.raises(ValueError, match="expected columns or 'whole' for norm_axis 'per_input'"):
        factored.dora_forward(
            **given, m=np.ones(4), scale=1.0, groups="per_output", norm_axis="per_input"
        )
    with pytest.raises(ValueError, match=r"m: expected shape \(2,\) \(one per group"):
        granularity.dora_forward(**given, m=np.ones(4), scale=1.0, groups=("rows", 2))
    with pytest.raises(TypeError, match="groups: expected a whole number, got float 2.0"):
        granularity.norms(W0, ("rows", 2.0))
    with pytest.raises(ValueError, match=r"m_out: expected shape \(4,\)"):
        granularity.bora_weight(*(given[n] for n in ("W0", "A", "B")), np.ones(6), np.ones(6), 1.0)
    with pytest.raises(ValueError, match="groups: expected None with method 'lora'"):
        nn.adapt(nn.Linear(W0), "lora", rng=rng, groups="whole")
    assert {axis_of(groups) for groups in ("whole", "per_output", ("rows", 2))} == {"per_output"}


def test_every_grouping_is_in_the_cases():
    for kind in GROUPINGS:
        groups = {
            str(case.settings["groups"]) for case in grouped_cases(np.random.default_rng(0), kind)
        }
        assert all(kind in text for text in groups)

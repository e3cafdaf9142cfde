"""The figures of movement show what they are given: points, lines, intervals, scales."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install .[lessons]")

from minidora import plotting

RNG = np.random.default_rng(0)
LINE = SimpleNamespace(r=-0.5, slope=2.0, intercept=1.0)


def panels():
    return {name: (RNG.uniform(size=(4, 6)), RNG.uniform(size=(4, 6)), LINE) for name in "ab"}


def test_figure_2_has_a_point_for_each_layer_and_step_and_the_given_line():
    of = panels()
    figure = plotting.magnitude_direction(of, steps=[5, 10, 15, 20], title="all")
    assert len(figure.axes) == 2
    for ax, (name, (dD, dM, _)) in zip(figure.axes, of.items(), strict=True):
        assert ax.get_title(loc="left") == f"{name}: r = -0.50"
        points = np.concatenate([part.get_offsets() for part in ax.collections])
        np.testing.assert_allclose(points, np.stack([dD.ravel(), dM.ravel()], 1))
        colours = [part.get_facecolors() for part in ax.collections]
        assert all((of_step == colours[0]).all() for of_step in colours)  # by layer, not by step
        assert len({tuple(c) for c in colours[0]}) == 6
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(y, 2 * np.array(x) + 1)
    labels = [text.get_text() for text in figure.legends[0].texts]
    assert labels == [f"layer {i}" for i in range(1, 7)] + [f"step {s}" for s in (5, 10, 15, 20)]


def test_errors_by_case_shows_passes_failures_and_the_bound():
    wrong = [("a", 1e-16, True), ("b", 0.5, False), ("c", float("inf"), False), ("d", 0.0, True)]
    right = [(case, 1e-15, True) for case in "abcd"]
    figure = plotting.errors_by_case({"wrong": wrong, "right": right}, bound=1e-10, title="kit")
    first, second = figure.axes
    assert first.get_title(loc="left") == "wrong: 2 pass, 2 fail"
    assert second.get_title(loc="left") == "right: 4 pass, 0 fail"
    good, bad, bound = first.lines
    np.testing.assert_allclose(good.get_xydata(), [(0, 1e-16), (3, 1e-17)])
    np.testing.assert_allclose(bad.get_xydata(), [(1, 0.5), (2, 1e3)])
    assert set(bound.get_ydata()) == {1e-10} and first.get_yscale() == "log"
    assert [tick.get_text() for tick in second.get_xticklabels()] == list("abcd")
    assert [text.get_text() for text in figure.legends[0].texts] == ["pass", "FAIL"]


def test_figure_2_on_one_scale_or_on_several():
    of = panels()
    of["b"] = (10 * of["b"][0], 10 * of["b"][1], None)
    for same in (False, True):
        a, b = plotting.magnitude_direction(of, steps=range(4), same_axes=same).axes
        assert (a.get_xlim() == b.get_xlim()) == (a.get_ylim() == b.get_ylim()) == same
    assert b.get_title(loc="left") == "b" and not b.lines  # no correlation, no line


def test_layers_can_be_told_apart_without_colour():
    of = {"a": (np.ones((1, 6)), np.ones((1, 6)), None)}
    (ax,) = plotting.magnitude_direction(of, steps=[1]).axes
    grey = ax.collections[0].get_facecolors()[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0.05).all()


def test_intervals_stand_where_they_are():
    groups = {"x": {"a": (1.0, 0.5, 2.0)}, "y": {"a": (3.0, 3.0, 3.5), "b": (-1.0, -2.0, 0.0)}}
    figure = plotting.intervals(groups, xlabel="r")
    (ax,) = figure.axes
    ends = np.concatenate([np.sort(np.array(c.get_segments())[..., 0]) for c in ax.collections])
    np.testing.assert_allclose(ends, [(0.5, 2.0), (3.0, 3.5), (-2.0, 0.0)])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["x", "y"]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    alone = plotting.intervals({"x": {"a": (1.0, 0.5, 2.0)}})
    assert not alone.legends


def test_groups_are_drawn_with_their_numbers():
    labels = np.array([[0, 0], [1, 1]])
    figure = plotting.groupings({"rows": labels, "whole": 0 * labels})
    rows, whole = figure.axes
    np.testing.assert_array_equal(rows.images[0].get_array(), labels)
    assert [text.get_text() for text in rows.texts] == ["0", "0", "1", "1"]
    assert {text.get_text() for text in whole.texts} == {"0"}


def test_a_method_has_one_colour_in_every_figure():
    cloud = RNG.uniform(size=(2, 5))
    drawn = [
        plotting.within_matrix({"DoRA": (*cloud, None)}).axes[0].lines[0].get_color(),
        plotting.growth({"FT": cloud, "DoRA": cloud}).axes[1].lines[-1].get_color(),
        plotting.curves({"LoRA": cloud, "DoRA": cloud}).axes[0].lines[1].get_color(),
        plotting.scatter({"x": cloud, "full": cloud, "DoRA": cloud}).axes[2].lines[0].get_color(),
    ]
    assert set(drawn) == {plotting.METHOD_COLORS["DoRA"]}


def test_the_vectors_of_a_matrix():
    x, y = RNG.uniform(size=(2, 9))
    figure = plotting.within_matrix({"LoRA": (x, y, LINE), "DoRA": (x, y, None)})
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_data(), (x, y))
    assert first.get_title(loc="left") == "LoRA: r = -0.50" and len(first.lines) == 2
    assert second.get_title(loc="left") == "DoRA" and len(second.lines) == 1

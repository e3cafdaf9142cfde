"""Magnitude against direction: the paper's figure 2, its points within a matrix, and by layer."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .style import GREY, MARKERS, color_of, places_of
from .style import figure as opened


def magnitude_direction(
    panels: Mapping[str, tuple],
    *,
    steps: Sequence[int],
    layers: Sequence[str] | None = None,
    same_axes: bool = False,
    title: str = "",
) -> Figure:
    """The paper's figure 2: a panel for each method, a point for each layer and step.

    panels: {method: (dD, dM, fit)}, dD and dM of shape (steps, layers); fit: a `Correlation`
    over the points, whose line is drawn, or None. A layer has a colour (the first the darkest), a
    step a marker. same_axes: all panels on one scale, or each on its own as in the paper.
    """
    count = len(next(iter(panels.values()))[0][0])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, count))
    names = [f"layer {i + 1}" for i in range(count)] if layers is None else layers
    size = (2.8 * len(panels) + 0.9, 3.3)
    shared = {"sharex": True, "sharey": True} if same_axes else {}
    with opened(1, len(panels), size, squeeze=False, **shared) as (figure, axes):
        for ax, (name, (dD, dM, fit)) in zip(axes[0], panels.items(), strict=True):
            for i, row in enumerate(zip(dD, dM, strict=True)):
                ax.scatter(*row, c=colors, marker=MARKERS[i % 7], s=42, ec="white", lw=0.5)
            label = name
            if fit is not None:
                ends = np.array([np.min(dD), np.max(dD)])
                line = fit.slope * ends + fit.intercept
                ax.plot(ends, line, color=GREY, lw=1.5, zorder=0)
                label = f"{name}: r = {fit.r:+.2f}"
            ax.set(title=label, xlabel="ΔD")
            ax.locator_params(nbins=5)
            ax.ticklabel_format(scilimits=(-2, 3))
        axes[0, 0].set_ylabel("ΔM")
        handles = [plt.Line2D([], [], ls="", marker="o", color=c) for c in colors]
        times = [
            plt.Line2D([], [], ls="", marker=MARKERS[i % 7], color=GREY) for i in range(len(steps))
        ]
        labels = [*names, *(f"step {step}" for step in steps)]
        figure.legend(handles + times, labels, loc="outside right center", fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def intervals(
    groups: Mapping[str, Mapping[str, tuple]],
    *,
    xlabel: str = "",
    title: str = "",
    order: Sequence[str] = (),
) -> Figure:
    """Means with intervals, a row for each group and in it a point for each series.

    groups: {group: {series: (mean, low, high)}}; NaN is left out. order: as for `curves`.
    """
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    places = places_of(series, order)
    with opened(size=(6.4, 0.9 + 0.2 * len(series) * len(groups))) as (figure, ax):
        ax.axvline(0, color="#bbbbbb", zorder=0, lw=1)
        for k, name in enumerate(series):
            rows = [(i, group[name]) for i, group in enumerate(groups.values()) if name in group]
            at = np.array([i + 0.75 * ((k + 0.5) / len(series) - 0.5) for i, _ in rows])
            mean, low, high = np.array([values for _, values in rows], float).T
            ax.errorbar(
                mean,
                at,
                xerr=np.maximum([mean - low, high - mean], 0),
                ls="",
                marker=MARKERS[places[name] % 7],
                color=color_of(name, places[name]),
                ms=5,
                label=name,
            )
        ax.set_yticks(range(len(groups)), groups)
        ax.set_ylim(len(groups) - 0.4, -0.6)
        ax.set(xlabel=xlabel, title=title)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        if len(series) > 1:
            figure.legend(loc="outside right center", fontsize=9)
    return figure


def within_matrix(
    clouds: Mapping[str, tuple],
    *,
    title: str = "",
    xlabel: str = "turn 1 − cos",
    ylabel: str = "|growth of ‖w‖|",
) -> Figure:
    """The vectors of one matrix, or other points, a panel for each method: {name: (x, y, fit)}.

    fit: a `Correlation`, whose line is drawn, or None.
    """
    with opened(1, len(clouds), (3.1 * len(clouds), 3.3), squeeze=False) as (figure, axes):
        for k, (ax, (name, (turn, change, fit))) in enumerate(
            zip(axes[0], clouds.items(), strict=True)
        ):
            ax.plot(turn, change, MARKERS[k % 7], ms=5, alpha=0.7, color=color_of(name, k))
            if fit is not None:
                ends = np.array([np.min(turn), np.max(turn)])
                ax.plot(ends, fit.slope * ends + fit.intercept, color=GREY, lw=1.5, zorder=0)
            label = name if fit is None else f"{name}: r = {fit.r:+.2f}"
            ax.set(title=label, xlabel=xlabel)
            ax.locator_params(nbins=5)
            ax.ticklabel_format(scilimits=(-2, 3))
        axes[0, 0].set_ylabel(ylabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def growth(clouds: Mapping[str, tuple], *, title: str = "") -> Figure:
    """Growth of every norm against what Pythagoras predicts. clouds: {name: (predicted, grown)}.

    A panel's axes have one scale, so that the line of the prediction is its diagonal.
    """
    columns = len(clouds)
    with opened(1, columns, (3.1 * columns, 3.4), squeeze=False) as (figure, axes):
        for i, (name, (predicted, grown)) in enumerate(clouds.items()):
            ax = axes[0, i]
            low = min(np.min(predicted), np.min(grown), 0)
            high = max(np.max(predicted), np.max(grown), 0)
            ends = np.array([low, high]) + 0.06 * (high - low) * np.array([-1, 1])
            ax.plot(ends, ends, color=GREY, lw=1, label="update at a right angle")
            ax.axhline(0, color="#dddddd", zorder=0)
            ax.plot(predicted, grown, MARKERS[i], ms=4, alpha=0.7, color=color_of(name, i))
            ax.set(title=name, xlabel="predicted: m / (1 − ΔD) − m", xlim=ends, ylim=ends)
            ax.locator_params(nbins=4)
        axes[0, 0].set_ylabel("measured growth of ‖w‖")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=9
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure

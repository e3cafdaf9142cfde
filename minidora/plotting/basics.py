"""Arrows, pictures, bars, curves and points."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from .style import BLUE, GREEN, GREY, MARKERS, ORANGE, PALETTE, PURPLE, color_of, places_of
from .style import figure as opened


def plane(
    vectors: Mapping[str, Sequence[float]],
    *,
    between: Mapping[str, tuple] | None = None,
    unit_circle: bool = True,
    title: str = "",
) -> Figure:
    """Labelled arrows in the plane: `vectors` {label: end} from the origin, `between` {label:
    (start, end)} from anywhere.
    """
    arrows = [(label, (0, 0), end) for label, end in vectors.items()]
    arrows += [(label, start, end) for label, (start, end) in (between or {}).items()]
    with opened(size=(4.6, 4.2)) as (figure, ax):
        if unit_circle:
            ax.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, ls=":"))
            ax.annotate("length 1", (0.71, -0.71), (3, -12), textcoords="offset points", color=GREY)
        points = np.array([point for _, start, end in arrows for point in (start, end)])
        for i, (label, start, end) in enumerate(arrows):
            color = PALETTE[i % len(PALETTE)]
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
            halfway = i >= len(vectors)
            at = (np.array(start) + end) / 2 if halfway else end
            beside = (6, 4) if halfway else ((6, 4), (2, -16), (8, -14))[i % 3]
            ax.annotate(label, at, beside, textcoords="offset points", color=color)
        low, high = points.min(0), points.max(0)
        margin = 0.28 * max(high - low)
        edge = 1.2 if unit_circle else margin
        ax.set_xlim(min(low[0] - margin, -edge), max(high[0] + 1.6 * margin, edge))
        ax.set_ylim(min(low[1] - margin, -edge), max(high[1] + margin, edge))
        ax.set_aspect("equal")
        ax.axhline(0, color="#dddddd", zorder=0)
        ax.axvline(0, color="#dddddd", zorder=0)
        ax.set_title(title)
    return figure


def templates(
    directions: NDArray, magnitudes: NDArray, names: Iterable | None = None, *, title: str = ""
) -> Figure:
    """Each row of `directions` as a square picture over a bar of its magnitude.

    directions: (k, side²); magnitudes: (k,). Orange pixels speak for the class, blue against.
    """
    k, side = len(directions), int(np.sqrt(np.shape(directions)[1]))
    names = range(k) if names is None else names
    limit = np.abs(directions).max()
    size = (1.05 * k + 0.6, 2.6)
    ratios = {"height_ratios": [2.2, 1], "hspace": 0.05}
    with opened(2, k, size, squeeze=False, gridspec_kw=ratios) as (figure, axes):
        for column, (w, m, name) in enumerate(zip(directions, magnitudes, names, strict=True)):
            top, bottom = axes[:, column]
            image = top.imshow(np.reshape(w, (side, side)), cmap="PuOr_r", vmin=-limit, vmax=limit)
            top.set_title(str(name), loc="center")
            top.set(xticks=[], yticks=[])
            for spine in top.spines.values():
                spine.set_visible(False)
            bottom.bar([0], [m], color=BLUE, width=0.6)
            bottom.annotate(f"{m:.1f}", (0, m), (0, 2), textcoords="offset points", ha="center")
            bottom.set(xlim=(-0.6, 0.6), ylim=(0, 1.25 * max(magnitudes)), xticks=[], yticks=[])
            bottom.spines["left"].set_visible(False)
        axes[1, 0].set_ylabel("magnitude")
        axes[0, 0].set_ylabel("direction")
        figure.colorbar(image, ax=axes[0, :].tolist(), shrink=0.8, label="for / against")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    title: str = "",
    ylabel: str = "",
    percent: bool = False,
) -> Figure:
    """Grouped bars. values: {series: {group: value}}, each bar with its number on top."""
    groups = list(next(iter(values.values())))
    width = 0.8 / len(values)
    with opened(size=(min(max(5.0, 2.1 * len(groups)), 10.5), 3.4)) as (figure, ax):
        for i, (series, heights) in enumerate(values.items()):
            at = np.arange(len(groups)) + (i - (len(values) - 1) / 2) * width
            drawn = ax.bar(
                at,
                list(heights.values()),
                0.92 * width,
                label=series,
                color=color_of(series, i),
                hatch=("", "//", "..", "xx")[i % 4],
                edgecolor="white",
            )
            ax.bar_label(drawn, fmt="{:.0%}" if percent else "{:.3g}", fontsize=9)
        ax.set_xticks(range(len(groups)), groups)
        ax.set(title=title, ylabel=ylabel)
        if percent:
            ax.yaxis.set_major_formatter("{x:.0%}")
            tallest = max(max(heights.values()) for heights in values.values())
            ax.set_ylim(0, min(1.08, 1.2 * tallest))
        if len(values) > 1:
            figure.legend(loc="outside lower center", ncols=len(values))
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    markers: bool = True,
    order: Sequence[str] = (),
) -> Figure:
    """One line for each series. lines: {label: (x, y)}; log: any of "x", "y", "xy".

    order: labels that take the first colours in turn, drawn or not, so that a series keeps its own
    from figure to figure.

    A y of shape (seeds, len(x)) becomes its mean, in a band from the smallest to the largest.
    """
    with opened() as (figure, ax):
        places = places_of(lines, order)
        for label, (x, y) in lines.items():
            i = places[label]
            marker = MARKERS[i % len(MARKERS)] if markers else None
            dashes = ("-", "--", "-.", ":")[i % 4]
            if np.ndim(y) == 2:
                ax.fill_between(
                    x, np.min(y, 0), np.max(y, 0), color=color_of(label, i), alpha=0.2, lw=0
                )
                y = np.mean(y, 0)
            dashes = "none" if np.ptp(x) == 0 else dashes  # points above one another, not a line
            ax.plot(x, y, ls=dashes, marker=marker, ms=5, color=color_of(label, i), label=label)
        if "x" in log:
            ax.set_xscale("log")
            ticks = np.unique(np.concatenate([np.ravel(x) for x, _ in lines.values()]))
            if len(ticks) <= 9 and np.all(ticks[1:] > 1.4 * ticks[:-1]):
                ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                ax.minorticks_off()
        if "y" in log:
            ax.set_yscale("log")
        ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if len(lines) > 4:
            figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        elif len(lines) > 1:
            ax.legend()
    return figure


def tangent_plane(
    v: ArrayLike, g: ArrayLike, radial: ArrayLike, tangential: ArrayLike, *, title: str = ""
) -> Figure:
    """v in space with the plane at a right angle to it, and g split in two. Each is (3,)."""
    v, g, radial, tangential = (np.asarray(a, float) for a in (v, g, radial, tangential))
    with opened(size=(5.4, 4.6), subplot_kw={"projection": "3d"}) as (figure, ax):
        first = tangential / np.linalg.norm(tangential)
        second = np.cross(v / np.linalg.norm(v), first)
        a, b = np.meshgrid([-1.2, 1.2], [-1.2, 1.2])
        surface = v[:, None, None] + a * first[:, None, None] + b * second[:, None, None]
        ax.plot_surface(*surface, color=GREY, alpha=0.2)
        origin = np.zeros(3)
        arrows = {
            "v": (origin, v, BLUE, "-"),
            "g": (v, g, ORANGE, "-"),
            "radial part": (v, radial, GREEN, "--"),
            "tangential part": (v, tangential, PURPLE, "-"),
        }
        for label, (start, along, color, dashes) in arrows.items():
            ax.quiver(
                *start, *along, color=color, lw=2, ls=dashes, arrow_length_ratio=0.12, label=label
            )
        ax.plot(*np.stack([v + tangential, v + g], 1), ":", color=GREY, lw=1)
        ax.set_box_aspect((1, 1, 1), zoom=1.05)
        ax.set(xticklabels=[], yticklabels=[], zticklabels=[], title=title)
        ax.legend(loc="upper left")
        ax.view_init(18, -75)
    return figure


def scatter(
    clouds: Mapping[str, tuple], *, xlabel: str = "", ylabel: str = "", title: str = ""
) -> Figure:
    """One panel for each cloud of points, side by side. clouds: {name: (x, y)}."""
    columns = len(clouds)
    with opened(1, columns, (3.3 * columns, 3.3), squeeze=False) as (figure, axes):
        for i, (name, (x, y)) in enumerate(clouds.items()):
            axes[0, i].plot(x, y, MARKERS[i], ms=4, alpha=0.7, color=color_of(name, i))
            axes[0, i].set(title=name, xlabel=xlabel)
            axes[0, i].locator_params(axis="x", nbins=4)
            axes[0, i].ticklabel_format(axis="x", scilimits=(-2, 3))
        axes[0, 0].set_ylabel(ylabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def groupings(panels: Mapping[str, NDArray], *, title: str = "") -> Figure:
    """Matrices of group numbers, (d_out, d_in), each group with a colour and its number."""
    size = (2.2 * len(panels) + 0.4, 2.9)
    with opened(1, len(panels), size, squeeze=False) as (figure, axes):
        for ax, (name, labels) in zip(axes[0], panels.items(), strict=True):
            ax.imshow(labels, cmap="viridis", vmin=-0.5, vmax=1.5 * max(labels.max(), 1))
            for (row, column), group in np.ndenumerate(labels):
                ax.text(column, row, group, ha="center", va="center", color="white", fontsize=8)
            ax.set(title=name, xlabel="input", ylabel="output", xticks=[], yticks=[])
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure

"""Figure 2 under weight decay: the paper's panels, and the slopes against the law."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import GREY, METHOD_COLORS
from .style import figure as opened


def slopes(rows: Mapping[str, Mapping[str, tuple]], *, title: str = "") -> Figure:
    """The paper's figure 2, a row of panels for each setting, a panel for each method.

    rows: {setting: {method: (dD, dM, line, note, label)}}; dD, dM: (checkpoints, layers), later
    checkpoints drawn darker; line: (slope, intercept) or None; note: beside the method's name,
    label: under it.
    """
    columns = max(len(row) for row in rows.values())
    with opened(len(rows), columns, (3.6 * columns, 2.9 * len(rows)), squeeze=False) as (
        made,
        axes,
    ):
        for row, (setting, panels) in zip(axes, rows.items(), strict=True):
            for ax, (method, (dD, dM, line, note, label)) in zip(row, panels.items(), strict=False):
                color = METHOD_COLORS[method]
                for shade, turn, growth in zip(np.linspace(0.35, 1, len(dD)), dD, dM, strict=True):
                    ax.scatter(turn, growth, color=color, alpha=shade, s=34, ec="white", lw=0.4)
                if line is not None:
                    ends = np.array([np.min(dD), np.max(dD)])
                    ax.plot(ends, line[0] * ends + line[1], color="black", lw=1.2)
                ax.set_title(f"{method}, {note}\n{label}", fontsize=9)
                ax.locator_params(nbins=4)
                ax.ticklabel_format(scilimits=(-3, 3))
                ax.set_xlabel("ΔD")
            row[0].set_ylabel(f"{setting}\n\nΔM")
        made.suptitle(title, x=0.01, ha="left", fontsize=11)
    return made


def collapse(
    panels: Sequence[tuple[str, Mapping[str, tuple], Mapping[str, tuple]]],
    against: Mapping[str, tuple],
    *,
    title: str = "",
) -> Figure:
    """Correlations against what the law says decides them, then measured against predicted.

    panels: (label of the x axis, {method: (x, r)}, {method: (x, r of the law)}); an x of 0 is drawn
    at the left edge. against: {method: (predicted, measured)}.
    """
    with opened(1, len(panels) + 1, (4.1 * (len(panels) + 1), 3.6)) as (made, axes):
        for ax, (label, measured, law) in zip(axes, panels, strict=False):
            least = min(x[x > 0].min() for x, _ in measured.values() if (x > 0).any()) / 2
            for method, (x, r) in measured.items():
                at = np.where(x > 0, x, least)
                color = METHOD_COLORS[method]
                ax.scatter(at, r, s=7, color=color, alpha=0.35, lw=0, label=method)
            for method, (x, r) in law.items():
                ax.plot(x, r, color=METHOD_COLORS[method], lw=1.6)
            ax.axhline(0, color="#bbbbbb", lw=1, zorder=0)
            ax.axvline(1, color="#bbbbbb", lw=1, zorder=0)
            ax.set(xscale="log", xlabel=label, ylim=(-1.05, 1.05))
            marks = ax.legend(
                fontsize=8,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.18),
                ncols=2,
                markerscale=2.5,
            )
            for handle in marks.legend_handles:
                handle.set_alpha(1)
        axes[0].set_ylabel("correlation of ΔM with ΔD, pooled")
        axes[0].annotate(
            "Λ = 0",
            (0.0, 0.0),
            xycoords="axes fraction",
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
            color=GREY,
        )
        for method, (predicted, measured) in against.items():
            axes[-1].scatter(predicted, measured, s=14, color=METHOD_COLORS[method], label=method)
        axes[-1].plot([-1, 1], [-1, 1], color=GREY, lw=1)
        axes[-1].set(xlabel="predicted by the law", ylabel="measured, mean over seeds")
        axes[-1].set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axes[-1].legend(fontsize=8, loc="upper left")
        made.suptitle(title, x=0.01, ha="left", fontsize=11)
    return made

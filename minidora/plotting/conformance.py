"""What the conformance kit found, case by case."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import BLUE, GREY, ORANGE
from .style import figure as opened

FLOOR, CEILING = 1e-17, 1e3


def errors_by_case(
    panels: Mapping[str, Sequence[tuple[str, float, bool]]], *, bound: float, title: str = ""
) -> Figure:
    """The error of every case on a logarithmic scale, a panel for each of `panels`.

    panels: {name: [(case, relative error, whether it passed), ...]}, the same cases in each; an
    infinite error (NaN, a wrong shape, nothing) stands at the top. bound: drawn as a line.
    """
    cases = [case for case, _, _ in next(iter(panels.values()))]
    size = (10.0, 2.3 * len(panels) + 1.6)
    with opened(len(panels), 1, size, squeeze=False, sharex=True) as (figure, axes):
        for ax, (name, results) in zip(axes[:, 0], panels.items(), strict=True):
            passed = np.array([ok for _, _, ok in results])
            error = np.clip([e for _, e, _ in results], FLOOR, CEILING)
            at = np.arange(len(results))
            ax.plot(at[passed], error[passed], "o", color=BLUE, label="pass")
            ax.plot(at[~passed], error[~passed], "X", color=ORANGE, ms=8, label="FAIL")
            ax.axhline(bound, color=GREY, ls="--", lw=1)
            ax.annotate(
                f"bound {bound:.0e}", (len(results) - 0.4, bound), (0, 4),
                textcoords="offset points", color=GREY, ha="right",
            )  # fmt: skip
            ax.set_yscale("log")
            ax.set_ylim(FLOOR / 3, CEILING * 10)
            ax.set_ylabel("relative error")
            ax.set_title(f"{name}: {passed.sum()} pass, {(~passed).sum()} fail", loc="left")
        axes[-1, 0].set_xticks(range(len(cases)), cases, rotation=90, fontsize=7)
        axes[-1, 0].set_xlim(-1, len(cases))
        handles = [axes[0, 0].lines[0], axes[0, 0].lines[1]]
        figure.legend(handles, ["pass", "FAIL"], loc="upper right", ncols=2, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure

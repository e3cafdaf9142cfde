"""Colours, markers and fonts of every figure, and the one way a figure is opened.

Colours are Okabe and Ito's, told apart by colour-blind readers; every series also differs in
marker or position. The paper stays white, so a figure reads the same in a dark notebook.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", GREY)
METHOD_COLORS = {  # one colour a method, in every figure
    "FT": ORANGE,
    "FT of q and v": "#E69F00",
    "LoRA": BLUE,
    "LoRA, decaying base": "#56B4E9",
    "DoRA": GREEN,
    "DoRA detached": PURPLE,
    "magnitude": "#000000",
}
SYNONYMS = {
    "full": "FT",
    "full fine-tuning": "FT",
    "full q and v": "FT of q and v",
    "exact": "DoRA",
    "detached": "DoRA detached",
    "DoRA, exact": "DoRA",
    "DoRA, detached": "DoRA detached",
    "magnitude only": "magnitude",
    "m only": "magnitude",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 80,
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.size": 10,
}


def places_of(labels: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """{label: its place in the palette}: those in `order` first, the others after them."""
    every = list(dict.fromkeys([*order, *labels]))
    return {label: every.index(label) for label in labels}


def color_of(label: str, place: int) -> str:
    """The method's own colour where the label names one, else the palette's at this place."""
    method = SYNONYMS.get(label, label)
    return METHOD_COLORS.get(method, PALETTE[place % len(PALETTE)])


@contextmanager
def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.6), **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A styled figure with its axes, closed so that a notebook shows it once, where returned."""
    with plt.rc_context(STYLE):
        made, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
        yield made, axes
        plt.close(made)

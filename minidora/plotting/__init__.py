"""Every figure of the lessons. Takes plain arrays, returns a matplotlib Figure, computes nothing.

`style` has the colours, `basics` arrows, pictures, bars, curves and points, `movement` magnitude
against direction, `decay` its slopes, `conformance` what the kit found.
"""

from .basics import bars, curves, groupings, plane, scatter, tangent_plane, templates
from .conformance import errors_by_case
from .decay import collapse, slopes
from .movement import growth, intervals, magnitude_direction, within_matrix
from .style import BLUE, GREEN, GREY, MARKERS, METHOD_COLORS, ORANGE, PALETTE, PURPLE

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "MARKERS",
    "METHOD_COLORS",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "bars",
    "collapse",
    "curves",
    "errors_by_case",
    "groupings",
    "growth",
    "intervals",
    "magnitude_direction",
    "plane",
    "scatter",
    "slopes",
    "tangent_plane",
    "templates",
    "within_matrix",
]

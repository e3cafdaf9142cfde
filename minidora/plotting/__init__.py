"""Every figure of the lessons. Takes plain arrays, returns a matplotlib Figure, computes nothing.

`style` has the colours, `basics` arrows, pictures, bars, curves and points, `movement` magnitude
against direction.
"""

from .basics import bars, curves, plane, scatter, tangent_plane, templates
from .movement import growth, intervals, layer_bars, magnitude_direction, within_matrix
from .style import BLUE, GREEN, GREY, MARKERS, ORANGE, PALETTE, PURPLE

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "MARKERS",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "bars",
    "curves",
    "growth",
    "intervals",
    "layer_bars",
    "magnitude_direction",
    "plane",
    "scatter",
    "tangent_plane",
    "templates",
    "within_matrix",
]

"""Parts that the figures of several diagnostics share."""

import numpy as np

PANEL_WIDTH, PANEL_HEIGHT = 4.4, 3.2  # inches


def depth_colors(count: int):
    """(colors of all depths from dark to bright, scale for a color bar)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    # A discrete color per depth.
    color_map = colormaps["viridis"].resampled(count)
    bounds = np.arange(count + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(bounds, count), color_map)
    return [color_map(k) for k in range(count)], scale


def tick_indices(count: int) -> list[int]:
    """At most nine evenly spaced indices from 0 ... count - 1."""
    return list(range(0, count, -(-count // 9)))

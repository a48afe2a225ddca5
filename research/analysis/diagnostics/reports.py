"""The table of diagnostics for `launch.diagnose`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.analysis.diagnostics.depth_geometry import (
    list_geometry,
    plot_geometry,
    report_geometry,
)
from research.analysis.diagnostics.depth_tokens import (
    list_token_states,
    plot_token_states,
    report_token_states,
)
from research.analysis.diagnostics.layer_by_layer import (
    list_layers,
    plot_layers,
    report_layers,
)
from research.analysis.diagnostics.length_collapse import (
    list_length_collapse,
    plot_length_collapse,
    report_length_collapse,
)
from research.analysis.diagnostics.outliers import (
    list_outliers,
    plot_outliers,
    report_outliers,
)
from research.analysis.diagnostics.positional_bias import (
    list_positional_bias,
    plot_positional_bias,
    report_positional_bias,
)

Record = Mapping[str, Any]


class Report(NamedTuple):
    """A diagnostic and its forms.

    Attributes:
        heading: Its title.
        measure: (inputs, *, options) -> a record for JSON. Its "summary" holds the main
            numbers.
        make_rows: record -> rows of a table, the header first.
        plot: (record, title, path) -> None; writes a PNG file.
    """

    heading: str
    measure: Callable[..., Record]
    make_rows: Callable[[Record], list[list[str]]]
    plot: Callable[[Record, str, Path], None]


# {name in --reports: the report}
REPORTS: Mapping[str, Report] = {
    "length_collapse": Report(
        "Length collapse",
        report_length_collapse,
        list_length_collapse,
        plot_length_collapse,
    ),
    "positional_bias": Report(
        "Positional bias",
        report_positional_bias,
        list_positional_bias,
        plot_positional_bias,
    ),
    "geometry": Report("Geometry", report_geometry, list_geometry, plot_geometry),
    "outliers": Report(
        "Outlier dimensions", report_outliers, list_outliers, plot_outliers
    ),
    "layers": Report("Layer by layer", report_layers, list_layers, plot_layers),
    "token_states": Report(
        "Token states", report_token_states, list_token_states, plot_token_states
    ),
}

"""The table of diagnostics for `launch.diagnose`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.analysis.diagnostics.depth_geometry import (
    list_geometry,
    plot_geometry,
    report_geometry,
)
from research.analysis.diagnostics.length_collapse import (
    list_length_collapse,
    plot_length_collapse,
    report_length_collapse,
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
}

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
from research.analysis.diagnostics.limit import list_limit, plot_limit, report_limit
from research.analysis.diagnostics.low_pass import (
    list_low_pass,
    plot_low_pass,
    report_low_pass,
)
from research.analysis.diagnostics.mexa import list_mexa, plot_mexa, report_mexa
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
from research.analysis.diagnostics.redundancy import (
    list_redundancy,
    plot_redundancy,
    report_redundancy,
)
from research.analysis.diagnostics.sentence_importance import (
    list_sentence_importance,
    plot_sentence_importance,
    report_sentence_importance,
)
from research.analysis.diagnostics.sticky_tokens import (
    list_sticky_tokens,
    plot_sticky_tokens,
    report_sticky_tokens,
)

Record = Mapping[str, Any]


class Report(NamedTuple):
    """A diagnostic and its forms.

    Attributes:
        heading: Its title.
        measure: (inputs, *, options) -> a record for JSON. Its "summary" holds the main
            numbers, and its "data" the name of what was measured if that is not the
            corpus; "" for none.
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
    "sentence_importance": Report(
        "Importance of sentences",
        report_sentence_importance,
        list_sentence_importance,
        plot_sentence_importance,
    ),
    "low_pass": Report(
        "Attention as a low-pass filter", report_low_pass, list_low_pass, plot_low_pass
    ),
    "sticky_tokens": Report(
        "Sticky tokens", report_sticky_tokens, list_sticky_tokens, plot_sticky_tokens
    ),
    "mexa": Report("MEXA", report_mexa, list_mexa, plot_mexa),
    "limit": Report("LIMIT", report_limit, list_limit, plot_limit),
    "redundancy": Report(
        "Redundancy", report_redundancy, list_redundancy, plot_redundancy
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

"""The report of length collapse: embeddings of long documents crowd together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    depth_colors,
    tick_indices,
)
from research.eval.bias.length_collapse import measure_length_collapse
from research.eval.figures import figure
from research.models.positions.methods import extend_context
from research.models.positions.query_scale import TempScale

MIN_LENGTH = 8  # tokens in the shortest documents


def report_length_collapse(
    inputs: DiagnosticInputs, *, documents: int = 64, tau: float = 0.8
) -> dict[str, Any]:
    """Cosines of pairs of documents by their length, with and without TempScale.

    Args:
        inputs: The model and the texts.
        documents: Number of documents of each length.
        tau: Temperature of TempScale, which divides attention's scores.

    Returns:
        The record of `measure_length_collapse`, with "summary", the mean cosines
        {model: {length: cosine}}.
    """
    model = inputs.model
    # The model with and without TempScale.
    params, cfg = extend_context(model.params, model.config, [TempScale(tau=tau)])
    scaled = model._replace(params=params, config=cfg)
    embeds = {
        "the model": inputs.make_depth_embedder(),
        f"TempScale {tau:g}": inputs.make_depth_embedder(scaled),
    }
    room = inputs.document_room()
    lengths = choose_lengths(room)
    record = measure_length_collapse(
        embeds, inputs.make_documents(room, documents), lengths
    )
    means = {label: curves["mean"] for label, curves in record["models"].items()}
    summary = {
        label: dict(zip(lengths, values, strict=True))
        for label, values in means.items()
    }
    return {"summary": summary, **record}


def choose_lengths(max_length: int) -> list[int]:
    """The lengths to compare, in tokens: powers of two, and `max_length` itself.

    Raises:
        ValueError: `max_length` is too short for two lengths.
    """
    powers = [2**i for i in range(MIN_LENGTH.bit_length() - 1, max_length.bit_length())]
    powers = [power for power in powers if power < 0.8 * max_length]
    if not powers:
        raise ValueError(
            f"documents of {max_length} tokens are too short to compare lengths: "
            f"{2 * MIN_LENGTH} or more are needed"
        )
    return [*powers, max_length]


def list_length_collapse(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: mean cosines by length."""
    header = ["mean cosine at tokens", *(f"{n:,}" for n in record["lengths"])]
    return [header] + [
        [label, *(f"{cosine:.3f}" for cosine in curves["mean"])]
        for label, curves in record["models"].items()
    ]


def plot_length_collapse(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots cosines by length: of every model, and of every depth of the first one."""
    lengths = record["lengths"]
    size = 2 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    with figure(path, size, columns=2, title=title) as (picture, (outputs, depths)):
        # Left: the outputs of the models, with percentiles.
        for label, curves in record["models"].items():
            (line,) = outputs.plot(
                lengths, curves["mean"], marker="o", ms=4, label=label
            )
            for name in ("p10", "p90"):
                outputs.plot(
                    lengths, curves[name], color=line.get_color(), ls=":", lw=1.2
                )
        low, high = outputs.get_ylim()
        outputs.set(ylim=(low, high + 0.4 * (high - low)))  # room for the legend
        outputs.legend(title="mean; dotted: 10th, 90th percentile", loc="upper left")
        outputs.set(title="Output", ylabel="cosine of two documents")
        # Right: every depth of the first model, dark to bright.
        label, curves = next(iter(record["models"].items()))
        colors, color_scale = depth_colors(len(curves["layers"]))
        for means, color in zip(curves["layers"], colors, strict=True):
            depths.plot(lengths, means, color=color, marker="o", ms=3)
        depths.set(title=f"Every depth of {label}", ylabel="mean cosine")
        ticks = tick_indices(len(colors))
        picture.colorbar(color_scale, ax=depths, label="depth", ticks=ticks)
        for axes in (outputs, depths):
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, map(str, lengths))
            axes.minorticks_off()
            axes.set(xlabel="document length, tokens")
            axes.grid(alpha=0.3)

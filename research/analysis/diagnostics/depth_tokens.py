"""Token states by depth: anisotropy, intrinsic dimension, rank of real and masked ones.

Razzhigaev et al. 2024, "The Shape of Learning"; Meng et al. 2024, "Representation
Deficiency in Masked Language Modeling".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    DepthPanel,
    list_by_depth,
    plot_by_depth,
)
from research.eval.geometry.evaluators import measure_token_states

PANELS = (
    DepthPanel(
        "SVD anisotropy", "share of the first component", {"svd_anisotropy": ""}
    ),
    DepthPanel("Intrinsic dimension", "TwoNN", {"intrinsic_dimension": ""}),
    DepthPanel("Anisotropy", "mean cosine", {"mean_cosine": ""}),
    DepthPanel("Effective rank", "effective rank", {"effective_rank": ""}),
)
MASK_PANEL = DepthPanel(
    "Effective rank, texts with masks",
    "effective rank",
    {
        "real_effective_rank": "real tokens",
        "mask_effective_rank": "as many masked tokens",
    },
)


def report_token_states(
    inputs: DiagnosticInputs,
    *,
    texts: int = 200,
    tokens: int = 2_000,
    mask_share: float = 0.15,
) -> dict[str, Any]:
    """Measures of the states of a text's own tokens at every depth.

    Special tokens and those of the model's prompt are read, and not measured.

    Args:
        inputs: The model and the texts.
        texts: Largest number of texts.
        tokens: Largest number of tokens of all texts together.
        mask_share: Share of the tokens that are masked in a second pass; 0 for none.

    Returns:
        The lists of `measure_token_states` over "depths", and "summary": the measures
        of the last depth, and the depths of the largest anisotropy and dimension.

    Raises:
        ValueError: There is no corpus, or it has too few texts.
    """
    inputs.refuse_sizes("token_states", "clip_dims", "dim", "pool")
    sample = inputs.sample_texts(texts)
    params, cfg, tokenized = inputs.tokenize_documents(sample)
    measures = measure_token_states(
        (params, cfg, None),
        inputs.model.tokenizer,
        tokenized,
        tokens=tokens,
        mask_share=mask_share,
        seed=inputs.seed,
    )
    # The paper's curves have their peaks inside decoders, and encoders are flatter.
    summary = {name: values[-1] for name, values in measures.items()}
    for name in ("svd_anisotropy", "intrinsic_dimension"):
        summary[f"{name}_peak"] = int(np.argmax(measures[name]))
    depths = list(range(cfg.depth + 1))
    return {"summary": summary, "texts": len(tokenized), "depths": depths, **measures}


def list_token_states(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth."""
    names = [name for panel in _choose_panels(record) for name in panel.curves]
    return list_by_depth(record, names)


def plot_token_states(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the measures by depth."""
    plot_by_depth(record, _choose_panels(record), title, path)


def _choose_panels(record: Mapping[str, Any]) -> tuple[DepthPanel, ...]:
    has_masks = "mask_effective_rank" in record
    return (*PANELS, MASK_PANEL) if has_masks else PANELS

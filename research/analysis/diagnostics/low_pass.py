"""Attention as a low-pass filter over the tokens of a text.

Softmax attention averages tokens, and the more of them there are, the less differs
between them afterwards: the view of length collapse behind TempScale (Zhou et al. 2025,
"Length-Induced Embedding Collapse in PLM-based Models").
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    depth_colors,
)
from research.eval.bias.documents import join_pieces
from research.eval.figures import figure
from research.models.attention.inputs import AttentionInputs, make_attention_inputs
from research.models.attention_sublayer import apply_attention
from research.models.config import EncoderConfig
from research.models.encoder import apply, truncate_depth
from research.models.positions.methods import extend_context
from research.models.positions.query_scale import TempScale
from research.models.positions.segment_positions import segment_positions
from research.progress import show_progress
from research.types import Array, Params, Tokens

LENGTHS = (16, 32, 64, 128, 256, 512)
MEASURES = ("states", "output", "residual", "gain")


def subtract_mean_token(x: np.ndarray) -> np.ndarray:
    """HC[x], the high-frequency part of tokens [..., T, D]: x minus their mean."""
    return x - x.mean(-2, keepdims=True)


def high_frequency_share(x: np.ndarray) -> np.ndarray:
    """||HC[x]||^2 / ||x||^2 of tokens [..., T, D] -> [...]."""
    x = np.asarray(x, np.float64)
    total = np.sum(x**2, (-2, -1))
    return np.sum(subtract_mean_token(x) ** 2, (-2, -1)) / np.maximum(total, 1e-12)


def filter_gain(weights: np.ndarray) -> float:
    """The largest factor by which attention [T, T] scales differences between tokens.

    sigma_a, the largest singular value of (I - 1 1^T / T) A. For v = x W,
    ||HC[A v]|| <= sigma_a ||W|| ||HC[x]||: 0 for uniform attention, 1 for A = I.
    """
    chex.assert_shape(weights, (len(weights), len(weights)))
    # The largest eigenvalue of the Gram matrix is the square of the singular value.
    centered = subtract_mean_token(np.asarray(weights, np.float64))
    last = len(weights) - 1
    (square,) = scipy.linalg.eigvalsh(
        centered @ centered.T, subset_by_index=(last, last)
    )
    return float(np.sqrt(max(square, 0)))


def report_low_pass(
    inputs: DiagnosticInputs, *, documents: int = 8, tau: float = 0.8
) -> dict[str, Any]:
    """Shares of high frequencies by depth and length, with and without TempScale.

    Args:
        inputs: The model and the texts.
        documents: Number of documents, which are cut to every length.
        tau: Temperature of TempScale.

    Returns:
        {"documents", "lengths", "models": {label: {"states": [lengths][1 + depth]
        high-frequency shares of the hidden states, "output": [lengths][depth] those of
        attention's output, "residual": those of its sum with the hidden states, "gain":
        mean `filter_gain` of the heads}}, "summary", the gain, mean of all blocks,
        {label: {length: gain}}}. Special tokens count.

    Raises:
        ValueError: There is no corpus, or the model is for less than 16 tokens.
    """
    inputs.refuse_sizes("low_pass", "clip_dims", "dim", "pool")
    model = inputs.model
    longest = inputs.sizes.get("max_length", model.max_length)
    lengths = [length for length in LENGTHS if length <= longest]
    if not lengths:
        raise ValueError(
            f"texts of {longest} tokens are too short: {LENGTHS[0]} or more are needed"
        )
    # [N, longest] tokens of documents that fill every length.
    texts = map(join_pieces, inputs.make_documents(lengths[-1], documents))
    prompt = model.prompts.get("document", "")
    rows = [model.tokenizer.encode(prompt + text).ids for text in texts]
    # The model with and without TempScale.
    depth = inputs.sizes.get("depth", model.config.depth)
    plain = truncate_depth(model.params, model.config, depth)
    scaled = extend_context(*plain, [TempScale(tau=tau)])
    variants = {"the model": plain, f"TempScale {tau:g}": scaled}
    models = {}
    with show_progress("measuring attention", len(variants) * len(lengths)) as advance:
        for label, variant in variants.items():
            measured = []
            for length in lengths:
                # The last token of a cut text is that of the full one, often [SEP].
                cut = [[*row[: length - 1], row[-1]] for row in rows]
                measured.append(measure_low_pass(*variant, np.array(cut, np.int32)))
                advance(1)
            models[label] = {name: [m[name] for m in measured] for name in MEASURES}
    # The main number: the mean gain of all blocks, heads and documents.
    gains = {
        label: dict(zip(lengths, np.mean(values["gain"], 1).tolist(), strict=True))
        for label, values in models.items()
    }
    return {
        "summary": {"gain": gains},
        "documents": documents,
        "lengths": lengths,
        "models": models,
    }


def measure_low_pass(
    params: Params, cfg: EncoderConfig, token_ids: np.ndarray
) -> dict[str, list[float]]:
    """High-frequency shares and filter gains of every block, means over texts.

    Args:
        params: The encoder's parameters.
        cfg: The encoder's shape.
        token_ids: [N, T] tokens of texts of equal length.

    Returns:
        {"states": [1 + depth] shares, "output" and "residual": [depth] shares, "gain":
        [depth], means over texts and heads}.
    """
    # Dense attention, whose weights are all in memory.
    cfg = dataclasses.replace(cfg, attention="plain")
    states, attn = _collect_states(params, token_ids, cfg)  # [L+1, N, T, D]
    record = {name: [] for name in MEASURES}
    record["states"] = high_frequency_share(states).mean(1).tolist()
    for layer in range(cfg.depth):
        weights, output = apply_attention(
            params, states[layer], attn, np.int32(layer), cfg
        )
        # Shares before and after the sum with the hidden states.
        residual = np.asarray(states[layer] + output)
        record["output"].append(float(high_frequency_share(output).mean()))
        record["residual"].append(float(high_frequency_share(residual).mean()))
        # [N * H, T, T] heads of all texts.
        heads = np.asarray(weights).reshape(-1, *weights.shape[2:])
        record["gain"].append(float(np.mean([filter_gain(head) for head in heads])))
    return record


def list_low_pass(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: means over blocks, by length."""
    header = ["", "model", *(f"{length} tokens" for length in record["lengths"])]
    names = {
        "gain": "filter gain, mean of blocks",
        "output": "high frequencies of attention's output, mean of blocks",
        "states": "high frequencies of states, mean of depths",
    }
    # A row per measure and model.
    rows = []
    for name, title in names.items():
        for label, values in record["models"].items():
            cells = [f"{np.mean(by_depth):.3f}" for by_depth in values[name]]
            rows.append([title, label, *cells])
    return [header, *rows]


def plot_low_pass(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots shares by depth for every length, and the gain by length."""
    size = 3 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    lengths = record["lengths"]
    label, values = next(iter(record["models"].items()))
    with figure(path, size, columns=3, title=title) as (picture, panels):
        # Left: hidden states; middle: attention's output. A color for each length.
        colors, color_scale = depth_colors(len(lengths))
        names = {"states": "Hidden states", "output": "Output of attention"}
        for axes, (name, heading) in zip(panels, names.items(), strict=False):
            for shares, color in zip(values[name], colors, strict=True):
                first = 0 if name == "states" else 1
                depths = np.arange(len(shares)) + first
                axes.plot(depths, shares, color=color, marker="o", ms=3)
            axes.set(title=f"{heading}, {label}", xlabel="depth", ylim=(0, None))
            axes.set_ylabel("share of high frequencies")
        bar = picture.colorbar(color_scale, ax=panels[1], label="tokens")
        bar.set_ticks(range(len(lengths)), labels=map(str, lengths))
        # Right: the gain of the model and of TempScale.
        for label, values in record["models"].items():
            panels[2].plot(lengths, np.mean(values["gain"], 1), "o-", ms=4, label=label)
        panels[2].set_xscale("log", base=2)
        panels[2].set_xticks(lengths, map(str, lengths))
        panels[2].set(title="Attention as a filter", xlabel="tokens", ylim=(0, None))
        panels[2].set_ylabel("gain of differences, mean of heads")
        panels[2].legend()
        # The same grid everywhere.
        for axes in panels:
            axes.grid(alpha=0.3)


@partial(jax.jit, static_argnames="cfg")
def _collect_states(
    params: Params, token_ids: Array, cfg: EncoderConfig
) -> tuple[Array, AttentionInputs]:
    """Hidden states [L+1, N, T, D] before any final norm, and attention's inputs."""
    ones = jnp.ones_like(token_ids)
    tokens = Tokens(token_ids, ones, ones.astype(bool))
    _, states = apply(params, tokens, cfg, lambda x, _: x)
    return states, make_attention_inputs(params, segment_positions(ones), cfg)

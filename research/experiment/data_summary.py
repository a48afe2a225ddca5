"""A summary of each source of pairs, with its first example as the model sees it."""

import numpy as np
import tokenizers

from research.data.pairs.pair_batches import PairBatches
from research.data.pairs.pair_rows import PairSourceState

# Characters of a text that are shown.
MAX_SHOWN = 160


def summarize_pairs(
    batches: PairBatches, tokenizer: tokenizers.Tokenizer, max_length: int
) -> tuple[str, ...]:
    """A few lines for each source: its rows, tokens, documents and first example.

    Args:
        batches: Batches of the run.
        tokenizer: Tokenizer of the run, which decodes the tokens of the example.
        max_length: Maximum number of tokens of a text.

    Returns:
        Lines of text; the texts of the example have their prompts and special tokens.
    """
    lines = []
    total = sum(state.weight for state in batches.sources)
    for state in batches.sources:
        table = state.table
        lengths = np.diff(table.starts)  # [T] tokens of each text
        full = int((lengths >= max_length).sum())
        rows = format_count(len(table.query_text), "row")
        tokens = format_count(int(table.starts[-1]), "token")
        positives = format_count(_find_range(table.num_positives), "positive")
        negatives = format_count(_find_range(table.num_negatives), "negative")
        used = f"1 and {state.docs_per_query - 1}"
        if mined := state.refreshed:
            used = f"1, and {mined.count} mined every {mined.every} steps"
        lines.append(
            f"data {state.name!r}: {rows}, {tokens}; {positives} and {negatives} per "
            f"query, of which each step uses {used}"
        )
        if len(batches.sources) > 1:
            loss = state.loss or "that of the config"
            lines.append(
                f"data {state.name!r}: {state.weight / total:.1%} of the steps; "
                f"the loss is {loss}"
            )
        if full:
            texts = format_count(len(lengths), "text")
            lines.append(
                f"data {state.name!r}: {full:,} of {texts} "
                f"{'has' if full == 1 else 'have'} {max_length} tokens or more; what "
                "is beyond is cut"
            )
        lines += _show_example(state, tokenizer)
    return tuple(lines)


def format_count(count: int | tuple[int, int], noun: str) -> str:
    """A number, or the least and the greatest, of something: "1 row", "1 to 3 rows"."""
    low, high = count if isinstance(count, tuple) else (count, count)
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {noun}" if high == 1 == low else f"{number} {noun}s"


def _find_range(counts: np.ndarray) -> tuple[int, int]:
    """The least and the greatest of the counts."""
    return int(counts.min()), int(counts.max())


def _show_example(state: PairSourceState, tokenizer: tokenizers.Tokenizer) -> list[str]:
    """The first query, its first positive and its first negative, decoded."""
    table = state.table
    # Texts of an example: the query, its positives, its negatives.
    texts = {"query": 0, "positive": 1}
    if state.docs_per_query > 1 and state.refreshed is None:
        texts["negative"] = 1 + int(table.num_positives[0])
    lines = []
    for role, text in texts.items():
        ids = table.token_ids[table.starts[text] : table.starts[text + 1]]
        shown = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        shown = " ".join(shown.split())
        if len(shown) > MAX_SHOWN:
            shown = f"{shown[: MAX_SHOWN - 4]} ..."
        lines.append(f"    {role:<9} {shown}")
    return lines

"""What a run writes into its workdir."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_collections
from tokenizers import Tokenizer

from research.atomic_write import atomic_write, write_json
from research.config_sections import build, diff_configs
from research.data.sources import Source
from research.experiment.initialization import TOKENIZERS
from research.text import tokenization

# Rows of a source that a tokeniser is trained on, about.
TOKENIZER_ROWS = 10_000


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes the workdir this config's, by the config.json in it.

    Raises:
        ValueError: it holds a run of another config.
    """
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        old = json.loads(path.read_text())
        if lines := diff_configs(old, new):
            raise ValueError(
                f"{workdir} holds a run of another config: {'; '.join(lines[:3])}; "
                "use another workdir, or delete this one"
            )
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)


def _tokenizer(config, sources: Mapping[str, Source], workdir: Path) -> Tokenizer:
    """The workdir's own tokeniser; made, and kept there, in a new run."""
    path = workdir / "tokenizer.json"
    if path.exists():
        return tokenization.load_tokenizer(path)

    def corpus() -> Iterable[str]:
        for source in sources.values():
            # Evenly spaced rows say as much about words as all of them.
            step = -(-len(source.examples) // TOKENIZER_ROWS)
            for row in source.examples[::step]:
                yield from dict.fromkeys((row.query, *row.positives, *row.negatives))

    tokenizer = build(TOKENIZERS, config.tokenizer, corpus)
    with atomic_write(path) as draft:
        tokenizer.save(str(draft))
    return tokenizer

"""Command that writes many short texts, for runs of launch.embed on a large corpus.

python -m launch.bench.short_texts --count=1000000 --output=texts.jsonl.gz

The texts are all runs of 5 adjacent words of the docstrings of the installed Python
packages, then all runs of 6 words, and so on.
"""

import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from launch import main as cli
from launch.bench.encode import load_docstrings
from research.atomic_write import atomic_write, to_json

COUNT = flags.DEFINE_integer("count", 1_000_000, "The number of texts.", lower_bound=1)
WORDS = flags.DEFINE_integer(
    "words", 5, "The number of words of the first texts.", lower_bound=1
)
OUTPUT = cli.define_path("output", None, "The .jsonl.gz file to write.", required=True)


def main():
    """Writes the texts, and returns their number."""
    output = Path(OUTPUT.value)
    words = " ".join(load_docstrings()).split()
    with (
        atomic_write(output) as draft,
        gzip.open(draft, "wt", compresslevel=1, encoding="utf-8") as file,
    ):
        for text in itertools.islice(cut_texts(words, WORDS.value), COUNT.value):
            file.write(to_json({"text": text}) + "\n")
    return {"output": str(output), "texts": COUNT.value}


def cut_texts(words: Sequence[str], size: int) -> Iterator[str]:
    """Yields all runs of `size` adjacent words, then of size + 1 words, and so on."""
    for length in itertools.count(size):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


if __name__ == "__main__":
    cli.run(main)

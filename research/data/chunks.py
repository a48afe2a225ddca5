"""Training examples of chunks of longer texts, which are read within these texts."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.data import files
from research.data.datasets import load_pydocs
from research.data.examples import Example, LoadedExamples, read_texts
from research.data.fields import Record
from research.data.spans import draw_random_chunks, split_into_chunks
from research.text.chunk_rows import SENTENCE_END

# Between the passages of a document.
BREAK = "\n\n"


class Passage(NamedTuple):
    """A passage of a longer text.

    Attributes:
        title: Title of the text.
        text: The passage.
        around: The text before and after it.
    """

    title: str
    text: str
    around: tuple[str, str]


def load_passages(
    *,
    path: str,
    split: str = "train",
    context: int = 2_000,
    negatives: int = 1,
    seed: int = 0,
) -> LoadedExamples:
    """The judged queries of a BEIR folder, with passages that are read in context.

    Neighboring documents of the corpus with the same title are the passages of a longer
    text (SQuAD's paragraphs of an article). Hard negatives are other passages of the
    text that has the positive, since its context alone would tell texts apart (SitEmb,
    arXiv:2508.01959).

    Args:
        path: The folder.
        split: Name of the file in qrels/, without its ending.
        context: Most characters before a passage, and after it, within which it is
            read; 0 for passages alone.
        negatives: Number of hard negatives per query, drawn once.
        seed: int of the draws.

    Raises:
        ValueError: A text has fewer passages than a query needs negatives.
    """
    data = files.read_beir(path, split)
    passages, neighbors = read_passages(path, context)
    rng = np.random.default_rng(seed)
    examples, unknown = [], set()
    for query, grades in data.qrels.items():
        for name in (name for name, grade in grades.items() if grade > 0):
            if name not in passages:
                unknown.add(name)
                continue
            # Other passages of the text that are not judged relevant, too
            others = [
                other
                for other in neighbors[name]
                if other != name and grades.get(other, 0) <= 0
            ]
            if len(others) < negatives:
                raise ValueError(
                    f"{path}: the text of document {name!r} has {len(others)} other "
                    f"passages, not the {negatives} negatives asked for"
                )
            drawn = rng.choice(len(others), negatives, replace=False)
            documents = [passages[n] for n in (name, *(others[i] for i in drawn))]
            texts, contexts = (
                tuple(getattr(d, part) for d in documents)
                for part in ("text", "around")
            )
            example = Example(data.queries[query], texts[:1], texts[1:])
            examples.append(example._replace(contexts=contexts if context else ()))
    if not examples:
        raise ValueError(f"{path}: no relevant document of {split} has a title")
    note = ""
    if unknown:
        note = f"left out: {len(unknown)} relevant documents without a title or a text"
    return LoadedExamples(examples, negatives, note=note)


def read_passages(
    path: str, context: int
) -> tuple[dict[str, Passage], dict[str, Sequence[str]]]:
    """The passages of a BEIR corpus by their ids, and all ids of each one's text.

    Args:
        path: The folder.
        context: Most characters before a passage, and after it.

    Raises:
        ValueError: No document has a title.
    """
    # (title, id, text) of the documents that have a text
    corpus = files.find_file(Path(path).expanduser(), "corpus.jsonl")
    rows = []
    for line, values in files.read_records(corpus):
        record = Record(f"{corpus} line {line}", values)
        text = record.read_text("text", allow_blank=True)
        if text.strip():
            rows.append((record.read_title(), record.read_name("_id"), text))
    # Without a title, what belongs together is unknown
    passages, neighbors = {}, {}
    for title, group in groupby(rows, key=lambda row: row[0]):
        members = list(group) if title else []
        names, texts = [m[1] for m in members], [m[2] for m in members]
        full = BREAK.join(texts)
        start = 0
        for name, text in zip(names, texts, strict=True):
            end = start + len(text)
            around = full[max(0, start - context) : start], full[end : end + context]
            passages[name] = Passage(title, text, around)
            neighbors[name] = names
            start = end + len(BREAK)
    if not passages:
        raise ValueError(
            f"{corpus} has no titles, by which passages belong to one text"
        )
    return passages, neighbors


def load_chunks(
    *,
    path: str,
    unit: str = "block",
    words: tuple[int, int] = (50, 400),
    overlap: tuple[int, int] = (20, 75),
    min_words: int = 0,
    limit: int = 0,
    seed: int = 0,
) -> LoadedExamples:
    """Texts as queries, and chunks of them, read within the text, as their positives.

    A text is cut into overlapping chunks of sentences, or it gives random spans of
    words, with equal probability (Dewey, arXiv:2503.20376; its sizes of 64 to 500
    tokens and 30 to 100 of overlap, from memory, are in words here). Each step draws
    one chunk of a text.

    Args:
        path: A file or folder of texts, as the source `texts` takes it; "pydocs" for
            docstrings and code of installed Python packages.
        unit: What one text of a .txt file is: "line", "block" or "file".
        words: Least and greatest maximum length of a text's chunks, of which one is
            drawn; of random spans, their lengths.
        overlap: The same for the words that a chunk repeats of the one before it, half
            of a chunk at most.
        min_words: Texts with fewer words are left out.
        limit: Number of texts to use; 0 for all of them.
        seed: int of the draws.

    Raises:
        ValueError: There is no text, or the numbers do not grow.
    """
    if not 1 <= words[0] <= words[1] or not 0 <= overlap[0] <= overlap[1]:
        raise ValueError(
            f"words {words} should be two growing numbers from 1 on, and overlap "
            f"{overlap} from 0 on"
        )
    if path == "pydocs":
        pairs = load_pydocs(limit=limit).examples
        texts: Iterator[str] = (f"{e.query}{BREAK}{e.positives[0]}" for e in pairs)
    else:
        texts = read_texts(path, unit)
    # Texts of too few words are left out
    rng = np.random.default_rng(seed)
    examples = []
    for text in texts:
        matches = list(re.finditer(r"\S+", text))
        if len(matches) < max(1, min_words):
            continue
        edges = [(match.start(), match.end()) for match in matches]
        # [start, end) in words, then in characters
        spans = _draw_chunks(rng, text, edges, words, overlap)
        spans = [(edges[low][0], edges[high - 1][1]) for low, high in spans]
        chunks = tuple(text[low:high] for low, high in spans)
        contexts = tuple((text[:low], text[high:]) for low, high in spans)
        examples.append(Example(text, chunks, contexts=contexts))
        if len(examples) == limit:
            break
    if not examples:
        raise ValueError(f"{path} holds no texts of {max(1, min_words)} words")
    return LoadedExamples(examples)


def _draw_chunks(
    rng: np.random.Generator,
    text: str,
    edges: Sequence[tuple[int, int]],
    words: tuple[int, int],
    overlap: tuple[int, int],
) -> list[tuple[int, int]]:
    """Spans of words of a text, whose words are at these characters."""
    size = len(edges)
    if rng.random() < 0.5:
        return draw_random_chunks(rng, size, *words)
    # Numbers of the words that begin sentences
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    starts = np.searchsorted([start for start, _ in edges], ends)
    sentences = np.unique([0, *starts, size])
    bounds = sentences, np.arange(size + 1)
    length = int(rng.integers(words[0], words[1] + 1))
    repeated = int(rng.integers(overlap[0], overlap[1] + 1))
    return split_into_chunks(bounds, length, min(repeated, length // 2))

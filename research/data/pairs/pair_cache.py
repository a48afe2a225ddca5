"""Token cache of queries and documents, for contrastive training."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data import token_cache
from research.data.examples import Example
from research.data.pairs.document_contexts import tokenize_in_contexts
from research.data.sources import Source
from research.text import tokenization
from research.text.templates import Prompt, tokenize_with_prompt


class PairTable(NamedTuple):
    """The T texts of n examples: for each example its query, positives and negatives.

    Attributes:
        token_ids: [tokens] uint16 or uint32, all texts end to end.
        starts: [T+1] int64; text t is token_ids[starts[t]:starts[t+1]].
        text_hashes: [T, 2] uint32 hash of each text without its prompt.
        query_text: [n] int64 index of the text that is example i's query.
        num_positives: [n] int64 number of positives that follow the query.
        num_negatives: [n] int64 number of negatives that follow the positives.
        scores: [n] float32, NaN where unknown.
        text_scores: [T] float32, a teacher's score of each document with its query, NaN
            where unknown.
        group_hashes: [n, 2] uint32 hash of the example's group, or else of its query.
        pooling_mask: [tokens] bool, tokens that are pooled; None if all are.
    """

    token_ids: np.ndarray
    starts: np.ndarray
    text_hashes: np.ndarray
    query_text: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray
    scores: np.ndarray
    text_scores: np.ndarray
    group_hashes: np.ndarray
    pooling_mask: np.ndarray | None = None

    @property
    def has_scores(self) -> bool:
        """Whether each example has a score."""
        return not np.isnan(self.scores[0])

    @property
    def has_text_scores(self) -> bool:
        """Whether each document has a teacher's score."""
        return not np.isnan(self.text_scores[1])


class _Encoding(NamedTuple):
    """How texts are tokenized; the fields are arguments of `tokenize_pairs`."""

    tokenizer: tokenizers.Tokenizer
    max_length: int
    prompt: Prompt | None
    read_contexts: bool


class _Chunk(NamedTuple):
    """Tokenized texts of some examples.

    Attributes:
        texts: Texts without their prompts.
        token_ids: Token ids of each text.
        pooling_mask: Tokens of each text that are pooled; [] if all are.
        counts: (number of positives, number of negatives) of each example.
        scores: Score of each example, NaN where unknown.
        text_scores: A teacher's score of each text, NaN for queries and where unknown.
        groups: Name of each example's group.
    """

    texts: list[str]
    token_ids: list[np.ndarray]
    pooling_mask: list[np.ndarray]
    counts: list[tuple[int, int]]
    scores: list[float]
    text_scores: list[float]
    groups: list[str]


def tokenize_pairs(
    source: Source,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    cache: Path,
    prompt: Prompt | None = None,
    *,
    read_contexts: bool = True,
) -> PairTable:
    """The token table of a source, read from the cache or written there first.

    The name of the table's folder is a hash of everything that decides its content.

    Args:
        source: Examples, and the prompts that are put before their texts.
        tokenizer: Tokenizer of the model.
        max_length: Maximum number of tokens; longer texts are cut.
        cache: Folder of all tables.
        prompt: Prompt template for the texts; None puts the source's own prompts before
            them.
        read_contexts: Whether documents that have a context are read within it.

    Raises:
        ValueError: There are no examples, a text has no tokens, some examples have a
            score or a context and others none, both the source and the run have a
            prompt, or the prompt has several templates or the documents contexts.
    """
    if not len(source.examples):
        raise ValueError("the source has no rows")
    # Whatever changes the tokens is part of the name.
    settings = (max_length,)
    if prompt is not None:
        _check_prompt(prompt, source)
        settings += (sorted(prompt.templates.items()), prompt.rewrite.__qualname__)
        if prompt.late_interaction is not None:
            settings += (prompt.late_interaction,)
    read_contexts = read_contexts and bool(source.examples[0].contexts)
    if read_contexts:
        settings += ("in contexts",)
        if prompt is not None:
            raise ValueError(
                "its documents have contexts, which the prompt templates of the run "
                "have no place for"
            )
    name = token_cache.fingerprint(source, tokenizer, *settings)
    encoding = _Encoding(tokenizer, max_length, prompt, read_contexts)
    folder = token_cache.write_once(
        cache, name, lambda draft: _write_table(source, encoding, draft)
    )
    return _load_table(folder)


def _check_prompt(prompt: Prompt, source: Source) -> None:
    if prefixes := [prefix for prefix in source.prompts.values() if prefix]:
        raise ValueError(
            f"the source has the prompt {prefixes[0]!r} and the run has prompt "
            "templates, which would leave it out; put it into the templates"
        )
    most = max(map(len, prompt.templates.values()))
    if most > 1:
        raise ValueError(
            f"a prompt of {most} templates is for embedding; training takes a prompt "
            "of one template"
        )


def _write_table(source: Source, encoding: _Encoding, folder: Path) -> None:
    dtype = token_cache.token_dtype(encoding.tokenizer)
    lengths, hashes, counts, groups = [], [], [], []
    scores, text_scores = [], []
    with ExitStack() as files:
        ids_file = files.enter_context(open(folder / "token_ids.bin", "wb"))
        has_masks = encoding.prompt is not None or encoding.read_contexts
        if has_masks:
            mask_file = files.enter_context(open(folder / "pooling_mask.bin", "wb"))
        for chunk in _tokenize_chunks(source, encoding):
            # Values per token are written at once, to save memory.
            ids_file.write(np.concatenate(chunk.token_ids).astype(dtype).tobytes())
            if has_masks:
                mask_file.write(np.concatenate(chunk.pooling_mask).tobytes())
            # Values per text or per example are collected in memory.
            lengths.extend(map(len, chunk.token_ids))
            hashes.append(tokenization.hash_texts(chunk.texts))
            counts.extend(chunk.counts)
            scores.extend(chunk.scores)
            text_scores.extend(chunk.text_scores)
            groups.append(tokenization.hash_texts(chunk.groups))
    num_positives, num_negatives = np.array(counts).T  # [n] each
    query_text = token_cache.cumulate(1 + num_positives + num_negatives)[:-1]
    # Either all examples have a score or none has.
    _check_scores(scores, "score", "one")
    _check_scores(
        np.array(text_scores)[query_text + 1], "scores of its documents", "some"
    )
    token_cache.save_arrays(
        folder,
        dtype,
        starts=token_cache.cumulate(lengths),
        text_hashes=np.concatenate(hashes),
        query_text=query_text,
        num_positives=num_positives,
        num_negatives=num_negatives,
        scores=np.array(scores, np.float32),
        text_scores=np.array(text_scores, np.float32),
        group_hashes=np.concatenate(groups),
    )


def _check_scores(scores: Sequence[float], name: str, pronoun: str) -> None:
    """Raises ValueError if some of the examples' values are NaN and others are not."""
    unscored = np.isnan(scores)
    if 0 < unscored.sum() < len(unscored):
        row = int(np.flatnonzero(unscored)[0])
        raise ValueError(f"row {row} has no {name}, but other rows have {pronoun}")


def _load_table(folder: Path) -> PairTable:
    binary = ("token_ids", "pooling_mask")
    names = [name for name in PairTable._fields if name not in binary]
    table = PairTable(**token_cache.load_arrays(folder, *names))
    if not (folder / "pooling_mask.bin").exists():
        return table
    mask = token_cache.map_binary(folder / "pooling_mask.bin", bool)
    return table._replace(pooling_mask=mask)


def _tokenize_chunks(source: Source, encoding: _Encoding) -> Iterator[_Chunk]:
    """Yields the tokenized texts of the source, some examples at a time."""
    for start, examples in token_cache.iterate_chunks(source):
        # One entry per text: query, positives and negatives of each example.
        texts, roles, labels = [], [], []
        for index, example in enumerate(examples, start):
            documents = example.positives + example.negatives
            texts += [example.query, *documents]
            roles += ["query", *["document"] * len(documents)]
            labels += [f"row {index}"] * (1 + len(documents))
        # An empty text would have special tokens only.
        for text, role, label in zip(texts, roles, labels, strict=True):
            if not text.strip():
                raise ValueError(f"{label} has a {role} without text")
        token_ids, mask = _tokenize(source, encoding, texts, roles, labels)
        if encoding.read_contexts:
            token_ids, mask = tokenize_in_contexts(
                encoding.tokenizer,
                examples,
                token_ids,
                prompt=source.prompts.get("document", ""),
                max_length=encoding.max_length,
                label=lambda i, start=start: f"row {start + i}",
            )
        yield _Chunk(
            texts,
            token_ids,
            mask,
            counts=[(len(e.positives), len(e.negatives)) for e in examples],
            scores=[np.nan if e.score is None else e.score for e in examples],
            text_scores=[x for e in examples for x in _list_text_scores(e)],
            groups=[f"group {e.group}" if e.group else e.query for e in examples],
        )


def _list_text_scores(example: Example) -> tuple[float, ...]:
    """A teacher's scores of an example's texts; NaN for the query and where unknown."""
    count = len(example.positives) + len(example.negatives)
    return (np.nan, *(example.document_scores or (np.nan,) * count))


def _tokenize(
    source: Source,
    encoding: _Encoding,
    texts: list[str],
    roles: list[str],
    labels: list[str],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and pooling mask of every text; no masks without prompt templates.

    Args:
        source: Source of the texts, with its own prompts.
        encoding: How texts are tokenized.
        texts: Texts without prompts.
        roles: "query" or "document", for each text.
        labels: Name of each text in error messages.
    """
    tokenizer, max_length, prompt, _ = encoding
    # The source's own prompts are prefixes.
    if prompt is None:
        prefixed = [
            source.prompts.get(role, "") + text
            for role, text in zip(roles, texts, strict=True)
        ]
        token_ids = tokenization.tokenize_texts(
            tokenizer, prefixed, max_length, label=labels.__getitem__
        )
        return token_ids, []
    token_ids, mask = [np.zeros(0)] * len(texts), [np.zeros(0)] * len(texts)
    # Each role has its own template.
    for role in ("query", "document"):
        indices = [index for index, r in enumerate(roles) if r == role]
        (rows,) = tokenize_with_prompt(
            prompt,
            tokenizer,
            [texts[index] for index in indices],
            max_length,
            role,
            label=lambda i, indices=indices: labels[indices[i]],
        )
        for i, index in enumerate(indices):
            token_ids[index], mask[index] = rows.token_ids[i], rows.pooling_mask[i]
    return token_ids, mask

"""A source tokenised once, on disk, and mapped into memory."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tqdm import tqdm

from research.atomic_write import atomic_write
from research.data.examples import Example
from research.data.sources import Source
from research.text import tokenization
from research.text.templates import Prompt, tokenize_with_prompt

CHUNK = 1024  # rows tokenised at once
BINARY = ("token_ids", "pooling_mask")  # a number for every token: written as they come


class PairTable(NamedTuple):
    """The texts of n rows, T in all: every row's query, positives, then negatives.

    Attributes:
        ids: [tokens] uint16 or uint32, all texts end to end.
        starts: [T+1] int64; text t is ids[starts[t]:starts[t+1]].
        hashes: [T, 2] uint32, see `tokenization.hash_texts`; of the text without its prompt.
        first: [n] int64, the text that is row i's query.
        positives: [n] int64, how many positives follow it.
        negatives: [n] int64, how many negatives follow these.
        scores: [n] float32, NaN where unknown.
        groups: [n, 2] uint32, a hash of the row's group, or else of its query.
        pool: [tokens] bool, the tokens that count in pooling; None where all do.
    """

    token_ids: np.ndarray
    starts: np.ndarray
    text_hashes: np.ndarray
    query_text: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray
    scores: np.ndarray
    group_hashes: np.ndarray
    pooling_mask: np.ndarray | None = None


def tokenize_pairs(
    source: Source,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    cache: Path,
    prompt: Prompt | None = None,
) -> PairTable:
    """The source's table, from the folder in `cache` that holds it, or written there.

    The folder's name is a fingerprint of all that decides the content.

    Args:
        prompt: the template that texts are put into; None puts the source's prompts
            before them.

    Raises:
        ValueError: there are no rows, a text has no tokens, some rows have a score and
            others none, there are prompts and a prompt, or it has several templates.
    """
    if not len(source.examples):
        raise ValueError("the source has no rows")
    if prompt is None:
        name = fingerprint(source, tokenizer, max_length)
    else:
        _check_prompt(prompt, source)
        name = fingerprint(source, tokenizer, max_length, *_named(prompt))
    texts = _Texts(tokenizer, max_length, prompt)
    return _read(kept(cache, name, lambda draft: _write(source, texts, draft)))


def kept(cache: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` of a cache, written first if it is not there.

    It appears complete or not at all, so that runs may share a cache.
    """
    folder = Path(cache) / name
    if not folder.is_dir():
        try:
            with atomic_write(folder, folder=True) as draft:
                write(draft)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder


def fingerprint(source: Source, tokenizer: tokenizers.Tokenizer, *more) -> str:
    """A hash of what a source holds, its tokeniser, and anything `more`."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(tokenizer.to_str().encode())
    digest.update(repr((sorted(source.prompts.items()), *more)).encode())
    digest.update(source.identity.encode())
    if not source.identity:
        for start in range(0, len(source.examples), CHUNK):
            for row in source.examples[start : start + CHUNK]:
                digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


class _Texts(NamedTuple):
    """How texts become tokens: the arguments of `tokenise` that say so."""

    tokenizer: tokenizers.Tokenizer
    max_length: int
    prompt: Prompt | None


def _check_prompt(prompt: Prompt, source: Source) -> None:
    if given := [prompt for prompt in source.prompts.values() if prompt]:
        raise ValueError(
            f"the source has the prompt {given[0]!r} and the run a prompt, which would "
            "leave it out; say it in the prompt's templates"
        )
    most = max(map(len, prompt.templates.values()))
    if most > 1:
        raise ValueError(
            f"a prompt of {most} templates is for embedding, training takes one of one"
        )


def _named(prompt: Prompt) -> tuple:
    """What decides how a prompt puts texts, the same in every process."""
    rewrite = prompt.rewrite.__qualname__
    return sorted(prompt.templates.items()), rewrite


def _write(source: Source, how: _Texts, folder: Path) -> None:
    small = how.tokenizer.get_vocab_size() <= 2**16
    dtype = np.uint16 if small else np.uint32
    lengths, hashes, counts, scores, groups = [], [], [], [], []
    with ExitStack() as files:
        file = files.enter_context(open(folder / "ids.bin", "wb"))
        if how.prompt is not None:
            chosen = files.enter_context(open(folder / "pool.bin", "wb"))
        for rows, ids, pool, texts in _chunks(source, how):
            file.write(np.concatenate(ids).astype(dtype).tobytes())
            if how.prompt is not None:
                chosen.write(np.concatenate(pool).tobytes())
            lengths.append([len(i) for i in ids])
            hashes.append(tokenization.hash_texts(texts))
            counts.append([(len(r.positives), len(r.negatives)) for r in rows])
            scores.append([np.nan if r.score is None else r.score for r in rows])
            names = [f"group {r.group}" if r.group else r.query for r in rows]
            groups.append(tokenization.hash_texts(names))
    counts, scores = np.concatenate(counts), np.concatenate(scores)
    if 0 < np.isnan(scores).sum() < len(scores):
        row = int(np.flatnonzero(np.isnan(scores))[0])
        raise ValueError(f"row {row} has no score, but other rows have one")
    table = PairTable(
        token_ids=np.zeros(0),
        starts=_sums(np.concatenate(lengths)),
        text_hashes=np.concatenate(hashes),
        query_text=_sums(1 + counts.sum(1))[:-1],
        num_positives=counts[:, 0],
        num_negatives=counts[:, 1],
        scores=scores.astype(np.float32),
        group_hashes=np.concatenate(groups),
    )
    for name, value in table._asdict().items():
        if name not in BINARY:
            np.save(folder / f"{name}.npy", value)
    (folder / "ids.json").write_text(json.dumps({"dtype": np.dtype(dtype).name}))


def _chunks(
    source: Source, how: _Texts
) -> Iterator[tuple[list[Example], list[np.ndarray], list[np.ndarray], list[str]]]:
    """(rows, ids and pooled tokens of their texts, these texts), CHUNK rows at a time.

    The texts are without prompts. Where there is no prompt, nothing is said of pooling.
    """
    size = len(source.examples)
    for start in tqdm(
        range(0, size, CHUNK), "tokenising", delay=5, leave=False, disable=None
    ):
        rows, texts, roles, owners = source.examples[start : start + CHUNK], [], [], []
        for index, row in enumerate(rows, start):
            for role, value in (
                ("query", row.query),
                *(("document", v) for v in row.positives + row.negatives),
            ):
                if not value.strip():
                    raise ValueError(f"row {index} has a {role} without text")
                texts.append(value)
                roles.append(role)
                owners.append(index)
        labels = [f"row {owner}" for owner in owners]
        if how.prompt is None:
            prompted = [
                source.prompts[r] + t for r, t in zip(roles, texts, strict=True)
            ]
            ids = tokenization.tokenize_texts(
                how.tokenizer, prompted, how.max_length, label=labels.__getitem__
            )
            yield rows, ids, [], texts
        else:
            yield rows, *_prompted(how, texts, roles, labels), texts


def _prompted(
    how: _Texts, texts: list[str], roles: list[str], labels: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids and the pooled tokens of texts, each by the template of its role."""
    ids, pool = [np.zeros(0)] * len(texts), [np.zeros(0)] * len(texts)
    for role in ("query", "document"):
        places = [i for i, r in enumerate(roles) if r == role]
        part = tokenize_with_prompt(
            how.prompt,
            how.tokenizer,
            [texts[i] for i in places],
            how.max_length,
            role,
            label=lambda i, p=places: labels[p[i]],
        )[0]
        for place, numbers, chosen in zip(
            places, part.token_ids, part.pooling_mask, strict=True
        ):
            ids[place], pool[place] = numbers, chosen
    return ids, pool


def _sums(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _read(folder: Path) -> PairTable:
    dtype = json.loads((folder / "ids.json").read_text())["dtype"]
    arrays = {
        name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        for name in PairTable._fields
        if name not in BINARY
    }
    # Plain views of the maps: indexing a np.memmap costs several microseconds more.
    ids = np.asarray(np.memmap(folder / "ids.bin", dtype=dtype, mode="r"))
    pool = None
    if (folder / "pool.bin").exists():
        pool = np.asarray(np.memmap(folder / "pool.bin", dtype=bool, mode="r"))
    return PairTable(token_ids=ids, pooling_mask=pool, **arrays)

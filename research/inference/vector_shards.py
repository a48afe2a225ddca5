"""Embeddings on disk: a .npy file with its ids, or a folder of such shards.

A folder holds manifest.json, which tells what was embedded and how, and two files for
each shard: vectors-00003-of-00016.npy and vectors-00003-of-00016.ids.jsonl. All shards
but the last have the same number of texts.
"""

import itertools
import json
import reprlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from research.atomic_write import atomic_write, read_json, to_json, write_json
from research.file_lock import lock_folder
from research.inference.embedder import Embedder, Embeddings
from research.processes import call_on_first
from research.text.tokenization import hash_texts
from research.types import ChunkEmbeddings

MANIFEST = "manifest.json"
# The entries of a manifest that its readers need, and their types.
ENTRIES = {"texts": int, "shard_size": int, "kind": str, "files": list, "options": dict}


class ShardedVectors:
    """The vectors [N, D] float32 of a folder; a slice reads these rows alone.

    Args:
        paths: The shards, in order.
    """

    ndim = 2

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        shapes = [self._open(path).shape for path in self.paths]
        # [shards + 1] the first row of each shard, and the number of rows.
        self.first = np.cumsum([0, *(rows for rows, _ in shapes)])
        self.shape = int(self.first[-1]), shapes[0][1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        # The shards from that of row `start` to that of the last row.
        begin = int(np.searchsorted(self.first, start, side="right")) - 1
        parts = []
        for number in range(begin, len(self.paths)):
            offset = self.first[number]
            if offset >= stop:
                break
            shard = self._open(self.paths[number])
            parts.append(shard[max(start - offset, 0) : stop - offset])
        return np.concatenate(parts) if parts else np.empty((0, self.shape[1]))

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """The vectors [n, D] of some rows [n], in their order."""
        vectors = np.empty((len(rows), self.shape[1]), np.float32)
        shards = np.searchsorted(self.first, rows, side="right") - 1  # [n]
        for number in np.unique(shards):
            of_shard = shards == number
            shard = self._open(self.paths[number])
            vectors[of_shard] = shard[rows[of_shard] - self.first[number]]
        return vectors

    def _open(self, path: Path) -> np.ndarray:
        # Opened for each use, because there may be more shards than file descriptors.
        try:
            shard = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, SyntaxError, TokenError) as error:
            raise ValueError(f"{path} is no file of vectors: {error}") from None
        if shard.ndim != 2 or shard.dtype != np.float32:
            raise ValueError(f"{path} holds {shard.dtype} {shard.shape}, not vectors")
        return shard


def write_vectors(
    path: Path, embeddings: Embeddings, names: Sequence[str], texts: Sequence[str]
) -> int:
    """Writes vectors as `path`, and a line per row beside it; returns their number.

    Line i of the .ids.jsonl file of the same name tells of row i: the id of its text
    and the text's hash or, for chunks, the text's index in the file and its characters
    [start, end).
    """
    if isinstance(embeddings, ChunkEmbeddings):
        vectors, *columns = embeddings
        rows = [
            {"id": names[i], "text": int(i), "start": int(start), "end": int(end)}
            for i, start, end in zip(*columns, strict=True)
        ]
    else:
        vectors = embeddings
        rows = [
            {"id": name, "hash": f"{low:08x}{high:08x}"}
            for name, (low, high) in zip(names, hash_texts(texts).tolist(), strict=True)
        ]
    # The vectors come last: where they are, the ids are, too.
    lines = (to_json(row, ensure_ascii=False) + "\n" for row in rows)
    with (
        atomic_write(get_ids_path(path)) as draft,
        open(draft, "w", encoding="utf-8") as f,
    ):
        f.writelines(lines)
    with atomic_write(path) as draft:
        np.save(draft, vectors)
    return len(vectors)


def get_ids_path(path: Path) -> Path:
    """The file of the ids of a file of vectors."""
    return path.with_suffix(".ids.jsonl")


def embed_to_shards(
    embedder: Embedder,
    texts: Iterable[tuple[str, str, str]],
    folder: Path,
    manifest: Mapping[str, Any],
    log: Callable[[str], None] = lambda line: None,
    *,
    role: str = "document",
) -> int:
    """Embeds texts into the shards that a folder lacks.

    Each process of a run makes every n-th shard. The next shard is read and tokenized
    in a thread, while the devices compute the one before.

    Args:
        embedder: The embedder.
        texts: (name, text, place for error messages) of every text.
        folder: Folder of the shards.
        manifest: Content of manifest.json, with the number of "texts" and the
            "shard_size". A folder that was begun with another one is refused.
        log: Function that is called with a line of text after each shard.
        role: Role of the texts.

    Returns:
        Number of shards that this call made, over all processes.

    Raises:
        ValueError: The folder holds something else, another run is in it, or a text has
            no tokens.
    """
    paths = list_shards(folder, manifest)
    missing = [path for path in paths if not path.exists()]
    share = set(missing) & set(paths[jax.process_index() :: jax.process_count()])
    call_on_first(partial(_claim_folder, folder, manifest), "writing the manifest")

    def tokenize():
        stream = iter(texts)
        for path in paths:
            shard = list(itertools.islice(stream, manifest["shard_size"]))
            if path in share:
                names, documents, places = zip(*shard, strict=True)
                label = places.__getitem__
                tokenized = embedder.tokenize(documents, role, label=label)
                yield path, names, documents, tokenized

    with lock_folder(folder):
        start = time.perf_counter()
        for path, names, documents, tokenized in _run_ahead(tokenize()):
            _remove_drafts(path)
            write_vectors(path, embedder.encode(tokenized), names, documents)
            seconds, start = time.perf_counter() - start, time.perf_counter()
            log(f"{path.name}: {len(names) / seconds:,.0f} texts/s")
        # No process reads the folder, or ends, before all shards are there.
        if jax.process_count() > 1:
            sync_global_devices("shards")
    return len(missing)


def count_shards(manifest: Mapping[str, Any]) -> int:
    """The number of files of vectors that a manifest tells of."""
    return -(-manifest["texts"] // manifest["shard_size"])


def list_shards(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The files of vectors of a folder."""
    count = count_shards(manifest)
    return [folder / f"vectors-{i:05}-of-{count:05}.npy" for i in range(count)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose shards are all there.

    Raises:
        FileNotFoundError: The folder has no manifest.
        ValueError: The manifest is damaged, or a shard is missing.
    """
    manifest = _read_entries(folder)
    # Counted before they are listed: a damaged manifest may tell of any number
    count = count_shards(manifest)
    missing = count - len(list(folder.glob(f"vectors-*-of-{count:05}.npy")))
    if missing > 0 or not all(p.exists() for p in list_shards(folder, manifest)):
        raise ValueError(
            f"{folder} lacks {max(missing, 1)} of {count} shards; the launch.embed "
            "command that began it goes on when it is run again"
        )
    return manifest


def check_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Checks that a folder's manifest has the entries of a model with its options.

    Raises:
        ValueError: An entry differs.
    """
    manifest = _flatten(_read_entries(folder))
    # As JSON writes them: tuples are lists.
    for key, value in _flatten(json.loads(to_json(entries))).items():
        if manifest.get(key) != value:
            old, new = (reprlib.repr(x) for x in (manifest.get(key), value))
            raise ValueError(f"{folder} was embedded with {key}={old}, not {new}")


def read_vectors(folder: Path) -> ShardedVectors | ChunkEmbeddings:
    """The embeddings of a folder; vectors stay on disk, positions of chunks do not."""
    paths = list_shards(folder, manifest := read_manifest(folder))
    vectors = ShardedVectors(paths)
    if manifest["kind"] == "dense":
        if vectors.shape[0] != manifest["texts"]:
            raise ValueError(
                f"{folder} has {vectors.shape[0]} vectors of {manifest['texts']} texts"
            )
        return vectors
    # [C, 3] the text of each chunk, and its first and last character.
    rows = [
        (number * manifest["shard_size"] + row["text"], row["start"], row["end"])
        for number, path in enumerate(paths)
        for row in read_ids(path, ("text", "start", "end"))
    ]
    return ChunkEmbeddings(vectors, *np.array(rows).T)


def read_names(folder: Path, numbers: Iterable[int]) -> dict[int, str]:
    """{number of a text: its name} for some texts of a folder."""
    manifest = read_manifest(folder)
    paths, size = list_shards(folder, manifest), manifest["shard_size"]
    numbers, names = set(numbers), {}
    # A shard that holds one of the texts is read once.
    for shard in sorted({number // size for number in numbers}):
        for i, row in enumerate(read_ids(paths[shard])):
            number = shard * size + row.get("text", i)
            if number in numbers:
                names[number] = row["id"]
    return names


def _claim_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a new folder, or checks that of an old one."""
    path = folder / MANIFEST
    if path.is_file():
        check_manifest(folder, manifest)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there, and is no folder of vectors")
    else:
        write_json(path, manifest)


def _remove_drafts(path: Path) -> None:
    """Removes what killed processes left of a shard."""
    for draft in path.parent.glob(f".{path.stem}.*"):
        shutil.rmtree(draft, ignore_errors=True)


def _run_ahead(items: Iterator) -> Iterator:
    """Yields items; a thread computes the next one meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = pool.submit(next, items, None)
            yield item


def _read_entries(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, with the entries that its files are found by."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no folder of vectors: no {MANIFEST}")
    manifest = read_json(path)
    for key, kind in ENTRIES.items():
        value = manifest.get(key)
        if type(value) is not kind or kind is int and value < 1:
            raise ValueError(f"{path} is damaged: its {key} is {value!r}")
    return manifest


def read_ids(path: Path, numbers: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a shard's file of ids, which have an id and some numbers.

    Raises:
        ValueError: A line is damaged.
    """
    file = get_ids_path(path)
    for line, text in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(text)
            valid = isinstance(row["id"], str) and all(
                type(row[n]) is int for n in numbers
            )
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise ValueError(f"{file} line {line} is damaged: it names no text")
        yield row


def _flatten(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's entries, and its options as flags beside them."""
    options = {f"--{name}": value for name, value in entries["options"].items()}
    return {**entries, "options": None, **options}

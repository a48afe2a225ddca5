"""Embeddings on disk: folders of shards, made one by one.

A folder holds manifest.json, which tells what was embedded and how, the transform if
there is one, and the files of each shard: vectors-00003-of-00016.npy and .ids.jsonl, or
vectors-00003-of-00016.parquet. All shards but the last have the same number of texts.
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
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices

from research.atomic_write import read_json, to_json, write_json
from research.file_lock import lock_folder
from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.shard_files import (
    ParquetVectors,
    open_shard,
    read_rows,
    write_shard,
)
from research.processes import call_on_first
from research.transforms.pipeline import (
    FILE,
    VectorTransform,
    load_transform,
    save_transform,
)
from research.transforms.quantization import Quantizer
from research.types import MultiVectors

MANIFEST = "manifest.json"
# What is stored of where a text is, if it is known: the number of its file in the
# manifest, its line, and the byte at which the line begins.
COLUMNS = ("file", "line", "offset")
# The entries of a manifest that its readers need, and their types.
ENTRIES = {"texts": int, "shard_size": int, "kind": str, "files": list, "options": dict}


class ShardedVectors:
    """The vectors [N, D] float32 of a folder; a slice reads these rows alone.

    Args:
        paths: The shards, in order.
        quantizer: What decodes their codes; None for float32 vectors.
    """

    ndim = 2

    def __init__(self, paths: Sequence[Path], quantizer: Quantizer | None = None):
        self.paths, self.quantizer = list(paths), quantizer
        shapes = [self._open(path).shape for path in self.paths]
        # [shards + 1] the first row of each shard, and the number of rows.
        self.first = np.cumsum([0, *(rows for rows, _ in shapes)])
        width = shapes[0][1] if quantizer is None else quantizer.width
        self.shape = int(self.first[-1]), width

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._decode(self.read_codes(rows))

    def take(self, numbers: np.ndarray, axis: int = 0) -> np.ndarray:
        """The vectors [n, D] float32 of the rows [n], in their order."""
        return self._decode(self.take_codes(numbers))

    def read_codes(self, rows: slice) -> np.ndarray:
        """The codes [n, W] of a range of rows as they are stored."""
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
        return np.concatenate(parts) if parts else self._open(self.paths[0])[0:0]

    def take_codes(self, numbers: np.ndarray) -> np.ndarray:
        """The codes [n, W] of rows in their order; each shard is read once."""
        shards = np.searchsorted(self.first, numbers, side="right") - 1  # [n]
        first = self._open(self.paths[0])
        codes = np.empty((len(numbers), first.shape[1]), first.dtype)
        for number in np.unique(shards):
            of_shard = shards == number
            shard = self._open(self.paths[number])
            codes[of_shard] = shard[numbers[of_shard] - self.first[number]]
        return codes

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return codes if self.quantizer is None else self.quantizer.decode(codes)

    def _open(self, path: Path) -> np.ndarray | ParquetVectors:
        # Opened for each use, because there may be more shards than file descriptors.
        shard = open_shard(path)
        # A row as it should be: [1, W]
        row = np.empty((1, shard.shape[1]), np.float32)
        if self.quantizer is not None:
            row = self.quantizer.encode(np.zeros((1, self.quantizer.width)))
        if (shard.dtype, shard.shape[1]) != (row.dtype, row.shape[1]):
            kind = "vectors" if self.quantizer is None else f"codes of {row.dtype}"
            raise ValueError(f"{path} holds {shard.dtype} {shard.shape}, not {kind}")
        return shard


def embed_to_shards(
    embedder: Embedder,
    texts: Iterable[tuple[Any, ...]],
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
        texts: (name, text, place for error messages) of every text, and perhaps the
            values of COLUMNS.
        folder: Folder of the shards.
        manifest: Content of manifest.json, with the number of "texts", the
            "shard_size" and perhaps the "format", "npy" or "parquet". A folder that was
            begun with another one is refused.
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
    claim = partial(_claim_folder, folder, manifest, embedder.model.transform)
    call_on_first(claim, "writing the manifest")

    def tokenize():
        stream = iter(texts)
        for path in paths:
            shard = list(itertools.islice(stream, manifest["shard_size"]))
            if path in share:
                names, documents, places, *columns = zip(*shard, strict=True)
                label = places.__getitem__
                tokenized = embedder.tokenize(documents, role, label=label)
                yield path, names, documents, columns, tokenized

    with lock_folder(folder):
        start = time.perf_counter()
        for path, names, documents, columns, tokenized in run_ahead(tokenize()):
            _remove_drafts(path)
            embeddings = embedder.encode(tokenized)
            embeddings = store_vectors(embeddings, embedder.model.quantizer)
            places = dict(zip(COLUMNS, columns, strict=False))
            write_shard(path, embeddings, names, documents, places)
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
    ending = manifest.get("format", "npy")
    return [folder / f"vectors-{i:05}-of-{count:05}.{ending}" for i in range(count)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose shards are all there.

    Raises:
        FileNotFoundError: The folder has no manifest.
        ValueError: The manifest is damaged, or a shard is missing.
    """
    manifest = _read_entries(folder)
    # Counted before they are listed: a damaged manifest may tell of any number
    count = count_shards(manifest)
    ending = manifest.get("format", "npy")
    missing = count - len(list(folder.glob(f"vectors-*-of-{count:05}.{ending}")))
    if missing > 0 or not all(p.exists() for p in list_shards(folder, manifest)):
        raise ValueError(
            f"{folder} lacks {max(missing, 1)} of {count} shards; the command that "
            "began it goes on when it is run again"
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


def read_vectors(folder: Path) -> ShardedVectors | MultiVectors:
    """The embeddings of a folder; vectors stay on disk, positions of chunks do not."""
    paths = list_shards(folder, manifest := read_manifest(folder))
    transform = read_transform(folder)
    vectors = ShardedVectors(paths, transform and transform.quantizer)
    if manifest["kind"] == "dense":
        if vectors.shape[0] != manifest["texts"]:
            raise ValueError(
                f"{folder} has {vectors.shape[0]} vectors of {manifest['texts']} texts"
            )
        return vectors
    # Vectors of tokens: the number of vectors of each text.
    first = next(read_rows(paths[0]), {})
    if "vectors" in first:
        counts = [row["vectors"] for p in paths for row in read_rows(p, ("vectors",))]
        offsets = np.cumsum([0, *counts])
        if len(counts) != manifest["texts"] or offsets[-1] != len(vectors):
            raise ValueError(
                f"{folder} tells of {offsets[-1]} vectors of {len(counts)} texts, but "
                f"it has {len(vectors)} of {manifest['texts']}"
            )
        return MultiVectors(vectors, offsets)
    # [C, 3] the text of each chunk, and its first and last character; [C, 1] the text
    # of each token's vector in a .parquet file.
    names = ("text", "start", "end") if "start" in first else ("text",)
    rows = np.array(
        [
            (number * manifest["shard_size"] + row["text"], *map(row.get, names[1:]))
            for number, path in enumerate(paths)
            for row in read_rows(path, names)
        ]
    )
    offsets = np.searchsorted(rows[:, 0], np.arange(manifest["texts"] + 1))
    return MultiVectors(vectors, offsets, *rows.T[1:])


def read_transform(folder: Path) -> VectorTransform | None:
    """The transform of a folder's vectors; None if they have none.

    Raises:
        ValueError: Its file is damaged.
    """
    file = folder / FILE
    return load_transform(file) if file.is_file() else None


def read_text_rows(folder: Path, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
    """{number of a text: its "id", and where it is} for some texts of a folder."""
    manifest = read_manifest(folder)
    paths, size = list_shards(folder, manifest), manifest["shard_size"]
    numbers, texts = set(numbers), {}
    # A shard that holds one of the texts is read once.
    for shard in sorted({number // size for number in numbers}):
        for i, row in enumerate(read_rows(paths[shard])):
            number = shard * size + row.get("text", i)
            if number in numbers:
                texts[number] = row
    return texts


def _claim_folder(
    folder: Path, manifest: Mapping[str, Any], transform: VectorTransform | None
) -> None:
    """Writes the manifest and transform of a new folder, or checks an old one's."""
    path = folder / MANIFEST
    if path.is_file():
        check_manifest(folder, manifest)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there, and is no folder of vectors")
    else:
        write_json(path, manifest)
    # A folder whose transform was lost would be read wrongly: codes need it
    if transform is not None and not (folder / FILE).is_file():
        save_transform(transform, folder / FILE)


def _remove_drafts(path: Path) -> None:
    """Removes what killed processes left of a shard."""
    for draft in path.parent.glob(f".{path.stem}.*"):
        shutil.rmtree(draft, ignore_errors=True)


def run_ahead(items: Iterator) -> Iterator:
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


def _flatten(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's entries, and its options as flags beside them."""
    options = {f"--{name}": value for name, value in entries["options"].items()}
    values = {**entries, "options": None, **options}
    # A hash, which says less than what it depends on, is compared last
    if "weights" in values:
        values["weights"] = values.pop("weights")
    return values

"""Token caches on disk: a source is tokenized once and mapped into memory.

It holds what `pair_cache` and `document_cache` have in common.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from research.atomic_write import atomic_write, to_json
from research.data.examples import Example
from research.data.sources import Source
from research.file_lock import wait_for_lock
from research.progress import show_progress

FORMAT = 3  # of the files; tables of another format are written anew
CHUNK = 1024  # examples tokenized at once


def write_once(cache: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder `name` of a cache, written first if it does not exist.

    Several runs and processes may share a cache: one writes, and the others wait.

    Args:
        cache: Folder of all tables.
        name: Name of the table's folder.
        write: Function that writes the table's files into a draft folder.
    """
    folder = Path(cache) / name
    if folder.is_dir():
        return folder
    with wait_for_lock(folder.with_name(f".{name}.lock")):
        if folder.is_dir():
            return folder
        try:
            with atomic_write(folder, folder=True) as draft:
                write(draft)
        except OSError:
            if not folder.is_dir():  # made meanwhile, on a file system without locks
                raise
    return folder


def fingerprint(source: Source, tokenizer: tokenizers.Tokenizer, *settings) -> str:
    """Hash of a source's content, the tokenizer and the settings of tokenization."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(tokenizer.to_str().encode())
    prompts = sorted(source.prompts.items())
    digest.update(repr((FORMAT, prompts, *settings)).encode())
    digest.update(source.content_hash.encode())
    return digest.hexdigest()


def iterate_chunks(source: Source) -> Iterator[tuple[int, Sequence[Example]]]:
    """Yields (index of the first example, CHUNK examples or fewer); shows progress."""
    total = len(source.examples)
    with show_progress(f"tokenizing {total:,} examples", total) as advance:
        for start in range(0, total, CHUNK):
            examples = source.examples[start : start + CHUNK]
            yield start, examples
            advance(len(examples))


def token_dtype(tokenizer: tokenizers.Tokenizer) -> np.dtype:
    """uint16 if it can hold every token id, otherwise uint32."""
    return np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32)


def cumulate(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Starts of N groups and the end of the last, from their sizes [N]: [N+1] int64."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def save_arrays(folder: Path, dtype: np.dtype, **arrays: np.ndarray) -> None:
    """Writes a table's arrays, and the dtype of its token_ids.bin."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "dtype.json").write_text(to_json({"token_ids": dtype.name}))


def load_arrays(folder: Path, *names: str) -> dict[str, np.ndarray]:
    """Maps token_ids.bin and the named arrays of a table into memory."""
    dtype = json.loads((folder / "dtype.json").read_text())["token_ids"]
    arrays = {"token_ids": map_binary(folder / "token_ids.bin", dtype)}
    for name in names:
        arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return arrays


def map_binary(path: Path, dtype) -> np.ndarray:
    """Maps a file of numbers into memory."""
    # A plain view of the map: indexing a np.memmap costs several microseconds more.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))

"""An index of many vectors: seconds to build, memory, queries per second and recall."""

import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch import main as cli
from research.data.sources import SOURCES
from research.eval.tables import markdown_table
from research.inference.embedder import Embedder
from research.inference.index.faiss_index import build_index, search_index
from research.inference.index.shard_files import write_shard
from research.inference.index.vector_shards import ShardedVectors
from research.inference.search import search
from research.interop import load
from research.transforms.codebooks import import_faiss
from research.transforms.normalize import l2_normalize_rows

SHARD_SIZE = 65_536
QUERIES, HITS = 256, 10
NOISE = 0.5  # length of what is added to a real vector of length 1
# Indexes, and the parameters that their search is measured with.
INDEXES = {
    "IVF1024,Flat": ("nprobe=1", "nprobe=16", "nprobe=64"),
    "HNSW32": ("efSearch=16", "efSearch=64", "efSearch=256"),
}


def measure_index(model_name: str, texts: int, count: int) -> dict[str, Any]:
    """Measures our exact search, faiss over our folder, and faiss alone.

    The vectors are those of real docstrings, repeated with noise.

    Args:
        model_name: Name of the model.
        texts: Number of docstrings that are embedded.
        count: N, number of vectors.

    Returns:
        {"vectors", "width", "rows": [{"index", "build_seconds", "queries_per_second",
        "recall", "peak_mebibytes"}, ...], "table"}; the peak is that of the process so
        far.
    """
    examples = SOURCES["pydocs"](split="train").examples
    examples = [examples[i] for i in range(min(texts, len(examples)))]
    embed = Embedder(load.load(model_name))
    real = embed([e.positives[0] for e in examples], "document")
    queries = embed([e.query for e in examples[:QUERIES]], "query")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds, vectors = _time(lambda: _write_shards(folder, real, count))
        rows.append(_make_row("write Parquet", seconds, None, None, None))
        # Our exact search streams the folder; its result is what recall is against
        search(queries[:HITS], vectors, HITS)  # compiles
        elapsed, (_, exact) = _time(lambda: search(queries, vectors, HITS))
        rows.append(_make_row("exact", seconds, elapsed, exact, exact))
        for factory, options in INDEXES.items():
            seconds, _ = _time(lambda f=factory: build_index(folder, vectors, f))
            for option in options:
                elapsed, (_, numbers) = _time(
                    lambda o=option: search_index(
                        folder, queries, vectors, HITS, options=o
                    )
                )
                name = f"{factory} {option}, with its loading"
                rows.append(_make_row(name, seconds, elapsed, numbers, exact))
        # faiss alone holds all vectors in memory
        faiss = import_faiss()
        index = faiss.IndexFlatIP(vectors.shape[1])
        seconds, _ = _time(lambda: index.add(np.asarray(vectors[:], np.float32)))
        elapsed, (_, numbers) = _time(lambda: index.search(queries, HITS))
        rows.append(_make_row("faiss alone, Flat", seconds, elapsed, numbers, exact))
    for row in rows:
        cli.log(str(row))
    sizes = {"vectors": count, "width": vectors.shape[1]}
    return {**sizes, "rows": rows, "table": format_table(rows)}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `measure_index` in Markdown."""
    header = ["index", "seconds to build", "queries/s", f"recall@{HITS}", "peak MiB"]
    cells = [
        [
            row["index"],
            f"{row['build_seconds']:,.0f}",
            f"{row['queries_per_second']:,.0f}" if "recall" in row else "",
            f"{100 * row['recall']:.1f} %" if "recall" in row else "",
            f"{row['peak_mebibytes']:,}",
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def _write_shards(folder: Path, real: np.ndarray, count: int) -> ShardedVectors:
    """Writes N vectors, one shard in memory at a time."""
    paths = []
    for number, start in enumerate(range(0, count, SHARD_SIZE)):
        rng = np.random.default_rng(number)
        size = min(SHARD_SIZE, count - start)
        x = real[rng.integers(len(real), size=size)]
        noise = rng.normal(scale=NOISE / x.shape[1] ** 0.5, size=x.shape)
        x = l2_normalize_rows(x + noise.astype(np.float32))
        paths.append(folder / f"{number:05}.parquet")
        # Shards as launch.index writes them
        names = [str(start + i) for i in range(size)]
        write_shard(paths[-1], x, names, names)
    return ShardedVectors(paths)


def _time(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _make_row(name, build_seconds, elapsed, numbers, exact) -> dict[str, Any]:
    """A row of the result; the last three arguments are None for no search."""
    row = {"index": name, "build_seconds": build_seconds}
    if elapsed is not None:
        row["queries_per_second"] = len(exact) / elapsed
        hits = (numbers[:, :, None] == exact[:, None]).any(2)  # [Q, k]
        row["recall"] = float(hits.mean())
    # Kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**row, "peak_mebibytes": round(peak)}

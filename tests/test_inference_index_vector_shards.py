"""Folders of vectors: equal to one call, resumed after a kill, refused when changed."""

import dataclasses
import json
import socket

import numpy as np
import pytest

from research.atomic_write import write_json
from research.file_lock import LOCK, lock_folder
from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import store_vectors
from research.inference.index.vector_shards import (
    ShardedVectors,
    check_manifest,
    embed_to_shards,
    list_shards,
    read_text_rows,
    read_transform,
    read_vectors,
)
from research.inference.model import hash_model
from research.inference.search import rank_documents
from research.text.chunking import parse_chunking
from research.text.prompts import parse_prompt
from research.transforms.pipeline import fit_transform
from tests.tiny_models import TEXTS, make_model

TEXTS = [text[i:] for i in range(5) for text in TEXTS]  # 20, up to 30 tokens
MANIFEST = {"texts": 20, "shard_size": 8, "kind": "dense", "files": []}
MANIFEST |= {"options": {"dim": None}}


@pytest.fixture(scope="module")
def embedder():
    return Embedder(make_model(), depth=1)


def triples(texts=TEXTS):
    return [(f"n{i}", text, f"place {i}") for i, text in enumerate(texts)]


def embed(embedder, folder, texts=None, **changes):
    return embed_to_shards(embedder, texts or triples(), folder, MANIFEST | changes)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.name != LOCK)
    return {path.name: path.read_bytes() for path in files}


def test_a_second_run_is_kept_out_of_the_folder(embedder, tmp_path, monkeypatch):
    embed(embedder, tmp_path)
    next(tmp_path.glob("vectors-00001-*.npy")).unlink()
    with lock_folder(tmp_path):
        # As another process would be seen
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        with pytest.raises(ValueError, match=f"another run is in {tmp_path}"):
            embed(embedder, tmp_path)
    assert embed(embedder, tmp_path) == 1


def test_a_folder_holds_the_vectors_of_one_call(embedder, tmp_path):
    assert embed(embedder, tmp_path / "v") == 3
    vectors, want = read_vectors(tmp_path / "v"), embedder(TEXTS, "document")
    assert vectors.shape == want.shape
    for rows in (slice(0, 20), slice(3, 5), slice(6, 18), slice(8, 16), slice(19, 99)):
        np.testing.assert_allclose(vectors[rows], want[rows], atol=1e-6)
    assert vectors[4:4].shape == (0, 16)
    rows = read_text_rows(tmp_path / "v", [19, 0, 8])
    names = {number: row["id"] for number, row in rows.items()}
    assert names == {0: "n0", 8: "n8", 19: "n19"}
    some = vectors.take(np.array([19, 0, 8, 7, 8]))
    np.testing.assert_array_equal(some, vectors[0:20][[19, 0, 8, 7, 8]])
    # The folder is searched as the vectors in memory are.
    queries = embedder(TEXTS[:3], "query")
    scores, rows = rank_documents(queries, vectors, 5)
    want_scores, _ = rank_documents(queries, want, 5)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    assert rows[:, 0].tolist() == [0, 1, 2]


def test_a_killed_run_goes_on_and_ends_bit_equal(embedder, tmp_path):
    embed(embedder, tmp_path / "whole")
    killed = tmp_path / "killed"

    def stop_in_the_third_shard():
        yield from triples()[:17]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(embedder, killed, stop_in_the_third_shard())
    before = {path: path.stat().st_mtime_ns for path in killed.glob("*.npy")}
    assert before  # at least one shard is there
    # A kill with SIGKILL leaves its draft behind, and may leave ids without vectors.
    last = list_shards(killed, MANIFEST)[2]
    (killed / f".{last.name}.x").mkdir()
    (killed / f".{last.name}.x" / last.name).write_bytes(b"half")
    last.with_suffix(".ids.jsonl").write_text("half")
    assert embed(embedder, killed) == 3 - len(before)
    assert contents(killed) == contents(tmp_path / "whole")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert embed(embedder, killed) == 0


def test_a_folder_of_something_else_is_refused(embedder, tmp_path):
    folder = tmp_path / "v"
    with pytest.raises(ValueError, match="place 9 has no tokens: ' '"):
        embed(embedder, folder, triples([*TEXTS[:9], " ", *TEXTS[10:]]))
    with pytest.raises(ValueError, match="v lacks [23] of 3 shards; .* run again"):
        read_vectors(folder)
    # No list is made of as many shards as a damaged manifest tells of
    write_json(folder / "manifest.json", MANIFEST | {"texts": 2**60})
    with pytest.raises(ValueError, match="shards; .* run again"):
        read_vectors(folder)
    write_json(folder / "manifest.json", MANIFEST)
    for changes, message in (
        ({"options": {"dim": 8}}, "v was embedded with --dim=None, not 8"),
        ({"shard_size": 4}, "v was embedded with shard_size=8, not 4"),
    ):
        before = contents(folder)
        with pytest.raises(ValueError, match=message):
            embed(embedder, folder, **changes)
        assert contents(folder) == before
    check_manifest(folder, {"kind": "dense", "options": {}})
    # A folder that is not one of vectors, and one that does not exist.
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="notes is there, and is no folder of vectors"):
        embed(embedder, tmp_path / "notes")
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        read_vectors(tmp_path / "nothing")


def test_chunks_in_a_folder_are_those_in_memory(tmp_path):
    embedder = Embedder(make_model(), depth=1, chunk=parse_chunking("late(4)"))
    embed(embedder, tmp_path / "v", kind="multi_vector")
    chunks, want = read_vectors(tmp_path / "v"), embedder(TEXTS, "document")
    assert isinstance(chunks.vectors, ShardedVectors)
    np.testing.assert_allclose(chunks.vectors[0:999], want.vectors, atol=1e-6)
    for name in ("offsets", "start", "end"):
        np.testing.assert_array_equal(getattr(chunks, name), getattr(want, name))
    queries = embedder(TEXTS[:3], "query")
    # Of equal scores, rounding decides which comes first.
    scores, want_scores = (rank_documents(queries, x, 5)[0] for x in (chunks, want))
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    line = (tmp_path / "v" / "vectors-00001-of-00003.ids.jsonl").read_text()
    first = json.loads(line.splitlines()[0])
    assert first["id"] == "n8" and first["text"] == 0


def locate(texts=TEXTS):
    return [(f"n{i}", t, f"place {i}", 0, i + 1, 9 * i) for i, t in enumerate(texts)]


def test_a_killed_index_goes_on_and_ends_bit_equal(embedder, tmp_path):
    pytest.importorskip("pyarrow")
    options = {"format": "parquet"}
    embed(embedder, tmp_path / "whole", locate(), **options)
    vectors = read_vectors(tmp_path / "whole")
    np.testing.assert_allclose(
        vectors[0:20], embedder(TEXTS, "document"), rtol=0, atol=1e-6
    )
    assert [path.suffix for path in vectors.paths] == [".parquet"] * 3
    rows = read_text_rows(tmp_path / "whole", [9])
    assert rows[9].pop("hash") and len(rows) == 1
    assert rows[9] == {"id": "n9", "file": 0, "line": 10, "offset": 81}

    def stop_in_the_second_shard():
        yield from locate()[:11]
        raise KeyboardInterrupt

    killed = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        embed(embedder, killed, stop_in_the_second_shard(), **options)
    draft = killed / f".{vectors.paths[1].stem}.x"
    draft.mkdir()
    (draft / vectors.paths[1].name).write_bytes(b"half")
    embed(embedder, killed, locate(), **options)
    assert contents(killed) == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="was embedded with format='parquet', not 'n"):
        embed(embedder, killed, format="npy")


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_a_folder_of_codes_is_searched_as_codes_in_memory(format, embedder, tmp_path):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    x = embedder(TEXTS, "document")
    for text in ("float8", "binary(rescore=2)"):
        transform = fit_transform(text, x, normalize=True)
        coded = Embedder(make_model()._replace(transform=transform), depth=1)
        folder = tmp_path / text
        embed(coded, folder, format=format)
        assert read_transform(folder).text == text
        stored, want = read_vectors(folder), store_vectors(x, transform.quantizer)
        np.testing.assert_array_equal(stored.read_codes(slice(0, 20)), want.codes)
        np.testing.assert_array_equal(stored[3:12], want[3:12])
        np.testing.assert_array_equal(
            stored.take(np.array([2, 9, 19])), want.take(np.array([2, 9, 19]))
        )
        for a, b in zip(
            *(rank_documents(x[:3], d, 5) for d in (stored, want)), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)
    # Without its transform, a folder of codes is none of vectors.
    (folder / "transform.safetensors").unlink()
    with pytest.raises(ValueError, match="holds uint8 .*, not vectors"):
        read_vectors(folder)


def test_a_model_has_another_hash_if_it_embeds_otherwise():
    model = make_model()
    kernel = model.params["layers"]["up"]["kernel"].copy()
    kernel[0, 0, 0] += 1
    layers = {**model.params["layers"], "up": {"kernel": kernel}}
    others = [
        model._replace(params={**model.params, "layers": layers}),
        model._replace(config=dataclasses.replace(model.config, causal=True)),
        model._replace(max_length=model.max_length - 1),
        model._replace(prompts=model.prompts | {"document": "passage: "}),
        model._replace(pool="cls"),
        model._replace(prompt=parse_prompt("echo")),
    ]
    assert hash_model(make_model()) == hash_model(model)
    assert len({hash_model(model), *map(hash_model, others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("manifest.json", b"[]", "manifest.json holds a JSON list"),
        ("manifest.json", b'{"texts": "20"}', "is damaged: its texts is '20'"),
        ("vectors-00001-of-00003.npy", b"", "00003.npy is no file of vectors"),
        ("vectors-00000-of-00003.ids.jsonl", b'{"id"', "ids.jsonl line 1 is damaged"),
    ],
)
def test_a_damaged_file_of_a_folder_is_named(
    embedder, tmp_path, name, content, message
):
    folder = tmp_path / "v"
    embed(embedder, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_vectors(folder)
        read_text_rows(folder, [0])

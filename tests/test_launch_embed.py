"""launch.embed, search and evaluate on several devices and processes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from research.inference.embedder import Embedder
from research.interop import load
from research.interop.sentence_transformers.write import export
from tests.tiny_models import TEXTS, make_model
from tests.toy_process import virtual_devices

ROOT = Path(__file__).parent.parent
TEXTS = [text[i:] for i in range(5) for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, a BEIR folder of 20 texts, and their vectors from one process."""
    folder = tmp_path_factory.mktemp("embed")
    export(make_model(), folder / "model")
    lines = [json.dumps({"_id": f"d{i}", "text": t}) for i, t in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "tree"}\n')
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\td\ts\nq\td0\t1\nq\td3\t2\n")
    embedder = Embedder(load.load(str(folder / "model")))
    np.save(folder / "one.npy", embedder(TEXTS, "document"))
    return folder


def run(folder, program, *flags, processes=1, devices=1):
    """The last line of the first process, after all have ended well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    start = (sys.executable, "-m", f"launch.{program}", f"--model={folder / 'model'}")
    environ = virtual_devices(devices)
    if processes > 1:
        environ |= {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
        }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environs = [environ | {"JAX_PROCESS_ID": str(i)} for i in range(processes)]
    running = [
        subprocess.Popen((*start, *flags), cwd=ROOT, env=environ, **pipes)
        for environ in environs
    ]
    ends = [process.communicate(timeout=300) for process in running]
    assert not any(process.returncode for process in running), ends
    return json.loads(ends[0][0].splitlines()[-1])


def read_shards(folder):
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


def test_two_processes_write_the_vectors_of_one(folder, tmp_path):
    flags = (f"--input={folder}", f"--output={tmp_path / 'v'}", "--shard_size=6")
    result = run(folder, "embed", *flags, processes=2)
    assert result["shards"] == result["shards_made"] == 4
    expected = np.load(folder / "one.npy")
    np.testing.assert_allclose(read_shards(tmp_path / "v"), expected, atol=1e-6)


@pytest.mark.parametrize("processes, devices", [(2, 4), (4, 2)])
def test_processes_and_devices_change_nothing(folder, tmp_path, processes, devices):
    sizes = {"processes": processes, "devices": devices}
    expected = np.load(folder / "one.npy")
    flags = (f"--input={folder}", f"--output={tmp_path / 'v.npy'}")
    run(folder, "embed", *flags, "--model_parallel=2", **sizes)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    lines = (tmp_path / "v.ids.jsonl").read_text().splitlines()
    names = [json.loads(line)["id"] for line in lines]
    assert names == [f"d{i}" for i in range(20)]
    for program, flags in (
        ("search", (f"--corpus={folder}", "--query=a tree", "--hits=20")),
        ("evaluate", ("--task=retrieval", f"--data={folder}")),
        ("evaluate", ("--task=retrieval", f"--data={folder}", "--chunk=late(4)")),
    ):
        one = run(folder, program, *flags)
        several = run(folder, program, *flags, **sizes)
        if program == "search":
            scores = [[hit.pop("score") for hit in r["hits"]] for r in (one, several)]
            np.testing.assert_allclose(*scores, atol=1e-6)
        assert one == several


def test_a_folder_of_vectors_is_searched_and_evaluated(folder, tmp_path):
    vectors = tmp_path / "v"
    run(folder, "embed", f"--input={folder}", f"--output={vectors}", "--shard_size=6")
    for processes in (1, 2):
        query = ("--query=a tree", "--hits=3")
        hits = [
            run(folder, "search", flag, *query, processes=processes)["hits"]
            for flag in (f"--corpus={folder}", f"--index={vectors}")
        ]
        ids, texts = ([[hit[x] for hit in row] for row in hits] for x in ("id", "text"))
        assert ids[0] == ids[1] and texts[0] == texts[1]
    task = ("--task=retrieval", f"--data={folder}")
    with_vectors = run(folder, "evaluate", *task, f"--vectors={vectors}")
    assert with_vectors == run(folder, "evaluate", *task)
    assert with_vectors["recall@100"] == 100
    with pytest.raises(AssertionError, match="was embedded with --depth=None, not 1"):
        run(folder, "evaluate", *task, f"--vectors={vectors}", "--depth=1")


def test_an_index_answers_without_embedding_again(folder, tmp_path):
    pytest.importorskip("pyarrow")
    index, corpus = tmp_path / "index", folder / "corpus.jsonl"
    flags = (f"--input={corpus}", f"--output={index}", "--transform=bfloat16")
    result = run(folder, "index", *flags, "--shard_size=6")
    assert result["shards"] == 4 and result["dim"] == 16
    assert run(folder, "index", *flags, "--shard_size=6")["shards_made"] == 0
    queries = ("--query=a tree", "--query=leaf", "--hits=3")
    both = run(folder, "search", f"--index={index}", *queries)["results"]
    transform = "--transform=bfloat16"
    want = run(folder, "search", f"--corpus={corpus}", *queries, transform)["results"]
    assert both == want and [r["query"] for r in both] == ["a tree", "leaf"]
    # With BM25, the scores are of ranks.
    hybrid = run(folder, "search", f"--index={index}", *queries, "--hybrid=rrf")
    assert hybrid != both and len(hybrid["results"][0]["hits"]) == 3
    for flag, message in (
        ("--transform=float16", "was embedded with --transform='bfloat16', not 'flo"),
        ("--dim=8", "was fitted to vectors of width 16, not 8"),
        ("--faiss_options=nprobe=4", "goes with an --index that launch.index built"),
    ):
        with pytest.raises(AssertionError, match=message):
            run(folder, "search", f"--index={index}", *queries, flag)


def test_a_query_that_is_a_document_can_be_left_out(folder, tmp_path):
    documents = {"d0": "tree", "d1": "tree leaf", "hole": ""}
    lines = [json.dumps({"_id": name, "text": t}) for name, t in documents.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text(lines[0])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("d0\td1\t1\n")
    task = ("--task=retrieval", f"--data={tmp_path}")
    ranks = [
        round(100 / run(folder, "evaluate", *task, *flags)["mrr@10"])
        for flags in ((), ("--ignore_identical_ids",))
    ]
    assert ranks[1] == ranks[0] - 1
    # The vectors of all documents, one of which is empty.
    embed = ("embed", f"--input={tmp_path}", f"--output={tmp_path / 'v'}")
    with pytest.raises(AssertionError, match="corpus.jsonl line 3: text is empty"):
        run(folder, *embed)
    assert run(folder, *embed, "--allow_empty")["texts"] == 3
    flags = (*task, f"--vectors={tmp_path / 'v'}")
    assert round(100 / run(folder, "evaluate", *flags)["mrr@10"]) == ranks[0]


def test_a_text_without_tokens_stops_all_processes(folder, tmp_path):
    (tmp_path / "a.txt").write_text("tree\nleaf\n\u200b\nroots\n")
    flags = (f"--input={tmp_path / 'a.txt'}", f"--output={tmp_path / 'v.npy'}")
    with pytest.raises(AssertionError, match="a.txt line 3 has no tokens"):
        run(folder, "embed", *flags, processes=2)
    assert not (tmp_path / "v.npy").exists()

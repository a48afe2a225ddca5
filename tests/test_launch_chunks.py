"""--chunk through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import compiled
import jax
import numpy as np
import pytest

from research.inference.model import EmbeddingModel
from research.interop.sentence_transformers.write import export
from research.models.config import bert
from research.text.tokenization import train_tokenizer

ROOT = Path(__file__).parent.parent
TEXTS = {"a": "red fox. blue dog. green cat.", "b": "the end. blue cow. a red hen."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and a BEIR folder of two texts and a query."""
    folder = tmp_path_factory.mktemp("chunks")
    tokenizer = train_tokenizer(list(TEXTS.values()) * 9, 80)
    vocab = tokenizer.get_vocab_size()
    cfg = bert(vocab_size=vocab, width=16, depth=1, num_heads=2, mlp=16, max_len=16)
    settings = {"pool": "mean", "max_length": 16, "normalize": True}
    prompts = {"query": "", "document": ""}
    params = compiled.init(jax.random.key(0), cfg)
    model = EmbeddingModel(params, cfg, tokenizer, prompts=prompts, **settings)
    export(model, folder / "model")
    corpus = [json.dumps({"_id": name, "text": text}) for name, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "blue cow"}\n')
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\td\ts\nq\tb\t1\n")
    return folder


def command(folder, program, *flags):
    start = (sys.executable, "-m", f"launch.{program}", f"--model={folder / 'model'}")
    return subprocess.run((*start, *flags), cwd=ROOT, capture_output=True, text=True)


def result(folder, program, *flags):
    done = command(folder, program, *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_embed_writes_where_chunks_lie(folder):
    output = folder / "x.npy"
    flags = (f"--input={folder}", f"--output={output}", "--chunk=late(sentences=1)")
    found = result(folder, "embed", *flags)
    assert found["texts"] == 2
    assert found["chunks"] == len(np.load(output)) == 6
    lines = (folder / "x.ids.jsonl").read_text().splitlines()
    places = [json.loads(line) for line in lines]
    pieces = [TEXTS[p["id"]][p["start"] : p["end"]] for p in places]
    assert " ".join(pieces) == " ".join(TEXTS.values())


def test_search_shows_the_chunk(folder):
    flags = (f"--corpus={folder}", "--query=blue cow.", "--chunk=naive(sentences=1)")
    flags += (f"--output={folder / 'hits' / 'cow.md'}",)
    best, other = result(folder, "search", *flags)["hits"]
    assert best["id"] == "b" and other["id"] == "a"
    assert (best["text"], best["start"], best["end"]) == ("blue cow.", 9, 18)
    assert best["score"] == pytest.approx(1, abs=1e-5)
    page = (folder / "hits" / "cow.md").read_text()
    assert page.startswith("# Search: blue cow\\.\n")
    assert "| blue cow\\. |    b |  1.0000 |" in page


def test_evaluate_sweeps(folder):
    flags = ("--task=retrieval", f"--data={folder}", f"--output={folder / 'found'}")
    chunks = "none | naive(sentences=1) | naive(sentences=2) | pcw(8)"
    found = result(folder, "evaluate", *flags, f"--chunk={chunks}")
    names = ["none", "naive(sentences=1)", "naive(sentences=2)", "pcw(8)"]
    assert [cell["chunk"] for cell in found["cells"]] == names
    files = sorted(path.name for path in (folder / "found").iterdir())
    assert files == ["chunks.json", "chunks.md", "chunks.png", "chunks.svg"]


def test_chunks_of_sentence_pairs_are_a_mistake(folder):
    done = command(folder, "evaluate", "--task=sts", "--chunk=late(3)")
    assert done.returncode == 1
    assert done.stderr == "error: --chunk=late(3) does not go with --task=sts\n"

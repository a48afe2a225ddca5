"""launch.mine as a user runs it, on a tiny random model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.data.columns import read_examples
from research.interop.sentence_transformers.write import export
from tests.tiny_models import make_model

ROOT = Path(__file__).parent.parent
WORDS = ("tree", "leaf", "roots", "light", "tall", "grow", "new", "old")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, eight queries with their positives, and a corpus."""
    folder = tmp_path_factory.mktemp("mine")
    export(make_model(), folder / "model")
    rows = [{"query": word, "positive": f"the {word} falls"} for word in WORDS]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [f"the {word} falls" for word in WORDS[:6]] + ["tree", "why", "why"]
    (folder / "texts.txt").write_text("\n".join(texts))
    return folder


def run(folder, *flags):
    command = (
        *(sys.executable, "-m", "launch.mine", f"--model={folder / 'model'}"),
        f"--data={folder / 'pairs.jsonl'}",
    )
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        (*command, *flags), cwd=ROOT, env=environ, capture_output=True, text=True
    )


def test_a_file_gets_its_negatives(folder, tmp_path):
    output = tmp_path / "mined.jsonl"
    corpus = f"--corpus={folder / 'texts.txt'}"
    done = run(folder, f"--output={output}", corpus, "--negatives=2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["rows"], result["left_out"], result["passages"]) == (8, 0, 10)
    assert "8 different texts of 9; the 2 of 8 positives that it lacks" in done.stderr
    examples = read_examples(str(output)).examples
    assert [e.query for e in examples] == list(WORDS)
    for example in examples:
        assert len(set(example.negatives)) == 2
        assert not {example.query, *example.positives} & set(example.negatives)


def test_a_beir_folder_brings_its_corpus(folder, tmp_path):
    (tmp_path / "qrels").mkdir()
    texts = {"tree": "Tall", "leaf": "New", "grow": ""}
    rows = {
        "corpus": [{"_id": w, "title": t, "text": w} for w, t in texts.items()]
        + [{"_id": "blank", "text": " "}, {"_id": "roots", "text": "old roots"}],
        "queries": [{"_id": word, "text": f"{word} light"} for word in texts],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "qrels" / "dev.tsv").write_text("tree\ttree\t1\nleaf\tleaf\t1\n")
    output = tmp_path / "mined.jsonl"
    flags = (f"--data={tmp_path}", "--split=dev", f"--output={output}")
    done = run(folder, *flags, "--negatives=2")
    assert done.returncode == 0, done.stderr
    examples = read_examples(str(output)).examples
    assert [e.positives for e in examples] == [("Tall tree",), ("New leaf",)]
    passages = {"Tall tree", "New leaf", "grow", "old roots"}
    for example in examples:
        assert set(example.negatives) < passages - set(example.positives)
    done = run(folder, *flags, "--columns=query=a, positive=b")
    message = f"--columns=query=a, positive=b does not go with --data={tmp_path}"
    assert done.returncode == 1 and message in done.stderr


def test_what_is_missing_is_counted_and_named(folder, tmp_path):
    output = tmp_path / "mined.jsonl"
    done = run(folder, f"--output={output}", "--relative_margin=0.999")
    assert done.returncode == 1 and not output.exists()
    sentence = "8 of 8 queries have fewer than 3 negatives (8 have none), such as"
    assert f"nothing to write: {sentence} 'tree'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    # Random passages instead
    flags = (f"--output={output}", "--relative_margin=0.999", "--fill")
    done = run(folder, *flags)
    assert done.returncode == 0, done.stderr
    assert "random passages take their places" in done.stderr
    assert all(len(e.negatives) == 3 for e in read_examples(str(output)).examples)


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--output=mined.csv",), "should end in .jsonl or .jsonl.gz"),
        (("--output={folder}/pairs.jsonl",), "would replace the input"),
        (("--output=x.jsonl", "--guide=a", "--cross_encoder=b"), "exclude each other"),
        (("--output=x.jsonl", "--chunk=late(4)"), "does not go with launch.mine"),
        (("--output=x.jsonl", "--negatives=0"), "negatives is 0"),
        (("--output=x.jsonl", "--split=dev"), "which is no folder"),
        (("--output=x.jsonl", "--corpus=none.txt"), "there is no file none.txt"),
    ],
)
def test_mistakes_are_one_sentence(folder, flags, message):
    done = run(folder, *(flag.format(folder=folder) for flag in flags))
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_guide_and_a_cross_encoder_score_the_candidates(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    # Another tiny model, and a random cross-encoder with the same tokenizer
    export(make_model("modern"), folder / "guide")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "num_labels": 1},
    )
    cross_encoder = transformers.BertForSequenceClassification(config)
    cross_encoder.save_pretrained(folder / "cross")
    tokenizer.save_pretrained(folder / "cross")
    scores = []
    for flag in ("--negatives=2", "--guide={}/guide", "--cross_encoder={}/cross"):
        output = tmp_path / f"{len(scores)}.jsonl"
        flags = (flag.format(folder), "--negatives=2", "--max_score=9")
        done = run(folder, f"--output={output}", *flags)
        assert done.returncode == 0, done.stderr
        rows = list(map(json.loads, output.read_text().splitlines()))
        scores.append([row["scores"] for row in rows])
        assert all(row[1] >= row[2] for row in scores[-1])
    assert scores[0] != scores[1] != scores[2] != scores[0]

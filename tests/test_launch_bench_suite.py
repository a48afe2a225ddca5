"""The benchmark of a suite, whose two sides have equal scores of equal texts."""

import json

import pytest
from test_eval_tasks import write_beir
from tiny_models import TEXTS, make_model

from launch.bench.suite import compare_suite
from research.interop.sentence_transformers.write import export


def test_both_sides_score_each_type_of_task(tmp_path):
    pytest.importorskip("mteb")
    export(make_model(), tmp_path / "model")
    texts = list(dict.fromkeys(TEXTS))
    data = tmp_path / "data"
    (data / "sts").mkdir(parents=True)
    rows = [
        {"sentence1": x, "sentence2": texts[i - 1], "score": i}
        for i, x in enumerate(texts)
    ]
    (data / "sts/test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "search").mkdir()
    corpus = {f"d{i}": text for i, text in enumerate(texts)}
    queries = {f"q{i}": text for i, text in enumerate(texts[:3])}
    qrels = {f"q{i}": {f"d{i + 1}": 1} for i in range(3)}
    write_beir(data / "search", corpus, queries, qrels)
    record = compare_suite(str(tmp_path / "model"), str(data), rounds=1)
    assert record["scores"]["ours"].keys() == {"sts", "search"}
    assert record["largest_difference"] < 0.01
    assert len(texts) <= record["texts"]["ours"] < record["texts"]["theirs"]

from itertools import combinations

import numpy as np
import pytest

from research.eval.limit import limit, make_limit

ATTRIBUTES = [f"thing{n:04d}" for n in range(1848)]


def likes(document):
    return document.split(" likes ")[1][:-1].replace(" and ", ", ").split(", ")


def test_the_task_has_the_sizes_of_the_paper():
    task = make_limit(ATTRIBUTES, documents=200)
    assert len(task.queries) == 1000 and task.relevant.size == 2000
    assert [tuple(pair) for pair in task.relevant] == list(combinations(range(46), 2))[
        :1000
    ]
    asked = {query[len("Who likes ") : -1] for query in task.queries}
    counts = [len(asked & set(likes(document))) for document in task.documents]
    assert counts[:46] == [45] * 37 + [38] * 2 + [37] * 7
    assert not any(counts[46:])
    assert all(len(set(likes(document))) == 45 for document in task.documents)
    names = [document.split(" likes ")[0] for document in task.documents]
    assert len(set(names)) == 200


def test_exact_words_solve_the_task(tmp_path):
    task = make_limit(ATTRIBUTES)
    words = [query[len("Who likes ") : -1] for query in task.queries]
    matches = [
        [i for i, text in enumerate(task.documents) if word in likes(text)]
        for word in words
    ]
    assert np.array_equal(matches, task.relevant)
    (tmp_path / "things.txt").write_text("\n".join(ATTRIBUTES))
    scores = limit(data=str(tmp_path / "things.txt"))(
        lambda texts, role: np.random.default_rng(0).normal(size=(len(texts), 8))
    )
    names = ["recall@20", "recall@2", "recall@10"]  # the main one first
    assert scores["bm25"] == 100 and list(scores)[1:4] == names
    assert scores["recall@2"] < scores["main_score"] < 60  # 20 of 46 at random
    # The ranking is there for comparisons.
    run = scores.item_values.make_run()
    best = [sorted(run[f"q{i}"], key=run[f"q{i}"].get)[-20:] for i in range(1000)]
    hits = [f"d{j}" in best[i] for i, pair in enumerate(task.relevant) for j in pair]
    assert scores["main_score"] == pytest.approx(100 * np.mean(hits))


def test_sizes_that_are_not_possible_are_named():
    with pytest.raises(ValueError, match="1044 different attributes are too few"):
        make_limit(ATTRIBUTES[:1044])
    with pytest.raises(ValueError, match="LIMIT of 45 documents: 46 ... 77050 are"):
        make_limit(ATTRIBUTES, documents=45)

"""The types of tasks: scores that mteb 2.26 gives the same vectors, and bad files.

The expected numbers are those of mteb's own tasks on the same texts; the slow
tests/test_eval_mteb_scores.py computes them with the mteb that is installed.
"""

import gzip
import json
import zlib
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from research.eval.metrics import (
    average_precision,
    pair_metrics,
    parse_metric,
    query_scores,
    ranking_scores,
)
from research.eval.tasks import bitext_mining as bitext
from research.eval.tasks import classification as single_label
from research.eval.tasks import multilabel as multiple_labels
from research.eval.tasks.bitext_mining import bitext_mining
from research.eval.tasks.classification import classification
from research.eval.tasks.clustering import clustering
from research.eval.tasks.multilabel import multilabel
from research.eval.tasks.pair_classification import pair_classification
from research.eval.tasks.reranking import reranking
from research.eval.tasks.retrieval import ranking, retrieval
from research.eval.tasks.sts import sts
from research.eval.tasks.summarization import summarization

HEADS = "abcde"


def embed_toy(texts, role="query"):
    """Vectors that say something of the texts: half of their part before the |."""

    def draw(text):
        return np.random.default_rng(zlib.crc32(text.encode())).normal(size=16)

    rows = [0.5 * draw(text.partition("|")[0]) + draw(text) for text in texts]
    return np.array(rows, np.float32)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def label_rows(letters, count):
    return [
        {"text": f"{HEADS[i % 5]}|{letters}{i}", "label": i % 5} for i in range(count)
    ]


def multilabel_rows(letters, count):
    return [
        {
            "text": f"{HEADS[i % 5]}|{letters}{i}",
            "labels": [i % 5, (i + 1) % 5] if i % 2 else [i % 5],
        }
        for i in range(count)
    ]


def pair_rows(count):
    return [
        {
            "sentence1": f"p{i}|x",
            "sentence2": f"p{i if i % 3 == 0 else i + 1000}|y",
            "label": int(i % 3 == 0),
            "score": (4 if i % 3 == 0 else 1) + (i % 7) / 7,
        }
        for i in range(count)
    ]


def ranking_data():
    """(corpus, queries, qrels, candidates) of 200 documents for 20 queries."""
    corpus = {f"d{j}": f"r{j % 20}|d{j}" for j in range(200)}
    queries = {f"q{i}": f"r{i}|q" for i in range(20)}
    qrels = {
        f"q{i}": {f"d{j}": 2 if j < 100 else 1 for j in range(i, 200, 20)}
        for i in range(20)
    }
    ranked = {f"q{i}": [f"d{j}" for j in range(i, 200, 4)] for i in range(20)}
    return corpus, queries, qrels, ranked


def write_beir(folder, corpus, queries, qrels):
    for name, texts in (("corpus", corpus), ("queries", queries)):
        rows = [{"_id": key, "text": text} for key, text in texts.items()]
        write_rows(folder / f"{name}.jsonl", rows)
    lines = [f"{q}\t{d}\t{g}\n" for q, row in qrels.items() for d, g in row.items()]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("".join(lines))


def summary_rows():
    return [
        {
            "text": f"s{i}|t",
            "human_summaries": [f"s{i}|h{j}" for j in range(3)],
            "machine_summaries": [f"{'s' if j % 2 else 'z'}{i}|m{j}" for j in range(6)],
            "relevance": [(j % 2) * 2 + j / 6 for j in range(6)],
        }
        for i in range(10)
    ]


def check_scores(scores, **expected):
    """Compares scores in percent with mteb's, which have six digits."""
    for name, value in expected.items():
        assert scores[name] == pytest.approx(100 * value, abs=1e-4), name


def check_items(scores):
    """The statistic of the items is the main score, and as many have names."""
    items = scores.item_values
    assert items.statistic(*items.values) == pytest.approx(scores["main_score"])
    assert {len(values) for values in items.values} == {len(items.names)}


def test_classification_scores_as_in_mteb(tmp_path):
    toy = embed_toy(["a|0"])[0, :3]
    assert toy == pytest.approx([1.152443, 0.308606, -0.987618], abs=1e-6)
    write_rows(tmp_path / "train.jsonl", label_rows("tr", 120))
    write_rows(tmp_path / "test.jsonl", label_rows("te", 100))
    scores = classification(data=str(tmp_path))(embed_toy)
    check_scores(scores, main_score=0.562, accuracy=0.562, f1=0.563952)
    experiments = [0.58, 0.62, 0.57, 0.52, 0.54, 0.55, 0.56, 0.52, 0.63, 0.53]
    assert scores["experiments"] == pytest.approx([100 * x for x in experiments])
    check_items(scores)
    named = [row | {"intent": f"class {row['label']}"} for row in label_rows("te", 100)]
    write_rows(tmp_path / "dev.jsonl", named)
    trained = [
        row | {"intent": f"class {row['label']}"} for row in label_rows("tr", 120)
    ]
    write_rows(tmp_path / "train.jsonl", trained)
    by_name = classification(data=str(tmp_path), split="dev", label="intent")
    check_scores(by_name(embed_toy), accuracy=0.562, f1=0.563952)


def test_each_experiment_draws_other_rows_of_every_label():
    labels = np.arange(120) % 5
    draws = single_label.draw_rows(labels, 8, 10)
    assert draws[0][:6] == [44, 47, 4, 55, 26, 64]
    assert draws[1][:6] == [98, 90, 26, 113, 15, 100]
    assert len({tuple(draw) for draw in draws}) == 10
    for draw in draws:
        assert np.bincount(labels[draw]).tolist() == [8] * 5


def test_separable_labels_are_classified_without_errors(tmp_path):
    rows = [{"text": HEADS[i % 5], "label": HEADS[i % 5]} for i in range(50)]
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    scores = classification(data=str(tmp_path))(
        lambda texts, role: np.eye(5, dtype="f4")[[HEADS.index(t) for t in texts]]
    )
    assert scores["main_score"] == scores["precision"] == 100


def test_multilabel_scores_as_in_mteb(tmp_path):
    write_rows(tmp_path / "train.jsonl", multilabel_rows("mt", 120))
    write_rows(tmp_path / "test.jsonl", multilabel_rows("me", 100))
    scores = multilabel(data=str(tmp_path))(embed_toy)
    check_scores(scores, main_score=0.178, lrap=0.50395, f1=0.400039, hamming=0.309)
    check_items(scores)


def test_a_large_multilabel_split_is_scored_by_a_sample(tmp_path):
    write_rows(tmp_path / "train.jsonl", multilabel_rows("mt", 60))
    rows = multilabel_rows("me", 100)
    write_rows(tmp_path / "test.jsonl", rows)
    sample = multilabel(data=str(tmp_path), max_texts=40)(embed_toy)
    names = list(map(int, sample.item_values.names))
    assert abs(len(names) - 40) <= 2 and names == sorted(set(names))
    counts = Counter(name for row in names for name in rows[row]["labels"])
    assert set(counts) == set(range(5)) and max(counts.values()) <= 15
    # The score is that of these texts alone; 0 scores all.
    write_rows(tmp_path / "test.jsonl", [rows[row] for row in names])
    assert multilabel(data=str(tmp_path), max_texts=0)(embed_toy) == sample


def test_a_text_without_labels_that_is_given_none_is_correct():
    marks = np.array([[0, 0], [1, 1]])
    scores = multiple_labels.score_label_sets(marks, np.array([[0, 0], [1, 0]]))
    assert scores["accuracy"] == 50 and scores["hamming"] == 75


def test_clustering_scores_as_in_mteb(tmp_path):
    path = write_rows(tmp_path / "test.jsonl", label_rows("k", 300))
    evaluator = clustering(data=path, texts_per_repetition=200)
    scores = evaluator(embed_toy)
    check_scores(scores, v_measure=0.267483, v_measure_std=0.038975, ami=0.247686)
    assert evaluator(embed_toy) == scores  # the generator begins anew
    assert scores.item_values is None


def test_clusters_of_several_levels_are_averaged(tmp_path):
    rows = [
        {"sentences": row["text"], "labels": [row["label"] % 2, row["label"]]}
        for row in label_rows("k", 60)
    ]
    del rows[7]["labels"][1]  # it does not count at the second level
    path = write_rows(tmp_path / "test.jsonl", rows)
    evaluator = clustering(data=path, texts_per_repetition=50, repetitions=2)
    scores = evaluator(embed_toy)
    assert len(scores["levels"]) == 2
    assert np.mean(scores["levels"]) == pytest.approx(scores["main_score"])
    assert scores["levels"][0] != scores["levels"][1]


def test_sets_of_texts_are_clustered_as_in_mteb(tmp_path):
    rows = [
        {
            "sentences": [f"{HEADS[i % 5]}|L{j}_{i}" for i in range(100)],
            "labels": [i % 5 for i in range(100)],
        }
        for j in range(2)
    ]
    path = write_rows(tmp_path / "test.jsonl", rows)
    scores = clustering(data=path)(embed_toy)
    check_scores(scores, main_score=0.254636, v_measure_std=0.057214)
    check_items(scores)
    single = {"sentences": ["a|1", "b|2"], "labels": [3, 3]}
    path = write_rows(tmp_path / "test.jsonl", [*rows, single])
    assert clustering(data=path)(embed_toy).item_values.values[0][2] == 100


def test_pair_classification_scores_as_in_mteb(tmp_path):
    path = write_rows(tmp_path / "test.jsonl", pair_rows(100))
    scores = pair_classification(data=path)(embed_toy)
    check_scores(scores, main_score=0.617087, ap=0.617087, accuracy=0.75)
    by_similarity = scores["similarities"]
    check_scores(
        by_similarity["cosine"],
        accuracy=0.73,
        f1=0.666667,
        precision=0.507692,
        recall=0.970588,
    )
    for name, ap in (
        ("manhattan", 0.614575),
        ("euclidean", 0.589146),
        ("dot", 0.60199),
    ):
        check_scores(by_similarity[name], ap=ap)
    check_items(scores)
    # Old data sets hold all pairs in one row.
    columns = ("sentence1", "sentence2", "label")
    lists = {name: [row[name] for row in pair_rows(100)] for name in columns}
    lists["labels"] = lists.pop("label")
    path = write_rows(tmp_path / "lists.jsonl", [lists])
    assert pair_classification(data=path)(embed_toy) == scores


def test_no_threshold_separates_equal_similarities():
    labels = np.array([1, 0, 0, 0])
    scores = pair_metrics(np.ones(4, "f4"), labels)
    assert scores == {"ap": 25, "accuracy": 0, "f1": 0, "precision": 0, "recall": 0}


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        similarity = rng.integers(0, 9, 30) / 9  # with ties
        labels = rng.integers(0, 2, 30)
        expected = 100 * average_precision_score(labels, similarity)
        assert average_precision(similarity, labels) == pytest.approx(expected)


def test_sts_scores_as_in_mteb(tmp_path):
    write_rows(tmp_path / "test.jsonl", pair_rows(60))
    scores = sts(data=str(tmp_path))(embed_toy)
    check_scores(scores, main_score=0.239868, spearman=0.239868, pearson=0.288744)
    by_similarity = scores["similarities"]
    check_scores(by_similarity["euclidean"], spearman=0.273991)
    check_scores(by_similarity["manhattan"], spearman=0.361335)
    check_items(scores)
    manhattan = sts(data=str(tmp_path), similarity="manhattan")(embed_toy)
    check_scores(manhattan, main_score=0.361335)


def test_scores_of_two_ranges_are_refused(tmp_path):
    rows = [row | {"score": 1.25 * (row["score"] - 1)} for row in pair_rows(60)]
    expected = sts(data=write_rows(tmp_path / "a.jsonl", rows))(embed_toy)
    for place, small in (("first", range(25)), ("last", range(35, 60))):
        mixed = [
            row | {"score": row["score"] / (5 if i in small else 1)}
            for i, row in enumerate(rows)
        ]
        with pytest.raises(
            ValueError, match=f"the {place} 2[5-9] scores are in 0 ... [01]"
        ):
            sts(data=write_rows(tmp_path / "mixed.jsonl", mixed))
    # Neither a range of small scores nor sorted ones are two ranges.
    scaled = [row | {"score": row["score"] / 5} for row in rows]
    scores = sts(data=write_rows(tmp_path / "scaled.jsonl", scaled))(embed_toy)
    assert scores["spearman"] == pytest.approx(expected["spearman"])
    ordered = sorted(rows, key=lambda row: row["score"])
    for order in (ordered, ordered[::-1]):
        sts(data=write_rows(tmp_path / "sorted.jsonl", order))


def test_items_have_the_groups_of_their_rows(tmp_path):
    rows = [row | {"group": f"d{i // 3}"} for i, row in enumerate(pair_rows(12))]
    rows[-1].pop("group")
    groups = [*(f"d{i // 3}" for i in range(11)), "pairs.jsonl:11 alone"]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    for task in (sts, pair_classification):
        assert task(data=path)(embed_toy).item_values.groups == groups
    path = write_rows(tmp_path / "pairs.jsonl", pair_rows(12))
    assert sts(data=path)(embed_toy).item_values.groups is None
    # Queries may be in another order than their judgments.
    corpus, queries, qrels, candidates = ranking_data()
    write_beir(tmp_path, corpus, queries, dict(reversed(qrels.items())))
    rows = [
        {"_id": name, "text": text, "group": f"of {name}"}
        for name, text in queries.items()
    ]
    write_rows(tmp_path / "queries.jsonl", rows)
    ranked = [{"query-id": q, "corpus-ids": ids} for q, ids in candidates.items()]
    write_rows(tmp_path / "top_ranked.jsonl", ranked)
    for task in (retrieval, reranking):
        items = task(data=str(tmp_path))(embed_toy).item_values
        assert items.groups == [f"of {name}" for name in items.names]
    # Texts, with one label or several
    for name, count in (("train", 60), ("test", 20)):
        rows = [
            row | {"group": i % 4, "many": [row["label"]]}
            for i, row in enumerate(label_rows("x", count))
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    items = classification(data=str(tmp_path))(embed_toy).item_values
    assert items.groups == [str(i % 4) for i in range(20)]
    items = multilabel(data=str(tmp_path), label="many")
    assert items(embed_toy).item_values.groups == [str(i % 4) for i in range(20)]


def test_groups_are_those_of_the_items_that_are_left(tmp_path):
    lists = {name: [row[name] for row in pair_rows(4)] for name in pair_rows(1)[0]}
    path = write_rows(tmp_path / "lists.jsonl", [lists | {"group": [*"aabb"]}])
    items = pair_classification(data=path)(embed_toy).item_values
    assert items.groups == [*"aabb"]
    # A query without negatives, and a text whose grades are equal, are left out.
    rows = [
        {"query": "q", "positive": ["a"], "negative": [*"cd"[:i]], "group": f"g{i}"}
        for i in range(3)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert reranking(data=path)(embed_toy).item_values.groups == ["g1", "g2"]
    rows = [row | {"group": f"g{i}"} for i, row in enumerate(summary_rows())]
    rows[1] |= {"relevance": [1] * 6}
    path = write_rows(tmp_path / "summaries.jsonl", rows)
    items = summarization(data=path)(embed_toy).item_values
    assert items.groups == ["g0", *(f"g{i}" for i in range(2, 10))]
    # Files of translations may share groups, such as a sentence's translations.
    row = {"sentence1": "b|1", "sentence2": "b|2"}
    write_rows(tmp_path / "languages" / "de.jsonl", [row | {"group": "s"}, row])
    write_rows(tmp_path / "languages" / "fr.jsonl", [row | {"group": "s"}] * 2)
    write_rows(tmp_path / "languages" / "it.jsonl", [row])
    items = bitext_mining(data=str(tmp_path / "languages"))(embed_toy).item_values
    assert items.groups == ["s", "de.jsonl:1 alone", "s", "s", "it.jsonl:0 alone"]


def test_bitext_mining_scores_as_in_mteb(tmp_path):
    rows = [{"sentence1": f"b{i}|en", "sentence2": f"b{i}|de"} for i in range(60)]
    path = write_rows(tmp_path / "eng-deu.jsonl", rows)
    scores = bitext_mining(data=path)(embed_toy)
    check_scores(scores, main_score=0.072222, precision=0.066667, accuracy=0.083333)
    check_items(scores)
    # A folder has a file for each pair of languages, which count the same.
    with gzip.open(tmp_path / "eng-eng.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"sentence1": x, "sentence2": x}) for x in "a"))
    both = bitext_mining(data=str(tmp_path))(embed_toy)
    assert both["files"] == {"eng-deu": scores["f1"], "eng-eng": 100}
    assert both["main_score"] == pytest.approx((scores["f1"] + 100) / 2)
    check_items(both)
    # Rows keep their own F1; a file with fewer rows gives them more weight.
    f1, weights = both.item_values.values
    assert f1.max() <= 100 and weights[-1] == 60 * weights[0]
    interval = bitext_mining(data=str(tmp_path), samples=200)(embed_toy)
    assert interval["low"] < both["main_score"] < interval["high"]


def test_files_of_translations_have_names_of_their_own(tmp_path):
    for name in ("set.deu-eng.jsonl", "set.fra-eng.jsonl", ".hidden.jsonl"):
        write_rows(tmp_path / name, [{"sentence1": "b|1", "sentence2": "b|2"}] * 2)
    scores = bitext_mining(data=str(tmp_path))(embed_toy)
    assert list(scores["files"]) == ["set.deu-eng", "set.fra-eng"]
    write_rows(tmp_path / "set.fra-eng.json", [{"sentence1": "b", "sentence2": "b"}])
    with pytest.raises(ValueError, match="have the same name 'set.fra-eng'"):
        bitext_mining(data=str(tmp_path))
    with pytest.raises(ValueError, match="'euclidean'; allowed: cosine, dot"):
        bitext_mining(data=str(tmp_path), similarity="euclidean")


def test_a_row_that_is_found_twice_costs_f1():
    scores = bitext.score_matches(np.array([0, 0, 2, 3, 3]))
    means = {name: values.mean() for name, values in scores.items()}
    check_scores(means, f1=0.466667, precision=0.4, accuracy=0.6)


def test_retrieval_scores_as_in_mteb():
    corpus, queries, qrels, _ = ranking_data()
    metrics = ("ndcg@10", "map@10", "map@1000", "recall@10", "precision@10")
    metrics += ("hit_rate@1", "mrr@10")
    evaluator = ranking(corpus, queries, qrels, metrics=metrics, abstention=True)
    scores = evaluator(embed_toy)
    expected = dict(
        zip(metrics, (0.19071, 0.11174, 0.20624, 0.195, 0.195), strict=False)
    )
    for name, value in (expected | {"hit_rate@1": 0.25, "mrr@10": 0.43006}).items():
        assert scores[name] == pytest.approx(100 * value, abs=1e-3), name
    check_scores(scores, nauc_max=0.039867, nauc_std=0.136933, nauc_diff1=0.045618)
    check_items(scores)
    run = scores.item_values.make_run()
    assert run.keys() == queries.keys() and len(run["q0"]) == 200
    assert ranking_scores(qrels, run)["ndcg@10"] == scores["main_score"]


def test_metrics_of_rankings_have_a_kind_and_a_number():
    assert parse_metric("hit_rate@5") == ("hit_rate", 5)
    for name in ("ndcg", "ndcg@", "ndcg@0", "f1@10", "ndcg@1.5"):
        with pytest.raises(ValueError, match=f"metric '{name}' is unknown; write ndcg"):
            parse_metric(name)
    with pytest.raises(ValueError, match="no metric; name one, such as ndcg@10"):
        ranking({"d": "d"}, {"q": "q"}, {"q": {"d": 1}}, metrics=())


def test_scores_are_compared_in_single_precision_as_trec_eval_does():
    qrels = {"q": {"a": 1}}
    run = {"q": {"a": 1 + 1e-10, "b": 1.0}}
    assert query_scores(qrels, run, ("mrr@10",))["mrr@10"] == 50
    graded = query_scores(
        {"q": {"a": 2, "b": 1}}, {"q": {"c": 3.0, "a": 2.0, "b": 1.0}}
    )
    assert graded["ndcg@10"] == pytest.approx(66.9672, abs=1e-4)


def test_reranking_scores_as_in_mteb(tmp_path):
    corpus, queries, qrels, ranked = ranking_data()
    write_beir(tmp_path, corpus, queries, qrels)
    rows = [{"query-id": q, "corpus-ids": ids} for q, ids in ranked.items()]
    write_rows(tmp_path / "top_ranked.jsonl", rows)
    metrics = ("map@1000", "ndcg@10", "mrr@1000")
    scores = reranking(data=str(tmp_path), metrics=metrics)(embed_toy)
    for name, value in zip(metrics, (0.45875, 0.38622, 0.725833), strict=True):
        assert scores[name] == pytest.approx(100 * value, abs=1e-3)
    check_items(scores)
    assert scores.item_values.make_run().keys() == queries.keys()
    with pytest.raises(ValueError, match="no metric; name one, such as ndcg@10"):
        reranking(data=str(tmp_path), metrics=())


def test_of_equal_candidates_the_negatives_come_first(tmp_path):
    rows = [
        {"query": "q", "positive": ["a", "b"], "negative": ["c"]},
        {"query": "r", "positive": [], "negative": ["c"]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    evaluator = reranking(data=path, metrics=("mrr@10",))
    assert evaluator(lambda texts, role: np.ones((len(texts), 2)))["mrr@10"] == 50


def test_summarization_scores_as_in_mteb(tmp_path):
    path = write_rows(tmp_path / "test.jsonl", summary_rows())
    scores = summarization(data=path)(embed_toy)
    check_scores(
        scores, main_score=0.462857, cosine_pearson=0.524509, dot_spearman=0.428571
    )
    check_items(scores)
    # A text whose grades are all equal is left out.
    rows = [*summary_rows(), summary_rows()[0] | {"relevance": [3] * 6}]
    path = write_rows(tmp_path / "test.jsonl", rows)
    assert summarization(data=path)(embed_toy) == scores


def text_row(**fields):
    return {"text": "t", "label": "x"} | fields


def pair_row(**fields):
    return {"sentence1": "a", "sentence2": "b", "label": 1, "score": 1} | fields


def candidate_rows(**fields):
    return [{"query-id": "q0", "corpus-ids": ["d0"]} | fields]


SUMMARY = summary_rows()[0]
BAD_ROWS = [
    (
        "clustering",
        [text_row(), text_row()],
        "all texts have the label x; a clustering",
    ),
    (
        "clustering",
        [text_row(label=x) for x in ([1], [2, 5], [2, 5])],
        "all texts have the label 5 at level 1",
    ),
    ("clustering", [text_row(label=-1)], "no text has a label; a clustering needs two"),
    ("clustering", [text_row(label=None)], "line 1: label is null, not a text or a w"),
    ("clustering", [text_row(text=["a"], label=[])], "has 1 texts and 0 labels"),
    ("clustering", [text_row(), text_row(text=["a"], label=["b"])], "rows of one text"),
    (
        "clustering",
        [text_row(text=["a"], label=["b"])],
        "no set of texts has two label",
    ),
    ("pair_classification", [pair_row(), pair_row()], "all 2 pairs have the label 1"),
    (
        "pair_classification",
        [pair_row(label=3.8)],
        "line 1: the label is 3.8, not 0 or",
    ),
    (
        "pair_classification",
        [pair_row(), pair_row(label=float("nan"))],
        "line 2: .*NaN",
    ),
    (
        "sts",
        [pair_row(), pair_row(score=float("nan"))],
        "line 2: score is NaN, not a fi",
    ),
    ("bitext_mining", [{"sentence1": "a"}], "line 1: no column sentence2; found sente"),
    ("summarization", [SUMMARY | {"relevance": [1.0]}], "has 1 grades for 6 machine"),
    (
        "summarization",
        [SUMMARY | {"relevance": [float("nan")] * 6}],
        "line 1: rel.*NaN",
    ),
    (
        "reranking",
        [{"query": "q", "positive": ["a"], "negative": []}],
        "no query with p",
    ),
]


@pytest.mark.parametrize("task, rows, message", BAD_ROWS)
def test_a_file_that_has_no_score_is_refused_in_a_sentence(
    tmp_path, task, rows, message
):
    from research.eval.evaluators import EVALS

    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        EVALS[task](data=path)


def test_labels_that_cannot_be_learned_are_refused_or_noted(tmp_path, capsys):
    def build(train, test):
        write_rows(tmp_path / "train.jsonl", [text_row(label=x) for x in train])
        write_rows(tmp_path / "test.jsonl", [text_row(label=x) for x in test])
        return classification(data=str(tmp_path))

    with pytest.raises(
        ValueError, match="train.jsonl: all texts have the label 'x'; a"
    ):
        build("xx", "xy")
    build("x" * 8 + "yw", "xyz")
    notes = capsys.readouterr().err
    assert "test.jsonl: 1 of 3 labels have no text in" in notes
    assert "such as 'z'; they are never predicted" in notes
    assert "2 of 3 labels have fewer than 8 texts, such as 'y' with 1" in notes
    assert "1 of 3 labels have no text in" in notes and "such as 'w'\n" in notes
    with pytest.raises(ValueError, match="is a file; a classification needs a folder"):
        classification(data=str(tmp_path / "train.jsonl"))
    with pytest.raises(ValueError, match="'train', which a classification learns from"):
        classification(data=str(tmp_path), split="train")
    with pytest.raises(
        FileNotFoundError, match="no .*dev.jsonl.*; found test.jsonl, tr"
    ):
        classification(data=str(tmp_path), split="dev")
    write_rows(tmp_path / "test.json", [text_row()])
    with pytest.raises(
        ValueError, match="holds test.jsonl and test.json; name the file"
    ):
        classification(data=str(tmp_path))


@pytest.mark.parametrize(
    "task, rows",
    [
        ("clustering", label_rows("k", 4)),
        ("pair_classification", pair_rows(4)),
        ("reranking", [{"query": "q", "positive": ["a"], "negative": ["c"]}]),
        ("sts", pair_rows(4)),
        ("summarization", [SUMMARY]),
    ],
)
def test_a_file_has_no_split_of_another_name(tmp_path, task, rows):
    from research.eval.evaluators import EVALS

    path = write_rows(tmp_path / "test.jsonl", rows)
    with pytest.raises(ValueError, match="test.jsonl is a file, which has no split 'd"):
        EVALS[task](data=path, split="dev")
    dev = write_rows(tmp_path / "dev.jsonl", rows)
    EVALS[task](data=dev, split="dev")
    EVALS[task](data=dev)


def test_too_few_texts_for_a_vote_are_refused(tmp_path):
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", multilabel_rows("m", 4))
    with pytest.raises(ValueError, match="4 texts are drawn .*; the vote needs 5"):
        multilabel(data=str(tmp_path))
    write_rows(tmp_path / "test.jsonl", [text_row(labels=[])])
    with pytest.raises(ValueError, match="test.jsonl: no text has a label"):
        multilabel(data=str(tmp_path))
    write_rows(tmp_path / "train.jsonl", multilabel_rows("m", 40))
    write_rows(tmp_path / "test.jsonl", [text_row(labels=["x"])] * 2)
    with pytest.raises(ValueError, match="the only label is .x.; a classification ne"):
        multilabel(data=str(tmp_path))
    with pytest.raises(ValueError, match="is a file; a classification needs a folder"):
        multilabel(data=str(tmp_path / "test.jsonl"))


@pytest.mark.parametrize(
    "rows, message",
    [
        (candidate_rows(), "no documents for 19 of 20 queries, such as 'q1'"),
        (candidate_rows(**{"corpus-ids": ["d0", "d7x"]}), "line 1: .* has no 'd7x'"),
        (candidate_rows() * 2, "line 2: query 'q0' occurs twice"),
    ],
)
def test_a_query_without_documents_is_refused(tmp_path, rows, message):
    corpus, queries, qrels, _ = ranking_data()
    write_beir(tmp_path, corpus, queries, qrels)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*top_ranked.jsonl"):
        reranking(data=str(tmp_path))
    write_rows(tmp_path / "top_ranked.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        reranking(data=str(tmp_path))


def test_queries_without_a_relevant_document_are_noted_or_refused(tmp_path, capsys):
    corpus, queries, qrels, _ = ranking_data()
    write_beir(tmp_path, corpus, queries, qrels | {"q1": {"d1": 0}})
    retrieval(data=str(tmp_path))
    note = "1 of 20 queries have no relevant document, such as 'q1'; they score 0"
    assert note in capsys.readouterr().err
    write_beir(tmp_path, corpus, queries, {"q1": {"d1": 0, "d2": -1}})
    with pytest.raises(ValueError, match="no query has a relevant document"):
        retrieval(data=str(tmp_path))
    assert "19 of 20 queries have no grades in test.tsv" in capsys.readouterr().err


def test_summaries_without_a_difference_are_refused(tmp_path):
    path = write_rows(tmp_path / "test.jsonl", [SUMMARY | {"relevance": [1] * 6}])
    with pytest.raises(
        ValueError, match="every text has machine summaries of equal grades"
    ):
        summarization(data=path)(embed_toy)


def test_similarities_that_are_not_finite_are_refused(tmp_path):
    path = write_rows(tmp_path / "test.jsonl", pair_rows(6))
    with pytest.raises(ValueError, match="the similarity of pair 0 is not finite"):
        pair_classification(data=path)(lambda t, role: np.full((len(t), 2), np.nan))


def test_equal_candidates_and_summaries_have_equal_scores(tmp_path):
    """A matrix product rounds by the position of a row, which would break ties."""
    rng = np.random.default_rng(0)
    vector = rng.normal(size=384).astype("f4")

    def embed(texts, role):
        return np.array([vector if t[0] == "m" else vector * 0.3 + 1 for t in texts])

    negatives = [f"m{i}" for i in range(30)]
    rows = [{"query": "q", "positive": ["m"], "negative": negatives}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    run = reranking(data=path)(embed).item_values.make_run()
    assert len(set(run["query0"].values())) == 1
    summaries = SUMMARY | {
        "machine_summaries": ["m"] * 31 + ["x"],
        "human_summaries": ["q"],
        "relevance": [i % 2 for i in range(32)],
    }
    path = write_rows(tmp_path / "test.jsonl", [summaries])
    scores = summarization(data=path)(embed)
    grades = summaries["relevance"]
    expected = 100 * np.corrcoef(grades, [1] * 31 + [2])[0, 1]
    assert abs(scores["cosine_spearman"]) == pytest.approx(abs(expected))

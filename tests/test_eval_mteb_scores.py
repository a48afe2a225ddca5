"""Our scores of each type of task are those of the installed mteb on the same files."""

import numpy as np
import pytest
from test_eval_tasks import (
    embed_toy,
    label_rows,
    multilabel_rows,
    pair_rows,
    ranking_data,
    summary_rows,
    write_beir,
    write_rows,
)

from research.eval.evaluators import EVALS
from research.eval.suites.mteb_tasks import (
    convert_arguments,
    hash_data,
    make_mteb_task,
)
from research.interop.mteb import make_mteb_model

RANKING_METRICS = tuple(
    f"{kind}@{k}"
    for kind in ("ndcg", "map", "recall", "precision", "hit_rate", "mrr")
    for k in (1, 10, 1000)
)


def write_splits(folder, rows):
    for split, letters, count in (("train", "tr", 120), ("test", "te", 100)):
        write_rows(folder / f"{split}.jsonl", rows(letters, count))


def write_search(folder, ranked):
    *data, candidates = ranking_data()
    write_beir(folder, *data)
    if ranked:
        rows = [{"query-id": q, "corpus-ids": ids} for q, ids in candidates.items()]
        write_rows(folder / "top_ranked.jsonl", rows)


def write_levels(folder):
    rows = label_rows("k", 300)
    levels = [row | {"label": [row["label"] % 2, row["label"]]} for row in rows]
    del levels[3]["label"][1]
    write_rows(folder / "test.jsonl", levels)


def write_named_levels(folder):
    rows = label_rows("k", 300)
    levels = [
        row | {"label": [f"x{row['label'] % 2}", f"y{row['label']}"]} for row in rows
    ]
    del levels[3]["label"][1]
    write_rows(folder / "test.jsonl", levels)


def write_sets(folder):
    rows = [label_rows(f"L{j}_", 60 + j) for j in range(3)]
    sets = [{k: [r[k] for r in members] for k in ("text", "label")} for members in rows]
    write_rows(folder / "test.jsonl", sets)


def write_bitext(folder):
    rows = [{"sentence1": f"b{i}|en", "sentence2": f"b{i}|de"} for i in range(60)]
    write_rows(folder / "test.jsonl", rows)


def rename_ranking(scores):
    """mteb's names of the metrics of a ranking."""
    names = {name: name.replace("@", "_at_") for name in RANKING_METRICS}
    main = names[RANKING_METRICS[1]]
    nauc = {f"nauc_{main}_{kind}": f"nauc_{kind}" for kind in ("max", "std", "diff1")}
    return {theirs: scores[ours] for ours, theirs in names.items()} | {
        theirs: scores[ours] for theirs, ours in nauc.items()
    }


def rename_similarities(scores):
    return {
        f"{similarity}_{name}": value
        for similarity, values in scores["similarities"].items()
        for name, value in values.items()
    }


def rename_pairs(scores):
    best = {f"max_{n}": scores[n] for n in ("ap", "accuracy", "f1", "precision")}
    return rename_similarities(scores) | best


def rename_sts(scores):
    """mteb has no dot product but as the similarity of a model."""
    renamed = rename_similarities(scores)
    return {name: x for name, x in renamed.items() if not name.startswith("dot")}


def rename_scores(scores):
    return {
        name: value
        for name, value in scores.items()
        if name not in ("main_score", "experiments", "levels", "files")
    }


SEARCH = {"metrics": (RANKING_METRICS[1], *RANKING_METRICS), "abstention": True}
CASES = {
    "classification": (lambda f: write_splits(f, label_rows), rename_scores, {}),
    "classification-few": (
        lambda f: write_splits(f, label_rows),
        rename_scores,
        {"samples_per_label": 4, "experiments": 3},
    ),
    "multilabel": (lambda f: write_splits(f, multilabel_rows), rename_scores, {}),
    "multilabel-sample": (
        lambda f: write_splits(f, multilabel_rows),
        rename_scores,
        {"max_texts": 60},
    ),
    "clustering-levels": (write_levels, rename_scores, {"texts_per_repetition": 200}),
    "clustering-names": (
        write_named_levels,
        rename_scores,
        {"texts_per_repetition": 200, "repetitions": 3, "max_texts": 250},
    ),
    "clustering-sets": (write_sets, rename_scores, {}),
    "pair_classification": (
        lambda f: write_rows(f / "test.jsonl", pair_rows(100)),
        rename_pairs,
        {},
    ),
    "sts": (lambda f: write_rows(f / "test.jsonl", pair_rows(60)), rename_sts, {}),
    "bitext_mining": (write_bitext, rename_scores, {}),
    "retrieval": (lambda f: write_search(f, ranked=False), rename_ranking, SEARCH),
    "reranking": (lambda f: write_search(f, ranked=True), rename_ranking, SEARCH),
    "summarization": (
        lambda f: write_rows(f / "test.jsonl", summary_rows()),
        rename_scores,
        {},
    ),
}


def test_results_of_other_arguments_or_files_are_not_taken(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", label_rows("k", 4))
    fields = {"data": path, "max_texts": 3}
    first = hash_data(fields)
    assert first == hash_data(dict(reversed(fields.items())))
    assert first != hash_data(fields | {"max_texts": 4}) != hash_data({"data": path})
    write_rows(tmp_path / "a.jsonl", label_rows("k", 5))
    assert first != hash_data(fields)


def test_arguments_are_those_of_mteb_or_refused():
    fields = {"data": "x", "max_texts": 9, "repetitions": 2, "samples": 5}
    assert convert_arguments("clustering", "mine", fields) == {
        "n_clusters": 2,
        "max_document_to_embed": 9,
        "max_fraction_of_documents_to_embed": None,
    }
    for fields, message in (
        ({"queries": 5}, "mine: queries of retrieval has no counterpart in mteb"),
        ({"max_texts": 5}, "retrieval has no argument max_texts"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_arguments("retrieval", "mine", {"data": "x", **fields})


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_mteb(tmp_path, case):
    mteb = pytest.importorskip("mteb")
    write, rename, arguments = CASES[case]
    write(tmp_path)
    kind = case.partition("-")[0]
    data = str(tmp_path / "test.jsonl" if kind == "bitext_mining" else tmp_path)
    ours = rename(EVALS[kind](data=data, **arguments)(embed_toy))
    if kind in ("retrieval", "reranking"):
        arguments = {}  # mteb has all metrics
    task = make_mteb_task(kind, "Local", data=data, **arguments)
    model = make_mteb_model(embed_toy, name="a/toy", revision="1", dim=16)
    result = mteb.evaluate(model, [task], cache=None, show_progress_bar=False)
    (theirs,) = result.task_results[0].scores["test"]
    compared = {name: value for name, value in ours.items() if name in theirs}
    assert len(compared) >= max(2, len(ours) - 1), ours.keys()
    for name, value in compared.items():
        assert value == pytest.approx(100 * theirs[name], abs=5e-3), name
    assert np.isfinite(list(compared.values())).all()


def test_the_texts_of_a_large_multilabel_split_are_those_of_mteb():
    split = pytest.importorskip("mteb.abstasks._stratification")
    from sklearn.preprocessing import MultiLabelBinarizer

    from research.eval.tasks.stratification import sample_stratified

    rng = np.random.default_rng(0)
    for kind in (int, str):
        labels = [
            [kind(x) for x in rng.permutation(12)[: rng.integers(0, 4)]]
            for _ in range(400)
        ]
        matrix = MultiLabelBinarizer().fit_transform(labels)
        rows = np.arange(400)[:, None]
        _, expected = split._iterative_train_test_split(rows, matrix, 90 / 400, 42)
        assert sample_stratified(labels, 90, 42) == expected.tolist()

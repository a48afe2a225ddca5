import numpy as np
from matplotlib.figure import Figure

from research.analysis.diagnostics.free_embeddings import (
    find_critical_count,
    predict_critical_count,
    train_free_embeddings,
)
from research.analysis.diagnostics.limit import list_limit, plot_limit


def test_free_embeddings_of_enough_dimensions_find_all_pairs():
    assert train_free_embeddings(5, 5) == 1
    assert train_free_embeddings(6, 2, size=1) == 1  # points on a circle
    assert train_free_embeddings(8, 2, max_steps=500) < 1


def test_the_critical_number_of_documents():
    count, accuracies = find_critical_count(3)
    assert accuracies[count] == 1 and accuracies[count + 1] < 1
    assert min(accuracies) >= 3 and max(accuracies) == count + 5


def test_the_published_fit():
    millions = [predict_critical_count(d) / 1e6 for d in (512, 768, 1024, 4096)]
    np.testing.assert_allclose(millions, [0.51, 1.7, 4.0, 255], rtol=0.02)


def test_the_page_of_limit_with_and_without_free_embeddings(monkeypatch, tmp_path):
    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: pictures.append(self))
    scores = {"recall@2": 1.0, "recall@10": 3.0, "bm25": 99.0}
    record = {"documents": 46, "dims": [2, 4], "scores": [scores, scores]}
    for critical, fit in (({"4": 9, "6": 19}, {"4": 7.0, "6": 16.0}), ({}, {})):
        record |= {"critical": critical, "published": fit}
        header, *rows = list_limit(record)
        assert {len(row) for row in rows} == {len(header)}
        assert [row[0] for row in rows] == ["2", "4", *list(critical)[1:], "BM25"]
        plot_limit(record, "a title", tmp_path / "limit.png")
        lines = [len(axes.get_lines()) for axes in pictures[-1].axes]
        assert lines == ([3, 2] if critical else [3])

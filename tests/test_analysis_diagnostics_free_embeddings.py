import numpy as np

from research.analysis.diagnostics.free_embeddings import (
    find_critical_count,
    predict_critical_count,
    train_free_embeddings,
)


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

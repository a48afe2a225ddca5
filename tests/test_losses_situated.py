"""The loss of a model next to a frozen baseline, and that of texts and their chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses_distillation import compute, differentiate, teacher_labels, texts, unit


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_are_added_to_a_baselines(similarity):
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    if similarity == "cosine":
        q1, d1, q2, d2 = map(unit, (q, d, tq, td))
    else:
        q1, d1, q2, d2 = q, d, tq, td
    expected = []
    for i in range(5):
        logits = [
            (q1[i] @ d1[j] + q2[i] @ d2[j]) / (0.5 if similarity == "cosine" else 5.0)
            for j in range(15)
        ]
        expected.append(np.log(np.sum(np.exp(logits))) - logits[3 * i])
    temperature = 0.5 if similarity == "cosine" else 5.0
    loss = compute("situated", q, d, labels, similarity, temperature=temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_model_of_zeros_has_the_loss_of_the_baseline():
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    zeros = np.zeros_like(q), np.zeros_like(d)
    loss = compute("situated", *zeros, labels, temperature=0.5)
    alone = compute("infonce", tq, td, labels, temperature=0.5)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)


def test_the_baseline_gets_no_gradient():
    q, d = texts(0)
    labels, tq, td = teacher_labels()

    def loss(tq):
        changed = labels._replace(query_vector=tq)
        return differentiate("situated", q, d, changed, temperature=0.5)[0]

    assert not np.any(jax.grad(loss)(jnp.asarray(tq)))
    assert np.any(differentiate("situated", q, d, labels)[1][0])


def test_texts_and_chunks_have_a_matrix_each():
    """Stella's losses of cosines and similarities, for both granularities of Dewey."""
    q, d = texts(0, ways=2)
    labels, tq, td = teacher_labels(ways=2, width=6)
    options = {"relative_weight": 0.0, "sides_apart": True}
    expected = 0.0
    for student, teacher in ((q, tq), (d, td)):
        s, t = unit(student), unit(teacher)
        n = len(s)
        errors = [(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in range(n) for j in range(n)]
        expected += 10 * np.mean(1 - np.sum(s * t, 1)) + 200 * np.mean(errors)
    np.testing.assert_allclose(
        compute("stella", q, d, labels, **options), expected, rtol=1e-5
    )
    # One chunk that is the full text: the loss of the chunks is that of the texts
    labels = labels._replace(document_vector=labels.query_vector)
    joint = compute("stella", q, q, labels, relative_weight=0.0, similarity_weight=0.0)
    one = compute("stella", q, q, labels, **options | {"similarity_weight": 0.0})
    np.testing.assert_allclose(one, 2 * joint, rtol=1e-5)

"""The loss of a model next to a frozen baseline, and that of BGE-M3's three scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses_distillation import compute, differentiate, teacher_labels, texts, unit

from research import sharding
from research.inference.row_kinds import score_m3
from research.losses.late_interaction import score_parts
from research.losses.registry import build_loss
from research.losses.similarity import SIMILARITIES, cosine
from research.losses.summed_scores import combine_losses
from research.transforms.token_rows import join_rows
from research.types import Labels, MultiVectors

# Dense, sparse and multi-vector scores of two queries and their documents
PARTS = np.array(
    [[[0.8, 0.5], [0.4, 0.7]], [[0.3, 0.1], [0, 0.2]], [[0.7, 0.6], [0.5, 0.6]]], "f4"
)


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


def draw(seed, texts, tokens, width=6):
    """Rows [N, T, D + 4] of texts of 3 ... T tokens, with repeated ids beyond 256."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, tokens + 1, texts)
    vectors = rng.normal(size=(texts, tokens, width))
    weights = np.maximum(rng.normal(size=(texts, tokens)), 0)
    weights[:, 0] = 0
    ids = 250_000 + rng.integers(0, 4, weights.shape)
    rows = np.asarray(join_rows(ids[..., None], weights[..., None], vectors))
    rows = rows * (np.arange(tokens) < lengths[:, None])[..., None]
    return rows.astype("f4"), lengths


def define_parts(q, d, lengths, others):
    """The three scores, text by text and token by token."""
    scores = np.zeros((3, len(q), len(d)))
    for i, query in enumerate(q):
        for j, document in enumerate(d):
            a, b = query[: lengths[i]], document[: others[j]]
            x, y = unit(a[:, :-4]), unit(b[:, :-4])
            scores[0, i, j] = x[0] @ y[0]
            # {id: largest weight}
            tables = [{}, {}]
            for table, rows in zip(tables, (a, b), strict=True):
                for weight, *digits in rows[:, -4:]:
                    table[tuple(digits)] = max(table.get(tuple(digits), 0), weight)
            scores[1, i, j] = sum(w * tables[1].get(n, 0) for n, w in tables[0].items())
            scores[2, i, j] = np.mean([(y[1:] @ v).max() for v in x[1:]])
    return scores


def test_scores_are_their_definitions_in_training_and_in_search():
    (q, lengths), (d, others) = draw(0, 4, 7), draw(1, 8, 9)
    want = define_parts(q, d, lengths, others)
    got = score_parts(jnp.asarray(q), jnp.asarray(d), score=cosine)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    total = want[0] + 0.3 * want[1] + want[2]
    np.testing.assert_allclose(SIMILARITIES["m3"](q, d), total, rtol=1e-5, atol=1e-5)
    sides = [
        MultiVectors(
            np.concatenate([x[:n] for x, n in zip(rows, counts, strict=True)]),
            np.cumsum([0, *counts]),
        )
        for rows, counts in ((q, lengths), (d, others))
    ]
    np.testing.assert_allclose(score_m3(*sides), total, rtol=1e-5, atol=1e-5)
    # Ids are exact in half of the precision
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, d)]
    got = score_parts(*half, score=cosine)
    np.testing.assert_allclose(got, want, atol=0.05, rtol=0.02)


def test_vectors_of_another_pooling_are_refused():
    texts = MultiVectors(np.full((3, 8), 0.5, "f4"), np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="these vectors are not those of the pooling"):
        score_m3(texts, texts)
    loss = build_loss({"name": "m3"}, "cosine")
    with pytest.raises(ValueError, match="the loss m3 needs similarity 'm3' and pool"):
        loss(jnp.ones((2, 8)), jnp.ones((2, 8)), Labels())


@pytest.mark.parametrize(
    "temperature, distill, want",
    [
        (1.0, False, 0.436983),
        (1.0, True, 0.455342),
        (0.02, False, 0.001680049),
        (0.02, True, 0.001960057),
    ],
)
def test_values_of_the_authors_code(temperature, distill, want):
    parts = [jnp.asarray(x) for x in PARTS]
    parts.append(parts[0] + 0.3 * parts[1] + parts[2])
    logits = [x / temperature for x in parts]
    losses = [jax.nn.logsumexp(x, axis=1) - jnp.diag(x) for x in logits]
    loss = combine_losses(losses, logits, 0.1, distill=distill).mean()
    assert float(loss) == pytest.approx(want, rel=2e-4)


def test_the_loss_is_the_sum_of_its_terms():
    (q, lengths), (d, others) = draw(0, 4, 7), draw(1, 8, 9)
    parts = list(define_parts(q, d, lengths, others) / 0.5)
    parts.append(parts[0] + 0.3 * parts[1] + parts[2])
    want = []
    for i in range(4):
        rows = [part[i] for part in parts]
        logs = [row - np.log(np.exp(row).sum()) for row in rows]
        first = [-log[2 * i] for log in logs]
        taught = [-(np.exp(logs[3]) * log).sum() for log in logs[:3]]
        contrast = (first[0] + 0.1 * first[1] + first[2] + first[3]) / 4
        want.append((contrast + (taught[0] + 0.1 * taught[1] + taught[2]) / 3) / 2)
    loss = build_loss({"name": "m3", "temperature": 0.5}, "m3")
    got = loss(jnp.asarray(q), jnp.asarray(d), Labels())
    np.testing.assert_allclose(got, want, rtol=1e-5)


def check_8_devices(loss, q, d):
    """Value and gradients of a loss on 8 devices are those on one."""

    @jax.jit
    def value_and_grad(q, d):
        def mean(q, d):
            return sharding.map_over_data(lambda *x: loss(*x, Labels()).mean(), q, d)

        return jax.value_and_grad(mean, (0, 1))(q, d)

    one = value_and_grad(q, d)
    mesh = sharding.make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        many = value_and_grad(*sharding.put_batch((q, d), mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many
    )


def test_8_devices_equal_1():
    (q, _), (d, _) = draw(0, 8, 7), draw(1, 16, 9)
    check_8_devices(build_loss({"name": "m3", "temperature": 0.5}, "m3"), q, d)


def test_the_sum_gets_no_gradient_from_what_it_teaches():
    logits = [jnp.asarray(x) for x in PARTS]

    def loss(total):
        zeros = [jnp.zeros(2)] * 4
        return combine_losses(zeros, [*logits, total], 0.1, distill=True).sum()

    assert not np.any(jax.grad(loss)(logits[0] + 1))

import inspect
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from launch.bench.ring_infonce import compute_ring_infonce
from research import sharding
from research.losses import similarity
from research.losses.registry import LOSSES, SCORE_LOSSES, build_loss
from research.losses.similarity import count_row_blocks, pair_scores
from research.transforms.normalize import l2_normalize
from research.types import Labels

NONE = Labels()
# Rows of three embeddings are another input: tests/test_losses_summed_scores.py.
VECTOR_LOSSES = [name for name in LOSSES if name != "m3"]


@cache
def jitted(name, similarity, **options):
    return jax.jit(build_loss({"name": name, **options}, similarity).__call__)


def compiled(name):
    """A loss that compiles once and whole, which is much faster than its operations."""

    def loss(q, d, labels, *, similarity="cosine", **options):
        return jitted(name, similarity, **options)(q, d, labels)

    return loss


infonce, gte, cosent, angle, triplet, cosine_mse, supcon = map(
    compiled, ["infonce", "gte", "cosent", "angle", "triplet", "cosine_mse", "supcon"]
)


def embeddings(key, batch=6, ways=3, width=10):
    a, b = jax.random.split(key)
    return (
        jax.random.normal(a, (batch, width)),
        jax.random.normal(b, (batch * ways, width)),
    )


def ids(values):
    values = jnp.asarray(values, jnp.uint32)
    return jnp.stack([values, values + jnp.uint32(7)], axis=1)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def infonce_loop(
    q,
    d,
    query_id=None,
    document_id=None,
    temperature=0.05,
    symmetric=False,
    negatives="shared",
    same_side=False,
    margin=None,
    alpha=0.0,
    similarity="cosine",
):
    """The same loss, one logit at a time."""
    q, d = np.asarray(q, np.float64), np.asarray(d, np.float64)
    if similarity == "cosine":
        q, d = unit(q), unit(d)
    batch, ways = len(q), len(d) // len(q)
    query_id = range(batch) if query_id is None else query_id
    document_id = range(batch * ways) if document_id is None else document_id
    losses = []
    for i in range(batch):
        positive = q[i] @ d[i * ways]
        ok = [lambda s, p=positive: margin is None or s <= p + margin][0]
        twin = [
            query_id[i] == query_id[j] or document_id[i * ways] == document_id[j * ways]
            for j in range(batch)
        ]
        forward, backward, side = [positive], [positive], []
        for j in range(batch):
            for k in range(ways):
                column, s = j * ways + k, q[i] @ d[j * ways + k]
                if column == i * ways:
                    continue
                if document_id[column] == document_id[i * ways]:
                    continue
                if j != i and (query_id[j] == query_id[i]):
                    continue
                if negatives == "own" and k > 0 and j != i:
                    continue
                if negatives == "hard" and j != i:
                    continue
                if j != i and same_side:
                    side += [t] if ok(t := d[i * ways] @ d[column]) else []
                if ok(s):
                    forward.append(s + (alpha * temperature if k > 0 and j == i else 0))
            if j == i or twin[j]:
                continue
            backward += [s] if ok(s := d[i * ways] @ q[j]) else []
            if same_side:
                side += [s] if ok(s := q[i] @ q[j]) else []

        def cross_entropy(logits, positive=positive):
            logits = np.array(logits) / temperature
            return np.log(np.sum(np.exp(logits))) - positive / temperature

        loss = cross_entropy(forward + side)
        if symmetric:
            loss = (loss + cross_entropy(backward + side)) / 2
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("ways,duplicates", [(1, False), (3, True)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"similarity": "dot", "temperature": 1.0},
        {"symmetric": True},
        {"negatives": "own"},
        {"negatives": "own", "same_side": True, "margin": 0.1},
        {"same_side": True, "symmetric": True},
        {"margin": 0.05, "symmetric": True},
        {"alpha": 0.7},
    ],
    ids=str,
)
def test_infonce_equals_the_loop(key, ways, options, duplicates):
    q, d = embeddings(key, ways=ways)
    query_id = document_id = None
    labels = NONE
    if duplicates:
        query_id = [0, 1, 2, 0, 4, 5]
        document_id = list(range(6 * ways))
        document_id[2 * ways] = document_id[4 * ways]
        document_id[-1] = document_id[ways]
        document_id[ways - 1] = document_id[0]  # a hard negative equal to its positive
        labels = Labels(query_id=ids(query_id), document_id=ids(document_id))
    expected = infonce_loop(q, d, query_id, document_id, **options)
    actual = infonce(q, d, labels, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_infonce_of_hard_negatives_alone_does_not_see_the_batch(key):
    q, d = embeddings(key, ways=3)
    for alpha in (0.0, 0.7):
        options = {"negatives": "hard", "alpha": alpha}
        got = infonce(q, d, NONE, **options)
        np.testing.assert_allclose(
            got, infonce_loop(q, d, **options), rtol=1e-5, atol=1e-5
        )
        alone = [
            infonce(q[i : i + 1], d[3 * i : 3 * i + 3], NONE, **options)[0]
            for i in range(6)
        ]
        np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-5)
    for others in ({"symmetric": True}, {"same_side": True}):
        with pytest.raises(ValueError, match="neither symmetric nor same_side"):
            infonce(q, d, NONE, negatives="hard", **others)
    with pytest.raises(ValueError, match="it needs some"):
        infonce(q, d[:6], NONE, negatives="hard")


def test_focal_weights_count_hard_queries_more(key):
    q, d = embeddings(key)
    options = {"temperature": 0.5}
    plain = np.asarray(infonce(q, d, NONE, **options))
    expected = (1 - np.exp(-plain)) ** 0.5 * plain
    for detach in (True, False):
        got = infonce(q, d, NONE, focal=0.5, detach_focal=detach, **options)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    # The exponent grows with the part of the run that is done
    for done in (0.0, 0.25, 1.0):
        labels = Labels(progress=jnp.full(6, done))
        got = infonce(q, d, labels, focal=2.0, progressive=True, **options)
        expected = (1 - np.exp(-plain)) ** (2 * done) * plain
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="progressive weights need an exponent"):
        infonce(q, d, NONE, progressive=True)


def test_focal_weights_have_a_gradient_unless_detached_and_it_is_finite(key):
    q, d = embeddings(key)

    def gradient(q, d, **options):
        return jax.grad(lambda q: infonce(q, d, NONE, **options).sum())(q)

    detached = gradient(q, d, focal=0.5, temperature=0.5)
    attached = gradient(q, d, focal=0.5, temperature=0.5, detach_focal=False)
    assert np.abs(detached - attached).max() > 1e-3
    # Positives of probability 1, and a single pair, whose loss is 0
    for count in (6, 1):
        same = gradient(q[:count], q[:count], focal=0.5, detach_focal=False)
        assert np.isfinite(same).all()


@pytest.mark.parametrize("ways", [1, 3])
def test_supcon_is_the_mean_over_all_positives_of_the_class(key, ways):
    q, d = embeddings(key, ways=ways)
    classes = [0, 1, 0, 2, 1, 0]
    scores = unit(q) @ unit(d).T / 0.1
    expected = []
    for i in range(6):
        positives = [scores[i, j * ways] for j in range(6) if classes[j] == classes[i]]
        expected.append(np.log(np.exp(scores[i]).sum()) - np.mean(positives))
    got = supcon(q, d, Labels(query_id=ids(classes)), temperature=0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # A class of its own for each query leaves InfoNCE
    np.testing.assert_allclose(
        supcon(q, d, NONE), infonce(q, d, NONE), rtol=1e-5, atol=1e-5
    )


def test_infonce_of_equal_similarities_is_the_log_of_the_columns():
    q, d = jnp.ones((4, 8)), jnp.ones((12, 8))
    np.testing.assert_allclose(infonce(q, d, NONE), np.log(12), rtol=1e-6)
    own = infonce(q, d, NONE, negatives="own")
    np.testing.assert_allclose(own, np.log(4 + 2), rtol=1e-6)


def test_infonce_of_one_pair_is_0(key):
    q, d = embeddings(key, batch=1, ways=1)
    for same_side in False, True:
        loss, grad = jax.value_and_grad(
            lambda q, side=same_side: jnp.sum(
                infonce(q, d, NONE, symmetric=True, same_side=side)
            )
        )(q)
        np.testing.assert_allclose(loss, 0, atol=1e-5)
        np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_infonce_symmetric_does_not_care_which_side_is_which(key):
    q, d = embeddings(key, ways=1)
    for same_side in False, True:
        one = infonce(q, d, NONE, symmetric=True, same_side=same_side)
        other = infonce(d, q, NONE, symmetric=True, same_side=same_side)
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_infonce_permutes_with_its_batch(key):
    q, d = embeddings(key)
    order = np.array([3, 1, 5, 0, 2, 4])
    documents = d.reshape(6, 3, -1)[order].reshape(d.shape)
    options = {"symmetric": True, "same_side": True, "margin": 0.1}
    expected = infonce(q, d, NONE, **options)[order]
    actual = infonce(q[order], documents, NONE, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_infonce_counts_a_repeated_pair_once(key):
    q, d = embeddings(key, batch=5, ways=2)
    twice = infonce(
        jnp.concatenate([q, q[:1]]),
        jnp.concatenate([d, d[:2]]),
        Labels(
            query_id=ids([0, 1, 2, 3, 4, 0]),
            document_id=ids([*range(10), 0, 1]),
        ),
    )
    once = infonce(q, d, NONE)
    np.testing.assert_allclose(twice[0], once[0], rtol=1e-5)
    np.testing.assert_allclose(twice[5], once[0], rtol=1e-5)


def test_infonce_margin_has_no_gradient_of_its_own_and_infinity_is_none(key):
    q, d = embeddings(key)
    plain = jax.grad(lambda q: jnp.sum(infonce(q, d, NONE)))(q)
    far = jax.grad(lambda q: jnp.sum(infonce(q, d, NONE, margin=float("inf"))))(q)
    np.testing.assert_allclose(plain, far, rtol=1e-5)
    alone = infonce(q, d, NONE, margin=-3.0)  # nothing but the positive is left
    np.testing.assert_allclose(alone, 0, atol=1e-5)


def test_simcse_weight_of_minus_infinity_drops_the_own_hard_negative(key):
    q, d = embeddings(key, ways=2)
    dropped = infonce(q, d, NONE, alpha=float("-inf"))
    equal = np.arange(12)
    expected = []
    for i in range(6):
        document_id = equal.copy()
        document_id[2 * i + 1] = 2 * i
        expected.append(
            infonce(q, d, Labels(document_id=ids(document_id)))[i],
        )
    np.testing.assert_allclose(dropped, expected, rtol=1e-5)
    grad = jax.grad(lambda q: jnp.sum(infonce(q, d, NONE, alpha=float("-inf"))))(q)
    assert np.all(np.isfinite(grad))


def test_identical_views_have_positives_of_cosine_1(key):
    q, _ = embeddings(key)
    np.testing.assert_allclose(jnp.sum(l2_normalize(q) ** 2, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "ways,name,options,expected",
    [
        (1, "gte", {}, 24.112276077270508),
        (3, "gte", {}, 24.812864303588867),
        (1, "infonce", {"same_side": True}, 23.20417022705078),
        (3, "infonce", {"same_side": True}, 24.26264190673828),
        (3, "infonce", {"symmetric": True}, 18.994409561157227),
    ],
)
def test_blocks_of_logits_are_those_of_sentence_transformers(
    ways, name, options, expected
):
    """Values of MultipleNegativesRankingLoss 6.2.0, scale 20, with these directions."""
    texts = np.random.default_rng(0).standard_normal((4, 4, 6)).astype(np.float32)
    loss = jitted(name, "cosine", temperature=0.05, **options)
    value = jnp.mean(loss(texts[:, 0], texts[:, 1 : 1 + ways].reshape(-1, 6), NONE))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_gte_is_one_softmax_of_four_blocks(key):
    q, d = embeddings(key, ways=1)
    np.testing.assert_allclose(gte(q[:1], d[:1], NONE), np.log(2), rtol=1e-5)
    a, b = unit(q), unit(d)
    scores = np.concatenate([a @ b.T, b @ a.T, a @ a.T, b @ b.T], axis=1) / 0.05
    scores[:, 12:][np.tile(np.eye(6, dtype=bool), 2)] = -np.inf
    expected = np.log(np.exp(scores).sum(1)) - np.diag(a @ b.T) / 0.05
    actual = gte(q, d, NONE, temperature=0.05)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def pair_of_cosine(cosines):
    """Vectors in the plane with these cosines to (1, 0)."""
    cosines = np.asarray(cosines, np.float32)
    q = np.tile(np.array([[1.0, 0.0]], np.float32), (len(cosines), 1))
    return jnp.asarray(q), jnp.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def test_cosent_golden_number():
    q, d = pair_of_cosine([0.2, 0.7])
    loss = cosent(q, d, Labels(jnp.array([1.0, 0.0])))
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss, 10.0000454, rtol=1e-6)


def test_cosent_equals_the_loop_and_only_the_order_of_scores_matters(key):
    q, d = embeddings(key, ways=1)
    scores = np.array([0.1, 3.0, 3.0, 0.5, 2.0, 0.1], np.float32)
    c = 20 * np.sum(unit(q) * unit(d), axis=1)
    total = 1.0
    for i in range(6):
        for j in range(6):
            total += np.exp(c[i] - c[j]) if scores[i] < scores[j] else 0
    for labels in scores, np.exp(scores):
        loss = cosent(q, d, Labels(jnp.asarray(labels)))
        np.testing.assert_allclose(loss, np.log(total), rtol=1e-5)


def test_cosent_edge_cases(key):
    q, d = embeddings(key, ways=1)
    equal = Labels(jnp.ones(6))
    loss, grad = jax.value_and_grad(lambda q: jnp.mean(cosent(q, d, equal)))(q)
    assert loss == 0 and not np.any(grad)
    q, d = pair_of_cosine([-0.9, 0.0, 0.9])
    loss = cosent(q, d, Labels(jnp.array([0.0, 0.5, 1.0])))
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    shifted = [
        cosent(*pair_of_cosine(c), Labels(jnp.array([1.0, 0.0])))
        for c in ([0.2, 0.7], [0.0, 0.5])
    ]
    np.testing.assert_allclose(shifted[0], shifted[1], rtol=1e-5)


def test_several_scored_documents_are_as_many_pairs(key):
    q, d = embeddings(key, ways=3)
    scores = jax.random.uniform(key, (6, 3))
    for loss in cosent, angle, cosine_mse:
        pairs = loss(jnp.repeat(q, 3, axis=0), d, Labels(scores.ravel()))
        together = loss(q, d, Labels(scores))
        np.testing.assert_allclose(jnp.mean(pairs), jnp.mean(together), rtol=1e-5)


def perturbed_cosine(x, y):
    """As AnglE's code writes it: a complex quotient, summed over all components."""
    a, b = np.split(np.asarray(x, np.float64), 2, axis=1)
    c, d = np.split(np.asarray(y, np.float64), 2, axis=1)
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    real, imaginary = a * c + b * d, b * c - a * d
    return np.abs((real + imaginary).sum(1) / size)


def ranked(values, scores):
    wrong = values[:, None] - values[None]
    return np.log(1 + np.exp(wrong[scores[:, None] < scores[None]]).sum())


def test_angle_equals_the_complex_form(key):
    q, d = embeddings(key, ways=1)
    scores = np.array([0.1, 3.0, 3.0, 0.5, 2.0, 0.1], np.float32)
    expected = ranked(20 * perturbed_cosine(q, d), scores)
    loss = angle(q, d, Labels(jnp.asarray(scores)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_angle_quirks(key):
    x, _ = embeddings(key, batch=1, ways=1)
    np.testing.assert_allclose(perturbed_cosine(x, x), 1, rtol=1e-6)
    # x, -x and itself all have the value 1: the order of scores cannot be satisfied
    three = jnp.concatenate([x, x])
    loss = angle(three, jnp.concatenate([x, -x]), Labels(jnp.array([1.0, 0.0])))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    # where the second halves are 0 there is no imaginary part: CoSENT of |cosines|
    q, d = embeddings(key, ways=1)
    half = jnp.arange(10)[None, :] < 5
    q, d = jnp.where(half, jnp.abs(q), 0.0), jnp.where(half, jnp.abs(d), 0.0)
    labels = Labels(jnp.arange(6.0))
    np.testing.assert_allclose(angle(q, d, labels), cosent(q, d, labels), rtol=1e-5)


def test_angle_with_its_other_terms(key):
    q, d = embeddings(key, ways=1)
    scores = np.array([1, 0, 1, 1, 0, 0], np.float32)
    labels = Labels(jnp.asarray(scores))
    both = np.concatenate([unit(q), unit(d)])
    logits = 20 * both @ both.T
    np.fill_diagonal(logits, -np.inf)
    rows = (
        np.log(np.exp(logits).sum(1)) - logits[np.arange(12), (np.arange(12) + 6) % 12]
    )
    in_batch = np.mean(rows * np.tile(scores, 2))
    expected = (
        0.3 * ranked(20 * perturbed_cosine(q, d), scores)
        + 0.5 * np.asarray(cosent(q, d, labels)).mean()
        + 2.0 * in_batch
    )
    loss = angle(q, d, labels, angle_weight=0.3, cosine_weight=0.5, in_batch_weight=2.0)
    np.testing.assert_allclose(jnp.mean(loss), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options,expected",
    [
        ({}, 6.776926040649414),
        (
            {
                "cosine_weight": 0.5,
                "in_batch_weight": 2.0,
                "hard_weight": 3.0,
                "angle_weight": 0.3,
            },
            25.38417625427246,
        ),
    ],
    ids=["defaults", "weights"],
)
def test_angle_of_triplets_is_that_of_the_release(options, expected):
    """Values of AngleLoss (SeanLee97/AnglE 5155458), format C."""
    texts = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
    loss = jitted("angle_triplets", "cosine", **options)
    value = jnp.mean(loss(texts[:, 0], texts[:, 1:].reshape(-1, 6), NONE))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_triplet_equals_the_loop(key, distance):
    q, d = embeddings(key)

    def far(x, y):
        if distance == "cosine":
            return 1 - unit(x) @ unit(y)
        return np.linalg.norm(np.asarray(x) - np.asarray(y))

    expected = [
        np.mean(
            [
                max(0, far(q[i], d[3 * i]) - far(q[i], d[3 * i + k]) + 0.5)
                for k in (1, 2)
            ]
        )
        for i in range(6)
    ]
    actual = triplet(q, d, NONE, margin=0.5, distance=distance)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    grad = jax.grad(lambda q: jnp.sum(triplet(q, d, NONE, distance=distance)))(d[::3])
    assert np.all(np.isfinite(grad))  # positives at distance 0


def test_cosine_mse_equals_the_loop(key):
    q, d = embeddings(key, ways=1)
    scores = np.linspace(0, 1, 6, dtype=np.float32)
    expected = (np.sum(unit(q) * unit(d), axis=1) - scores) ** 2
    actual = cosine_mse(q, d, Labels(jnp.asarray(scores)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def teacher_vectors(batch, ways):
    """Vectors of a teacher, for the losses that need them."""
    q, d = embeddings(jax.random.key(7), batch, ways)
    return {"query_vector": q, "document_vector": d}


def labelled(name, ways, batch=8):
    scores = jnp.arange(float(batch * ways)).reshape(batch, ways) % 5 / 5
    return Labels(
        scores,
        ids(np.arange(batch) % (batch - 1)),
        ids(np.arange(batch * ways) % (batch * ways - 1)),
        progress=jnp.full(batch, 0.5),
        **teacher_vectors(batch, ways),
    )


@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_vectors_of_zeros_and_low_precision_are_finite(key, name):
    q, d = embeddings(key, batch=8, ways=2)
    labels = labelled(name, 2)
    loss = compiled(name)
    full = jnp.mean(loss(q, d, labels))
    half = loss(q.astype(jnp.bfloat16), d.astype(jnp.bfloat16), labels)
    assert half.dtype == jnp.float32 and half.shape == (8,)
    np.testing.assert_allclose(jnp.mean(half), full, rtol=0.02)
    q, d = q.at[0].set(0.0), d.at[2:4].set(0.0)
    loss, grads = jax.jit(
        jax.value_and_grad(
            lambda q, d: jnp.mean(build_loss({"name": name})(q, d, labels)), (0, 1)
        )
    )(q, d)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) and np.max(np.abs(g)) < 1e3 for g in grads)


OPTIONS = {
    "infonce": [
        {"symmetric": True, "same_side": True, "margin": 0.1},
        {"negatives": "own", "alpha": 0.3, "focal": 2.0, "progressive": True},
    ],
    "gte": [{"temperature": 0.1}],
    "angle": [{"cosine_weight": 1.0, "in_batch_weight": 1.0}],
    "gist": [{"margin": 0.1}],
    "teacher_kl": [{"documents": "own"}, {"documents": "batch"}],
    "weighted_sum": [{"terms": "infonce(positive_margin=0.1, hardness=5.0) | gist()"}],
}


@pytest.mark.parametrize(
    "name,options,ways",
    [
        *((n, o, 2) for n in VECTOR_LOSSES for o in OPTIONS.get(n, [{}])),
        ("infonce", {}, 1),
    ],
    ids=str,
)
def test_8_devices_equal_1(key, name, options, ways):
    q, d = embeddings(key, batch=16, ways=ways)
    labels = labelled(name, ways, batch=16)
    loss = build_loss({"name": name, **options})

    @jax.jit
    def value_and_grad(q, d, labels):
        def mean(q, d):
            return sharding.map_over_data(lambda *x: loss(*x).mean(), q, d, labels)

        return jax.value_and_grad(mean, (0, 1))(q, d)

    one = value_and_grad(q, d, labels)
    mesh = sharding.make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        texts = jax.tree.map(np.asarray, (q, d, labels))
        many = value_and_grad(*sharding.put_batch(texts, mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many
    )


# The others' gradients are compared with sentence-transformers' below.
@pytest.mark.parametrize("name", ["gte", "triplet", "cosine_mse"])
def test_gradient_equals_finite_differences(key, name):
    q, d = embeddings(key, batch=3, ways=2, width=6)
    labels = labelled(name, 2, batch=3)
    options = {"temperature": 0.5} if name == "gte" else {}
    check_grads(
        lambda q, d: jnp.mean(compiled(name)(q, d, labels, **options)),
        (q, d), order=1, modes=["rev"], rtol=2e-2, atol=2e-3,
    )  # fmt: skip


def test_mistakes_are_named(key):
    q, d = embeddings(key)
    for name in LOSSES:
        loss = compiled(name)
        with pytest.raises(ValueError, match="17 documents"):
            loss(q, d[:17], Labels(jnp.ones((6, 3))))
        if name in ("cosent", "angle", "cosine_mse"):
            with pytest.raises(ValueError, match="the data has none"):
                loss(q, d, NONE)
            with pytest.raises(ValueError, match=r"shape \(6,\)"):
                loss(q, d, Labels(jnp.ones(6)))
    with pytest.raises(ValueError, match="even number of dimensions, not 9"):
        angle(q[:, :9], d[:, :9], Labels(jnp.ones((6, 3))))
    with pytest.raises(ValueError, match="hard negatives"):
        triplet(q, d[:6], NONE)
    with pytest.raises(ValueError, match="'cos'; allowed: cosine, dot"):
        infonce(q, d, NONE, similarity="cos")
    with pytest.raises(ValueError, match="negatives is 'all'"):
        infonce(q, d, NONE, negatives="all")


def test_options_are_keyword_only_and_annotated():
    inputs_of = dict.fromkeys(SCORE_LOSSES, 2) | {"weighted_sum": 1}
    for name, loss in LOSSES.items():
        parameters = list(inspect.signature(loss).parameters.values())
        inputs = inputs_of.get(name, 3)
        kinds = [parameter.kind for parameter in parameters]
        assert kinds[:inputs] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * inputs
        assert set(kinds[inputs:]) <= {inspect.Parameter.KEYWORD_ONLY}
        assert all(p.annotation is not p.empty for p in parameters)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_compiled_loss_computes_the_scores_it_reads_and_no_others(key, similarity):
    q, d = embeddings(key, batch=16, ways=4, width=64)

    def matmuls(read):
        compiled = jax.jit(lambda q, d: read(pair_scores(q, d, similarity)))
        return compiled.lower(q, d).compile().as_text().count(" dot(")

    one = jax.jit(lambda q, d: build_loss({"name": "infonce"}, similarity)(q, d, NONE))
    assert one.lower(q, d).compile().as_text().count(" dot(") == 1
    assert matmuls(lambda scores: (scores.query_document, scores.positive_query)) == 1
    assert matmuls(lambda scores: (scores.query_query, scores.positive_document)) == 2
    assert matmuls(lambda scores: scores.own_documents) == 1


def test_a_ring_of_devices_computes_infonce(key):
    """The form that `launch.bench infonce` compares has the value and the gradient."""
    q, d = embeddings(key, batch=16, ways=1)
    loss = build_loss({"name": "infonce", "temperature": 0.05})

    def value_and_grad(loss):
        def average(q, d):
            return sharding.map_over_data(lambda q, d: loss(q, d).mean(), q, d)

        with jax.set_mesh(sharding.make_mesh({"data": 8})):
            return jax.jit(jax.value_and_grad(average, (0, 1)))(q, d)

    expected = value_and_grad(lambda q, d: loss(q, d, NONE))
    got = value_and_grad(lambda q, d: compute_ring_infonce(q, d, temperature=0.05))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


BLOCK_OPTIONS = {
    "infonce": {"symmetric": True, "same_side": True, "margin": 0.1, "alpha": 0.5},
    "gte": {"margin": 0.1},
    "flops": {"warmup": 0},
}


@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_blocks_of_rows_have_the_value_and_gradient_of_the_batch(
    key, name, monkeypatch
):
    q, d = embeddings(key, batch=12, ways=3)
    ids = np.arange(36, dtype=np.uint32) // 2
    ids = jnp.stack([ids, ids], axis=1)
    grades = jnp.arange(36.0).reshape(12, 3) % 5 / 5
    labels = Labels(grades, ids[:12], ids, **teacher_vectors(12, 3))
    loss = build_loss({"name": name, **BLOCK_OPTIONS.get(name, {})})
    weights = jnp.arange(1.0, 13.0)  # each row has a gradient of its own

    def value_and_grad():
        def total(q, d):
            losses = loss(q, d, labels)
            return losses @ weights, losses

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(q, d)

    expected = value_and_grad()
    assert count_row_blocks(12, 36) == 1
    monkeypatch.setattr(similarity, "BLOCK_SCORES", 4 * 36)
    assert count_row_blocks(12, 36) == 3
    # Sums in another order differ by a share of their largest terms
    leaves = map(jax.tree.leaves, (value_and_grad(), expected))
    for ours, theirs in zip(*leaves, strict=True):
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < 5e-6


def test_memory_grows_with_the_pairs_and_not_with_their_square():
    """Compiled for 8 devices, not run."""
    mesh = sharding.make_mesh({"data": 8})
    split = NamedSharding(mesh, PartitionSpec("data"))
    loss = build_loss({"name": "infonce", "symmetric": True})

    def mean(q, d):
        return sharding.map_over_data(lambda q, d: loss(q, d, NONE).mean(), q, d)

    def temporary_mebibytes(pairs):
        with jax.set_mesh(mesh):
            x = jax.ShapeDtypeStruct((pairs, 32), jnp.float32, sharding=split)
            compiled = jax.jit(jax.grad(mean, (0, 1))).lower(x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    # 128 MiB of scores on each device, or less; all of them would take 65,536^2 / 8
    small, large = temporary_mebibytes(65_536), temporary_mebibytes(262_144)
    assert small < 1024 and large < 2 * small + 4 * 262_144 * 32 * 8 / 2**20


def torch_loss(name, rows, labels=None, **options):
    """A sentence-transformers loss and its gradient for raw embeddings."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    rows = [torch.tensor(np.asarray(x), requires_grad=True) for x in rows]
    loss = getattr(losses, name)(None, **options)
    labels = None if labels is None else torch.tensor(np.asarray(labels))
    value = loss.compute_loss_from_embeddings(rows, labels)
    value.backward()
    return value.item(), [x.grad.numpy() for x in rows]


def test_sentence_transformers_computes_the_same(key):
    q, d = embeddings(key, ways=2)
    p, n = d[::2], d[1::2]
    scores = np.array([0.1, 1.0, 0.9, 0.5, 0.2, 0.1], np.float32)
    labels = Labels(jnp.asarray(scores))
    pairs = jnp.stack([p, n], axis=1).reshape(12, -1)
    cases = [
        ("MultipleNegativesRankingLoss", [q, p, n], None,
         lambda q, d: infonce(q, d, NONE), pairs),
        ("MultipleNegativesSymmetricRankingLoss", [q, p], None,
         lambda q, d: infonce(q, d, NONE, symmetric=True), p),
        ("CoSENTLoss", [q, p], scores, lambda q, d: cosent(q, d, labels), p),
        ("AnglELoss", [q, p], scores, lambda q, d: angle(q, d, labels), p),
    ]  # fmt: skip
    for name, rows, target, loss, documents in cases:
        value, grads = torch_loss(name, rows, target)
        ours, grad = jax.value_and_grad(
            lambda q, d, loss=loss: jnp.mean(loss(q, d)), (0, 1)
        )(q, documents)
        np.testing.assert_allclose(ours, value, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            grad[0], grads[0], rtol=1e-4, atol=1e-6, err_msg=name
        )

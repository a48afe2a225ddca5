"""Losses of a teacher: loops, numbers of the papers' code, sentence-transformers."""

import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES, build_loss
from research.types import Labels


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def texts(seed, batch=5, ways=3, width=6):
    """q [B, D], d [B*K, D] of one model."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, width)).astype(np.float32)
    return q, rng.normal(size=(batch * ways, width)).astype(np.float32)


@cache
def jitted(name, similarity, options):
    return jax.jit(build_loss({"name": name, **dict(options)}, similarity).__call__)


def compute(name, q, d, labels, similarity="cosine", **options):
    """[B] a loss, compiled."""
    return jitted(name, similarity, tuple(options.items()))(q, d, labels)


def differentiate(name, q, d, labels, similarity="cosine", **options):
    """The mean loss and its gradient to q and d."""

    @jax.jit
    def value_and_grad(q, d):
        loss = build_loss({"name": name, **options}, similarity)
        return jax.value_and_grad(lambda q, d: jnp.mean(loss(q, d, labels)), (0, 1))(
            q, d
        )

    return value_and_grad(q, d)


def check_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def teacher_labels(seed=1, width=8, batch=5, ways=3):
    q, d = texts(seed, batch, ways, width)
    return Labels(query_vector=jnp.asarray(q), document_vector=jnp.asarray(d)), q, d


def divergence(teacher, student):
    p, s = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (teacher, student))
    return np.sum(p * (np.log(p) - np.log(s)))


@pytest.mark.parametrize("has_scores", [True, False])
@pytest.mark.parametrize("documents", ["own", "batch"])
def test_score_distillation_equals_the_loop(documents, has_scores):
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    teacher, student = unit(tq) @ unit(td).T, unit(q) @ unit(d).T
    if has_scores:
        scores = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
        labels = labels._replace(score=jnp.asarray(scores))
    expected = []
    for i in range(5):
        rows = teacher[i], student[i]
        if documents == "own":
            rows = [row[3 * i : 3 * i + 3] for row in rows]
            rows[0] = scores[i] if has_scores else rows[0]
        expected.append(divergence(rows[0] / 0.5, rows[1] / 0.2))
    options = {"temperature": 0.2, "teacher_temperature": 0.5}
    actual = compute("teacher_kl", q, d, labels, documents=documents, **options)
    check_close(actual, expected)


def test_score_distillation_ends_where_scores_differ_by_a_constant():
    q, d = texts(0)
    scores = np.einsum("bd,bkd->bk", q, d.reshape(5, 3, -1))
    shifted = scores + np.arange(5)[:, None]
    labels = Labels(jnp.asarray(shifted.astype(np.float32)))
    for name in "teacher_kl", "margin_mse":
        np.testing.assert_allclose(
            compute(name, q, d, labels, "dot"), 0, atol=1e-5, err_msg=name
        )
        assert np.all(compute(name, 2 * q, d, labels, "dot") > 1e-3)


def test_multilingual_distillation_has_the_number_of_its_formula():
    q = jnp.array([[1.0, 2], [0, 1]])
    d = jnp.array([[1.0, 1], [1, 1]])
    labels = Labels(query_vector=jnp.array([[1, 1.5], [0, 0.5]]))
    loss = compute("embedding_mse", q, d, labels, documents="query")
    np.testing.assert_allclose(jnp.mean(loss), 0.25, rtol=1e-6)


def test_squared_errors_of_normalized_vectors_are_those_of_unit_vectors():
    q, d = texts(0)
    labels, tq, td = teacher_labels(width=q.shape[1])
    units = Labels(query_vector=unit(tq), document_vector=unit(td))
    expected = compute("embedding_mse", unit(q), unit(d), units)
    check_close(compute("embedding_mse", q, d, labels, normalize=True), expected)


@pytest.mark.parametrize("documents", ["own", "query"])
@pytest.mark.parametrize("name", ["embedding_mse", "embedding_cosine"])
def test_vectors_equal_the_loop(name, documents):
    """At a narrower size, the teacher's first dimensions are the targets."""
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    expected = []
    for i in range(5):
        pairs = [(q[i], tq[i])]
        for k in range(3 * i, 3 * i + 3):
            pairs.append((d[k], {"own": td[k], "query": tq[i]}[documents]))
        pairs = [(x, y[:6]) for x, y in pairs]
        values = [
            np.mean((x - y) ** 2) if name == "embedding_mse" else 1 - unit(x) @ unit(y)
            for x, y in pairs
        ]
        expected.append(np.mean(values))
    check_close(compute(name, q, d, labels, documents=documents), expected)


def test_a_projection_is_compared_instead_of_the_embedding():
    """At every size it is the same, and wide enough for the teacher."""
    q, d = texts(0)
    labels, tq, td = teacher_labels(width=9)
    wide = [jnp.asarray(x) for x in texts(4, width=9)]
    projected = labels._replace(query_projection=wide[0], document_projection=wide[1])
    for name in "embedding_mse", "embedding_cosine":
        expected = compute(name, *wide, labels)
        check_close(compute(name, q, d, projected), expected)
        check_close(compute(name, q[:, :2], d[:, :2], projected), expected)


def huber(x):
    return np.where(np.abs(x) < 1, x * x / 2, np.abs(x) - 0.5)


def test_relations_equal_the_loop():
    """RKD with a duplicate text, whose distance of 0 is in no mean."""
    q, d = texts(0, batch=2, ways=2)
    d[1] = q[0]
    labels, tq, td = teacher_labels(batch=2, ways=2)
    td[1] = tq[0]
    labels = labels._replace(document_vector=jnp.asarray(td))
    models = [np.concatenate(x).astype(np.float64) for x in ((q, d), (tq, td))]
    distances, angles = [], []
    for x in models:
        far = np.linalg.norm(x[:, None] - x[None], axis=-1)
        distances.append(far / far[far > 0].mean())
        away = x[None] - x[:, None]  # [anchor, text, D]
        norms = np.linalg.norm(away, axis=-1, keepdims=True)
        away = np.divide(away, norms, out=np.zeros_like(away), where=norms > 0)
        angles.append(np.einsum("ajd,akd->ajk", away, away))
    expected = 3 * np.mean(huber(distances[0] - distances[1]))
    expected += 2 * np.mean(huber(angles[0] - angles[1]))
    options = {"distance_weight": 3.0, "angle_weight": 2.0}
    check_close(compute("relational_kd", q, d, labels, **options), [expected] * 2)
    # Cosine distances and squares, as in jina-embeddings-v5
    far = [1 - unit(x) @ unit(x).T for x in models]
    far = [np.where(x > 1e-9, x, 0) for x in far]
    far = [x / x[x > 0].mean() for x in far]
    options = {"distance": "cosine", "penalty": "squared", "angle_weight": 0.0}
    expected = np.mean((far[0] - far[1]) ** 2)
    actual = compute("relational_kd", q, d, labels, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_relations_do_not_see_rotations_but_vectors_do():
    q, d = texts(0)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    turned = [jnp.asarray((x @ rotation).astype(np.float32)) for x in (q, d)]
    labels = Labels(query_vector=turned[0], document_vector=turned[1])
    loss = compute("relational_kd", q, d, labels)
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    options = {"cosine_weight": 0.0, "relative_weight": 0.0}
    np.testing.assert_allclose(compute("stella", q, d, labels, **options), 0, atol=1e-5)
    assert np.all(compute("embedding_cosine", q, d, labels) > 0.1)


def test_stella_has_the_numbers_of_its_code():
    """The three losses of NovaSearch's RAG-Retrieval at widths 2 and 3."""
    q = jnp.array([[1, 0.2, 0.1]])
    d = jnp.array([[0.3, 1, 0], [0, 0.4, 1]])
    labels = Labels(
        query_vector=jnp.array([[1, 0, 0.2]]),
        document_vector=jnp.array([[0.1, 1, 0.3], [0.2, 0.1, 1]]),
    )
    weights = ("cosine_weight", "similarity_weight", "relative_weight")
    parts = {
        "cosine_weight": 0.046973,
        "similarity_weight": (0.101949 + 0.033439) / 2,
        "relative_weight": (0.096166 + 0.148639) / 2,
    }
    for name, expected in parts.items():
        only = {weight: float(weight == name) for weight in weights}
        loss = compute("stella", q, d, labels, widths=(2, 3), **only)
        np.testing.assert_allclose(loss, expected, atol=2e-6)
    total = compute("stella", q, d, labels, widths=(2, 3))
    np.testing.assert_allclose(total, 16.456579, rtol=1e-5)
    with pytest.raises(ValueError, match="stella's width 4 is beyond the 3 dims"):
        compute("stella", q, d, labels, widths=(4,))


def test_a_projection_is_what_stella_compares_with_the_teachers_vectors():
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    (pq, pd), only = texts(2, width=8), {"similarity_weight": 0.0}
    projected = labels._replace(query_projection=pq, document_projection=pd)
    loss = compute("stella", q, d, projected, relative_weight=0.0, **only)
    cosines = np.sum(np.concatenate([unit(pq) * unit(tq), unit(pd) * unit(td)]), axis=1)
    np.testing.assert_allclose(loss, 10 * np.mean(1 - cosines), rtol=1e-5)


def test_orders_of_pairs_equal_the_loop():
    """Ties of the teacher are pushed apart, as in the code."""
    q, d = texts(0, batch=2, ways=2)
    labels, tq, td = teacher_labels(batch=2, ways=2)
    td[1] = td[0]
    labels = labels._replace(document_vector=jnp.asarray(td))
    student, teacher = (unit(np.concatenate(x)) for x in ((q, d), (tq, td)))
    upper = np.triu_indices(6, 1)
    s, t = (x @ x.T for x in (student, teacher))
    s, t = s[upper], t[upper]
    hinges = []
    for r in range(len(s)):
        for c in range(r + 1, len(s)):
            # Equal vectors have equal cosines, but for rounding
            sign = 1 if t[c] - t[r] < -1e-12 else -1
            if abs(t[c] - t[r]) > 1e-7:
                hinges.append(max(0, sign * (s[c] - s[r]) + 0.015))
            else:
                hinges.append(None)
    only = {"cosine_weight": 0.0, "similarity_weight": 0.0, "relative_weight": 1.0}
    actual = float(compute("stella", q, d, labels, **only)[0]) * len(hinges)
    known = [x for x in hinges if x is not None]
    ties = len(hinges) - len(known)
    assert ties and sum(known) - 1e-4 <= actual <= sum(known) + 2.1 * ties


def test_a_guide_equals_the_loop():
    """Equal texts, queries and positives of other pairs, and both kinds of margin."""
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    ids = np.arange(15, dtype=np.uint32)
    ids[6] = ids[3]  # the positives of queries 1 and 2 are one text
    labels = labels._replace(
        query_id=jnp.stack([jnp.arange(5, dtype=jnp.uint32)] * 2, 1),
        document_id=jnp.asarray(np.stack([ids, ids], 1)),
    )
    q1, d1, q2, d2 = map(unit, (q, d, tq, td))
    for kind, margin, hard in (
        ("absolute", 0.0, False),
        ("absolute", 0.2, False),
        ("relative", 0.3, False),
        ("absolute", 0.0, True),
    ):
        expected = []
        for i in range(5):
            limit = q2[i] @ d2[3 * i]
            limit -= margin * (abs(limit) if kind == "relative" else 1)
            logits = [q1[i] @ d1[3 * i]]
            # (the guide's, the model's) similarities
            others = [
                (q2[i] @ d2[j], q1[i] @ d1[j])
                for j in range(15)
                if j != 3 * i and ids[j] != ids[3 * i]
            ]
            for j in range(5):
                if j == i or ids[3 * j] == ids[3 * i]:
                    continue
                others.append((q2[i] @ q2[j], q1[i] @ q1[j]))
                others.append((d2[3 * i] @ d2[3 * j], d1[3 * i] @ d1[3 * j]))
            least = logits[0] if hard else -np.inf
            logits += [own for guide, own in others if guide <= limit and own >= least]
            logits = np.array(logits) / 0.1
            expected.append(np.log(np.exp(logits).sum()) - logits[0])
        options = {"temperature": 0.1, "margin": margin, "margin_kind": kind}
        check_close(compute("gist", q, d, labels, **options, hard=hard), expected)


def test_a_larger_margin_of_the_guide_never_raises_the_loss():
    q, d = texts(0)
    labels, _, _ = teacher_labels()
    losses = [compute("gist", q, d, labels, margin=m) for m in (0.0, 0.1, 0.4, 3.0)]
    assert all(np.all(b <= a + 1e-3) for a, b in zip(losses, losses[1:], strict=False))
    np.testing.assert_allclose(losses[-1], 0, atol=1e-5)


def test_spread_out_of_known_directions():
    eye = jnp.eye(4)
    np.testing.assert_allclose(compute("spread_out", eye, eye, Labels()), 0, atol=1e-6)
    equal = jnp.ones((4, 4))
    np.testing.assert_allclose(compute("spread_out", equal, equal, Labels()), 2, 1e-6)
    # Equal texts are not pushed apart
    ids = jnp.zeros((4, 2), jnp.uint32)
    labels = Labels(query_id=ids, document_id=ids)
    assert not np.any(compute("spread_out", equal, equal, labels))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(128, 64)).astype(np.float32))
    value = float(jnp.mean(compute("spread_out", x[:64], x[64:], Labels())))
    assert value == pytest.approx(2 / 64, rel=0.15)


MARGIN_PAIRS = (
    jnp.array([[1, 0.1], [0.2, 1], [1, 1]]),
    jnp.array([[1, 0.2], [0, 1], [1, 0.8]]),
)


@pytest.mark.parametrize(
    "margin, factor, expected",
    [(0.3, 2, 4.883681), (0.0, 2, 0.064759), (0.3 * 0.05, 1, 0.043395)],
    ids=["labse", "labse without", "dap"],
)
def test_margins_of_positives_have_the_numbers_of_their_formulas(
    margin, factor, expected
):
    """LaBSE adds both directions; DAP's margin is in units of the logits."""
    options = {"temperature": 0.05, "symmetric": True, "positive_margin": margin}
    loss = compute("infonce", *MARGIN_PAIRS, Labels(), **options)
    assert factor * float(jnp.mean(loss)) == pytest.approx(expected, abs=2e-6)


def test_hardness_adds_the_similarity_of_the_own_hard_negatives():
    q, d = texts(0)
    scores = unit(q) @ unit(d).T
    expected = []
    for i in range(5):
        logits = [scores[i, 3 * j] / 0.05 for j in range(5)]
        own = scores[i, 3 * i + 1 : 3 * i + 3]
        logits += list(own / 0.05 + 5 * own)
        expected.append(np.log(np.exp(logits).sum()) - scores[i, 3 * i] / 0.05)
    options = {"negatives": "own", "hardness": 5.0}
    check_close(compute("infonce", q, d, Labels(), **options), expected)
    # The weight has no gradient: it is that of a constant added to the logits
    _, (grad, _) = differentiate("infonce", q[:1], d[:3], Labels(), **options)
    own = scores[0, :3] / 0.05 + 5 * np.array([0, *scores[0, 1:3]])
    weights = np.exp(own) / np.exp(own).sum() - np.array([1, 0, 0])
    u, norm = unit(q[0]), np.linalg.norm(q[0])
    slope = weights @ unit(d[:3]) / 0.05
    np.testing.assert_allclose(
        grad[0], (slope - u * (slope @ u)) / norm, rtol=1e-4, atol=1e-5
    )


def test_a_sum_of_losses_is_the_sum():
    q, d = texts(0)
    labels, _, _ = teacher_labels(width=6)
    terms = "infonce(temperature=0.1) | spread_out() | embedding_cosine()"
    total = compute("weighted_sum", q, d, labels, terms=terms, weights=(1.0, 2.0, 0.5))
    expected = (
        compute("infonce", q, d, labels, temperature=0.1)
        + 2.0 * compute("spread_out", q, d, labels)
        + 0.5 * compute("embedding_cosine", q, d, labels)
    )
    check_close(total, expected)
    # Its terms are logged, two of a name apart
    both = "infonce() | infonce(temperature=0.1)"
    loss = build_loss({"name": "weighted_sum", "terms": both, "weights": (1.0, 3.0)})
    value, metrics = SIZE_LOSSES["full_size"](loss).loss(q, d, labels, None)
    check_close(value, loss(jnp.asarray(q), jnp.asarray(d), labels))
    check_close(metrics["term/infonce"], compute("infonce", q, d, labels).mean())
    second = compute("infonce", q, d, labels, temperature=0.1)
    check_close(metrics["term/infonce2"], second.mean())
    loss = build_loss({"name": "weighted_sum", "terms": terms})
    assert loss.temperature == 0.1 and loss.matches_teacher
    with pytest.raises(ValueError, match="2 weights are given for 3 terms"):
        build_loss({"name": "weighted_sum", "terms": terms, "weights": (1.0, 2.0)})
    with pytest.raises(ValueError, match="infonce has no argument temp"):
        build_loss(section(LOSSES, "weighted_sum", terms="infonce(temp=1)"))


@pytest.mark.parametrize(
    "name, labels, message",
    [
        ("embedding_mse", Labels(), "a teacher's vectors of the queries, but config.t"),
        (
            "embedding_mse",
            Labels(query_vector=jnp.ones((5, 6))),
            "a teacher's vectors of the documents",
        ),
        ("gist", Labels(), "a teacher's vectors of the queries"),
        ("teacher_kl", Labels(), "the data has none"),
        ("teacher_kl", Labels(jnp.ones((5, 4))), r"each of 5 x 3 pairs, .* \(5, 4\)"),
        (
            "embedding_cosine",
            teacher_labels(width=4)[0],
            "vectors have 4 dims and the model's 6: set objective.projection_width=4",
        ),
    ],
)
def test_labels_that_a_loss_cannot_use_are_one_sentence(name, labels, message):
    with pytest.raises(ValueError, match=message):
        build_loss({"name": name})(*texts(0), labels)


def test_losses_of_own_documents_need_hard_negatives():
    q, d = texts(0, ways=1)
    with pytest.raises(ValueError, match="needs hard negatives; documents='batch'"):
        compute("teacher_kl", q, d, Labels(jnp.ones(5)))
    with pytest.raises(ValueError, match="margin_mse needs hard negatives"):
        compute("margin_mse", q, d, Labels(jnp.ones(5)))


def torch_case(name, inputs, target=None, **options):
    """Value and gradients of a loss of sentence-transformers for raw embeddings."""
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    rows = [torch.tensor(x, requires_grad=True) for x in inputs]
    loss = getattr(losses, name)(None, **options)
    if isinstance(target, list):
        target = [torch.tensor(x) for x in target]
    elif target is not None:
        target = torch.tensor(target)
    value = loss.compute_loss_from_embeddings(rows, target)
    if isinstance(value, dict):
        value = value["gor_second_moment"]
    value.backward()
    return value.item(), [x.grad.numpy() for x in rows]


def test_sentence_transformers_computes_the_same():
    q, d = texts(0)
    columns = [q, d[::3], d[1::3], d[2::3]]
    scores = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    labels, tq, td = teacher_labels(width=6)
    targets = [tq, td[::3], td[1::3], td[2::3]]
    scored = Labels(jnp.asarray(scores))
    near = [q + 3, d + 3]  # above the floor of 1 / D
    cases = [
        ("DistillKLDivLoss", columns, scores, {"student_temperature": 0.5,
         "teacher_temperature": 2.0}, "teacher_kl", scored, "dot",
         {"temperature": 0.5, "teacher_temperature": 2.0}, 0.25, 0.0),
        ("MarginMSELoss", columns, scores, {}, "margin_mse", scored, "dot", {}, 1, 0),
        ("MSELoss", columns, targets, {}, "embedding_mse", labels, "cosine", {}, 1, 0),
        ("EmbedDistillLoss", columns, targets, {}, "embedding_cosine", labels, "cosine",
         {}, 1, 0),
        ("GlobalOrthogonalRegularizationLoss", [near[0], near[1][::3]], None,
         {"aggregation": "sum"}, "spread_out", Labels(), "cosine", {}, 1, -2 / 6),
    ]  # fmt: skip
    for theirs, inputs, target, options, name, labels, similarity, ours, *rest in cases:
        factor, shift = rest
        value, grads = torch_case(theirs, inputs, target, **options)
        documents = np.stack(inputs[1:], 1).reshape(-1, 6)
        loss, grad = differentiate(
            name, inputs[0], documents, labels, similarity, **ours
        )
        np.testing.assert_allclose(
            factor * loss + shift, value, rtol=1e-5, err_msg=theirs
        )
        for mine, other in zip(
            (grad[0], grad[1]), (grads[0], np.stack(grads[1:], 1)), strict=True
        ):
            np.testing.assert_allclose(
                factor * mine, other.reshape(mine.shape), rtol=1e-4, atol=1e-6,
                err_msg=theirs,
            )  # fmt: skip


@pytest.mark.parametrize("kind, margin", [("absolute", 0.1), ("relative", 0.5)])
def test_gist_is_that_of_sentence_transformers(kind, margin, monkeypatch):
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("sentence_transformers.losses")
    q, d = texts(0, ways=2)
    labels, tq, td = teacher_labels(ways=2)
    # The loss with embeddings in the place of its two models
    theirs = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
    torch.nn.Module.__init__(theirs)
    module = sys.modules[losses.GISTEmbedLoss.__module__]
    monkeypatch.setattr(module, "embed_columns", lambda model, features: model)
    inputs = [torch.tensor(x, requires_grad=True) for x in (q, d[::2], d[1::2])]
    theirs.model, theirs.guide = (
        inputs,
        [torch.tensor(x) for x in (tq, td[::2], td[1::2])],
    )
    theirs.temperature, theirs.margin, theirs.margin_strategy = 0.1, margin, kind
    theirs.contrast_anchors = theirs.contrast_positives = True
    theirs.gather_across_devices = theirs.must_retokenize = False
    theirs.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    theirs.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    value = theirs([{}] * 3, None)
    value.backward()
    options = {"temperature": 0.1, "margin": margin, "margin_kind": kind}
    loss, grad = differentiate("gist", q, d, labels, **options)
    np.testing.assert_allclose(loss, value.item(), rtol=1e-5)
    np.testing.assert_allclose(grad[0], inputs[0].grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad[1][::2], inputs[1].grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad[1][1::2], inputs[2].grad, rtol=1e-4, atol=1e-6)

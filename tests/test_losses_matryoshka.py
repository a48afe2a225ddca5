from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.losses import contrastive
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES, build_loss, score_loss, vector_loss
from research.losses.size_terms import sample_layers
from research.types import Labels

B, K, L, D = 8, 2, 4, 16
# Rows of three embeddings are not cut.
VECTOR_LOSSES = [name for name in LOSSES if name != "m3"]
PAIRS = ((1, 4), (2, 8), (4, 16))
ARGUMENTS = {
    "full_size": {},
    "single_size": {"depth": 2, "dim": 8},
    "matryoshka": {"dims": (4, 16)},
    "two_dimensional": {"pairs": PAIRS[1:], "kl_on": "scores", "reduction": "mean"},
    "starbucks_sts": {"pairs": PAIRS[1:]},
    "starbucks_retrieval": {"pairs": PAIRS[1:]},
    "mse2d_v1": {},
    "mse2d_later": {"dims": (4,)},
    "st5_adaptive": {"dims": (4, 16)},
    "st6_adaptive": {"layers_per_step": 2},
    "ese": {"dim": 4, "align": False},
}
NONE = Labels()
infonce = score_loss(contrastive.infonce)
ZERO = vector_loss(lambda q, d, labels: 0.0 * q[:, 0], "dot")
DOT = score_loss(partial(contrastive.infonce, temperature=1.0), "dot")


def ids(count):
    values = (jnp.arange(count) % (count - 1)).astype(jnp.uint32)
    return jnp.stack([values, values], axis=1)


def every_layer(key, batch=B, ways=K):
    """q, d of all layers, and labels with one duplicate of each kind."""
    a, b = jax.random.split(key)
    scores = jnp.arange(float(batch * ways)).reshape(batch, ways) % 5 / 5
    q = jax.random.normal(a, (batch, L + 1, D))
    d = jax.random.normal(b, (batch * ways, L + 1, D))
    # A teacher's vectors, for the losses that need them
    vectors = {"query_vector": q[:, 0] + 1, "document_vector": d[:, 0] + 1}
    vectors["progress"] = jnp.full(batch, 0.5)
    return q, d, Labels(scores, ids(batch), ids(batch * ways), **vectors)


def run(nested, q, d, labels=NONE, key=None, grad=False):
    """Mean loss, metrics and, if asked for, its gradient to q and d."""
    key = jax.random.key(0) if key is None else key

    def mean(q, d, labels, key):
        if not nested.needs_all_layers:
            q, d = q[:, -1], d[:, -1]
        loss, metrics = nested.loss(q, d, labels, key)
        assert loss.shape == (len(q),) and loss.dtype == jnp.float32
        return jnp.mean(loss), metrics

    if not grad:
        return jax.jit(mean)(q, d, labels, key)
    value_and_grad = jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))
    (value, metrics), grads = value_and_grad(q, d, labels, key)
    return value, metrics, grads


def test_every_wrapper_is_tested():
    # Groups of several vectors per text have a file of their own
    assert {*ARGUMENTS, "nested_groups"} == set(SIZE_LOSSES)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("loss", VECTOR_LOSSES)
def test_every_wrapper_fits_every_loss(key, name, loss):
    """Traced only; values are those of the tests below."""
    nested = SIZE_LOSSES[name](build_loss({"name": loss}), **ARGUMENTS[name])
    arrays = every_layer(key)
    value, metrics, grads = jax.eval_shape(
        lambda *arrays: run(nested, *arrays, grad=True), *arrays
    )
    assert value.shape == () and {x.shape for x in metrics.values()} <= {()}
    assert [grad.shape for grad in grads] == [x.shape for x in arrays[:2]]


@pytest.mark.parametrize("loss", VECTOR_LOSSES)
def test_every_loss_is_finite_at_sampled_sizes(key, loss):
    nested = SIZE_LOSSES["st5_adaptive"](build_loss({"name": loss}), dims=(4, 16))
    results = run(nested, *every_layer(key), grad=True)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(results))


@pytest.mark.parametrize(
    "name,ways", [(name, 2) for name in ARGUMENTS] + [("starbucks_sts", 1)]
)
def test_8_devices_equal_1(key, name, ways):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arrays = every_layer(key, 16, ways)
    nested = SIZE_LOSSES[name](infonce, **ARGUMENTS[name])
    one = run(nested, *arrays, grad=True)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(one))
    many = run(nested, *jax.device_put(arrays, rows), grad=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many
    )


def loop_kl(teacher, student):
    """Mean over rows of KL(softmax(teacher) || softmax(student))."""
    total = 0.0
    for t, s in zip(np.float64(teacher), np.float64(student), strict=True):
        t, s = np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum()
        total += np.sum(t * np.log(t / s))
    return total / len(teacher)


def loop_infonce(q, d, temperature=0.05, normalize=True):
    q, d = np.float64(q), np.float64(d)
    if normalize:
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        d = d / np.linalg.norm(d, axis=1, keepdims=True)
    ways, total = len(d) // len(q), 0.0
    for i in range(len(q)):
        logits = [q[i] @ d[j] / temperature for j in range(len(d))]
        total += np.log(np.sum(np.exp(logits))) - logits[i * ways]
    return total / len(q)


def at(q, d, depth, dim):
    return q[:, depth, :dim], d[:, depth, :dim]


def feature_kl(q, d, depth, dim):
    """Of all texts, queries and documents stacked."""
    x = np.concatenate([q, d])
    return loop_kl(x[:, L, :dim], x[:, depth, :dim])


@pytest.mark.parametrize("ways", [1, 2])
def test_starbucks_sts_equals_the_loop(key, ways):
    q, d, _ = every_layer(key, ways=ways)
    value, metrics = run(SIZE_LOSSES["starbucks_sts"](infonce, pairs=PAIRS), q, d)
    tasks = {p: loop_infonce(*at(q, d, *p)) for p in PAIRS}
    divergences = {p: feature_kl(q, d, *p) for p in PAIRS[:2]}
    expected = sum(tasks.values()) + 0.3 * sum(divergences.values())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    named = {f"task/{p[0]}x{p[1]}": x for p, x in tasks.items()}
    named |= {f"kl/{p[0]}x{p[1]}": x for p, x in divergences.items()}
    assert set(named) == set(metrics)
    for name, x in named.items():
        np.testing.assert_allclose(metrics[name], x, rtol=1e-5)


def test_the_parts_of_a_sum_are_those_of_the_full_size(key):
    q, d, labels = every_layer(key)
    options = {"terms": "infonce() | spread_out()", "weights": (1.0, 0.5)}
    loss = build_loss({"name": "weighted_sum", **options})
    full = run(SIZE_LOSSES["full_size"](loss), q, d, labels)[1]
    for name in ("starbucks_sts", "ese"):
        arguments = {"pairs": PAIRS} if "pairs" in ARGUMENTS[name] else ARGUMENTS[name]
        metrics = run(SIZE_LOSSES[name](loss, **arguments), q, d, labels)[1]
        assert {key for key in metrics if key.startswith("term/")} == set(full)
        for key, value in full.items():
            np.testing.assert_allclose(metrics[key], value, rtol=1e-5)


def test_starbucks_sts_equals_torch(key):
    """Written from the formula: 20 * cosines, sum of terms, attached teacher."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    q, d, _ = every_layer(key)
    value, _, grads = run(
        SIZE_LOSSES["starbucks_sts"](infonce, pairs=PAIRS), q, d, grad=True
    )
    anchors = torch.tensor(np.asarray(q), requires_grad=True)
    documents = torch.tensor(np.asarray(d), requires_grad=True)
    # the order of columns [positives; negatives] of the code, not of our rows
    candidates = torch.cat([documents[0::2], documents[1::2]])
    texts = torch.cat([anchors, candidates])
    total = 0.0
    for depth, dim in PAIRS:
        a = functional.normalize(anchors[:, depth, :dim], dim=-1)
        c = functional.normalize(candidates[:, depth, :dim], dim=-1)
        total = total + functional.cross_entropy(20 * a @ c.T, torch.arange(B))
        if depth < L:
            total = total + 0.3 * functional.kl_div(
                texts[:, depth, :dim].log_softmax(-1),
                texts[:, L, :dim].softmax(-1),
                reduction="batchmean",
            )
    total.backward()
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)
    np.testing.assert_allclose(grads[0], anchors.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], documents.grad, rtol=1e-4, atol=1e-6)


def test_starbucks_of_the_full_size_is_the_loss(key):
    q, d, labels = every_layer(key)
    plain = run(SIZE_LOSSES["full_size"](infonce), q, d, labels, grad=True)
    for name in "starbucks_sts", "starbucks_retrieval":
        nested = SIZE_LOSSES[name](infonce, pairs=((L, D),))
        value, _, grads = run(nested, q, d, labels, grad=True)
        np.testing.assert_allclose(value, plain[0], rtol=1e-6)
        np.testing.assert_allclose(grads[0], plain[2][0], rtol=1e-5, atol=1e-7)


def test_starbucks_of_equal_layers_is_a_multiple_of_the_loss(key):
    q, d, _ = every_layer(key)
    q, d = (jnp.broadcast_to(x[:, :1], x.shape) for x in (q, d))
    pairs = tuple((depth, D) for depth in (1, 2, 3, 4))
    value, metrics = run(SIZE_LOSSES["starbucks_sts"](infonce, pairs=pairs), q, d)
    np.testing.assert_allclose(value, 4 * metrics[f"task/{L}x{D}"], rtol=1e-6)
    np.testing.assert_allclose(metrics[f"kl/1x{D}"], 0, atol=1e-6)


def test_starbucks_gradient_stays_in_the_prefix_and_reaches_the_teacher(key):
    q, d, _ = every_layer(key)

    def grad_of(**options):
        nested = SIZE_LOSSES["two_dimensional"](ZERO, pairs=((2, 8),), **options)
        return np.asarray(run(nested, q, d, grad=True)[2][0])

    attached = grad_of(kl_on="features")
    assert np.any(attached[:, 2, :8]) and not np.any(attached[:, 2, 8:])
    assert np.any(attached[:, L, :8]) and not np.any(attached[:, L, 8:])
    assert not np.any(attached[:, [0, 1, 3]])
    detached = grad_of(kl_on="features", detach_teacher=True)
    assert np.any(detached[:, 2]) and not np.any(detached[:, L])
    task = run(SIZE_LOSSES["single_size"](infonce, depth=2, dim=8), q, d, grad=True)[2][
        0
    ]
    assert np.any(task[:, 2, :8]) and not np.any(task[:, 2, 8:])


def test_starbucks_is_the_sum_of_its_sizes_in_any_order(key):
    q, d, _ = every_layer(key)
    value = run(SIZE_LOSSES["starbucks_sts"](infonce, pairs=PAIRS), q, d)[0]
    other = run(SIZE_LOSSES["starbucks_sts"](infonce, pairs=PAIRS[::-1]), q, d)[0]
    np.testing.assert_allclose(value, other, rtol=1e-6)
    parts = [
        run(SIZE_LOSSES["starbucks_sts"](infonce, pairs=(pair,)), q, d)[0]
        for pair in PAIRS
    ]
    np.testing.assert_allclose(value, sum(parts), rtol=1e-6)
    mean = SIZE_LOSSES["two_dimensional"](
        infonce, pairs=PAIRS, kl_on="features", kl_weight=0.3, reduction="mean"
    )
    np.testing.assert_allclose(run(mean, q, d)[0], value / 3, rtol=1e-6)


def test_starbucks_retrieval_equals_the_loop(key):
    q, d, _ = every_layer(key)
    value, metrics = run(SIZE_LOSSES["starbucks_retrieval"](DOT, pairs=PAIRS), q, d)
    expected = 0.0
    teacher = np.asarray(q[:, L]) @ np.asarray(d[:, L]).T
    for pair in PAIRS:
        a, c = at(q, d, *pair)
        expected += loop_infonce(a, c, 1.0, normalize=False)
        if pair != (L, D):
            expected += loop_kl(teacher, np.asarray(a) @ np.asarray(c).T)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert sorted(metrics) == ["kl/1x4", "kl/2x8", "task/1x4", "task/2x8", "task/4x16"]


def test_divergences_of_scores_share_the_losss_similarity_and_temperature(key):
    q, d, _ = every_layer(key)
    for loss, scale in ((infonce, 20.0), (build_loss({"name": "cosent"}), 20.0)):
        size_loss = SIZE_LOSSES["starbucks_retrieval"](loss, pairs=PAIRS)
        teacher, student = (
            scale * unit_rows(x) @ unit_rows(y).T
            for x, y in (at(q, d, L, D), at(q, d, 1, 4))
        )
        labels = Labels(jnp.zeros((B, K)))
        divergence = run(size_loss, q, d, labels)[1]["kl/1x4"]
        np.testing.assert_allclose(divergence, loop_kl(teacher, student), rtol=1e-4)


def unit_rows(x):
    return np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)


def test_starbucks_retrieval_does_not_train_its_teacher(key):
    q, d, _ = every_layer(key)
    nested = SIZE_LOSSES["starbucks_retrieval"](ZERO, pairs=((2, 8),))
    for grad in run(nested, q, d, grad=True)[2]:
        assert np.any(grad[:, 2]) and not np.any(grad[:, L])


def test_score_divergence_ignores_a_constant_per_query(key):
    q, d, _ = every_layer(key)
    # a document coordinate that is the same everywhere adds a constant to each row
    q = q.at[:, 2].set(q[:, L]).at[:, 2, 0].add(3.0)
    d = d.at[:, :, 0].set(1.0).at[:, 2].set(d[:, L].at[:, 0].set(1.0))
    nested = SIZE_LOSSES["starbucks_retrieval"](DOT, pairs=((2, D), (L, D)))
    np.testing.assert_allclose(run(nested, q, d)[1]["kl/2x16"], 0, atol=1e-5)


def test_matryoshka_sums_prefixes(key):
    q, d, labels = every_layer(key)
    nested = SIZE_LOSSES["matryoshka"](
        infonce, dims=(4, 8, 16), weights=(0.5, 2.0, 1.0)
    )
    value, metrics, grads = run(nested, q, d, labels, grad=True)
    each = [
        run(SIZE_LOSSES["single_size"](infonce, dim=k), q, d, labels, grad=True)
        for k in (4, 8, 16)
    ]
    weighted = [c * x[0] for c, x in zip((0.5, 2.0, 1.0), each, strict=True)]
    np.testing.assert_allclose(value, sum(weighted), rtol=1e-6)
    np.testing.assert_allclose(metrics["task/8"], each[1][0], rtol=1e-6)
    expected = 0.5 * each[0][2][0] + 2.0 * each[1][2][0] + each[2][2][0]
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5, atol=1e-6)
    full = run(SIZE_LOSSES["matryoshka"](infonce, dims=(D,)), q, d, labels)
    np.testing.assert_allclose(
        full[0], run(SIZE_LOSSES["full_size"](infonce), q, d, labels)[0], rtol=1e-6
    )


@pytest.mark.parametrize("name,power", [("mse2d_v1", 2), ("mse2d_later", 1)])
def test_2dmse_equals_one_of_its_draws(key, name, power):
    q, d, _ = every_layer(key)
    nested = SIZE_LOSSES[name](infonce, dims=(4, 8), kl_temperature=0.5)
    value = run(nested, q, d, key=jax.random.key(3))[0]
    draws = []
    for layer in range(1, L):
        for k in (4, 8):
            c = 1 / layer if name == "mse2d_later" else 1.0
            draws.append(
                loop_infonce(*at(q, d, L, D))
                + loop_infonce(*at(q, d, L, k))
                + c * loop_infonce(*at(q, d, layer, D))
                + c * loop_infonce(*at(q, d, layer, k))
                + 0.5**power * feature_kl(q / 0.5, d / 0.5, layer, D)
            )
    assert np.min(np.abs(np.array(draws) / value - 1)) < 1e-5


def test_2dmse_of_equal_layers_at_full_width_is_4_times_the_loss(key):
    q, d, _ = every_layer(key)
    q, d = (jnp.broadcast_to(x[:, :1], x.shape) for x in (q, d))
    value = run(SIZE_LOSSES["mse2d_v1"](infonce, dims=(D,)), q, d)[0]
    np.testing.assert_allclose(value, 4 * loop_infonce(q[:, 0], d[:, 0]), rtol=1e-5)


def test_layers_are_drawn_evenly_and_without_replacement(key):
    keys = jax.random.split(key, 3000)
    draws = jax.jit(jax.vmap(lambda k: jnp.stack(sample_layers(k, L, 2))))(keys)
    assert np.all(draws[:, 0] != draws[:, 1])
    counts = np.bincount(np.asarray(draws[:, 0]), minlength=L)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] / 3000 - 1 / 3) < 0.03)


def test_feature_divergence_ignores_a_constant_per_text(key):
    q, d, _ = every_layer(key)
    nested = SIZE_LOSSES["mse2d_v1"](infonce, dims=(8,))
    plain = run(nested, q, d)[1]["kl/drawnx16"]
    moved = run(nested, q.at[:, 1:L].add(2.0), d.at[:, 1:L].add(2.0))[1]["kl/drawnx16"]
    np.testing.assert_allclose(plain, moved, rtol=1e-4)


def test_st5_adaptive_over_all_layers_equals_the_loop(key):
    q, d, _ = every_layer(key)
    value = run(SIZE_LOSSES["st5_adaptive"](infonce, layers_per_step=-1), q, d)[0]
    expected = loop_infonce(*at(q, d, L, D))
    for layer in range(1, L):
        expected += loop_infonce(*at(q, d, layer, D)) / (layer * (L - 1))
        expected += 0.3 * feature_kl(q / 0.3, d / 0.3, layer, D)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_st5_adaptive_special_cases(key):
    q, d, _ = every_layer(key)
    plain = loop_infonce(*at(q, d, L, D))
    make = SIZE_LOSSES["st5_adaptive"]
    nothing = make(infonce, layers_per_step=0, kl_temperature=0.0)
    np.testing.assert_allclose(run(nothing, q, d)[0], plain, rtol=1e-5)
    q, d = (jnp.broadcast_to(x[:, L:], x.shape) for x in (q, d))
    everything = make(infonce, layers_per_step=-1)
    factor = 1 + sum(1 / (layer * (L - 1)) for layer in range(1, L))
    np.testing.assert_allclose(run(everything, q, d)[0], factor * plain, rtol=1e-5)


def layers_of(random, depth, queries, docs, width):
    """Vectors [R, L+1, D] of queries and of documents, from one table of all texts."""
    texts = random.standard_normal((depth + 1, queries + docs, width))
    texts = jnp.asarray(texts.swapaxes(0, 1), jnp.float32)
    return texts[:queries], texts[queries:]


@pytest.mark.parametrize(
    "options,expected",
    [
        ({}, 19.692575454711914),
        ({"layer_weight": "linear"}, 17.07939910888672),
        ({"layer_weight": "log"}, 17.613285064697266),
        ({"dims": (4,)}, 22.86998748779297),
    ],
    ids=str,
)
def test_st6_adaptive_is_that_of_sentence_transformers(options, expected):
    """Values of AdaptiveLayerLoss and, with dims, Matryoshka2dLoss 6.2.0."""
    q, d = layers_of(np.random.default_rng(0), 3, 4, 4, 6)
    loss = SIZE_LOSSES["st6_adaptive"](infonce, layers_per_step=-1, **options)
    np.testing.assert_allclose(run(loss, q, d)[0], expected, rtol=1e-6)


def test_st6_adaptive_trains_the_embedding_layer_and_not_its_teacher(key):
    q, d, _ = every_layer(key)
    loss = SIZE_LOSSES["st6_adaptive"](ZERO, layers_per_step=-1)
    for grad in run(loss, q, d, grad=True)[2]:
        assert all(np.any(grad[:, layer]) for layer in range(L))
        assert not np.any(grad[:, L])
    draws = jax.vmap(lambda k: sample_layers(k, L, 1, first=0)[0])
    assert set(np.unique(draws(jax.random.split(key, 100)))) == set(range(L))


def test_matryoshka2d_calls_the_loss_twice_at_widths_of_their_own(key):
    q, d, _ = every_layer(key)
    nested = SIZE_LOSSES["st6_adaptive"](infonce, dims=(4, 16))
    step = jax.jit(jax.vmap(lambda k: nested.loss(q, d, NONE, k)[1]))
    metrics = step(jax.random.split(key, 200))
    assert sorted(metrics) == ["kl/drawn0x16", "task/4xdrawn", "task/drawn0xdrawn"]
    last = np.round(metrics["task/4xdrawn"], 3)
    for k in (4, 16):
        share = np.mean(np.abs(last - loop_infonce(*at(q, d, L, k))) < 0.01)
        assert 0.35 < share < 0.65
    assert len(np.unique(np.round(metrics["task/drawn0xdrawn"], 3))) == 2 * L


def test_ese_equals_the_loop(key):
    q, d, _ = every_layer(key)
    value = run(SIZE_LOSSES["ese"](infonce, **ARGUMENTS["ese"]), q, d)[0]
    expected = loop_infonce(*at(q, d, L, D)) + loop_infonce(*at(q, d, L, 4))
    for i in range(L - 1):
        weight = 1 / (1 + np.log(1 + i)) / (L - 1)
        expected += weight * loop_infonce(*at(q, d, i, 4))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "temperature,expected", [(1.0, 39.19532775878906), (0.5, 39.35772705078125)]
)
def test_ese_with_its_alignment_is_that_of_the_release(temperature, expected):
    """Values of AngleESETrainer (SeanLee97/AnglE 5155458), format C.

    Its randomized decomposition was replaced by the exact one, with signs as here.
    """
    random = np.random.default_rng(0)
    random.standard_normal((4, 3, 6))
    # Texts in the order query, positive, negative
    texts = random.standard_normal((4, 4, 3, 6)).astype(np.float32)
    q, d = texts[:, :, 0].swapaxes(0, 1), texts[:, :, 1:].reshape(4, 8, 6)
    loss = build_loss({"name": "angle_triplets"})
    size_loss = SIZE_LOSSES["ese"](loss, dim=2, kl_temperature=temperature)
    value, metrics, grads = run(size_loss, q, d.swapaxes(0, 1), grad=True)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert {"align/0x2", "align/1x2", "align/3x2"} < set(metrics)
    if temperature == 1:
        np.testing.assert_allclose(
            grads[0][0, 0], [-1.2148482, -2.1801314, 0, 0, 0, 0], rtol=1e-4
        )


def test_alignment_is_the_same_on_8_devices_and_in_any_order(key):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    loss = SIZE_LOSSES["ese"](infonce, dim=1)
    # Of a dominant first component, which rounding does not turn
    q, d = (0.3 * x for x in every_layer(key, 16)[:2])
    one = run(loss, q, d, grad=True)
    many = run(loss, *jax.device_put((q, d), rows), grad=True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, many
    )
    turned = run(loss, q[::-1], d.reshape(16, K, L + 1, D)[::-1].reshape(d.shape))
    np.testing.assert_allclose(turned[0], one[0], rtol=1e-5)


@pytest.mark.parametrize(
    "normalize,expected", [(False, 32.15111541748047), (True, 8.139418601989746)]
)
def test_starbucks_retrieval_is_that_of_the_release(normalize, expected):
    """Values of SrlDenseModel (ielab/Starbucks 2a3b24f), which cuts unit vectors."""
    q, d = layers_of(np.random.default_rng(0), 3, 4, 8, 6)
    loss = score_loss(partial(contrastive.infonce, temperature=0.5), "dot")
    size_loss = SIZE_LOSSES["starbucks_retrieval"](
        loss, pairs=((1, 2), (2, 4), (3, 6)), kl_weight=0.7, normalize=normalize
    )
    np.testing.assert_allclose(run(size_loss, q, d)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name,arguments,message",
    [
        ("starbucks_sts", {"pairs": ((8, 4), (4, 16))}, r"size \(8, 4\).*4 layers"),
        ("starbucks_retrieval", {"pairs": ((1, 32),)}, r"size \(1, 32\).*16 dims"),
        ("starbucks_sts", {"pairs": ((0, 4),)}, r"size \(0, 4\)"),
        ("starbucks_sts", {"pairs": ()}, "different sizes"),
        ("starbucks_sts", {"pairs": ((1, 4), (1, 4))}, "different sizes"),
        ("matryoshka", {"dims": (4, 32)}, "dim 32 is not in the model, which has 16"),
        ("matryoshka", {"dims": (4,), "weights": (1.0, 2.0)}, "2 weights.* 1 dims"),
        ("matryoshka", {"dims": ()}, "at least one"),
        ("single_size", {"depth": 5}, r"size \(5, 16\)"),
        ("single_size", {"dim": 17}, "dim 17"),
        ("ese", {}, "dim 128"),
        ("mse2d_v1", {"dims": (32,)}, "dim 32"),
        ("st5_adaptive", {"dims": (32,)}, "dim 32"),
        ("st6_adaptive", {"layer_weight": "square"}, "uniform, linear, log"),
        ("starbucks_retrieval", {"pairs": PAIRS, "normalize": True}, "'dot', not 'cos"),
        ("two_dimensional", {"pairs": PAIRS, "kl_on": "all"}, "kl_on is 'all'"),
        (
            "two_dimensional",
            {"pairs": PAIRS, "kl_on": "features", "kl_teacher": "full"},
            "narrower",
        ),
    ],
)
def test_mistakes_are_named(key, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(SIZE_LOSSES[name](infonce, **arguments), *every_layer(key))


@pytest.mark.parametrize("name", ["mse2d_v1", "st5_adaptive", "ese"])
def test_a_single_layer_has_nothing_to_draw(key, name):
    q, d, labels = every_layer(key)
    arguments = ARGUMENTS[name]
    with pytest.raises(ValueError, match="2 layers or more"):
        run(SIZE_LOSSES[name](infonce, **arguments), q[:, -2:], d[:, -2:], labels)

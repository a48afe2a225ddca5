"""The contrastive objective: devices, chunks and padding change nothing."""

import chex
import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.analysis.program_cost import measure_program
from research.config_sections import build, section
from research.data.examples import Example
from research.data.pairs.pair_batches import make_pair_batches
from research.data.sources import Source
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES, build_loss
from research.models import config
from research.models.encoder import encode
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.contrastive import contrastive
from research.text.tokenization import train_tokenizer
from research.types import Labels, max_segments

CFG = config.bert(
    vocab_size=80, width=16, depth=2, num_heads=2, mlp=24, max_len=32, dropout=0.1
)
PAIRS = ((1, 4), (2, 16))
WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "sings",
    "fast",
    "slow",
    "here",
    "there",
]


def sentence(rng):
    return " ".join(rng.choice(WORDS, rng.integers(2, 9)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(tokenizer, batch function) of rows with a hard negative and duplicates."""
    rng = np.random.default_rng(0)
    texts = [sentence(rng) for _ in range(60)]
    rows = [Example(texts[i], (texts[i + 20],), (texts[i + 40],)) for i in range(16)]
    rows += [
        Example(texts[0], (texts[30],), (texts[45],))
    ] * 2  # same query, same positive
    tokenizer = train_tokenizer(texts, 80)

    def batch(chunks=8, devices=1):
        source = Source(rows, 1, 1.0, {"query": "find : ", "document": ""})
        batches = make_pair_batches(
            {"toy": source},
            tokenizer,
            batch_size=16,
            max_length=32,
            seed=0,
            cache=tmp_path_factory.mktemp("tokens"),
            devices=devices,
            min_chunks=chunks,
        )
        return jax.tree.map(jnp.asarray, batches(0))

    return batch


INFONCE = build_loss({"name": "infonce"})


def over_sizes(nested, **loss):
    loss = build_loss(section(LOSSES, "infonce", **loss))
    arguments = {"pairs": PAIRS} if nested == "starbucks_sts" else {}
    return build(SIZE_LOSSES, section(SIZE_LOSSES, nested, **arguments), loss)


def objective(nested="starbucks_sts", micro_batch=0, **loss):
    nested = over_sizes(nested, **loss)
    return contrastive(CFG, BASIC_POOLINGS["mean"], nested, micro_batch=micro_batch)


def value_and_grad(objective, params, batch, key):
    def loss(params):
        return objective.loss(params, {}, batch, key)[0]

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("nested", ["full_size", "starbucks_sts"])
def test_one_device_equals_eight(key, made, nested, micro_batch):
    one = objective(nested, micro_batch, symmetric=True)
    # As many chunks on each of the four devices as on one
    four = objective(nested, micro_batch // 4, symmetric=True)
    params, _ = one.init(key)
    batch = made(4, devices=4)
    expected = value_and_grad(one, params, batch, key)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    places = sharding.shardings(jax.eval_shape(lambda: params), mesh)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(jax.tree.map(np.asarray, batch), mesh)
        got = value_and_grad(four, jax.device_put(params, places), batch, key)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", ["full_size", "starbucks_sts", "mse2d_v1"])
def test_gradcache_has_the_gradient_of_the_whole_batch(key, made, nested):
    """With dropout, prompts, padding, duplicates and hard negatives on.

    The reference encodes the same chunks in a Python loop, all activations kept.
    """
    chunked = objective(nested, micro_batch=4)
    params, _ = chunked.init(key)
    batch = made(8)
    rows, length = batch.tokens.token_ids.shape
    tokens = jax.tree.map(np.asarray, batch.tokens)  # to be cut without compiling
    deep = over_sizes(nested)

    @jax.jit
    def contrast(parts, key):
        x = jnp.stack(parts, 1).reshape(-1, CFG.depth + 1, CFG.width)
        x = x if deep.needs_all_layers else x[:, -1]
        values, _ = deep.loss(
            x[batch.query_index], x[batch.document_index], batch.labels, key
        )
        return values.mean()

    def reference(params):
        encode_key, loss_key = jax.random.split(key)
        keys = jax.random.split(encode_key, 4)
        parts = [
            encode(
                params["encoder"],
                jax.tree.map(lambda x, c=c: x[c::4], tokens),
                CFG,
                BASIC_POOLINGS["mean"],
                max_segments=max_segments(length),
                key=keys[c],
                every_layer=True,
            ).reshape(rows // 4, max_segments(length), CFG.depth + 1, CFG.width)
            for c in range(4)
        ]
        return contrast(parts, loss_key)

    expected = jax.value_and_grad(reference)(params)
    got = value_and_grad(chunked, params, batch, key)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


def encode_texts(params, tokens):
    """The vectors of all texts of rows, without dropout."""
    slots = max_segments(tokens.token_ids.shape[1])
    mean = BASIC_POOLINGS["mean"]
    return np.asarray(
        compiled.encode(params["encoder"], tokens, CFG, mean, max_segments=slots)
    )


def test_rows_of_padding_change_nothing(key, made):
    none = objective("full_size")
    params, _ = none.init(key)
    batch = made(8)
    more = batch.tokens._replace(
        **{
            name: jnp.pad(x, ((0, 8), (0, 0)))
            for name, x in batch.tokens._asdict().items()
            if x is not None
        }
    )

    found, padded = (encode_texts(params, tokens) for tokens in (batch.tokens, more))
    for index in (batch.query_index, batch.document_index):
        np.testing.assert_allclose(found[index], padded[index], rtol=1e-5, atol=1e-6)


def test_the_loss_equals_a_loop_over_pairs(key, made):
    """In-batch and hard negatives; equal texts are never negatives of each other."""
    none = objective("full_size")
    params, _ = none.init(key)
    batch = made(8)
    x = encode_texts(params, batch.tokens).astype(np.float64)
    q, d = x[np.asarray(batch.query_index)], x[np.asarray(batch.document_index)]
    q, d = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, d))
    queries = [tuple(np.asarray(h)) for h in batch.labels.query_id]
    documents = [tuple(np.asarray(h)) for h in batch.labels.document_id]
    expected = []
    for i in range(16):
        total = 0.0
        for j in range(32):
            same_query = queries[i] == queries[j // 2] and j // 2 != i
            same_text = documents[j] == documents[2 * i] and j != 2 * i
            if not (same_query or same_text):
                total += np.exp(20 * q[i] @ d[j])
        expected.append(np.log(total) - 20 * q[i] @ d[2 * i])
    assert len(set(queries)) < 16
    vectors = [jnp.asarray(v, jnp.float32) for v in (q, d)]
    got = INFONCE(*vectors, batch.labels)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(got, INFONCE(*vectors, Labels()))


def test_a_tanh_head_is_trained_beside_the_encoder(key, made):
    loss = build(SIZE_LOSSES, section(SIZE_LOSSES, "full_size"), INFONCE)
    simcse = contrastive(CFG, BASIC_POOLINGS["cls"], loss, head="tanh")
    params, _ = simcse.init(key)
    assert params["head"]["kernel"].shape == (16, 16)
    _, gradient = value_and_grad(simcse, params, made(8), key)
    assert float(jnp.abs(gradient["head"]["kernel"]).max()) > 0
    with pytest.raises(ValueError, match="objective.head is 'relu'"):
        contrastive(CFG, BASIC_POOLINGS["cls"], loss, head="relu")
    with pytest.raises(ValueError, match="keep_head needs a head"):
        contrastive(CFG, BASIC_POOLINGS["cls"], loss, keep_head=True)
    with pytest.raises(ValueError, match="head_width needs a head"):
        contrastive(CFG, BASIC_POOLINGS["cls"], loss, head_width=8)


def test_a_text_in_the_row_of_another_device_is_noticed(key, made):
    """A batch that is packed for one device has texts anywhere."""
    four = objective("full_size")
    params, _ = four.init(key)
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(jax.tree.map(np.asarray, made(8)), mesh)
        value, *_ = jax.jit(four.loss)(params, {}, batch, key)
    assert np.isnan(value)


def test_devices_exchange_the_vectors_of_the_sizes_once(key, made):
    """Bytes that a device gets in a step, compiled for 8 devices and not run."""
    starbucks = objective("starbucks_sts")
    mesh = sharding.make_mesh({"data": 8})
    batch = made(8, devices=8)
    shapes = jax.eval_shape(starbucks.init, key)[0]
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(jax.tree.map(np.asarray, batch), mesh)

        def loss(params):
            return starbucks.loss(params, {}, batch, key)[0]

        text = jax.jit(jax.grad(loss)).lower(shapes).compile().as_text()
    rows = [
        c
        for c in measure_program(text).collectives
        if c.kind in ("all-gather", "reduce-scatter")
    ]
    gathered = sum(c.count * c.mebibytes for c in rows if c.kind == "all-gather")
    # [32 documents, sum of dims] float32, and the ids of 48 texts, of 8 bytes
    vectors = 32 * sum(dim for _, dim in PAIRS) * 4
    assert gathered * 2**20 == vectors + 48 * 8


def test_the_rank_weight_adds_the_entropy_of_all_embeddings(key, made):
    """On one device and on eight, with hard negatives and all layers."""
    nested = over_sizes("starbucks_sts")

    def value(weight, batch, params):
        pool = BASIC_POOLINGS["mean"]
        reduced = contrastive(CFG, pool, nested, rank_weight=weight)
        run = jax.jit(lambda params: reduced.loss(params, {}, batch, key))
        value, metrics, _ = run(params)
        return float(value), metrics

    batch = made(4, devices=4)
    params, _ = contrastive(CFG, BASIC_POOLINGS["mean"], nested).init(key)
    plain, metrics = value(0.0, batch, params)
    assert "representation_rank" not in metrics
    total, metrics = value(0.5, batch, params)
    rank = float(metrics["representation_rank"])
    assert 1 < rank < CFG.width
    assert total - plain == pytest.approx(0.5 * np.log(rank), rel=1e-4)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    places = sharding.shardings(jax.eval_shape(lambda: params), mesh)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(jax.tree.map(np.asarray, batch), mesh)
        got, metrics = value(0.5, batch, jax.device_put(params, places))
    assert got == pytest.approx(total, rel=1e-4)
    assert float(metrics["representation_rank"]) == pytest.approx(rank, rel=1e-4)

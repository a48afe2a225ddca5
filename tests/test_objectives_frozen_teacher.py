"""A frozen teacher within the step: the vectors of its embedder, on any devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.data.examples import Example
from research.data.pairs.pair_batches import make_pair_batches
from research.data.sources import Source
from research.experiment import teachers
from research.inference.embedder import Embedder
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.models import config
from research.models.pooling.projection import Dense
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.contrastive import contrastive
from research.objectives.tuning import lora
from research.text.tokenization import hash_texts, train_tokenizer
from research.types import LossOutput, Objective
from tests.tiny_models import make_model

CFG = config.bert(
    vocab_size=80, width=16, depth=2, num_heads=2, mlp=24, max_len=32, dropout=0.1
)
WORDS = ("old", "new", "trees", "leaf", "roots", "light", "grow", "tall", "small")


def make_teacher():
    """A model of another tokenizer and width, with prompts and a dense layer."""
    kernel = np.random.default_rng(1).normal(size=(16, 12)).astype(np.float32)
    return make_model(
        dense=(Dense(kernel, np.full(12, 0.1, np.float32), "tanh"),),
        prompts={"query": "the light ", "document": ""},
        dim=10,
    )


def load_teacher(model=None, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "load_adapted", lambda name: model or make_teacher())
        return teachers.load_frozen_model(32, model="tiny", **options)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(72)]


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    """(devices, chunks) -> the batch of a step, with the teacher's tokens."""
    examples = [
        Example(texts[i], (texts[24 + i],), (texts[48 + i],)) for i in range(24)
    ]
    tokenizer = train_tokenizer(texts, 40)
    cache = tmp_path_factory.mktemp("tokens")

    def batch(devices=1, chunks=1, step=0):
        source = Source(examples, 1, 1.0, {"query": "find : ", "document": ""})
        batches = make_pair_batches(
            {"toy": source},
            tokenizer,
            batch_size=16,
            max_length=32,
            seed=0,
            cache=cache,
            devices=devices,
            min_chunks=chunks,
            teacher=load_teacher().teacher,
        )
        return batches(step)

    return batch


def read_labels():
    """An objective whose metrics are the vectors that a loss would get."""

    def loss(params, frozen, batch, key):
        assert batch.teacher is None and frozen == {"own": 1}
        labels = batch.labels
        vectors = {"query": labels.query_vector, "document": labels.document_vector}
        return LossOutput(jnp.zeros(()), vectors)

    return Objective(lambda key, encoder_params=None: ({}, {"own": 1}), loss)


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_vectors_are_those_of_the_embedder(made, texts, micro_batch):
    wrapped = load_teacher().wrap(read_labels(), micro_batch)
    batch = made(chunks=4)
    params, frozen = wrapped.init(jax.random.key(0))
    frozen = {**frozen, "teacher": jax.tree.map(jnp.asarray, frozen["teacher"])}
    vectors = wrapped.loss(params, frozen, batch, jax.random.key(1)).metrics
    embedder = Embedder(make_teacher())
    by_hash = {tuple(h): t for t in texts for h in hash_texts([t]).tolist()}
    for role, ids in (
        ("query", batch.labels.query_id),
        ("document", batch.labels.document_id),
    ):
        expected = embedder([by_hash[tuple(h)] for h in ids.tolist()], role)
        assert expected.shape[1] == 10
        np.testing.assert_allclose(vectors[role], expected, atol=1e-5)


def make_objective(name="gist", micro_batch=0, **options):
    loss = build_loss({"name": name, **options})
    sizes = SIZE_LOSSES["starbucks_sts"](loss, pairs=((1, 4), (2, 10)))
    objective = contrastive(
        CFG,
        BASIC_POOLINGS["mean"],
        sizes,
        micro_batch=micro_batch,
        head="linear",
        head_width=10,
        projection_width=10 if name == "weighted_sum" else 0,
    )
    return load_teacher().wrap(objective, micro_batch)


def value_and_grad(objective, params, frozen, batch, key):
    def loss(params, frozen, batch):
        return objective.loss(params, frozen, batch, key).value

    return jax.jit(jax.value_and_grad(loss))(params, frozen, batch)


CASES = {
    "gist": {"temperature": 0.1},
    "stella": {},
    "relational_kd": {},
    "weighted_sum": {
        "terms": "infonce() | spread_out() | teacher_kl(documents='batch')"
        " | embedding_mse(documents='query') | embedding_cosine()"
    },
}


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("name", CASES)
def test_one_device_equals_four(made, name, micro_batch, key):
    """With Starbucks' sizes, chunks (GradCache), a projection and hard negatives."""
    one = make_objective(name, micro_batch, **CASES[name])
    four = make_objective(name, micro_batch // 4, **CASES[name])
    params, frozen = one.init(key)
    batch = made(4, 4)
    expected = value_and_grad(one, params, frozen, batch, key)
    assert np.isfinite(expected[0])
    assert np.abs(expected[1]["head"]["kernel"]).max() > 0
    if name == "weighted_sum":
        assert np.abs(expected[1]["projection"]["kernel"]).max() > 0
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    places = sharding.shardings((params, frozen), mesh)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(batch, mesh)
        got = value_and_grad(
            four, *jax.device_put((params, frozen), places), batch, key
        )
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_stays_beside_the_frozen_base_of_lora(made, key):
    """Traced only; the structure of the state is the same after a step."""
    loss = SIZE_LOSSES["full_size"](build_loss({"name": "gist"}))
    tuned = lora(contrastive(CFG, BASIC_POOLINGS["mean"], loss), rank=2)
    wrapped = load_teacher().wrap(tuned, 0)
    params, frozen = jax.eval_shape(wrapped.init, key)
    assert set(frozen) == {"base", "own", "teacher"}
    output = jax.eval_shape(wrapped.loss, params, frozen, made(), key)
    assert output.value.shape == () and output.frozen is None


def test_a_teacher_that_cannot_embed_is_one_sentence():
    with pytest.raises(ValueError, match="teacher.length is 31; tiny embeds .* to 30 "):
        load_teacher(length=31)
    assert load_teacher().teacher.encoding.max_length == 30
    assert load_teacher(length=8).teacher.encoding.max_length == 8
    adapted = make_teacher()._replace(adapters=("query", "document"))
    with pytest.raises(ValueError, match="tiny has an adapter for each role"):
        load_teacher(adapted)

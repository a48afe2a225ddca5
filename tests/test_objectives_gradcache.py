import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models.config import EncoderConfig
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.gradcache import encode_in_chunks
from research.types import Tokens

ROWS, LENGTH, SLOTS = 8, 16, 2
CFG = EncoderConfig(vocab_size=20, width=8, depth=2, num_heads=2, mlp=16, max_len=16)


@pytest.fixture(scope="module")
def tokens():
    """Packed rows: two texts in each, prompts left out of the pooling, padding."""
    random = np.random.default_rng(0)
    ids = random.integers(1, 20, (ROWS, LENGTH), dtype=np.int32)
    place = np.arange(LENGTH)[None]
    first = random.integers(3, 7, (ROWS, 1))
    last = random.integers(10, LENGTH + 1, (ROWS, 1))
    segment = np.where(place < first, 1, np.where(place < last, 2, 0))
    prompt = (place < 2) | (place == first)
    return Tokens(ids, segment.astype(np.int32), (segment > 0) & ~prompt)


def encode(params, tokens, key, every_layer=True):
    return encoder.encode(
        params,
        tokens,
        CFG,
        BASIC_POOLINGS["mean"],
        max_segments=SLOTS,
        key=key,
        every_layer=every_layer,
    )


def at_once(chunks):
    """The whole batch in one product, with the dropout keys that the chunks have."""

    def run(params, tokens, key):
        split = jax.tree.map(
            lambda x: jnp.stack([x[c::chunks] for c in range(chunks)]), tokens
        )
        keys = jax.random.split(key, chunks)
        z = jax.vmap(encode, (None, 0, 0))(params, split, keys)
        z = z.reshape(chunks, ROWS // chunks, SLOTS, *z.shape[2:])
        rows = [z[row % chunks, row // chunks] for row in range(ROWS)]
        return jnp.concatenate(rows)

    return run


def loss(encode, params, tokens, key):
    """Every text against every other, at every depth: rows are coupled."""
    z = encode(params, tokens, key)
    scores = jnp.einsum("ntd,mtd->tnm", z, z) * 0.1
    return jax.nn.logsumexp(scores, axis=2).mean() - (z[::2] * z[1::2]).mean()


@pytest.mark.parametrize("chunks", [4, ROWS])
def test_value_and_gradient_are_the_whole_batchs(tokens, key, chunks):
    params = compiled.init(key, CFG)
    grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    value, ours = grad(encode_in_chunks(encode, chunks), params, tokens, key)
    expected, theirs = grad(at_once(chunks), params, tokens, key)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        ours,
        theirs,
    )


@pytest.mark.parametrize("chunks", [2, ROWS])
def test_without_dropout_chunks_change_nothing(tokens, key, chunks):
    params = compiled.init(key, CFG)
    whole = jax.jit(encode)(params, tokens, None)
    np.testing.assert_allclose(
        jax.jit(encode_in_chunks(encode, chunks))(params, tokens, None),
        whole,
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_chunk_is_the_plain_encoder():
    assert encode_in_chunks(encode, 1) is encode


def test_rows_that_do_not_divide_are_refused(tokens, key):
    with pytest.raises(ValueError, match="8 rows do not divide into 3 chunks"):
        encode_in_chunks(encode, 3)(compiled.init(key, CFG), tokens, None)

"""GEM: what follows the special tokens sees the text before only through them."""

import dataclasses
from functools import partial

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import lively, random_rows

from research.models import encoder
from research.models.config import modern
from research.objectives.gem import Division, attention_mask, gem, place_special_tokens
from research.types import TokenizerInfo

CFG = modern(
    **{
        "vocab_size": 50,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp": 48,
        "max_len": 64,
    },
    causal=True,
)
TEXT = TokenizerInfo(50, None, (0, 1, 2, 3), None, end_id=2)
ROWS = random_rows(3, 4, 48)
SEGMENT = np.asarray(ROWS.tokens.segment_ids)


@pytest.fixture(scope="module")
def params():
    return lively(partial(encoder.init, cfg=CFG))


def parts_of(key, count=2, ratio=1.0):
    return Division(
        *map(
            np.asarray, place_special_tokens(key, ROWS.tokens.segment_ids, count, ratio)
        )
    )


@pytest.mark.parametrize("count", [1, 3])
def test_texts_are_divided_within(key, count):
    special, after = parts_of(key, count)
    for r in range(4):
        for m in range(1, SEGMENT[r].max() + 1):
            place = np.flatnonzero(SEGMENT[r] == m)
            mine = special[r, place]
            if len(place) < count + 2:
                assert not mine.any() and not after[r, place].any()
                continue
            assert mine.sum() == count
            first = mine.argmax()
            assert first >= 1 and first + count < len(place)
            assert mine[first : first + count].all()
            np.testing.assert_array_equal(
                after[r, place], np.arange(len(place)) >= first + count
            )
    assert not special[SEGMENT == 0].any() and not after[SEGMENT == 0].any()


def test_a_share_of_the_texts_is_divided():
    split = jax.jit(place_special_tokens, static_argnums=(2, 3))
    keys = jax.random.split(jax.random.key(0), 200)
    segment = ROWS.tokens.segment_ids
    some = np.mean([np.asarray(split(k, segment, 1, 0.25).special).sum() for k in keys])
    every = np.mean([np.asarray(split(k, segment, 1, 1.0).special).sum() for k in keys])
    assert some / every == pytest.approx(0.25, abs=0.04)


def states(params, ids, sees):
    tokens = ROWS.tokens._replace(token_ids=jnp.asarray(ids))
    return np.asarray(compiled.apply(params, tokens, CFG, extra_mask=sees)[0])


def test_what_stands_before_goes_through_the_special_tokens(params, key):
    special, after = parts_of(key)
    sees = np.asarray(
        attention_mask(Division(jnp.asarray(special), jnp.asarray(after)))
    )
    before = ~special & ~after & (SEGMENT > 0)
    ids = np.where(special, 2, np.asarray(ROWS.tokens.token_ids))
    other = np.where(before, (ids + 7) % 50, ids)
    left, right = (states(params, x, jnp.asarray(sees)) for x in (ids, other))
    assert np.abs(left - right)[after].max() > 1e-3
    shut = sees & ~(after[:, :, None] & special[:, None, :])
    left, right = (states(params, x, jnp.asarray(shut)) for x in (ids, other))
    np.testing.assert_allclose(left[after], right[after], atol=1e-6)


def test_special_tokens_do_not_see_each_other(params, key):
    """The first state is that of the token alone after what stands before it."""
    special, after = parts_of(key, 3)
    sees = attention_mask(Division(jnp.asarray(special), jnp.asarray(after)))
    ids = np.where(special, 2, np.asarray(ROWS.tokens.token_ids))
    got = states(params, ids, sees)
    plain = states(params, ids, None)
    first = special & ~np.pad(special, ((0, 0), (1, 0)))[:, :-1]
    second = special & np.pad(first, ((0, 0), (1, 0)))[:, :-1]
    np.testing.assert_allclose(got[first], plain[first], atol=1e-5)
    assert np.abs(got - plain)[second].max() > 1e-3


def test_the_loss_is_that_of_the_predicted_tokens(params, key):
    objective = gem(CFG, TEXT, count=2, ratio=1.0)
    total, metrics, _ = jax.jit(objective.loss)({"encoder": params}, {}, ROWS, key)
    special, after = map(
        np.asarray,
        place_special_tokens(jax.random.split(key)[0], ROWS.tokens.segment_ids, 2, 1.0),
    )
    ids = np.where(special, 2, np.asarray(ROWS.tokens.token_ids))
    sees = attention_mask(Division(jnp.asarray(special), jnp.asarray(after)))
    x = states(params, ids, sees).astype(np.float64)
    z = x @ np.asarray(params["embed"]["token"]["embedding"], np.float64).T
    losses, later = [], []
    for r in range(4):
        for i in range(47):
            if SEGMENT[r, i + 1] != SEGMENT[r, i] or not SEGMENT[r, i]:
                continue
            if special[r, i + 1]:
                continue
            top = z[r, i].max()
            logsumexp = np.log(np.exp(z[r, i] - top).sum()) + top
            losses.append(logsumexp - z[r, i, ids[r, i + 1]])
            if after[r, i + 1]:
                later.append(losses[-1])
    np.testing.assert_allclose(total, np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["perplexity"], np.exp(np.mean(losses)), rtol=1e-3
    )
    np.testing.assert_allclose(
        metrics["after/perplexity"], np.exp(np.mean(later)), rtol=1e-3
    )


def test_errors():
    both = dataclasses.replace(CFG, causal=False)
    with pytest.raises(ValueError, match=r"gem needs a causal encoder"):
        gem(both, TEXT)
    with pytest.raises(ValueError, match="count is 0 and ratio 0.5; allowed: at least"):
        gem(CFG, TEXT, count=0)
    with pytest.raises(ValueError, match="ratio 0"):
        gem(CFG, TEXT, ratio=0.0)
    with pytest.raises(ValueError, match="token_id is 50; allowed: 0 ... 49"):
        gem(CFG, TEXT, token_id=50)
    with pytest.raises(
        ValueError, match="or -1 for an end token, if the tokenizer has"
    ):
        gem(CFG, TEXT._replace(end_id=None))

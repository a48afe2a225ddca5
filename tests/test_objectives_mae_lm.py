"""Encoders that never see [MASK]: kept tokens stay where they were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, MASK, TEXT, cross_entropy, lively, random_rows

from research.models import decoders, encoder, heads
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import segment_positions
from research.models.token_ops import compact_tokens
from research.objectives import mlm_masking
from research.objectives.mae_lm import decoder_inputs, mae_lm, mask_later

ROWS = random_rows(4, 2, 32)
MASK_TOKENS = jax.jit(mlm_masking.mask_row_tokens, static_argnums=2)
SHAPES = pytest.mark.parametrize(
    "cfg",
    [CFG, dataclasses.replace(CFG, position="none", position_bias="t5")],
    ids=["learned", "relative"],
)


def inputs(cfg, params, rows, at, real):
    """What the decoder reads, without positions of its own."""
    norm = params["decoder"]["input_norm"]
    params = {**params, "decoder": {"input_norm": norm}}
    return decoder_inputs(params, rows.tokens, (at, real), None, cfg, TEXT)


def normalized(x, params):
    """The norm of the decoder's inputs, in NumPy."""
    x, norm = np.asarray(x, np.float64), params["decoder"]["input_norm"]
    x -= x.mean(-1, keepdims=True)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + CFG.norm_eps)
    return x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])


@SHAPES
def test_without_masks_the_encoder_is_the_ordinary_one(key, cfg):
    params = lively(mae_lm(cfg, TEXT).init)[0]
    at = jnp.broadcast_to(jnp.arange(32, dtype=jnp.int32), (2, 32))
    real = ROWS.tokens.segment_ids > 0

    @jax.jit
    def both(params):
        whole = encoder.forward(params["encoder"], ROWS.tokens, cfg).hidden_states
        return whole, inputs(cfg, params, ROWS, at, real)

    expected, got = (np.asarray(x)[np.asarray(real)] for x in both(params))
    np.testing.assert_allclose(got, normalized(expected, params), atol=1e-5)


def test_the_decoder_reads_the_norm_of_a_token_and_its_position(key):
    """As in yumeng5/MAE-LM: LayerNorm of [MASK]'s row plus the decoder's position."""
    params = lively(mae_lm(CFG, TEXT).init)[0]
    (mask,) = MASK_TOKENS(key, ROWS, (0.3,))
    kept = mlm_masking.masked_positions(
        ~mask, mlm_masking.unmasked_buffer_size(32, 0.3)
    )
    got = jax.jit(lambda p: decoder_inputs(p, ROWS.tokens, kept, None, CFG, TEXT))(
        params
    )
    places = segment_positions(ROWS.tokens.segment_ids).position_ids
    table = params["encoder"]["embed"]["token"]["embedding"]
    sums = table[MASK][None, None] + params["decoder"]["position"][places]
    expected = normalized(sums, params)
    mask = np.asarray(mask)
    assert mask.sum() > 5
    np.testing.assert_allclose(got[mask], expected[mask], atol=1e-5)


@SHAPES
def test_order_and_masked_tokens_do_not_matter(key, cfg):
    params = lively(mae_lm(cfg, TEXT).init)[0]
    (mask,) = MASK_TOKENS(key, ROWS, (0.3,))
    at, real = mlm_masking.masked_positions(
        ~mask, mlm_masking.unmasked_buffer_size(32, 0.3)
    )
    states = jax.jit(lambda *x: inputs(cfg, params, *x))
    before = np.asarray(states(ROWS, at, real))
    other = jnp.where(mask, 9, ROWS.tokens.token_ids)
    rows = ROWS._replace(tokens=ROWS.tokens._replace(token_ids=other))
    np.testing.assert_array_equal(states(rows, at, real), before)
    order = np.random.default_rng(0).permutation(at.shape[1])
    ordinary = np.asarray(ROWS.tokens.segment_ids) > 0
    shuffled = np.asarray(states(ROWS, at[:, order], real[:, order]))
    np.testing.assert_allclose(shuffled[ordinary], before[ordinary], atol=1e-5)
    table = params["encoder"]["embed"]["token"]["embedding"]
    stand_in = np.broadcast_to(normalized(table[MASK], params), (int(mask.sum()), 16))
    np.testing.assert_allclose(before[np.asarray(mask)], stand_in, atol=1e-5)


@pytest.mark.parametrize("make", [mae_lm, mask_later])
def test_the_loss_is_of_the_masked_tokens(key, make, monkeypatch):
    mask = MASK_TOKENS(key, ROWS, (0.25,))[0]
    monkeypatch.setattr(mlm_masking, "mask_row_tokens", lambda *_: (mask,) * 3)
    objective = make(CFG, TEXT, ratio=0.25, replace=(1.0, 0.0))
    params = lively(objective.init)[0]
    total, _, _ = jax.jit(objective.loss)(params, {}, ROWS, key)

    @jax.jit
    def reference(params):
        at, real = mlm_masking.masked_positions(~mask, 32)
        x = decoder_inputs(params, ROWS.tokens, (at, real), None, CFG, TEXT)
        where = segment_positions(ROWS.tokens.segment_ids)
        x = decoders.decode(params["encoder"], params["decoder"], x, where, CFG)
        z = heads.apply_mlm_head(params["head"], x, CFG)
        return cross_entropy(params, z, ROWS.tokens.token_ids, mask)

    np.testing.assert_allclose(total, reference(params), rtol=1e-4)


def test_what_is_left_of_a_text_stands_in_one_stretch_of_a_longer_table(key):
    cfg = dataclasses.replace(CFG, max_len=512, random_offset=480)
    rows = random_rows(1, 8, 64)
    (mask,) = mlm_masking.mask_row_tokens(key, rows, (0.5,))
    kept = mlm_masking.masked_positions(
        ~mask, mlm_masking.unmasked_buffer_size(64, 0.5)
    )
    _, where = compact_tokens(rows.tokens, *kept)
    starts = np.asarray(table_rows(where, cfg, key) - where.position_ids)
    segment = np.asarray(where.segment_ids)
    assert (starts >= 0).all() and (starts <= 480).all()
    for r in range(8):
        for text in range(1, 5):
            assert len(set(starts[r][segment[r] == text])) == 1
    assert len(set(starts[segment > 0])) > 8


@pytest.mark.parametrize("make", [mae_lm, mask_later])
@pytest.mark.parametrize("replace", [(0.0, 1.0), (0.8, -0.1), (0.8, 0.3)])
def test_shares_that_are_none(make, replace):
    with pytest.raises(ValueError, match="it should be a share above 0"):
        make(CFG, TEXT, replace=replace)
    with pytest.raises(ValueError, match="objective.depth is 0"):
        make(CFG, TEXT, depth=0)

"""Starbucks' masked autoencoding against a loop over its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, MASK, TEXT, cross_entropy, firsts, hide, lively, random_rows

from research.models import decoders, embedding, encoder, heads
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.mlm import mlm
from research.objectives.mlm_masking import MaskedTokens
from research.objectives.smae import decode_masked, smae

PAIRS = ((1, 4), (2, 16))
ROWS = random_rows(4, 3, 32)
MASK_WORDS = jax.jit(mlm_masking.mask_whole_words, static_argnums=2)


@pytest.fixture
def masks(key):
    return MASK_WORDS(key, ROWS, (0.2, 0.4))


def started(key, **options):
    objective = smae(CFG, TEXT, pairs=PAIRS, **options)
    return objective, lively(objective.init)[0]


def by_loop(params, small, large):
    """[(MLM, MAE)] of the sizes, from every layer's states and whole rows of logits."""
    tokens, where = ROWS.tokens, segment_positions(ROWS.tokens.segment_ids)
    seen, dark = (jnp.where(mask, MASK, tokens.token_ids) for mask in (small, large))
    states = encoder.forward(
        params["encoder"], tokens._replace(token_ids=seen), CFG, every_layer=True
    ).layers
    words = embedding.embed_tokens(params["encoder"], dark, where, CFG)
    losses = []
    for depth, width in PAIRS:
        padded = states[depth].at[..., width:].set(0.0)
        x = heads.apply_mlm_head(params["head"], padded, CFG)
        y = jnp.where(jnp.asarray(firsts(ROWS))[:, :, None], x, words)
        y = decoders.decode(params["encoder"], params["decoder"], y, where, CFG)
        y = heads.apply_mlm_head(params["head"], y, CFG)
        both = (x, small), (y, large)
        losses.append([cross_entropy(params, z, tokens.token_ids, m) for z, m in both])
    return jnp.asarray(losses)


def test_the_loss_is_the_mean_over_sizes_of_half_of_both(key, masks, monkeypatch):
    objective, params = started(key)
    expected = np.asarray(jax.jit(by_loop)(params, *masks))
    hide(monkeypatch, *masks)
    total, metrics, _ = jax.jit(objective.loss)(params, {}, ROWS, key)
    for pair, (mlm_loss, mae_loss) in zip(PAIRS, expected, strict=True):
        name = f"{pair[0]}x{pair[1]}"
        np.testing.assert_allclose(metrics[f"mlm/{name}"], mlm_loss, rtol=1e-4)
        np.testing.assert_allclose(metrics[f"mae/{name}"], mae_loss, rtol=1e-4)
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-4)


def test_mae_reads_a_prefix_of_the_first_token_only(key, masks, monkeypatch):
    _, params = started(key)
    hide(monkeypatch, *masks)

    def total(states, decoder):
        def apply(params, tokens, cfg, keep, *, key):
            return states[-1], jax.vmap(lambda x: keep(x, None))(states)

        monkeypatch.setattr(encoder, "apply", apply)
        objective = smae(CFG, TEXT, pairs=PAIRS[:1], decoder=decoder)
        return objective.loss(params, {}, ROWS, key)[0]

    states = jax.random.normal(key, (3, *ROWS.word_ids.shape, 16))
    gradient = jax.jit(jax.grad(lambda x: total(x, True) - total(x, False)))(states)
    read = np.zeros(states.shape, bool)
    segment, dark = np.asarray(ROWS.tokens.segment_ids), np.asarray(masks[1])
    for r, place in zip(*np.nonzero(firsts(ROWS)), strict=True):
        read[1, r, place, :4] = dark[r][segment[r] == segment[r, place]].any()
    np.testing.assert_allclose(np.asarray(gradient)[~read], 0, atol=1e-5)
    assert (np.abs(np.asarray(gradient)[read]) > 1e-5).mean() > 0.9


def test_the_decoder_does_not_see_the_token_in_place_of_the_sentence(key, masks):
    _, params = started(key)
    at, real = mlm_masking.masked_positions(masks[1], 14)
    sentences = jax.random.normal(key, (1, 3, 2, 16))

    @jax.jit
    def states(ids):
        dark = MaskedTokens(ids, at, real, ids)
        return decode_masked(params, ROWS, dark, sentences, key, CFG)

    ids = ROWS.tokens.token_ids
    other = jnp.where(jnp.asarray(firsts(ROWS)), 9, ids)
    np.testing.assert_array_equal(states(ids), states(other))
    assert not np.allclose(states(ids), states(ids.at[:, 1].set(9)))


def test_the_whole_size_without_a_decoder_is_half_of_mlm(key, masks, monkeypatch):
    hide(monkeypatch, masks[0], masks[0])
    half = smae(CFG, TEXT, pairs=PAIRS[-1:], decoder=False)
    params = lively(half.init)[0]
    assert set(params) == {"encoder", "head"}
    whole = mlm(CFG, TEXT, ratio=0.2).loss
    expected, got = jax.jit(
        lambda params: (
            whole(params, {}, ROWS, key)[0],
            half.loss(params, {}, ROWS, key)[0],
        )
    )(params)
    np.testing.assert_allclose(got, expected / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ratios": (0.2,)}, r"objective.ratios is \(0.2,\); it should be two"),
        ({"ratios": (0.4, 0.2)}, "masks 0.2 of the tokens in the decoder, less than"),
        ({"ratios": (0.2, 1.0)}, r"objective.ratios is 1.0; it must lie in \(0, 1\)"),
        ({"pairs": ((3, 4),)}, r"has \(3, 4\), but the encoder has 2 blocks of width"),
        ({"pairs": ((1, 17),)}, r"has \(1, 17\), but the encoder has 2 blocks of"),
        ({"pairs": ()}, "objective.pairs names no size"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        smae(CFG, TEXT, **{"pairs": PAIRS} | options)

"""Masked language modelling: its loss, and which words it hides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, MASK, TEXT, VOCAB, cross_entropy, hide, lively, random_rows

from research.models import encoder, heads
from research.objectives import mlm_masking
from research.objectives.mlm import mlm
from research.objectives.mlm_masking import mask_tokens
from research.objectives.word_weights import RATE

ROWS = random_rows(4, 3, 32)
MASK_WORDS = jax.jit(mlm_masking.mask_whole_words, static_argnums=2)


def test_the_loss_is_the_mean_over_hidden_tokens_whatever_the_padding(key, monkeypatch):
    (mask,) = MASK_WORDS(key, ROWS, (0.15,))
    objective = mlm(CFG, TEXT)
    params = lively(objective.init)[0]

    def reference(params):
        tokens = ROWS.tokens._replace(
            token_ids=jnp.where(mask, MASK, ROWS.tokens.token_ids)
        )
        x = encoder.forward(params["encoder"], tokens, CFG).hidden_states
        z = heads.apply_mlm_head(params["head"], x, CFG)
        return cross_entropy(params, z, ROWS.tokens.token_ids, mask)

    expected = jax.jit(reference)(params)
    pad = partial(np.pad, pad_width=((0, 2), (0, 0)))
    batch, hides = jax.tree.map(pad, (ROWS, mask))
    hide(monkeypatch, hides)
    total, metrics, _ = jax.jit(objective.loss)(params, {}, batch, key)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    share = np.sum(mask) / np.sum(ROWS.tokens.segment_ids > 0)
    np.testing.assert_allclose(metrics["masked"], share, rtol=1e-6)


@pytest.mark.parametrize("replace", [(0.8, 0.3), (-0.1, 0.1), (0.8,)])
def test_chances_of_replacement_are_chances(key, replace):
    with pytest.raises(ValueError, match="objective.replace is .*; it should be"):
        mask_tokens(key, ROWS, ROWS.word_ids > 0, 8, TEXT, replace)


def test_losses_of_tokens_run_along(key):
    objective = mlm(CFG, TEXT, weighting="loss")
    params, frozen = objective.init(key)
    before = np.asarray(frozen["losses"])
    np.testing.assert_allclose(before, np.log(VOCAB), rtol=1e-6)
    frozen = jax.jit(objective.loss)(params, frozen, ROWS, key).frozen
    after = np.asarray(frozen["losses"])
    moved = np.flatnonzero(after != before)
    assert 0 < len(moved) <= 3 * mlm_masking.buffer_size(32, 0.15)
    assert np.isin(moved, np.asarray(ROWS.tokens.token_ids)[ROWS.word_ids > 0]).all()
    mean = before[moved] + (after - before)[moved] / RATE
    assert (mean > 0).all()

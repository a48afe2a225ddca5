"""Heads that predict tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from packed import CFG, lively

from research.models import heads
from research.models.token_prepending import add_token


def test_the_head_of_a_prefix_is_that_of_its_zero_padding(key):
    params = lively(partial(heads.init_mlm_head, cfg=CFG))
    x = jax.random.normal(key, (2, 3, 16))
    for width in (1, 5, 16):
        padded = heads.apply_mlm_head(params, x.at[..., width:].set(0.0), CFG)
        got = heads.apply_mlm_head(params, x[..., :width], CFG)
        np.testing.assert_allclose(got, padded, atol=1e-5)


def test_logits_are_of_the_output_layer_or_else_of_the_token_table(key):
    params = {"embed": {"token": {"embedding": jnp.ones((CFG.vocab_size, CFG.width))}}}
    assert heads.output_embeddings(params) is params["embed"]["token"]["embedding"]
    untied = {**params, "lm_head": heads.init_lm_head(key, CFG)}
    kernel = heads.output_embeddings(untied)
    assert kernel.shape == (CFG.vocab_size, CFG.width)
    assert 0.01 < float(kernel.std()) < 0.03
    longer = heads.output_embeddings(add_token(untied, CFG, key)[0])
    np.testing.assert_array_equal(longer[:-1], kernel)
    assert not longer[-1].any()

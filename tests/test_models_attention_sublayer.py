import dataclasses

import jax
import numpy as np
import pytest
from tiny_models import make_model

from research.models.attention.inputs import make_attention_inputs
from research.models.attention_sublayer import apply_attention
from research.models.encoder import apply
from research.models.layers import norm
from research.models.positions.segment_positions import segment_positions
from research.types import Tokens


@pytest.mark.parametrize("preset", ["bert", "modern"])
def test_a_block_without_feed_forward_is_its_attention(preset):
    model = make_model(preset)
    cfg = dataclasses.replace(model.config, attention="plain")
    # Feed-forward layers that output zero.
    layers = dict(model.params["layers"])
    layers["down"] = jax.tree.map(np.zeros_like, layers["down"])
    params = {**model.params, "layers": layers}
    token_ids = np.arange(20, dtype=np.int32).reshape(2, 10) + 5
    ones = np.ones_like(token_ids)
    tokens = Tokens(token_ids, ones, ones.astype(bool))
    _, states = apply(params, tokens, cfg, lambda x, _: x)
    attn = make_attention_inputs(params, segment_positions(ones), cfg)
    for layer in range(cfg.depth):
        weights, output = apply_attention(params, states[layer], attn, layer, cfg)
        assert weights.shape == (2, cfg.num_heads, 10, 10)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        x = states[layer] + output
        if cfg.norm_at == "post":
            for name in ("attention_norm", "mlp_norm"):
                scale = jax.tree.map(lambda p, i=layer: p[i], layers[name])
                x = norm(cfg, None).apply({"params": scale}, x)
        np.testing.assert_allclose(states[layer + 1], x, atol=1e-5)

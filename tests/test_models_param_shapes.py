from dataclasses import replace
from functools import partial

import jax
import pytest
from test_interop_hf_families import CONFIGS

from research.models import encoder, heads
from research.models.config import bert, modern
from research.models.param_shapes import abstract_params
from research.models.positions.methods import read_methods

SIZES = {"vocab_size": 9, "width": 16, "depth": 2, "num_heads": 2, "mlp": 24}
OTHERS = {
    "clex": replace(
        modern(**SIZES),
        position_methods=read_methods("clex(original=64, max_factor=4)"),
    ),
    "kerple": bert(**SIZES, position="none", position_bias="kerple_log"),
    "seqpe": bert(**SIZES, position="none", position_bias="seqpe"),
    "experts": modern(**SIZES, num_experts=3),
    "no biases": bert(**SIZES, bias=(), norm_bias=False, type_vocab=0),
}


@pytest.mark.parametrize("cfg", (CONFIGS | OTHERS).values(), ids=CONFIGS | OTHERS)
def test_shapes_are_those_of_the_initial_parameters(cfg):
    params = jax.eval_shape(partial(encoder.init, cfg=cfg), jax.random.key(0))
    assert abstract_params(cfg) == params


def test_an_untied_output_layer_has_a_matrix():
    cfg = CONFIGS["llama"]
    head = jax.eval_shape(partial(heads.init_lm_head, cfg=cfg), jax.random.key(0))
    assert abstract_params(cfg, lm_head=True)["lm_head"] == head

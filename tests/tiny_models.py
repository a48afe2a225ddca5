"""Tiny random models that tests share; each is made once per session."""

from functools import cache

import jax
import numpy as np

from research.inference.model import EmbeddingModel
from research.models import encoder
from research.models.config import bert, modern
from research.text.tokenization import train_tokenizer

TEXTS = [
    "An old leaf falls from the tall tree.",
    "roots",
    "Why do new trees, small as they are, grow so quickly towards the light?",
    "the tree " * 30,  # longer than max_length
]
PRESETS = {"bert": bert, "modern": modern}


@cache
def random_params(cfg):
    """Parameters of an encoder with noise on all of them, biases and scales too."""
    noise = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(x) + noise.normal(0, 0.2, x.shape).astype("f4"),
        jax.jit(encoder.init, static_argnums=1)(jax.random.key(0), cfg),
    )


def make_model(preset="bert", **changes):
    """A model of 3 blocks of width 16, with `changes` of EmbeddingModel's fields."""
    tokenizer = train_tokenizer(TEXTS, 80)  # a new one: some tests change it
    cfg = PRESETS[preset](
        vocab_size=tokenizer.get_vocab_size(),
        width=16,
        depth=3,
        num_heads=2,
        mlp=24,
        max_len=40,
    )
    model = EmbeddingModel(
        params=random_params(cfg),
        config=cfg,
        tokenizer=tokenizer,
        pool="mean",
        max_length=30,
        prompts={"query": "", "document": ""},
        normalize=True,
    )
    return model._replace(**changes)

"""A linear model of token counts, small enough to train in milliseconds."""

import jax
import jax.numpy as jnp
import numpy as np

from research import sharding
from research.train.experiment import Experiment
from research.train.optimizers import adamw
from research.types import Batch, Labels, LossOutput, Objective, Tokens

VOCAB, WIDTH, LENGTH, ROWS = 16, 8, 12, 8


def objective(dropout=0.1):
    def init(key, encoder_params=None):
        del encoder_params
        table = jax.random.normal(key, (VOCAB, WIDTH))
        kernel = jnp.eye(WIDTH)[None, :, :, None]
        return {
            "encoder": {
                "embed": {"token": {"embedding": table}},
                "layers": {"query": {"kernel": kernel, "bias": jnp.zeros((1, WIDTH))}},
            }
        }, {}

    def loss(params, frozen, batch, key):
        del frozen
        z = encode(params["encoder"], batch.tokens, key, dropout)
        q, d = z[batch.query_index], z[batch.document_index]
        scores = jnp.einsum("bd,cd->bc", q, d)
        picked = jnp.diagonal(scores)
        value = jax.nn.logsumexp(scores, axis=1) - picked
        value = jnp.mean(value * batch.labels.score)
        return LossOutput(value, {"similarity": picked.mean()})

    return Objective(init, loss)


def encode(params, tokens, key, dropout=0.1):
    """[R, D], one text a row."""
    x = params["embed"]["token"]["embedding"][tokens.token_ids]
    if key is not None and dropout:
        keep = jax.random.bernoulli(key, 1 - dropout, x.shape)
        x = jnp.where(keep, x / (1 - dropout), 0.0)
    x = jnp.where((tokens.segment_ids > 0)[:, :, None], x, 0.0).mean(1)
    layer = params["layers"]["query"]
    return jnp.tanh(x @ layer["kernel"][0, :, :, 0] + layer["bias"])


class Batches:
    """batches(step), sources taking turns."""

    def __init__(self, rows=ROWS, seed=0):
        self.rows, self.seed = rows, seed

    def __call__(self, step):
        random = np.random.default_rng((self.seed, step))
        ids = random.integers(0, VOCAB, (self.rows, LENGTH), dtype=np.int32)
        lengths = random.integers(3, LENGTH + 1, (self.rows, 1))
        real = np.arange(LENGTH)[None] < lengths
        half = self.rows // 2
        indices = np.arange(self.rows, dtype=np.int32)
        tokens = Tokens(ids, real.astype(np.int32), real)
        return Batch(
            tokens, indices[:half], indices[half:], Labels(np.ones(half, np.float32))
        )

    def source_name(self, step):
        return ("odd", "even")[step % 2 == 0]


def experiment(steps=6, devices=1, **changes):
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1}, jax.devices()[:devices])
    parts = Experiment(
        objective(), adamw(steps, learning_rate=1e-2), Batches(), mesh, steps
    )
    return parts._replace(log_every=2, save_every=2)._replace(**changes)

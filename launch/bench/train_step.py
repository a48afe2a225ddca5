"""Our side of the training benches: a recipe's batches, and updates on them."""

import importlib
from pathlib import Path

import jax
import ml_collections
import numpy as np

from research import sharding
from research.data.document_cache import tokenizer_info
from research.experiment.workdir import prepare_run
from research.objectives import mlm_masking
from research.text import tokenization
from research.train.loop import abstract_state, initial_state
from research.train.step import make_step
from research.types import PretrainingBatch


def recipe(name: str, variant: str = "") -> ml_collections.ConfigDict:
    """The config of configs/x.py[:arg], a variant added, with nothing to evaluate."""
    path, _, arg = name.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config = module.get_config(",".join(filter(None, [arg, variant])))
    config.evals = {}
    return config


class Steps:
    """Updates of a new run, compiled for each of its first batches.

    Attributes:
        batches: numpy arrays, as they come.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        count: int,
        cache: Path | None = None,
    ):
        parts = prepare_run(config, workdir, cache=cache)
        self._mesh = parts.mesh
        self._state = initial_state(parts, abstract_state(parts, parts.mesh))
        places = jax.tree.map(lambda x: x.sharding, self._state)
        self._step = make_step(parts.objective, parts.tx, places)
        self._key = jax.random.key(config.seed)
        self.batches = [parts.batches(turn) for turn in range(count)]
        shapes = {b.tokens.token_ids.shape: turn for turn, b in enumerate(self.batches)}
        for turn in shapes.values():
            self.update(turn)

    def update(self, turn: int) -> float:
        """One update on a batch; the loss before it."""
        batch = sharding.put_batch(self.batches[turn], self._mesh)
        self._state, metrics = self._step(self._state, batch, self._key)
        return float(metrics["loss"])


def hidden(
    rows: PretrainingBatch, workdir: Path, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """A batch as transformers takes it: ids with words hidden, and labels [R, S].

    Labels are the ids of hidden tokens, elsewhere -100.

    Args:
        rows: a batch.
        workdir: the run's, with its tokenizer.
        ratio: of hidden tokens.
    """
    info = tokenizer_info(tokenization.load_tokenizer(workdir), [])
    mask_key, key = jax.random.split(jax.random.key(0))
    rows = jax.tree.map(jax.numpy.asarray, rows)
    (mask,) = mlm_masking.mask_whole_words(mask_key, rows, (ratio,))
    ids = mlm_masking.replace_masked(
        key,
        rows.tokens.token_ids,
        mask,
        mask_id=info.mask_id,
        vocab=info.vocab_size,
        special=info.special_ids,
    )
    labels = jax.numpy.where(mask, rows.tokens.token_ids, -100)
    return np.asarray(ids, np.int64), np.asarray(labels, np.int64)

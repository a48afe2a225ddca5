"""Benchmark of pre-training: MLM and SMAE against MLM by transformers."""

import tempfile
from pathlib import Path

import jax
import numpy as np

from launch.bench.timing import time_turns
from launch.bench.train_step import load_recipe, prepare_steps
from research.config_sections import build
from research.data.document_cache import tokenizer_info
from research.experiment.workdir import prepare_run
from research.objectives import mlm_masking
from research.text import tokenization
from research.types import PretrainingBatch


def pretrain(variant: str, rounds: int) -> dict:
    """Times steps of MLM and SMAE; the peer is MLM by transformers on the same rows.

    The peer treats each row as one text, and its tokens are masked beforehand. "padded"
    is MLM on rows of one document each, to compare the tokens of text per second.

    Args:
        variant: Variant of configs/mlm.py and configs/smae.py.
        rounds: Number of timed steps of each program.
    """
    import torch

    from launch.bench.torch_peer import MaskedPeer
    from research.experiment.initialization import ENCODERS

    configs = {
        "mlm": load_recipe("configs/mlm.py", variant),
        "smae": load_recipe("configs/smae.py", variant),
        "padded": load_recipe("configs/mlm.py", variant),
    }
    configs["padded"].row_layout.texts = 1  # one document per row
    # Our side: compiled steps and their batches.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        steps = {
            name: prepare_steps(
                prepare_run(config, path / name, cache=path / "tokens"), rounds + 1
            )
            for name, config in configs.items()
        }
        tokenizer = tokenization.load_tokenizer(path / "mlm")
    batches = {name: step.batches for name, step in steps.items()}
    # The peer: the same rows, masked beforehand.
    batches["theirs"] = batches["mlm"]
    ratio = configs["mlm"].objective.ratio
    masked = [mask_batch(batch, tokenizer, ratio) for batch in batches["mlm"]]
    encoder = configs["mlm"].encoder
    peer = MaskedPeer(build(ENCODERS, encoder), configs["mlm"].optimizer)
    updates = {name: step.update for name, step in steps.items()}
    updates["theirs"] = lambda turn: peer.update(*masked[turn])
    losses = {name: [] for name in updates}

    def make_turn(name):
        return lambda turn: losses[name].append(updates[name](turn))

    seconds = time_turns({name: make_turn(name) for name in updates}, rounds)
    # Mean number of tokens that are not padding.
    tokens = {
        name: float(np.mean([(b.tokens.segment_ids > 0).sum() for b in side]))
        for name, side in batches.items()
    }
    shape = batches["mlm"][0].word_ids.shape  # (R, S)
    return {
        "encoder": encoder.to_dict(),
        "rows": shape,
        "seconds": seconds,
        "fill": {name: tokens[name] / np.prod(shape) for name in steps},
        "tokens_per_second": {name: tokens[name] / s for name, s in seconds.items()},
        "ratio": seconds["theirs"] / seconds["mlm"],
        "smae_cost": seconds["smae"] / seconds["mlm"],
        "losses": losses,
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
    }


def mask_batch(
    rows: PretrainingBatch, tokenizer, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """A batch for transformers: (token ids with masks, labels), each [R, S].

    Labels are the ids of masked tokens, and -100 for all other tokens.

    Args:
        rows: Batch of R rows.
        tokenizer: Tokenizer of the run.
        ratio: Share of the tokens to mask.
    """
    info = tokenizer_info(tokenizer, [])
    # [R, S] bool mask, then the token ids that replace masked tokens.
    mask_key, replace_key = jax.random.split(jax.random.key(0))
    rows = jax.tree.map(jax.numpy.asarray, rows)
    (mask,) = mlm_masking.mask_whole_words(mask_key, rows, (ratio,))
    masked_ids = mlm_masking.replace_masked(
        replace_key,
        rows.tokens.token_ids,
        mask,
        mask_id=info.mask_id,
        vocab_size=info.vocab_size,
        special_ids=info.special_ids,
    )
    labels = jax.numpy.where(mask, rows.tokens.token_ids, -100)
    return np.asarray(masked_ids, np.int64), np.asarray(labels, np.int64)

"""Depth cut where the loss of the layers says so."""

import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import lively

from research.analysis import layer_pruning
from research.inference import model
from research.interop.sentence_transformers.write import export
from research.losses.contrastive import infonce
from research.losses.registry import score_loss
from research.models import encoder
from research.models.config import modern
from research.models.pooling.registry import BASIC_POOLINGS
from research.text.tokenization import train_tokenizer
from research.types import Batch, Labels, Tokens

SHAPE = {"vocab_size": 60, "width": 32, "num_heads": 2, "mlp": 48, "max_len": 32}
CFG = modern(depth=4, causal=True, **SHAPE)


@pytest.fixture(scope="module")
def params():
    return lively(partial(encoder.init, cfg=CFG))


@pytest.fixture(scope="module")
def batches():
    """Two of four pairs, two texts of 8 tokens a row."""
    found = []
    for seed in range(2):
        noise = np.random.default_rng(seed)
        ids = noise.integers(0, 60, (4, 16)).astype(np.int32)
        segment = np.repeat([[1] * 8 + [2] * 8], 4, 0).astype(np.int32)
        tokens = Tokens(ids, segment, segment > 0)
        query = np.arange(0, 8, 2, dtype=np.int32)
        found.append(Batch(tokens, query, query + 1, Labels()))
    return found


def test_a_pruned_model_is_the_layer_and_the_final_norm_bit_for_bit(params, batches):
    tokens = jax.tree.map(jnp.asarray, batches[0].tokens)
    every = encoder.forward(params, tokens, CFG, every_layer=True).layers
    sizes = []
    for depth in range(1, 5):
        cut, cfg = encoder.truncate_depth(params, CFG, depth)
        got = encoder.forward(cut, tokens, cfg).hidden_states
        np.testing.assert_array_equal(got, every[depth])
        sizes.append(sum(x.size for x in jax.tree.leaves(cut)))
    assert len(set(np.diff(sizes))) == 1 and sizes[0] < sizes[1]  # a block each


def test_layer_losses_are_those_of_the_pruned_models(params, batches):
    got = layer_pruning.layer_losses(params, CFG, batches)
    assert got.shape == (4,)
    loss = score_loss(infonce)
    for depth in (1, 3):
        cut, cfg = encoder.truncate_depth(params, CFG, depth)
        losses = []
        for batch in batches:
            tokens = jax.tree.map(jnp.asarray, batch.tokens)
            pool = BASIC_POOLINGS["weighted_mean"]
            x = encoder.encode(cut, tokens, cfg, pool, max_segments=2)
            losses.append(
                loss(x[batch.query_index], x[batch.document_index], Labels()).mean()
            )
        np.testing.assert_allclose(got[depth - 1], np.mean(losses), rtol=1e-5)
    with pytest.raises(ValueError, match="at least one batch"):
        layer_pruning.layer_losses(params, CFG, [])


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([3, 1, 2, 5, 4, 0.5, 6, 7], (2, 6)),
        ([1, 2, 3, 4, 5, 6], (1, 4)),
        ([6, 5, 4, 3, 2, 1], (3, 6)),
        ([1, 1, 9, 1, 1], (1, 4)),  # the first of equals; the middle one is large
        ([2, 1], (1, 2)),
    ],
)
def test_prune_points_are_one_after_the_least_of_each_half(losses, expected):
    assert layer_pruning.find_prune_depths(np.array(losses)) == expected


def test_the_last_share_goes():
    assert [
        layer_pruning.remaining_depth(32, share) for share in (0, 0.1, 0.5, 0.9)
    ] == [
        32,
        29,
        16,
        3,
    ]
    with pytest.raises(ValueError, match="share 1.0 of 4 blocks"):
        layer_pruning.remaining_depth(4, 1.0)
    with pytest.raises(ValueError, match="one block has no depth"):
        layer_pruning.find_prune_depths(np.ones(1))


def test_command(params, tmp_path):
    texts = [f"the {word} of a tree" for word in ("leaf", "root", "bark", "seed")]
    tokenizer = train_tokenizer(texts, 60)
    prompts = {"query": "", "document": ""}
    whole = model.EmbeddingModel(
        jax.device_get(params), CFG, tokenizer, "mean", 32, prompts, True
    )
    export(whole, tmp_path / "model")
    rows = [{"anchor": text, "positive": text.upper()} for text in texts]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "launch.prune", f"--model={tmp_path / 'model'}"]
    command += [f"--data={file}", "--batches=2", "--batch_size=2", "--share=0.5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["losses"]) == 4 and found["last"] == {"0.5": 2}
    assert (found["small"], found["large"]) == layer_pruning.find_prune_depths(
        np.array(found["losses"])
    )

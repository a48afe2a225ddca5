"""Small pre-training batches, and an encoder that takes milliseconds."""

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import bert
from research.objectives import mlm_masking
from research.sharding import path_name
from research.types import PretrainingBatch, TokenizerInfo, Tokens

VOCAB, MASK = 50, 4
TEXT = TokenizerInfo(VOCAB, MASK, (0, 1, 2, 3, 4), np.arange(VOCAB))
SHAPE = {"vocab_size": VOCAB, "width": 16, "depth": 2, "num_heads": 2, "mlp": 24}
CFG = bert(**SHAPE, max_len=64, dropout=0.0, remat="none")


def rows_of(texts, length):
    """Rows of texts, each a list of ids that begins and ends with a special one."""
    ids, segment, word = np.zeros((3, len(texts), length), np.int32)
    for r, row in enumerate(texts):
        place, number = 0, 0
        for m, text in enumerate(row, 1):
            for t, token in enumerate(text):
                ids[r, place], segment[r, place] = token, m
                if 0 < t < len(text) - 1:
                    number += 1
                    word[r, place] = number
                place += 1
    return PretrainingBatch(
        Tokens(jnp.asarray(ids), jnp.asarray(segment), segment > 0), word
    )


def random_rows(seed, count=6, length=48):
    """Random packed rows: texts of [CLS] words [SEP], words of 1 to 4 tokens."""
    random = np.random.default_rng(seed)
    ids, segment, word = np.zeros((3, count, length), np.int32)
    for r in range(count):
        place, text, number = 0, 0, 0
        while text < length // 16:
            size = int(random.integers(4, 17))
            if place + size > length:
                break
            text += 1
            segment[r, place : place + size] = text
            ids[r, place : place + size] = random.integers(10, 50, size)
            inside = place + 1
            while inside < place + size - 1:
                end = min(inside + int(random.integers(1, 5)), place + size - 1)
                number += 1
                word[r, inside:end] = number
                inside = end
            place += size
    return PretrainingBatch(
        Tokens(jnp.asarray(ids), jnp.asarray(segment), segment > 0), word
    )


def firsts(rows):
    """[R, S] bool, where texts begin."""
    segment = np.asarray(rows.tokens.segment_ids)
    return (np.diff(segment, prepend=0) != 0) & (segment > 0)


def hide(monkeypatch, *masks):
    """Makes an objective mask these tokens [R, S], all by [MASK], and no others."""

    def mask_whole_words(key, batch, ratios, *, weights=None):
        del key, batch, weights
        return masks[: len(ratios)]

    def replace_masked(key, token_ids, mask, **_):
        del key
        return jnp.where(mask, MASK, token_ids)

    monkeypatch.setattr(mlm_masking, "mask_whole_words", mask_whole_words)
    monkeypatch.setattr(mlm_masking, "replace_masked", replace_masked)


def lively(init):
    """What init(key) makes, of noise: no bias is zero, and nothing is compiled."""
    random = np.random.default_rng(0)

    def noise(path, x):
        centre = 1.0 if path_name(path).endswith("scale") else 0.0
        x = centre + 0.3 * random.standard_normal(x.shape)
        return jnp.asarray(x, jnp.float32)

    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(noise, shapes)


def cross_entropy(params, states, labels, real):
    """The mean over real tokens [R, P] of what predicting them costs."""
    z = states @ params["encoder"]["embed"]["token"]["embedding"].T
    log_p = jax.nn.log_softmax(z + params["head"]["bias"][None, None])
    loss = -jnp.take_along_axis(log_p, jnp.asarray(labels)[:, :, None], 2)[:, :, 0]
    return jnp.where(real, loss, 0.0).sum() / real.sum(dtype=np.float32)

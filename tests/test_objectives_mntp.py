"""Masked next-token prediction, and a decoder that is made to see both sides."""

import dataclasses
from functools import partial

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import lively

from configs import decoder, llm2vec_mntp
from configs.common import start_from
from research.data.document_cache import tokenizer_info
from research.experiment.workdir import prepare_run
from research.interop import load
from research.models import encoder
from research.models.config import modern
from research.objectives import mlm_masking
from research.objectives.causal import drop_first_tokens, mntp
from research.text.tokenization import train_tokenizer
from research.train import loop
from research.types import PretrainingBatch, TokenizerInfo, Tokens

pytestmark = pytest.mark.usefixtures("one_device")
SHAPE = {
    "vocab_size": 50,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 32,
}
CFG = modern(**SHAPE)
TEXT = TokenizerInfo(50, None, (0, 1, 2, 3), None, blank_id=4)
ALL = (1.0, 0.0)


@pytest.fixture(scope="module")
def params():
    return lively(partial(encoder.init, cfg=CFG))


def packed(opening):
    """Rows [2, 24] of three texts, which begin with a special token or not."""
    ids, segment, word = np.zeros((3, 2, 24), np.int32)
    noise = np.random.default_rng(1)
    for row, start, end, text in ((0, 0, 12, 1), (0, 12, 21, 2), (1, 0, 17, 1)):
        ids[row, start:end] = noise.integers(5, 50, end - start)
        segment[row, start:end] = text
        word[row, start:end] = np.arange(1, end - start + 1)
        if opening:
            ids[row, start], word[row, start] = 1, 0
    tokens = Tokens(jnp.asarray(ids), jnp.asarray(segment), jnp.asarray(segment > 0))
    return PretrainingBatch(tokens, jnp.asarray(word))


def parts(key, rows, ratio, replace=ALL):
    """What the objective draws of this key: the mask, and the ids that are seen."""
    mask_key, hide_key, _ = jax.random.split(key, 3)
    mask = drop_first_tokens(
        mlm_masking.mask_single_tokens(mask_key, rows, ratio), rows.tokens.segment_ids
    )
    ids = mlm_masking.replace_masked(
        hide_key,
        rows.tokens.token_ids,
        mask,
        mask_id=4,
        vocab_size=50,
        special_ids=TEXT.special_ids,
        replace=replace,
    )
    return np.asarray(mask), ids


@pytest.mark.parametrize("replace", [ALL, (0.8, 0.1)])
def test_a_hidden_token_is_predicted_from_the_state_before_it(params, replace):
    rows, key = packed(True), jax.random.key(5)
    mask, ids = parts(key, rows, 0.4, replace)
    objective = mntp(CFG, TEXT, ratio=0.4, replace=replace)
    value, metrics, _ = jax.jit(objective.loss)({"encoder": params}, {}, rows, key)
    x, _ = compiled.apply(params, rows.tokens._replace(token_ids=ids), CFG)
    table = np.asarray(params["embed"]["token"]["embedding"], np.float64)
    z = np.asarray(x, np.float64) @ table.T
    found = []
    for row, place in zip(*np.nonzero(mask), strict=True):
        state = z[row, place - 1]
        label = int(rows.tokens.token_ids[row, place])
        found.append(np.log(np.exp(state).sum()) - state[label])
    # Two fifths of the ordinary tokens of each of the three texts: 11, 8 and 16.
    assert len(found) == 4 + 3 + 6
    np.testing.assert_allclose(value, np.mean(found), rtol=1e-5)
    np.testing.assert_allclose(metrics["masked"], 13 / 38, rtol=1e-6)
    if replace == ALL:
        assert (np.asarray(ids)[mask] == 4).all()


def test_without_an_opening_token_the_first_one_is_never_hidden():
    rows = packed(False)
    seen = np.zeros((2, 24), bool)
    for key in jax.random.split(jax.random.key(0), 20):
        seen |= parts(key, rows, 0.5)[0]
    assert not seen[0, 0] and not seen[0, 12] and not seen[1, 0]
    assert seen.sum() > 25


def test_what_is_shown_is_no_label(params):
    """With blocks that mix nothing, a shown token matters only as the one before."""
    rows, key = packed(True), jax.random.key(5)
    mask, _ = parts(key, rows, 0.4)
    alone = {**params, "layers": jax.tree.map(jnp.zeros_like, params["layers"])}
    loss = jax.jit(mntp(CFG, TEXT, ratio=0.4, replace=ALL).loss)

    def value(place=None):
        ids = rows.tokens.token_ids
        if place is not None:
            ids = ids.at[tuple(place)].set(ids[tuple(place)] % 45 + 5)
        batch = rows._replace(tokens=rows.tokens._replace(token_ids=ids))
        return float(loss({"encoder": alone}, {}, batch, key)[0])

    shown = ~mask & np.asarray(rows.word_ids > 0)
    before = np.pad(mask[:, 1:], ((0, 0), (0, 1)))  # a hidden token follows
    nothing = np.argwhere(shown & ~before)
    assert len(nothing) > 5
    assert all(value(place) == value() for place in nothing[:5])
    assert abs(value(np.argwhere(shown & before)[0]) - value()) > 1e-4  # an input
    assert abs(value(np.argwhere(mask)[0]) - value()) > 1e-4  # a label


@pytest.mark.parametrize("causal", [True, False])
def test_a_later_token_reaches_the_first_one_only_from_both_sides(params, causal):
    cfg = dataclasses.replace(CFG, causal=causal)
    rows = packed(True).tokens
    moved = rows._replace(token_ids=rows.token_ids.at[1, 16].add(1))
    before, after = (compiled.apply(params, x, cfg)[0][1, 0] for x in (rows, moved))
    assert (np.abs(before - after).max() > 1e-5) == (not causal)


def test_the_mask_is_the_tokenizers_or_its_underscore():
    tokenizer = train_tokenizer(["a_b some text"], 300, "causal")
    info = tokenizer_info(tokenizer, [])
    assert info.mask_id is None and info.blank_id == tokenizer.token_to_id("_") > 3
    mntp(CFG, info._replace(vocab_size=300))
    bare = info._replace(blank_id=None)
    with pytest.raises(ValueError, match="neither a mask token nor '_'"):
        mntp(CFG, bare)
    with pytest.raises(ValueError, match="mask_id is 300; the vocabulary has 0 ... 29"):
        mntp(CFG, bare._replace(vocab_size=300), mask_id=300)
    with pytest.raises(ValueError, match="encoder.causal is True"):
        mntp(dataclasses.replace(CFG, causal=True), info)
    with pytest.raises(ValueError, match="ratio is 1.0; it must lie in"):
        mntp(CFG, info, ratio=1.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def test_a_decoder_becomes_two_sided_and_stays_so(tmp_path, cache, capsys):
    """The workdir of a decoder, converted; its weights go on from where they were."""
    config = decoder.get_config("tiny")
    config.encoder.depth, config.steps, config.evals = 2, 1, {}
    loop.train(prepare_run(config, tmp_path / "one", cache=cache), tmp_path / "one")
    source = load.load(str(tmp_path / "one"))
    config = llm2vec_mntp.get_config(f"tiny,model={tmp_path / 'one'}")
    config.steps, config.evals, config.optimizer.learning_rate = 1, {}, 0.0
    made = prepare_run(config, tmp_path / "two", cache=cache)
    assert "here it is bidirectional" in made.note
    loop.train(made, tmp_path / "two")
    assert "its attention was causal" in capsys.readouterr().err
    converted = load.load(str(tmp_path / "two"))
    assert source.config.causal and not converted.config.causal
    jax.tree.map(np.testing.assert_array_equal, converted.params, source.params)
    kept = decoder.get_config("tiny")
    start_from(kept, str(tmp_path / "one"))
    kept.evals = {}
    assert prepare_run(kept, tmp_path / "three", cache=cache).note == ""

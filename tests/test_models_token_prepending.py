"""What is read of decoders: their layers, and token prepending, as transformers has it.

Properties are those of Fu et al. 2024: only what follows <PST> changes, and it sees the
end of the sentence.
"""

import dataclasses

import compiled
import decoders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.inference.options import parse_layers, parse_window
from research.models import encoder
from research.models.config import modern
from research.models.encoder import hidden_state_indices
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.methods import read_methods
from research.models.prefix_cache import can_share_prefix
from research.models.token_prepending import Prepend, add_token, prepend_blocks
from research.types import Tokens

TEXTS = [[1, 9, 8, 7, 5, 41, 33, 20, 13], [1, 30, 31, 32, 33, 7], [1, 50, 4, 6]]
TARGETS = (3, 1, 2)
CAUSAL = modern(
    vocab_size=40,
    width=32,
    depth=3,
    num_heads=2,
    mlp=48,
    max_len=32,
    causal=True,
    dropout=0.0,
)
IDS = [1, 20, 21, 3, 22, 23, 24, 25, 26, 27, 4]  # <PST> is 3, at place 3
# A text's states [n, D] -> its vector.
REFERENCE = {
    "mean": lambda x: x.mean(0),
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "max": lambda x: x.max(0),
    "weighted_mean": lambda x: np.average(x, 0, np.arange(1, len(x) + 1)),
}


def rows(texts):
    """Tokens of texts padded to the right."""
    longest = max(map(len, texts)) + 2
    ids = np.zeros((len(texts), longest), np.int32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    real = np.arange(longest)[None] < np.array([[len(text)] for text in texts])
    return Tokens(*map(jnp.asarray, (ids, real.astype(np.int32), real)))


def every_pool(tokens, mask):
    """All poolings, one after the other: [P*B, M, D]."""
    return jnp.concatenate([pool(tokens, mask) for pool in BASIC_POOLINGS.values()])


def prepend(texts, targets, window, depth=3):
    source = np.array([len(text) - 1 for text in texts], np.int32)
    blocks = prepend_blocks(window, depth)
    return Prepend(*map(jnp.asarray, (np.int32(targets), source, blocks)))


@pytest.fixture(scope="module", params=decoders.DECODERS)
def case(request, tmp_path_factory):
    return decoders.decoder(request.param, tmp_path_factory.mktemp("theirs"))


def test_every_pooling_of_every_layer(case):
    assert REFERENCE.keys() == BASIC_POOLINGS.keys()
    how = {"every_layer": True, "before_final_norm": True}
    ours = compiled.encode(case.params, rows(TEXTS), case.cfg, every_pool, **how)
    ours = np.asarray(ours).reshape(len(BASIC_POOLINGS), len(TEXTS), 5, 32)
    for side in ("none", "left", "right"):
        theirs = decoders.hidden_states(case.model, TEXTS, side)
        for layer in range(-4, 4):
            (place,) = hidden_state_indices((layer,), 3)
            for number, name in enumerate(BASIC_POOLINGS):
                for text, states in enumerate(theirs):
                    want = REFERENCE[name](states[layer])
                    got = ours[number, text, place]
                    np.testing.assert_allclose(got, want, atol=1e-4, err_msg=name)


def test_token_prepending_is_a_loop_over_layers(case):
    tokens, window = rows(TEXTS), (1, 3)
    given = prepend(TEXTS, TARGETS, window)
    ours, _ = compiled.apply(case.params, tokens, case.cfg, prepend=given)
    for row, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        want = decoders.prepended(case.model, text, target, window)
        np.testing.assert_allclose(ours[row, : len(text)], want, atol=1e-4)
        plain = decoders.hidden_states(case.model, [text], "none")[0][-1]
        assert np.abs(want[-1] - plain[-1]).max() > 1e-2


@pytest.fixture(scope="module")
def states():
    """(ids, window or None) -> final states [S, D], compiled once for all windows."""
    params = compiled.init(jax.random.key(0), CAUSAL)

    @jax.jit
    def with_window(tokens, given):
        return encoder.apply(params, tokens, CAUSAL, prepend=given)[0][0]

    def run(ids, window):
        given = None if window is None else prepend([ids], (3,), window)
        return np.asarray(with_window(rows([ids]), given))[: len(ids)]

    run.compiled = with_window
    return run


def test_an_empty_window_changes_nothing(states):
    np.testing.assert_array_equal(states(IDS, (2, 2)), states(IDS, None))
    np.testing.assert_array_equal(states(IDS, (0, 0)), states(IDS, None))


def test_only_what_follows_the_token_changes(states):
    before, after = states(IDS, (0, 0)), states(IDS, (1, 2))
    np.testing.assert_array_equal(after[:3], before[:3])
    assert (np.abs(after[3:] - before[3:]).max(1) > 1e-4).all()


def test_early_tokens_see_the_end_of_the_sentence(states):
    other = [*IDS[:-2], 35, IDS[-1]]
    np.testing.assert_array_equal(states(IDS, (0, 0))[5], states(other, (0, 0))[5])
    assert np.abs(states(IDS, (1, 3))[5] - states(other, (1, 3))[5]).max() > 1e-4
    # Before the first block the last token is itself only: nothing is gained.
    np.testing.assert_array_equal(states(IDS, (0, 1))[5], states(other, (0, 1))[5])


def test_windows_share_a_program(states):
    for window in ((0, 0), (0, 3), (1, 2), (2, 3)):
        states(IDS, window)
    assert states.compiled._cache_size() <= 2  # with a window, and with none


@pytest.mark.parametrize("window", [(0, 4), (2, 1), (-1, 2)])
def test_a_window_outside_the_depth(window):
    with pytest.raises(ValueError, match=r"blocks .* <= 3, the depth of this encoder"):
        prepend_blocks(window, 3)


def test_layers_are_numbered_as_hidden_states():
    assert hidden_state_indices((0, 1, 2, 3, -1, -2, -4), 3) == (0, 1, 2, 4, 4, 2, 0)
    for layer in (4, -5):
        with pytest.raises(ValueError, match=f"layer {layer} is not in -4 ... 3"):
            hidden_state_indices((layer,), 3)


def test_what_flags_say():
    assert parse_layers("-2") == (-2,)
    assert parse_layers("(1, 12)") == (1, 12)
    assert parse_window("(1, 7)") == (1, 7)
    for text in ("", "1;2", "last", "()"):
        with pytest.raises(
            ValueError, match=r"names no layers; write -2, or \(1, 12\)"
        ):
            parse_layers(text)
    for text in ("1", "(1, 2, 3)", "1:7", "a"):
        with pytest.raises(ValueError, match=r"not a window of blocks; write \(1, 7\)"):
            parse_window(text)


def test_one_more_token_changes_no_other():
    params = compiled.init(jax.random.key(0), CAUSAL)
    more, cfg = add_token(params, CAUSAL, jax.random.key(1))
    table, longer = (p["embed"]["token"]["embedding"] for p in (params, more))
    assert cfg == dataclasses.replace(CAUSAL, vocab_size=41)
    np.testing.assert_array_equal(longer[:40], table)
    assert 0.5 < float(longer[40].std()) < 1.5  # and not the 0.02 of the others


@pytest.mark.parametrize(
    "changes, shared",
    [
        ({}, True),
        ({"position": "learned"}, True),
        ({"position_methods": read_methods("temp_scale(tau=0.9)")}, True),
        ({"causal": False}, False),
        ({"window": 2, "sliding_window_layers": (True, False, True)}, False),
        ({"position": "none", "position_bias": "alibi"}, False),
        ({"anchor_token": True}, False),
        ({"position_methods": read_methods("e2(largest=4)")}, True),
        ({"position_methods": read_methods("log_length(original=8)")}, False),
        ({"position_methods": read_methods("self_extend(group=2, window=4)")}, False),
        ({"position_methods": read_methods("dynamic_ntk(scale=2)")}, False),
    ],
)
def test_models_whose_first_tokens_are_shared(changes, shared):
    assert can_share_prefix(dataclasses.replace(CAUSAL, **changes)) == shared

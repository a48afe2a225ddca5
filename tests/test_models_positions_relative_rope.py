"""Distances that rotary attention sees: golden rows, symmetry, reach, refusals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models.config import modern
from research.models.positions.relative_rope import (
    DPE,
    LMInfinite,
    SelfExtend,
    relative_remapping,
)
from research.models.positions.yarn import Yarn
from research.types import Tokens

# Two heads of keys with 8 rotated pairs each, for four heads of queries.
BOTH = replace(
    modern(vocab_size=60, width=64, depth=2, num_heads=4, mlp=48, max_len=64),
    num_kv_heads=2,
)
CAUSAL = replace(BOTH, causal=True)
SIDES = pytest.mark.parametrize("cfg", [BOTH, CAUSAL], ids=["both", "causal"])
FORWARD = jax.jit(encoder.forward, static_argnums=2)
INIT = jax.jit(encoder.init, static_argnums=1)
UNIT = 2**16  # the turns of one token, in all 8 pairs: divides by every size below
SELF_EXTEND = SelfExtend(group=2, window=4, original=16)
DIMENSION_WISE = DPE(sizes=(1, 1, 2, 4), window=4, original=16)
LM_INFINITE = LMInfinite(window=4)
METHODS = pytest.mark.parametrize(
    "method", [SELF_EXTEND, DIMENSION_WISE, LM_INFINITE], ids=lambda m: m.name
)


def distances(remapping, length, unit=UNIT):
    """[n, n, H, R/2] distances in tokens from query i to key j, NaN where not seen."""
    position = jnp.arange(length, dtype=jnp.int32)[None]
    turns = jnp.full((1, 1, 8), unit, jnp.uint32)
    rows, columns = position[:, :, None], position[:, None, :]
    result, claimed = None, 0
    for branch in remapping.branches:
        query, key = (
            np.repeat(side, 4 // side.shape[2], axis=2)
            for side in (
                branch.query_angles(position, turns),
                branch.key_angles(position, turns),
            )
        )
        assert query.dtype == key.dtype == np.uint32
        apart = (key[0][None] - query[0][:, None]).astype(np.int32) / unit
        if branch.pair_mask is None:
            result = apart
        else:
            mask = np.asarray(branch.pair_mask(rows, columns))[0]
            claimed = claimed + mask
            result = np.where(mask[:, :, None, None], apart, result)
    assert np.max(claimed) <= 1
    if remapping.visible is not None:
        visible = np.asarray(remapping.visible(rows, columns))[0]
        result = np.where(visible[:, :, None, None], result, np.nan)
    return result


def test_without_extensions_the_distance_is_that_of_positions():
    place = np.arange(10)
    got = distances(
        relative_remapping(replace(BOTH, position_methods=[Yarn(scale=2, original=8)])),
        10,
    )
    np.testing.assert_array_equal(got[..., 0, 0], place[None] - place[:, None])


def test_self_extend_has_the_golden_rows():
    got = distances(SelfExtend(group=2, window=4, original=16).remap(BOTH), 10)
    assert got[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]
    assert got[4, :, 0, 0].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4, 4]


@SIDES
@pytest.mark.parametrize(("group", "window"), [(2, 4), (3, 5), (3, 1), (9, 8)])
def test_self_extend_is_its_formula(cfg, group, window):
    got = distances(SelfExtend(group=group, window=window, original=8).remap(cfg), 40)
    offset = window - window // group
    for i in range(40):
        for j in range(i + 1 if cfg.causal else 40):
            late, early = max(i, j), min(i, j)
            expected = late - early
            if late - early >= window:
                expected = late // group + offset - early // group
            assert (got[i, j] == np.sign(j - i) * expected).all()


@pytest.mark.parametrize(
    "method",
    [
        SelfExtend(group=3, window=5, original=16).remap(BOTH),
        DPE(sizes=(1, 2, 4, 8), window=4, original=16).remap(BOTH),
        DPE(sizes=(4,), window=4, original=16, key_dims=((0, 3), (1,))).remap(BOTH),
    ],
)
def test_what_is_ahead_mirrors_what_is_behind(method):
    got = distances(method, 30)
    np.testing.assert_array_equal(got, -got.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("cfg", "method"),
    [
        (BOTH, replace(SELF_EXTEND, group=5, window=12)),
        (CAUSAL, replace(SELF_EXTEND, group=5, window=12)),
        (BOTH, replace(SELF_EXTEND, group=1)),
        (CAUSAL, replace(SELF_EXTEND, group=1)),
        (BOTH, replace(DIMENSION_WISE, sizes=(3, 5), window=12)),
        (CAUSAL, replace(DIMENSION_WISE, sizes=(3, 5), window=12)),
        (BOTH, replace(DIMENSION_WISE, sizes=(1,) * 8)),
        (CAUSAL, replace(DIMENSION_WISE, sizes=(1,) * 8)),
        (CAUSAL, LMInfinite(window=12)),
    ],
)
def test_vanilla_where_the_window_is_the_text_or_groups_are_tokens(cfg, method):
    mask = np.ones((12, 12, 1, 1), bool)
    if cfg.causal:
        mask = np.tril(mask[..., 0, 0])[..., None, None]
    got = distances(method.remap(cfg), 12)
    expected = distances(relative_remapping(cfg), 12)
    np.testing.assert_array_equal(np.where(mask, got, 0), np.where(mask, expected, 0))


@pytest.mark.parametrize(
    ("original", "group", "window", "length"),
    [
        (512, 3, 256, 1_024),
        (512, 5, 128, 2_048),
        (512, 9, 64, 4_096),
        (4_096, 3, 2_048, 8_192),
        (4_096, 5, 1_024, 16_384),
        (4_096, 9, 512, 32_768),
    ],
)
def test_the_published_settings_are_for_just_their_length(
    original, group, window, length
):
    method = SelfExtend(group=group, window=window, original=original)
    assert method.max_context(BOTH) == length
    # The distance of the last token to the first, one more than was trained.
    branch = method.remap(BOTH).branches[1]
    ends = jnp.array([[length - 1, 0]], jnp.int32)
    turns = jnp.ones((1, 1, 1), jnp.uint32)
    apart = (
        branch.query_angles(ends, turns)[0, 0] - branch.key_angles(ends, turns)[0, 1]
    )
    assert apart.item() == original


def test_the_context_of_dpe_is_that_of_its_largest_groups():
    method = DPE(sizes=(1, 2, 8, 4), window=4, original=16)
    assert method.max_context(BOTH) == 12 * 8 + 4
    assert LM_INFINITE.max_context(CAUSAL) == 0 and not LM_INFINITE.bounded


def test_dpe_divides_each_band_by_its_size():
    got = distances(DPE(sizes=(1, 2, 4, 8), window=6, original=16).remap(CAUSAL), 30)
    for i, j in ((29, 0), (20, 3), (9, 3), (8, 3), (5, 5)):
        far = i - j >= 6
        size = np.repeat([1, 2, 4, 8], 2) if far else 1
        np.testing.assert_array_equal(-got[i, j, 0], (i - j - 6) / size + 6)


def test_dpe_of_one_size_is_self_extend_where_groups_begin():
    sizes = (4,) * 8
    got = distances(DPE(sizes=sizes, window=8, original=16).remap(CAUSAL), 41)
    expected = distances(SelfExtend(group=4, window=8, original=16).remap(CAUSAL), 41)
    np.testing.assert_array_equal(got[::4, ::4], expected[::4, ::4])


def test_dpe_leaves_dimensions_that_are_not_key_at_their_positions():
    key_dims = ((0, 7), (2,))
    got = distances(
        DPE(sizes=(4,), window=4, original=16, key_dims=key_dims).remap(CAUSAL), 20
    )
    grouped = -np.float64(19 - 4) / 4 - 4
    # Queries 0 and 1 share key head 0, queries 2 and 3 key head 1.
    for head in range(4):
        for pair in range(8):
            expected = grouped if pair in key_dims[head // 2] else -19
            assert got[19, 0, head, pair] == expected


def test_key_dims_may_be_the_same_for_all_heads():
    def made(key_dims):
        return distances(
            DPE(sizes=(4,), window=4, original=16, key_dims=key_dims).remap(BOTH), 20
        )

    np.testing.assert_array_equal(made((1, 6)), made(((1, 6), (6, 1))))


def test_dpe_divides_radians_as_it_divides_turns():
    branch = DPE(sizes=(2, 8), window=6, original=16).remap(CAUSAL).branches[1]
    position = jnp.array([[21]], jnp.int32)
    turns, radians = (jnp.full((1, 1, 8), 64, t) for t in (jnp.uint32, jnp.float32))
    for side in (branch.query_angles, branch.key_angles):
        np.testing.assert_array_equal(side(position, turns), side(position, radians))


def test_dividing_a_frequency_keeps_far_angles():
    turns = jnp.full((1, 1, 8), round(2**32 / (2 * np.pi)), jnp.uint32)
    branch = DPE(sizes=(3,), window=6, original=16).remap(CAUSAL).branches[1]
    position = jnp.array([[32_000]], jnp.int32)
    for side, offset in ((branch.query_angles, 4), (branch.key_angles, 0)):
        got = side(position, turns)[0, 0, 0, 0].item() / 2**32 * 2 * np.pi
        gap = (got - (32_000 / 3 + offset) + np.pi) % (2 * np.pi) - np.pi
        assert abs(gap) < 1e-4


def test_lm_infinite_sees_a_window_and_sinks_that_come_no_nearer():
    got = -distances(LMInfinite(window=4, sinks=2).remap(CAUSAL), 12)[..., 0, 0]
    np.testing.assert_array_equal(got[3, :4], [3, 2, 1, 0])
    expected = [4, 4, *[np.nan] * 6, 3, 2, 1, 0]
    np.testing.assert_array_equal(got[11], expected)
    np.testing.assert_array_equal(got[5, :6], [4, 4, 3, 2, 1, 0])


@pytest.mark.parametrize(
    ("method", "cfg", "change", "message"),
    [
        (SELF_EXTEND, BOTH, {"group": 0}, "group is 0; it must be at least 1"),
        (SELF_EXTEND, BOTH, {"window": 0}, "window is 0"),
        (SELF_EXTEND, BOTH, {"window": 17}, "window 17 is longer than the 16 tokens"),
        (
            DIMENSION_WISE,
            BOTH,
            {"sizes": (2, 2, 2)},
            "3 sizes, which do not divide the 8",
        ),
        (
            DIMENSION_WISE,
            BOTH,
            {"sizes": (0, 2)},
            r"sizes are \(0, 2\); each must be a whole number >= 1",
        ),
        (DIMENSION_WISE, BOTH, {"key_dims": ((1,),)}, "for 1 heads, but keys have 2"),
        (
            DIMENSION_WISE,
            BOTH,
            {"key_dims": ((1,), (8,))},
            "the pair 8; a head has 0 ... 7",
        ),
        (LM_INFINITE, BOTH, {}, "lm_infinite is for causal models"),
        (LM_INFINITE, CAUSAL, {"sinks": 0}, "sinks is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(method, cfg, change, message):
    with pytest.raises(ValueError, match=message):
        replace(method, **change).check(cfg)


def rows(*texts):
    """Texts (lists of ids) packed in one row, and two tokens of padding."""
    ids = [*(token for text in texts for token in text), 0, 0]
    segment = [m for m, text in enumerate(texts, 1) for _ in text] + [0, 0]
    ids, segment = (jnp.asarray([x], jnp.int32) for x in (ids, segment))
    return Tokens(ids, segment, segment > 0)


TEXT = [int(token) for token in np.random.default_rng(3).integers(1, 60, 24)]


def states(params, cfg, tokens, *methods):
    """Final hidden states of a row, with position methods."""
    cfg = replace(cfg, position_methods=methods)
    return np.asarray(FORWARD(params, tokens, cfg).hidden_states[0])


@pytest.fixture(scope="module")
def params():
    """Weights large enough for attention to be far from uniform."""
    start = INIT(jax.random.key(5), BOTH)
    return jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, start)


@pytest.mark.parametrize(
    ("cfg", "method", "change"),
    [
        (BOTH, SELF_EXTEND, {"window": 24, "original": 24}),
        (CAUSAL, SELF_EXTEND, {"group": 1}),
        (BOTH, DIMENSION_WISE, {"sizes": (1,) * 8}),
        (CAUSAL, DIMENSION_WISE, {"window": 24, "original": 24}),
        (CAUSAL, LM_INFINITE, {"window": 24}),
    ],
)
def test_the_model_is_vanilla_where_distances_are(params, cfg, method, change):
    expected = states(params, cfg, rows(TEXT))
    got = states(params, cfg, rows(TEXT), replace(method, **change))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(states(params, cfg, rows(TEXT), method) - expected).max() > 1e-2


@METHODS
def test_packed_texts_have_their_own_distances(params, method):
    packed = states(params, CAUSAL, rows(TEXT[:11], TEXT), method)
    alone = states(params, CAUSAL, rows(TEXT), method)
    np.testing.assert_allclose(packed[11:35], alone[:24], atol=1e-5)


def test_self_extend_shares_the_distance_of_a_group(params):
    one = jax.tree.map(lambda x: x[:1], params["layers"])
    params, cfg = {**params, "layers": one}, replace(CAUSAL, depth=1)
    swapped = [TEXT[1], TEXT[0], *TEXT[2:]]  # the two tokens of the first group
    first, second = (states(params, cfg, rows(x), SELF_EXTEND) for x in (TEXT, swapped))
    # From token 5 on, both of them are at least the window behind.
    np.testing.assert_allclose(first[5:24], second[5:24], atol=1e-5)
    assert np.abs(first[4] - second[4]).max() > 1e-3


def test_lm_infinite_does_not_see_between_the_sinks_and_the_window(params):
    one = jax.tree.map(lambda x: x[:1], params["layers"])
    params, cfg = {**params, "layers": one}, replace(CAUSAL, depth=1)

    def changed(place):
        other = [*TEXT]
        other[place] = TEXT[place] % 59 + 1
        first, second = (
            states(params, cfg, rows(x), LMInfinite(window=4, sinks=2))
            for x in (TEXT, other)
        )
        return np.flatnonzero(np.abs(first - second)[:24].max(-1)).tolist()

    assert changed(7) == [7, 8, 9, 10]
    assert changed(1) == list(range(1, 24))

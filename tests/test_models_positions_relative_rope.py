"""Distances that rotary attention sees: golden rows, symmetry, reach, refusals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models.config import modern
from research.models.positions.relative_rope import (
    REACH,
    RELATIONS,
    dpe,
    key_pairs,
    lm_infinite,
    relation,
    self_extend,
)
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
EXTENSIONS = {
    "self_extend": {"group": 2, "window": 4, "original": 16},
    "dpe": {"sizes": (1, 1, 2, 4), "window": 4, "original": 16},
    "lm_infinite": {"window": 4},
}


def distances(relation, length, unit=UNIT):
    """[n, n, H, R/2] distances in tokens from query i to key j, NaN where not seen."""
    position = jnp.arange(length, dtype=jnp.int32)[None]
    turns = jnp.full((1, 1, 8), unit, jnp.uint32)
    rows, columns = position[:, :, None], position[:, None, :]
    result, claimed = None, 0
    for branch in relation.branches:
        query, key = (
            np.repeat(side, 4 // side.shape[2], axis=2)
            for side in (branch.query(position, turns), branch.key(position, turns))
        )
        assert query.dtype == key.dtype == np.uint32
        apart = (key[0][None] - query[0][:, None]).astype(np.int32) / unit
        if branch.holds is None:
            result = apart
        else:
            holds = np.asarray(branch.holds(rows, columns))[0]
            claimed = claimed + holds
            result = np.where(holds[:, :, None, None], apart, result)
    assert np.max(claimed) <= 1
    if relation.visible is not None:
        seen = np.asarray(relation.visible(rows, columns))[0]
        result = np.where(seen[:, :, None, None], result, np.nan)
    return result


def test_without_extensions_the_distance_is_that_of_positions():
    place = np.arange(10)
    got = distances(relation(replace(BOTH, position_methods=(("yarn", ()),))), 10)
    np.testing.assert_array_equal(got[..., 0, 0], place[None] - place[:, None])


def test_self_extend_has_the_golden_rows():
    got = distances(self_extend(BOTH, group=2, window=4, original=16), 10)
    assert got[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]
    assert got[4, :, 0, 0].tolist() == [-4, -3, -2, -1, 0, 1, 2, 3, 4, 4]


@SIDES
@pytest.mark.parametrize(("group", "window"), [(2, 4), (3, 5), (3, 1), (9, 8)])
def test_self_extend_is_its_formula(cfg, group, window):
    got = distances(self_extend(cfg, group=group, window=window, original=8), 40)
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
        self_extend(BOTH, group=3, window=5, original=16),
        dpe(BOTH, sizes=(1, 2, 4, 8), window=4, original=16),
        dpe(BOTH, sizes=(4,), window=4, original=16, key_dims=((0, 3), (1,))),
    ],
)
def test_what_is_ahead_mirrors_what_is_behind(method):
    got = distances(method, 30)
    np.testing.assert_array_equal(got, -got.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("name", "cfg", "change"),
    [
        ("self_extend", BOTH, {"group": 5, "window": 12}),
        ("self_extend", CAUSAL, {"group": 5, "window": 12}),
        ("self_extend", BOTH, {"group": 1}),
        ("self_extend", CAUSAL, {"group": 1}),
        ("dpe", BOTH, {"sizes": (3, 5), "window": 12}),
        ("dpe", CAUSAL, {"sizes": (3, 5), "window": 12}),
        ("dpe", BOTH, {"sizes": (1,) * 8}),
        ("dpe", CAUSAL, {"sizes": (1,) * 8}),
        ("lm_infinite", CAUSAL, {"window": 12}),
    ],
)
def test_vanilla_where_the_window_is_the_text_or_groups_are_tokens(name, cfg, change):
    seen = np.ones((12, 12, 1, 1), bool)
    if cfg.causal:
        seen = np.tril(seen[..., 0, 0])[..., None, None]
    got = distances(RELATIONS[name](cfg, **{**EXTENSIONS[name], **change}), 12)
    expected = distances(relation(cfg), 12)
    np.testing.assert_array_equal(np.where(seen, got, 0), np.where(seen, expected, 0))


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
def test_the_published_settings_reach_just_their_length(
    original, group, window, length
):
    arguments = {"group": group, "window": window, "original": original}
    assert REACH["self_extend"](BOTH, arguments) == length
    # The distance of the last token to the first, one more than was trained.
    branch = self_extend(BOTH, **arguments).branches[1]
    ends = jnp.array([[length - 1, 0]], jnp.int32)
    turns = jnp.ones((1, 1, 1), jnp.uint32)
    apart = branch.query(ends, turns)[0, 0] - branch.key(ends, turns)[0, 1]
    assert apart.item() == original


def test_the_reach_of_the_others():
    arguments = {"sizes": (1, 2, 8, 4), "window": 4, "original": 16}
    assert REACH["dpe"](BOTH, arguments) == 12 * 8 + 4
    assert REACH["lm_infinite"](CAUSAL, {"window": 4}) is None
    assert REACH.keys() == RELATIONS.keys() == EXTENSIONS.keys()


def test_dpe_divides_each_band_by_its_size():
    got = distances(dpe(CAUSAL, sizes=(1, 2, 4, 8), window=6, original=16), 30)
    for i, j in ((29, 0), (20, 3), (9, 3), (8, 3), (5, 5)):
        far = i - j >= 6
        size = np.repeat([1, 2, 4, 8], 2) if far else 1
        np.testing.assert_array_equal(-got[i, j, 0], (i - j - 6) / size + 6)


def test_dpe_of_one_size_is_self_extend_where_groups_begin():
    sizes = (4,) * 8
    got = distances(dpe(CAUSAL, sizes=sizes, window=8, original=16), 41)
    expected = distances(self_extend(CAUSAL, group=4, window=8, original=16), 41)
    np.testing.assert_array_equal(got[::4, ::4], expected[::4, ::4])


def test_dpe_leaves_dimensions_that_are_not_key_at_their_positions():
    key_dims = ((0, 7), (2,))
    got = distances(
        dpe(CAUSAL, sizes=(4,), window=4, original=16, key_dims=key_dims), 20
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
            dpe(BOTH, sizes=(4,), window=4, original=16, key_dims=key_dims), 20
        )

    np.testing.assert_array_equal(made((1, 6)), made(((1, 6), (6, 1))))


def test_dpe_divides_radians_as_it_divides_turns():
    branch = dpe(CAUSAL, sizes=(2, 8), window=6, original=16).branches[1]
    position = jnp.array([[21]], jnp.int32)
    turns, radians = (jnp.full((1, 1, 8), 64, t) for t in (jnp.uint32, jnp.float32))
    for side in (branch.query, branch.key):
        np.testing.assert_array_equal(side(position, turns), side(position, radians))


def test_dividing_a_frequency_keeps_far_angles():
    turns = jnp.full((1, 1, 8), round(2**32 / (2 * np.pi)), jnp.uint32)
    branch = dpe(CAUSAL, sizes=(3,), window=6, original=16).branches[1]
    position = jnp.array([[32_000]], jnp.int32)
    for side, offset in ((branch.query, 4), (branch.key, 0)):
        got = side(position, turns)[0, 0, 0, 0].item() / 2**32 * 2 * np.pi
        gap = (got - (32_000 / 3 + offset) + np.pi) % (2 * np.pi) - np.pi
        assert abs(gap) < 1e-4


def test_lm_infinite_sees_a_window_and_sinks_that_come_no_nearer():
    got = -distances(lm_infinite(CAUSAL, window=4, sinks=2), 12)[..., 0, 0]
    np.testing.assert_array_equal(got[3, :4], [3, 2, 1, 0])
    expected = [4, 4, *[np.nan] * 6, 3, 2, 1, 0]
    np.testing.assert_array_equal(got[11], expected)
    np.testing.assert_array_equal(got[5, :6], [4, 4, 3, 2, 1, 0])


def test_key_pairs_are_those_of_the_longest_vectors(key):
    query = np.asarray(jax.random.normal(key, (2, 5, 4, 16))) * 0.1
    keys = np.ones((2, 5, 2, 16))
    for head, pair, channel in ((0, 3, 3), (1, 3, 11), (0, 1, 9), (2, 6, 6), (3, 0, 8)):
        query[:, :, head, channel] = 5.0 + pair
    assert key_pairs(query, keys, 2) == ((1, 3), (0, 6))
    keys[:, :, 0, [5, 13]] = 1e4
    assert key_pairs(query, keys, 1) == ((5,), (6,))
    chosen = key_pairs(query, keys, 8)
    assert chosen == (tuple(range(8)),) * 2


@pytest.mark.parametrize(
    ("name", "cfg", "change", "message"),
    [
        ("self_extend", BOTH, {"group": 0}, "group is 0; it must be a whole number"),
        ("self_extend", BOTH, {"window": 0}, "window is 0"),
        ("self_extend", BOTH, {"window": 17}, "window 17 is longer than the 16 tokens"),
        ("dpe", BOTH, {"sizes": (2, 2, 2)}, "3 sizes, which do not divide the 8"),
        ("dpe", BOTH, {"sizes": (0, 2)}, "sizes is 0"),
        ("dpe", BOTH, {"sizes": 4}, "sizes is 4; it takes several whole numbers"),
        ("dpe", BOTH, {"sizes": (2, "x")}, "sizes is 'x'"),
        ("dpe", BOTH, {"key_dims": 3}, "key_dims is 3; it takes several"),
        ("dpe", BOTH, {"key_dims": ((1,), 3)}, "key_dims is 3; it takes several"),
        ("dpe", BOTH, {"key_dims": ((1,),)}, "of 1 heads, but keys have 2"),
        ("dpe", BOTH, {"key_dims": ((1,), (8,))}, "the pair 8; a head has 0 ... 7"),
        ("lm_infinite", BOTH, {}, "lm_infinite is for causal models"),
        ("lm_infinite", CAUSAL, {"sinks": 0}, "sinks is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, cfg, change, message):
    with pytest.raises(ValueError, match=message):
        RELATIONS[name](cfg, **{**EXTENSIONS[name], **change})


@pytest.mark.parametrize("name", RELATIONS)
def test_positions_that_are_not_rotary_are_refused(name):
    cfg = replace(CAUSAL, position="learned")
    with pytest.raises(ValueError, match=f"{name} needs rotary positions.*'learned'"):
        RELATIONS[name](cfg, **EXTENSIONS[name])


def test_two_relations_are_refused():
    both = tuple(
        (name, tuple(EXTENSIONS[name].items())) for name in ("dpe", "self_extend")
    )
    with pytest.raises(ValueError, match="dpe and self_extend both say"):
        relation(replace(BOTH, position_methods=both))


@pytest.mark.parametrize("count", [0, 9])
def test_pairs_that_a_head_lacks_cannot_be_chosen(count):
    with pytest.raises(ValueError, match=f"choose {count} of the 8 pairs"):
        key_pairs(np.ones((3, 4, 16)), np.ones((3, 2, 16)), count)


def rows(*texts):
    """Texts (lists of ids) packed in one row, and two tokens of padding."""
    ids = [*(token for text in texts for token in text), 0, 0]
    segment = [m for m, text in enumerate(texts, 1) for _ in text] + [0, 0]
    ids, segment = (jnp.asarray([x], jnp.int32) for x in (ids, segment))
    return Tokens(ids, segment, segment > 0)


TEXT = [int(token) for token in np.random.default_rng(3).integers(1, 60, 24)]


def states(params, cfg, tokens, name=None, **change):
    """Final hidden states of a row, under an extension with some arguments changed."""
    if name:
        arguments = {**EXTENSIONS[name], **change}
        cfg = replace(cfg, position_methods=((name, tuple(arguments.items())),))
    return np.asarray(FORWARD(params, tokens, cfg).hidden_states[0])


@pytest.fixture(scope="module")
def params():
    """Weights large enough for attention to be far from uniform."""
    start = INIT(jax.random.key(5), BOTH)
    return jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, start)


@pytest.mark.parametrize(
    ("name", "cfg", "change"),
    [
        ("self_extend", BOTH, {"window": 24, "original": 24}),
        ("self_extend", CAUSAL, {"group": 1}),
        ("dpe", BOTH, {"sizes": (1,) * 8}),
        ("dpe", CAUSAL, {"window": 24, "original": 24}),
        ("lm_infinite", CAUSAL, {"window": 24}),
    ],
)
def test_the_model_is_vanilla_where_distances_are(params, name, cfg, change):
    expected = states(params, cfg, rows(TEXT))
    got = states(params, cfg, rows(TEXT), name, **change)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(states(params, cfg, rows(TEXT), name) - expected).max() > 1e-2


@pytest.mark.parametrize("name", RELATIONS)
def test_packed_texts_have_their_own_distances(params, name):
    packed = states(params, CAUSAL, rows(TEXT[:11], TEXT), name)
    alone = states(params, CAUSAL, rows(TEXT), name)
    np.testing.assert_allclose(packed[11:35], alone[:24], atol=1e-5)


def test_self_extend_shares_the_distance_of_a_group(params):
    one = jax.tree.map(lambda x: x[:1], params["layers"])
    params, cfg = {**params, "layers": one}, replace(CAUSAL, depth=1)
    swapped = [TEXT[1], TEXT[0], *TEXT[2:]]  # the two tokens of the first group
    first, second = (
        states(params, cfg, rows(x), "self_extend") for x in (TEXT, swapped)
    )
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
            states(params, cfg, rows(x), "lm_infinite", sinks=2) for x in (TEXT, other)
        )
        return np.flatnonzero(np.abs(first - second)[:24].max(-1)).tolist()

    assert changed(7) == [7, 8, 9, 10]
    assert changed(1) == list(range(1, 24))

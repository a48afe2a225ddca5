"""Rows of documents: what they hold, in which order, and that packing is invisible."""

from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from research.data.examples import Example
from research.data.pretraining_batches import make_pretraining_batches
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES, Source
from research.models import config, encoder
from research.objectives import mlm_masking
from research.text import tokenization
from research.types import PretrainingBatch, Tokens, max_documents

WORDS = ("tokenising", "green", "a", "encoder", "of", "three", "cat.", "do", "birds")


def source(count, longest, seed=0, weight=1.0):
    rng = np.random.default_rng(seed)

    def words():
        return " ".join(rng.choice(WORDS, rng.integers(3, longest)))

    rows = [Example(f"{i} {words()}", (words(),)) for i in range(count)]
    return Source(rows, 0, weight, {"query": "", "document": ""})


SHORT = source(80, 16)
LONG = source(20, 400, seed=1)
DECOMPOSED = partial(ROW_LAYOUTS["decomposed"], min_length=8)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_tokenizer(
        [" ".join(WORDS), "0 1 2 3 4 5 6 7 8 9 tokens"], 100
    )


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    cache = tmp_path_factory.mktemp("tokens")

    def make(layout=ROW_LAYOUTS["packed"], sources=None, **options):
        settings = {"batch_size": 4, "max_length": 64, "seed": 0}
        return make_pretraining_batches(
            sources or {"a": SHORT},
            tokenizer,
            layout,
            cache=cache,
            **settings | options,
        )

    return make


def texts(rows):
    """(ids, words) of every text of a batch, with its special tokens."""
    for ids, segment, word in zip(
        rows.tokens.token_ids, rows.tokens.segment_ids, rows.word_ids, strict=True
    ):
        for number in range(1, segment.max() + 1):
            place = np.flatnonzero(segment == number)
            assert place.tolist() == list(range(place[0], place[-1] + 1))
            yield ids[place], word[place]


def documents(batches, part=0):
    table = batches.sources[part].table
    return [
        tuple(table.token_ids[a:b].tolist())
        for a, b in zip(table.starts[:-1], table.starts[1:], strict=True)
    ]


def test_an_epoch_of_packed_rows_holds_every_token_once(make):
    batches = make(sources={"a": LONG}, batch_size=1)
    size = len(batches.sources[0].table.token_ids)
    found, steps = Counter(), 0
    while sum(len(piece) * n for piece, n in found.items()) < size:
        for ids, word in texts(batches(steps)):
            assert ids[0] == 2 and ids[-1] == 3  # [CLS], [SEP]
            assert word[0] == word[-1] == 0 and (word[1:-1] > 0).all()
            found[tuple(ids[1:-1].tolist())] += 1
        steps += 1
    expected = Counter()
    for document in documents(batches):
        begin = 0
        while begin < len(document):
            ends = range(begin + 1, min(begin + 62, len(document)) + 1)
            piece = next(
                document[begin:e] for e in ends[::-1] if document[begin:e] in found
            )
            expected[piece] += 1
            begin += len(piece)
    assert found == expected
    again = {tuple(ids[1:-1].tolist()) for ids, _ in texts(batches(steps))}
    assert again <= set(found)


def test_pieces_begin_and_end_at_words(make):
    batches = make(sources={"a": LONG})
    table = batches.sources[0].table
    layout = batches.sources[0].layout(0)
    ends = layout.first_token + layout.num_tokens
    assert (table.boundaries[layout.first_token] > 0).all()
    assert all(e == len(table.token_ids) or table.boundaries[e] for e in ends)
    # No piece is shorter than the room but for the next word, or the document's end.
    last = np.isin(ends, table.starts)
    assert (layout.num_tokens[~last] > 62 - 11).all()


def test_shapes_and_words(make):
    rows = make(max_length=48)(3)
    assert rows.tokens.token_ids.shape == rows.word_ids.shape == (4, 48)
    assert [a.dtype.name for a in jax.tree.leaves(rows)] == [
        *("int32", "int32", "bool", "int32")
    ]
    assert rows.tokens.segment_ids.max() <= max_documents(48)
    np.testing.assert_array_equal(rows.tokens.pooling_mask, rows.tokens.segment_ids > 0)
    for word in rows.word_ids:
        numbers = word[word > 0]
        assert numbers[0] == 1 and set(np.diff(numbers)) <= {0, 1}


def test_words_do_not_run_from_text_to_text(make, tokenizer):
    rows = make()(0)
    for r in range(4):
        of = {
            (w, s)
            for w, s in zip(rows.word_ids[r], rows.tokens.segment_ids[r], strict=True)
        }
        assert len({w for w, _ in of if w}) == len([w for w, _ in of if w])
    tokens = {i: t for t, i in tokenizer.get_vocab().items()}
    for ids, word in texts(rows):
        begins = np.diff(word[:-1]) != 0
        continued = [tokens[i].startswith("##") for i in ids[1:-1]]
        np.testing.assert_array_equal(begins, np.logical_not(continued))


@pytest.mark.parametrize(
    "layout",
    [ROW_LAYOUTS["packed"], DECOMPOSED, partial(ROW_LAYOUTS["spans"], min_length=8)],
    ids=["packed", "dec", "spans"],
)
def test_a_batch_is_a_function_of_the_step_and_shared_by_hosts(make, layout):
    sources = {"a": SHORT, "b": LONG}
    whole = make(layout, sources)
    steps = (5, 0, 17, 3)
    batches = {step: whole(step) for step in steps}
    again = make(layout, sources)
    hosts = [make(layout, sources, process_index=i, process_count=2) for i in range(2)]
    for step in sorted(steps):
        jax.tree.map(np.testing.assert_array_equal, batches[step], again(step))
        parts = [host(step) for host in hosts]
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        jax.tree.map(np.testing.assert_array_equal, batches[step], joined)
    assert {whole.source_name(step) for step in range(8)} == {"a", "b"}
    other = make(layout, sources, seed=1)
    assert not np.array_equal(other(0).tokens.token_ids, batches[0].tokens.token_ids)


def test_decomposed_texts_are_full_rows_of_one_document(make):
    batches = make(DECOMPOSED, {"a": LONG})
    held = documents(batches)
    lengths = Counter()
    for step in range(60):
        rows = batches(step)
        count, length = rows.word_ids.shape
        assert count * length == 4 * 64
        assert (rows.tokens.segment_ids == 1).all()
        lengths[length] += 1
        if step % 10 == 0:
            for ids, word in texts(rows):
                inner = tuple(ids[1:-1].tolist())
                assert any(
                    document[i : i + len(inner)] == inner
                    for document in held
                    for i in range(len(document) - len(inner) + 1)
                )
                assert (word[1:-1] > 0).all()
    assert set(lengths) == {16, 32, 64}  # too few of 8 tokens for a batch of 32
    assert lengths[64] > 30  # most tokens of long documents


def test_short_to_long_grows_in_every_cycle(make):
    layout = partial(DECOMPOSED, curriculum="short_to_long", cycle=40)
    plain, grown = (
        make(how, {"a": LONG}) for how in (partial(DECOMPOSED, cycle=40), layout)
    )
    lengths = np.array([grown(step).word_ids.shape[1] for step in range(120)])
    same = np.array([plain(step).word_ids.shape[1] for step in range(120)])
    for cycle in (slice(0, 40), slice(40, 80), slice(80, 120)):
        assert Counter(lengths[cycle]) == Counter(same[cycle])
        assert lengths[cycle][:15].mean() < lengths[cycle][-15:].mean()
        assert lengths[cycle][-1] == 64


def test_neighbouring_rows_are_spans_of_one_document(make):
    batches = make(
        partial(ROW_LAYOUTS["spans"], min_length=20), {"a": LONG}, max_length=32
    )
    table, layout = batches.sources[0].table, batches.sources[0].layout(2)
    owner = np.searchsorted(table.starts, layout.first_token, side="right")
    last = np.searchsorted(
        table.starts, layout.first_token + layout.num_tokens - 1, side="right"
    )
    np.testing.assert_array_equal(owner, last)
    np.testing.assert_array_equal(owner[::2], owner[1::2])
    assert layout.num_tokens.max() <= 30
    assert batches(2).tokens.segment_ids.max() == 1


def test_anchors_stand_before_their_positives(make):
    layout = partial(ROW_LAYOUTS["spans"], kind="declutr", min_length=6)
    batches = make(layout, {"a": LONG}, batch_size=12, max_length=32)
    for turn in range(20):
        found = batches.sources[0].layout(turn)
        first, end = (
            found.first_token.reshape(2, 6),
            (found.first_token + found.num_tokens).reshape(2, 6),
        )
        for group in range(2):
            for anchor, positive in ((0, 2), (0, 3), (1, 4), (1, 5)):
                assert first[group, positive] <= end[group, anchor]
                assert end[group, positive] >= first[group, anchor] - 12  # a word
        assert found.num_tokens.max() <= 30


def test_a_packed_row_gives_every_document_the_states_it_has_alone(make, key):
    rows = make()(1)
    found = list(texts(rows))
    ids, segment = np.zeros((2, len(found), 64), np.int32)
    for i, (piece, _) in enumerate(found):
        ids[i, : len(piece)], segment[i, : len(piece)] = piece, 1
    shape = {"vocab_size": 100, "width": 16, "depth": 1, "num_heads": 2, "mlp": 24}
    for cfg in (
        config.bert(**shape, max_len=64, dropout=0.0),
        config.modern(**shape, max_len=64),
    ):
        params = jax.jit(encoder.init, static_argnums=1)(key, cfg)
        states = jax.jit(
            lambda params, tokens, cfg=cfg: (
                encoder.forward(params, tokens, cfg).hidden_states
            )
        )
        packed = np.asarray(states(params, rows.tokens))
        alone = np.asarray(states(params, Tokens(ids, segment, segment > 0)))
        assert rows.tokens.segment_ids.max() > 1
        np.testing.assert_allclose(
            packed[rows.tokens.segment_ids > 0],
            alone[segment > 0],
            atol=2e-5,
        )


def test_rows_of_one_text_each_are_padded(make):
    rows = make(partial(ROW_LAYOUTS["packed"], texts=1))(0)
    segment = rows.tokens.segment_ids
    assert segment.max() == 1 and (segment[:, 0] == 1).all()
    assert (np.diff(segment, axis=1) <= 0).all() and not segment.all()


def test_ten_thousand_real_rows_are_full_and_masked_to_the_budget(tmp_path, key):
    found = SOURCES["pydocs"](limit=6_000)
    tokenizer = tokenization.train_tokenizer(
        [r.query for r in found.examples[:600]], 2048
    )
    batches = make_pretraining_batches(
        {"pydocs": found},
        tokenizer,
        ROW_LAYOUTS["packed"],
        batch_size=10_000,
        max_length=128,
        seed=0,
        cache=tmp_path,
    )
    rows = batches(0)
    real = rows.tokens.segment_ids > 0
    assert real.mean() > 0.98
    special = [
        tokenizer.token_to_id(name) for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    ]
    on_device = PretrainingBatch(*jax.tree.map(jax.numpy.asarray, tuple(rows)))
    masks = mlm_masking.mask_whole_words(key, on_device, (0.2, 0.4))
    for mask, ratio in zip(map(np.asarray, masks), (0.2, 0.4), strict=True):
        assert mask.sum() / real.sum() == pytest.approx(ratio, abs=0.004)
        assert not np.isin(rows.tokens.token_ids[mask], special).any()
        words = np.where(rows.word_ids > 0, 1_000 * np.arange(10_000)[:, None], -1)
        words += rows.word_ids
        np.testing.assert_array_equal(mask, np.isin(words, words[mask]))
        texts = 1_000 * np.arange(10_000)[:, None] + rows.tokens.segment_ids
        sizes, lost = np.bincount(texts[real]), np.bincount(texts[mask])
        budgets = np.array([max(1, round(ratio * n)) for n in range(129)])
        assert (lost <= budgets[sizes[: len(lost)]]).all()


def test_errors(make, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no data to train on"):
        make_pretraining_batches(
            {},
            tokenizer,
            ROW_LAYOUTS["packed"],
            batch_size=1,
            max_length=8,
            seed=0,
            cache=tmp_path,
        )
    with pytest.raises(ValueError, match="batch_size 4 is not a multiple of 3"):
        make(process_count=3)
    with pytest.raises(
        ValueError, match="max_length 2 leaves no room beside 2 special"
    ):
        make(max_length=2)
    with pytest.raises(ValueError, match="data 'a': its documents fill .* fewer"):
        make(batch_size=4000)
    empty = Source([Example(" ", ())], 0, 1.0, {"query": "", "document": ""})
    with pytest.raises(ValueError, match="data 'x': there is no usable document"):
        make(sources={"x": empty})
    for options, message in (
        (
            {"min_length": 24},
            "min_length is 24; it should be max_length 64 over a power",
        ),
        ({"min_length": 8, "cycle": -1}, "cycle is -1"),
        ({"curriculum": "random"}, "'random'; known: uniform, short_to_long"),
    ):
        with pytest.raises(ValueError, match=message):
            make(partial(ROW_LAYOUTS["decomposed"], **options))
    with pytest.raises(
        ValueError, match=r"row_layout.texts is 5; allowed: 1 ... 4 in a row"
    ):
        make(partial(ROW_LAYOUTS["packed"], texts=5))
    with pytest.raises(ValueError, match="do not fill one batch"):
        make(DECOMPOSED, batch_size=4000)
    for options, message in (
        ({"kind": "none"}, "unknown spans 'none'; known: cot, declutr"),
        ({"kind": "declutr"}, "batch_size 4 is not a multiple of 6 spans"),
        ({"anchors": 0}, "anchors 0 and positives 2 should be at least 1"),
        ({"min_length": 63}, "min_length is 63; allowed: 2 ... 62"),
        ({"kind": "declutr", "anchors": 1, "positives": 1}, "0 documents have the 124"),
    ):
        with pytest.raises(ValueError, match=message):
            make(partial(ROW_LAYOUTS["spans"], **options), {"a": source(4, 10)})

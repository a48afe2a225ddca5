import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from research.data.examples import Example
from research.data.pairs.pair_batches import make_pair_batches
from research.data.pairs.text_vectors import TextVectors
from research.data.sources import Source
from research.objectives.gradcache import count_chunks
from research.text.prompts import PROMPTS
from research.text.templates import tokenize_with_prompt
from research.text.tokenization import hash_texts, tokenize_texts, train_tokenizer
from research.types import max_segments

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "tree")


def text(rng, most=20):
    return " ".join(rng.choice(WORDS, rng.integers(1, most)))


def source(rows, *, negatives=0, positives=1, weight=1.0, seed=0, scored=False):
    rng = np.random.default_rng(seed)
    data = [
        Example(
            f"{i} {text(rng)}",
            tuple(f"{i} p{j} {text(rng)}" for j in range(positives)),
            tuple(f"{i} n{j} {text(rng)}" for j in range(negatives + 1)),
            i / rows if scored else None,
        )
        for i in range(rows)
    ]
    return Source(data, negatives, weight, {"query": "", "document": ""})


SOURCES = {
    "a": source(40, negatives=2, positives=3),
    "b": source(23, weight=2.0, seed=1, scored=True),
    "c": source(30, weight=0.2, seed=2),
}


@pytest.fixture(scope="module")
def tokenizer():
    rows = [row for s in SOURCES.values() for row in s.examples]
    return train_tokenizer([t for r in rows for t in (r.query, *r.positives)], 300)


@pytest.fixture(scope="module")
def make(tokenizer, tmp_path_factory):
    cache = tmp_path_factory.mktemp("tokens")

    def make(sources=SOURCES, **options):
        settings = {"batch_size": 8, "max_length": 32, "seed": 0, "row_length": 64}
        return make_pair_batches(sources, tokenizer, cache=cache, **settings | options)

    return make


def vectors(batch, length):
    """The ids of each text, by its slot in the batch."""
    found = {}
    ids, segments = (
        np.asarray(batch.tokens.token_ids),
        np.asarray(batch.tokens.segment_ids),
    )
    for row in range(len(ids)):
        for segment in range(1, segments[row].max() + 1):
            place = np.flatnonzero(segments[row] == segment)
            assert place.tolist() == list(range(place[0], place[-1] + 1))
            found[row * max_segments(length) + segment - 1] = ids[row, place]
    return found


def test_a_batch_holds_its_texts(make, tokenizer):
    batches = make()
    for step in range(6):
        batch = batches(step)
        rows = SOURCES[batches.source_name(step)].examples
        by_hash = {
            tuple(h): t
            for r in rows
            for t in (r.query, *r.positives, *r.negatives)
            for h in hash_texts([t]).tolist()
        }
        found = vectors(batch, 64)
        slot = np.concatenate([batch.query_index, batch.document_index])
        assert sorted(slot.tolist()) == sorted(found)
        hashes = np.concatenate([batch.labels.query_id, batch.labels.document_id])
        for place, key in zip(slot.tolist(), hashes.tolist(), strict=True):
            ids = tokenize_texts(tokenizer, [by_hash[tuple(key)]], 32)[0]
            np.testing.assert_array_equal(found[place], ids)
        np.testing.assert_array_equal(
            batch.tokens.pooling_mask, batch.tokens.segment_ids > 0
        )


def test_documents_are_the_positive_then_the_negatives(make):
    batches = make({"a": SOURCES["a"]})
    owner = {
        tuple(h): (i, kind)
        for i, row in enumerate(SOURCES["a"].examples)
        for kind, texts in enumerate([(row.query,), row.positives, row.negatives])
        for h in hash_texts(texts).tolist()
    }
    chosen = Counter()
    for step in range(30):
        labels = batches(step).labels
        queries = [owner[tuple(h)] for h in labels.query_id.tolist()]
        documents = labels.document_id.reshape(8, 3, 2).tolist()
        for (row, kind), found in zip(queries, documents, strict=True):
            assert kind == 0
            assert [owner[tuple(h)] for h in found] == [(row, 1), (row, 2), (row, 2)]
            assert found[1] != found[2]
            chosen.update(map(tuple, found))
    assert len(chosen) > 0.9 * 40 * 6  # three positives and three negatives each


def test_shapes_and_dtypes(make):
    batches = make(devices=2)
    for step in range(12):
        batch = batches(step)
        documents = 24 if batches.source_name(step) == "a" else 8
        assert batch.tokens.token_ids.shape[0] % 2 == 0
        assert batch.tokens.token_ids.shape[1] == 64
        assert batch.query_index.shape == (8,)
        assert batch.document_index.shape == (documents,)
        kinds = [a.dtype.name for a in jax.tree.leaves(batch) if a.dtype != np.float32]
        assert kinds == [*["int32"] * 2, "bool", *["int32"] * 2, *["uint32"] * 3]
        scored = batch.labels.score is not None
        assert scored == (batches.source_name(step) == "b")
        if scored:
            assert batch.labels.score.dtype == np.float32


def test_a_batch_is_a_function_of_the_step(make):
    steps = [5, 0, 3, 5]
    first = {step: make()(step) for step in steps}
    batches = make()
    for step in reversed(steps):
        again = batches(step)
        jax.tree.map(np.testing.assert_array_equal, first[step], again)
    other = make(seed=1)
    assert any(
        not np.array_equal(other(s).labels.query_id, first[s].labels.query_id)
        for s in (0, 3, 5)
        if other.source_name(s) == batches.source_name(s)
    )


def test_every_epoch_visits_every_row_once(make):
    batches = make({"b": SOURCES["b"]})  # 23 rows, 8 a batch
    seen = np.concatenate([batches(step).labels.query_id for step in range(23)])
    seen = [tuple(h) for h in seen.tolist()]
    epochs = [seen[i : i + 23] for i in range(0, len(seen), 23)]
    assert len(epochs) == 8
    assert all(len(set(epoch)) == 23 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_sources_get_their_share_of_any_stretch_of_steps(make, seed):
    batches = make(seed=seed)
    names = [batches.source_name(step) for step in range(640)]
    for stretch in (names, names[:320], names[100:420]):
        counts = Counter(stretch)
        for name, weight in (("a", 1), ("b", 2), ("c", 0.2)):
            assert abs(counts[name] - len(stretch) * weight / 3.2) <= 2
    turns = Counter()
    for step, name in enumerate(names):
        index, source_step = batches.find_source(step)
        assert (batches.sources[index].name, source_step) == (name, turns[name])
        turns[name] += 1


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_hosts_parts_make_up_the_batch(make, hosts):
    whole = make(devices=4)
    parts = [
        make(devices=4, process_index=i, process_count=hosts) for i in range(hosts)
    ]
    for step in range(5):
        pieces = [part(step) for part in parts]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)
        jax.tree.map(np.testing.assert_array_equal, joined, whole(step))


@pytest.mark.parametrize("devices, chunks", [(1, 3), (2, 1), (4, 2), (8, 1)])
def test_every_device_has_its_pairs_in_its_rows(make, devices, chunks):
    batches = make(devices=devices, min_chunks=chunks)
    for step in range(6):
        batch = batches(step)
        rows, length = batch.tokens.token_ids.shape
        assert rows % devices == 0
        assert count_chunks(rows // devices, chunks) <= max(chunks, chunks * 5 // 4)
        slots = rows // devices * max_segments(length)
        for index in (batch.query_index, batch.document_index):
            owner = np.repeat(np.arange(devices), len(index) // devices)
            np.testing.assert_array_equal(index // slots, owner)


def test_the_pairs_of_a_step_are_those_of_one_device(make):
    one, four = make(), make(devices=4)
    for step in range(4):
        sets = [
            {tuple(h) for h in batches(step).labels.query_id.tolist()}
            for batches in (one, four)
        ]
        assert sets[0] == sets[1]


def test_rows_are_full_on_any_number_of_devices(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        Example(f"{i} {text(rng, 30)}", (text(rng, 30),), (text(rng, 30),))
        for i in range(4096)
    ]
    sources = {"many": Source(rows, 1, 1.0, {"query": "", "document": ""})}
    # A row of each device is a larger share of its rows where these are few
    for devices, chunks, share in ((1, 32, 0.95), (8, 4, 0.95), (32, 1, 0.93)):
        batches = make_pair_batches(
            sources,
            tokenizer,
            cache=tmp_path,
            batch_size=2048,
            max_length=64,
            row_length=64,
            seed=0,
            devices=devices,
            min_chunks=chunks,
        )
        segment_ids = [batches(step).tokens.segment_ids for step in range(8)]
        full = sum((x > 0).sum() for x in segment_ids) / sum(
            x.size for x in segment_ids
        )
        assert full > share


def clustered(counts=(12, 9, 11, 8)):
    """A source of clear clusters, its vectors by text, each query's cluster."""
    made = dataclasses.replace(source(sum(counts)), cluster_size=10)
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    noise = np.random.default_rng(1).normal(0, 0.01, (len(groups), 8))
    vectors = (np.eye(8)[groups] + noise).astype("f4")
    sides = [
        [row.query for row in made.examples],
        [row.positives[0] for row in made.examples],
    ]
    owner = dict(zip(map(tuple, hash_texts(sides[0]).tolist()), groups, strict=True))
    documents = [text for row in made.examples for text in row.negatives]
    sides[1] += documents
    both = np.concatenate([vectors, np.ones((len(documents), 8), "f4")])
    files = [
        TextVectors(name, hash_texts(texts), x)
        for name, texts, x in zip("qd", sides, (vectors, both), strict=True)
    ]
    return made, files, owner


@pytest.mark.parametrize("sides", [1, 2])
def test_batches_are_drawn_within_clusters(make, sides):
    made, files, owner = clustered()  # 40 examples
    options = {"cluster_vectors": {"x": files[:sides]}}
    batches = make({"x": made}, batch_size=4, **options)
    steps = [
        [tuple(h) for h in batches(step).labels.query_id.tolist()] for step in range(30)
    ]
    for epoch in (steps[:10], steps[10:20], steps[20:]):
        assert len({h for step in epoch for h in step}) == 40
    # Only the batches at the end of a cluster have examples of two of them
    counts = [len({owner[h] for h in step}) for step in steps]
    assert max(counts) <= 2 and np.mean(counts) < 1.5
    again = make({"x": made}, batch_size=4, **options)
    np.testing.assert_array_equal(
        again(17).labels.query_id, batches(17).labels.query_id
    )
    # An epoch has full batches only, and leaves out other examples each time
    batches = make({"x": made}, batch_size=16, **options)
    seen = [
        {
            tuple(h)
            for s in (2 * e, 2 * e + 1)
            for h in batches(s).labels.query_id.tolist()
        }
        for e in range(6)
    ]
    assert all(len(epoch) == 32 for epoch in seen) and len(set.union(*seen)) == 40


def test_vectors_that_do_not_fit_are_one_sentence(make):
    made, (queries, documents), _ = clustered()
    nan = np.full((40, 8), np.nan, "f4")
    narrow = documents.vectors[:, :4]
    for files, message in (
        (
            [queries._replace(hashes=queries.hashes + np.uint32(1))],
            "q has no vector of 40 of the source's 40 queries",
        ),
        ([queries._replace(vectors=nan)], "q has vectors that are not finite"),
        ([queries, documents._replace(vectors=narrow)], "have 8 and 4 dims"),
    ):
        with pytest.raises(ValueError, match=f"data 'x': .*{message}"):
            make({"x": made}, cluster_vectors={"x": files})


def test_weights_grow_with_the_size_of_a_source(make):
    sources = {
        "big": source(90),
        "small": source(10, seed=1),
    }
    for exponent, share in ((0.0, 0.5), (0.5, 0.75), (1.0, 0.9)):
        batches = make(sources, data_exponent=exponent)
        counts = Counter(batches.source_name(step) for step in range(200))
        assert abs(counts["big"] - 200 * share) <= 2


def test_labels_name_the_loss_of_the_source_and_how_far_the_run_is(make):
    sources = {
        "a": SOURCES["a"],
        "b": dataclasses.replace(SOURCES["b"], loss="cosent()"),
    }
    batches = make(sources, steps=10)
    for step in range(4):
        labels = batches(step).labels
        name = batches.source_name(step)
        assert labels.loss == {"a": None, "b": "cosent()"}[name]
        np.testing.assert_allclose(labels.progress, np.full(8, step / 10))
    assert make()(0).labels.progress is None
    # Random numbers differ from step to step, and from seed to seed
    numbers = [make(seed=seed)(step).labels.draw for seed in (0, 1) for step in (0, 1)]
    assert len({int(x[0]) for x in numbers}) == 4
    assert all((x == x[0]).all() and x.shape == (8,) for x in numbers)


def test_few_shapes(make):
    batches = make({"b": SOURCES["b"]})
    rows = {len(batches(step).tokens.token_ids) for step in range(60)}
    assert len(rows) <= 3
    assert batches.sources[0].rows * batches.bins == min(rows)


def test_rows_grow_to_the_longest_text(make):
    rng = np.random.default_rng(0)
    rows = [Example(f"{i} {text(rng, 200)}", ("one",)) for i in range(10)]
    batches = make({"long": Source(rows, 0, 1.0, {"query": "", "document": ""})})
    assert batches(0).tokens.token_ids.shape[1] == 64
    batches = make(
        {"long": Source(rows, 0, 1.0, {"query": "", "document": ""})}, max_length=100
    )
    assert batches(0).tokens.token_ids.shape[1] == 128


def test_errors(make):
    with pytest.raises(
        ValueError, match="data 'b': 23 rows are fewer than one batch of 24"
    ):
        make(batch_size=24)
    with pytest.raises(ValueError, match="batch_size 8 cannot be split evenly over 3"):
        make(devices=3)
    with pytest.raises(ValueError, match="no data to train on"):
        make({})
    empty = Source([Example("a", ("",))] * 8, 0, 1.0, {"query": "", "document": ""})
    with pytest.raises(ValueError, match="data 'x': row 0 has a document without text"):
        make({"x": empty})


@pytest.mark.parametrize("name", ["echo", "prompteol", "instruct", "llm2vec"])
def test_a_batch_pools_the_tokens_of_its_method(make, tokenizer, name):
    short = {"instruction": "one"} if name != "prompteol" else {}
    method = PROMPTS[name](**short)
    batches = make(prompt=method, max_length=120, row_length=256)
    for step in range(3):
        batch = batches(step)
        rows = SOURCES[batches.source_name(step)].examples
        by_hash = {
            tuple(h): t
            for r in rows
            for t in (r.query, *r.positives, *r.negatives)
            for h in hash_texts([t]).tolist()
        }
        ids = vectors(batch, 256)
        pooled = vectors(batch._replace(tokens=pools(batch.tokens)), 256)
        for role in ("query", "document"):
            keys = getattr(batch.labels, f"{role}_id").tolist()
            texts = [by_hash[tuple(key)] for key in keys]
            (found,) = tokenize_with_prompt(method, tokenizer, texts, 120, role)
            for place, *expected in zip(
                getattr(batch, f"{role}_index").tolist(),
                found.token_ids,
                found.pooling_mask,
                strict=True,
            ):
                np.testing.assert_array_equal(ids[place], expected[0])
                np.testing.assert_array_equal(pooled[place], expected[1])
        assert not batch.tokens.pooling_mask[batch.tokens.segment_ids == 0].any()
        mixed = (batch.tokens.segment_ids > 0) & ~batch.tokens.pooling_mask
        assert mixed.any() == (name in ("echo", "llm2vec"))


def pools(tokens):
    """The tokens with what pools in the place of their ids."""
    return tokens._replace(token_ids=tokens.pooling_mask)


def test_prompts_and_a_method_exclude_each_other(make):
    asked = Source(SOURCES["b"].examples, 0, 1.0, {"query": "q: ", "document": ""})
    with pytest.raises(ValueError, match="data 'b': the source has the prompt 'q: '"):
        make({"b": asked}, prompt=PROMPTS["echo"](), max_length=120)

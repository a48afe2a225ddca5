"""Walks by shared negatives: every query once, and batches of near texts."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from test_data_pair_batches import make, source, tokenizer  # noqa: F401

from research.data.examples import Example
from research.data.pairs.walks import NegativeGraph, random_walk, snow_sample
from research.data.sources import SOURCES, Source
from research.text.tokenization import hash_texts

TOPICS, QUERIES = 8, 12


def make_topics():
    """Queries of some topics, whose negatives are positives of their own topic."""
    rng = np.random.default_rng(0)
    order = rng.permutation(TOPICS * QUERIES)
    examples = []
    for number in order.tolist():
        topic, i = divmod(number, QUERIES)
        others = rng.permutation([j for j in range(QUERIES) if j != i])[:4]
        negatives = tuple(f"red {topic} {j}" for j in others)
        examples.append(Example(f"cat {topic} {i}", (f"red {topic} {i}",), negatives))
    prompts = {"query": "", "document": ""}
    return Source(examples, 2, 1.0, prompts, walk="random_walk(length=12)")


def read_texts(source):
    """{hash: text} of all texts of a source."""
    texts = [t for e in source.examples for t in (e.query, *e.positives, *e.negatives)]
    return dict(zip(map(tuple, hash_texts(texts).tolist()), texts, strict=True))


def read_batch(batch, names):
    """The queries of a batch, and the documents of each."""
    queries = [names[tuple(h)] for h in batch.labels.query_id.tolist()]
    documents = [names[tuple(h)] for h in batch.labels.document_id.tolist()]
    width = len(documents) // len(queries)
    groups = (documents[i : i + width] for i in range(0, len(documents), width))
    return queries, list(groups)


def make_graph(negatives):
    """The graph of lists of documents, which are texts, and no positives."""
    counts = np.array([len(row) for row in negatives])
    documents = np.concatenate(negatives)
    owners = np.repeat(np.arange(len(counts)), counts)[
        np.argsort(documents, kind="stable")
    ]
    starts = np.searchsorted(np.sort(documents), np.arange(documents.max() + 2))
    first = np.cumsum(counts) - counts
    return NegativeGraph(first, 0 * counts, counts, documents, owners, starts)


def test_the_next_query_is_the_last_or_the_first_found():
    # A tree: 0 shares documents with 1 and 2, 1 with 3, and 2 with 4
    graph = make_graph([[0, 1], [0, 2], [1, 3], [2, 4], [3, 5]])
    seed = next(s for s in range(99) if np.random.default_rng(s).permutation(5)[0] == 0)

    def walk(function, **options):
        rng = np.random.default_rng(seed)
        return function(graph, 2, rng, **options)

    depth, breadth = walk(random_walk)[:, 0], walk(snow_sample)[:, 0]
    assert depth.tolist() in ([0, 1, 3, 2, 4], [0, 2, 4, 1, 3])
    assert breadth.tolist() in ([0, 1, 2, 3, 4], [0, 2, 1, 4, 3])
    # Begun anew at every step, it is the random order
    expected = np.random.default_rng(seed).permutation(5).tolist()
    assert walk(random_walk, length=1)[:, 0].tolist() == expected
    # The negatives are texts of the query
    for query, *texts in walk(random_walk).tolist():
        assert sorted(texts) == [2 * query, 2 * query + 1]


def test_a_walk_has_a_document_once_if_it_can():
    graph = make_graph([[0, 1, 2]] * 3 + [[0]])
    texts = random_walk(graph, 1, np.random.default_rng(0))[:, 1]
    documents = graph.documents[texts]
    assert set(documents[texts < 9]) == {0, 1, 2}


@pytest.mark.parametrize("walk", ["random_walk()", "snow_sample(length=5)"])
def test_every_epoch_visits_every_query_once(make, walk):  # noqa: F811
    made = dataclasses.replace(make_topics(), walk=walk)
    names = read_texts(made)
    batches = make({"x": made}, batch_size=10)  # 96 queries
    steps = [read_batch(batches(step), names) for step in range(29)]
    seen = [query for queries, _ in steps for query in queries]
    epochs = [seen[i : i + 96] for i in range(0, 288, 96)]
    assert all(len(set(epoch)) == 96 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # The documents are the query's own; a resumed run has the same
    negatives = {example.query: example.negatives for example in made.examples}
    for queries, documents in steps:
        for query, (positive, *others) in zip(queries, documents, strict=True):
            assert positive == query.replace("cat", "red")
            assert set(others) < set(negatives[query]) and others[0] != others[1]
    again = make({"x": made}, batch_size=10)
    assert read_batch(again(17), names) == steps[17]
    parts = [
        make({"x": made}, batch_size=10, devices=2, process_index=i, process_count=2)
        for i in range(2)
    ]
    halves = [read_batch(part(3), names)[0] for part in parts]
    assert sorted(halves[0] + halves[1]) == sorted(steps[3][0])


def test_a_query_follows_by_a_negative_of_its_batch(make):  # noqa: F811
    """Of a batch that is one walk, all but the first have a document of another."""
    made = make_topics()
    names = read_texts(made)
    batches = make({"x": made}, batch_size=12)
    lists = {e.query: {*e.positives, *e.negatives} for e in made.examples}
    for step in range(8):
        queries, documents = read_batch(batches(step), names)
        drawn = dict(zip(queries, documents, strict=True))
        is_linked = [
            any(lists[q] & set(drawn[p][1:]) for p in queries if p != q)
            for q in queries
        ]
        assert sum(is_linked) >= 11


def test_queries_and_documents_of_a_batch_are_near(make):  # noqa: F811
    def measure(walk):
        """Mean share of the pairs of a batch that are of one topic."""
        made = dataclasses.replace(make_topics(), walk=walk)
        names, values = read_texts(made), []
        batches = make({"x": made}, batch_size=12)
        for step in range(16):
            queries, documents = read_batch(batches(step), names)
            topics = np.array([q.split()[1] for q in queries])
            of_documents = [d.split()[1] for group in documents for d in group]
            values.append(np.mean(topics[:, None] == np.array(of_documents)[None]))
        return np.mean(values)

    assert measure("") < 0.25
    for walk in ("random_walk(length=12)", "snow_sample(length=12)"):
        assert measure(walk) > 0.7


def test_what_does_not_go_with_a_walk_is_named(make):  # noqa: F811
    with pytest.raises(ValueError, match="data 'x': walk random_walk goes by hard neg"):
        make({"x": dataclasses.replace(source(20), walk="random_walk")})
    for walk, message in (
        ("jump()", "unknown name 'jump'.*random_walk, snow_sample"),
        ("random_walk(length=-1)", "random_walk's length is -1; it should be at least"),
    ):
        with pytest.raises(ValueError, match=message):
            make({"x": dataclasses.replace(make_topics(), walk=walk)})
    mined = SimpleNamespace(count=2)
    with pytest.raises(ValueError, match="does not go with negatives that the run min"):
        make({"x": make_topics()}, refreshed={"x": mined})


def test_a_config_names_a_walk(tmp_path):
    file = tmp_path / "mined.jsonl"
    file.write_text('{"query": "a", "positive": "b", "negative": ["c", "d"]}\n')
    made = SOURCES["files"](path=str(file), negatives=1, walk="snow_sample()")
    assert made.walk == "snow_sample()"

import json
import re
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from scipy.spatial import distance

from research.eval import compare_chunking
from research.eval.evaluators import EVALS, NO_MAIN_SCORE
from research.eval.grid import (
    Grid,
    default_dims,
    format_markdown,
    plot_heat_map,
    score_grid,
    score_sizes,
    to_record,
)
from research.eval.tasks.retrieval import ranking, retrieval
from research.eval.tasks.sts import SIMILARITIES, sts
from research.transforms.normalize import l2_normalize_rows


def letters(texts, role):
    """How often a, b, c and d occur in each text."""
    return np.array([[t.count(c) for c in "abcd"] for t in texts], np.float32)


def cells_of(line):
    """The cells of a line of a markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def sts_file(tmp_path):
    rows = [("aa", "b", 0), ("ab", "a", 2), ("aab", "ab", 3), ("abc", "abc", 5)]
    names = ("sentence1", "sentence2", "score")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path = tmp_path / "sts.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def beir(tmp_path):
    corpus = {"1": ("a", "a"), "2": ("", "bb"), "q": ("", "aab")}
    (tmp_path / "corpus.jsonl").write_text(
        "\n".join(
            json.dumps({"_id": i, "title": title, "text": text})
            for i, (title, text) in corpus.items()
        )
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "aab"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq\t1\t1\n"
    )
    return str(tmp_path)


def test_every_evaluator_has_a_test():
    tests = Path(__file__).parent.glob("test_*.py")
    text = "".join(path.read_text() for path in tests)
    called = {
        name for name in EVALS if re.search(rf"""\b{name}\(|["']{name}["']""", text)
    }
    assert called == set(EVALS) and set(NO_MAIN_SCORE) < called


def test_sts_of_vectors_that_agree_with_people(sts_file):
    roles = []

    def embed(texts, role):
        roles.append(role)
        return letters(texts, role)

    result = sts(data=sts_file, samples=50)(embed)
    assert roles == ["query"]
    assert result["main_score"] == result["spearman"] == pytest.approx(100)
    assert 90 < result["pearson"] < 100
    assert -100 <= result["low"] <= result["spearman"] <= result["high"] + 1e-9


def test_sts_has_nothing_to_say_of_a_collapsed_model(sts_file):
    with pytest.raises(ValueError, match="predicted scores are all equal"):
        sts(data=sts_file)(lambda texts, role: np.ones((len(texts), 2)))


def test_sts_of_equal_gold_scores_is_refused_at_the_start(tmp_path):
    path = tmp_path / "sts.jsonl"
    row = {"sentence1": "a", "sentence2": "b", "score": 5}
    path.write_text("\n".join([json.dumps(row)] * 3))
    with pytest.raises(ValueError, match="sts.jsonl: .* the 3 human scores are all eq"):
        sts(data=str(path))


def test_equal_scores_are_ranked_as_trec_eval_does_in_any_order_of_the_corpus():
    rng = np.random.default_rng(0)
    texts = {f"d{i}": "abcd"[: 1 + i % 3] for i in range(400)}  # three vectors
    queries = {"q1": "a", "q2": "ab"}
    qrels = {q: {f"d{i}": 1 for i in rng.choice(400, 60)} for q in queries}
    q, d = letters(queries.values(), ""), letters(texts.values(), "")
    cosines = q @ d.T / np.linalg.norm(d, axis=1) / np.linalg.norm(q, axis=1)[:, None]
    run = {
        name: dict(zip(texts, row.round(6).tolist(), strict=True))
        for name, row in zip(queries, cosines, strict=True)
    }
    measures = {"ndcg_cut.10", "recall.100"}
    judged = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    results = []
    for _ in range(2):
        names = rng.permutation(list(texts))
        result = ranking({n: texts[n] for n in names}, queries, qrels)(letters)
        results.append(result)
        for ours, theirs in (("ndcg@10", "ndcg_cut_10"), ("recall@100", "recall_100")):
            expected = 100 * np.mean([judged[name][theirs] for name in queries])
            assert result[ours] == pytest.approx(expected)
    assert 0 < results[0]["recall@100"] < 100 and results[0] == results[1]


def test_judged_documents_that_are_not_there_count_as_not_found(beir, tmp_path):
    (tmp_path / "qrels" / "test.tsv").write_text("q\tq\t1\nq\tx\t1\nr\tq\t1\n")
    result = retrieval(data=beir)(letters)
    assert result["unknown_documents"] == result["unknown_queries"] == 1
    assert result["recall@100"] == 50 and result["mrr@10"] == 100
    assert result["ndcg@10"] == pytest.approx(100 / (1 + 1 / np.log2(3)))


def test_an_empty_document_that_cannot_be_embedded_is_named():
    def embed(texts, role):
        if "" in texts:
            raise ValueError("text 1 has no tokens: ''")
        return letters(texts, role)

    evaluator = ranking({"a": "a", "hole": ""}, {"q": "a"}, {"q": {"a": 1}})
    with pytest.raises(ValueError, match="1 documents without text, such as 'hole'"):
        evaluator(embed)


def test_retrieval_by_cosine(beir):
    assert not {"low", "high"} & set(retrieval(data=beir)(letters))
    result = retrieval(data=beir, samples=50)(letters)
    assert result["ndcg@10"] == pytest.approx(100 / np.log2(3))
    assert result["mrr@10"] == pytest.approx(50)
    assert result["recall@100"] == 100
    assert result["main_score"] == result["ndcg@10"]
    assert result["low"] == result["high"] == result["ndcg@10"]  # of one query


def test_retrieval_by_some_of_the_queries(beir, tmp_path):
    names = [f"q{i}" for i in range(20)]
    lines = [json.dumps({"_id": name, "text": f"a {name}"}) for name in names]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    grades = "".join(f"{name}\t1\t1\n" for name in names)
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + grades
    )

    def sampled_queries(queries):
        embedded = []

        def embed(texts, role):
            embedded.extend(texts if role == "query" else [])
            return letters(texts, role)

        assert retrieval(data=beir, queries=queries)(embed)["main_score"] == 100
        return embedded

    five, six = sampled_queries(5), sampled_queries(6)
    assert len(set(five)) == 5 and five == sampled_queries(5)
    assert set(five) < set(six) < set(sampled_queries(0)) == set(sampled_queries(30))
    with pytest.raises(ValueError, match="queries is -1"):
        retrieval(data=beir, queries=-1)


def test_retrieval_can_leave_out_the_query_itself(beir):
    evaluator = retrieval(data=beir, ignore_identical_ids=True, lexical=True)
    result = evaluator(letters)
    assert result["main_score"] == 100
    assert 0 <= result["bm25"] <= 100


def test_retrieval_by_dot_product_minds_the_length():
    corpus, qrels = {"short": "a", "long": "aaab"}, {"q": {"long": 1}}
    for similarity, want in (("cosine", 50), ("dot", 100)):
        evaluator = ranking(corpus, {"q": "a"}, qrels, similarity=similarity)
        assert evaluator(letters)["mrr@10"] == want
    with pytest.raises(ValueError, match="'l2'; allowed: cosine, dot"):
        ranking(corpus, {"q": "a"}, qrels, similarity="l2")


def test_pydocs_retrieval_finds_every_document_by_its_query(monkeypatch):
    from research.data.examples import Example
    from research.data.sources import Source

    rows = [Example(f"query {i}", (f"document {i}",)) for i in range(20)]
    source = Source(examples=rows, negatives_per_query=0, weight=1.0, prompts={})
    monkeypatch.setattr(
        "research.eval.evaluators.SOURCES", {"pydocs": lambda *, split: source}
    )

    def embed(texts, role):
        assert len(texts) == (5 if role == "query" else 8)
        return np.eye(20, dtype=np.float32)[[int(t.split()[1]) for t in texts]]

    evaluator = EVALS["pydocs_retrieval"](candidates=8, queries=5)
    result = evaluator(embed)
    assert result["main_score"] == 100
    assert result["bm25"] == 100
    with pytest.raises(ValueError, match="0 candidates"):
        EVALS["pydocs_retrieval"](candidates=0)


def test_pydocs_long_asks_for_all_functions_of_a_text(monkeypatch):
    from research.data.examples import Example
    from research.data.sources import Source

    rows = [Example(f"query {i}", (f"document {i:03} " + "x" * 17,)) for i in range(40)]
    rows.append(Example("query 40", ("x" * 1_001,)))  # too long to be among them
    source = Source(examples=rows, negatives_per_query=0, weight=1.0, prompts={})
    monkeypatch.setattr(
        "research.eval.evaluators.SOURCES", {"pydocs": lambda *, split: source}
    )
    embedded = {}

    def embed(texts, role):
        numbers = [
            [int(n) for n in re.findall(r"(?:query|document) (\d+)", t)] for t in texts
        ]
        embedded[role] = numbers
        return np.array([np.isin(range(40), row) for row in numbers], np.float32)

    # Functions of 30 characters: 10 tokens of 3 hold one, 31 three.
    for length, count in ((1, 1), (10, 1), (31, 3)):
        before = embedded.get("document")
        evaluator = EVALS["pydocs_long"](length=length, candidates=8)
        assert evaluator(embed)["main_score"] == 100
        assert [len(row) for row in embedded["document"]] == [count] * 8
        assert [sorted(row) for row in embedded["query"]] == [
            sorted(row) for row in embedded["document"]
        ]
        assert before is None or [row[:1] for row in embedded["document"]] == before
    assert embedded["query"] != embedded["document"]
    assert len({n for row in embedded["document"] for n in row}) == 24
    with pytest.raises(
        ValueError, match="8 documents of 50 tokens needs more than the"
    ):
        EVALS["pydocs_long"](length=50, candidates=8)
    with pytest.raises(ValueError, match="pydocs_long of 0 candidates"):
        EVALS["pydocs_long"](length=50, candidates=0)


def test_a_grid_embeds_once_and_cuts(sts_file, tmp_path):
    calls, cuts = [], []

    def every(texts, role):
        calls.append(role)
        x = letters(texts, role)
        return np.stack([np.flip(x, 1), x], 1)

    def cut(depth):
        cuts.append(depth)
        return letters

    grid = score_grid(sts(data=sts_file), every, cut, depths=(1, 2), dims=(3, 4))
    assert calls == ["query"]
    assert cuts == [1, 2]
    full_model = sts(data=sts_file)(letters)
    assert grid.scores[1][1]["main_score"] == pytest.approx(full_model["main_score"])
    assert grid.main_scores().shape == (2, 2)
    data = to_record(grid)
    assert [(c["depth"], c["dim"]) for c in data["cells"]] == [
        (1, 3),
        (1, 4),
        (2, 3),
        (2, 4),
    ]
    assert json.loads(json.dumps(data))["main_score"] == pytest.approx(100)
    table = format_markdown(grid, "title").splitlines()
    assert cells_of(table[2]) == ["depth", "3", "4", "s / 1,000 texts"]
    main_scores = grid.main_scores()
    assert cells_of(table[4])[:3] == ["1", *(f"{x:.2f}" for x in main_scores[0])]
    picture = plot_heat_map(grid, "title", tmp_path / "grid.png")
    shown = [text.get_text() for text in picture.axes[0].texts]
    assert shown == [f"{score:.1f}" for score in main_scores.ravel()]
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == [
        "3",
        "4",
    ]
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_sizes_are_scored_from_one_pass(sts_file):
    calls = []

    def every(texts, role):
        calls.append(role)
        x = letters(texts, role)
        return np.stack([np.flip(x, 1), x], 1)

    evaluator, sizes = sts(data=sts_file), ((1, 4), (1, 3), (3, 4))
    scores = score_sizes(evaluator, every, sizes=sizes, depths=(1, 3))
    assert calls == ["query"]
    # The other scores are those of the full size
    full = evaluator(letters)
    assert scores.keys() > full.keys()
    assert scores["pearson"] == pytest.approx(full["pearson"])
    x = {1: lambda t: np.flip(letters(t, ""), 1), 3: lambda t: letters(t, "")}
    main = [
        evaluator(
            lambda t, r, cut=(depth, dim): l2_normalize_rows(x[cut[0]](t)[:, : cut[1]])
        )
        for depth, dim in sizes
    ]
    main = [result["main_score"] for result in main]
    assert [scores["1x4"], scores["1x3"], scores["3x4"]] == pytest.approx(main)
    assert scores["size_mean"] == pytest.approx(np.mean(main))
    # A measure without a main score has no sizes
    options = {"sizes": sizes, "depths": (1, 3)}
    assert score_sizes(lambda embed: {"rank": 2.0}, every, **options) == {"rank": 2.0}


def test_a_grid_of_one_cell_is_drawn(tmp_path):
    single = Grid((1,), (8,), [[{"main_score": 1.0}]], [0.1])
    picture = plot_heat_map(single, "title", tmp_path / "grid.png")
    assert [text.get_text() for text in picture.axes[0].texts] == ["1.0"]
    assert picture.axes[0].get_title() == "title"


def test_a_grid_says_which_sizes_are_above_bm25(tmp_path):
    scores = [[{"main_score": x, "bm25": 40.0} for x in (30.0, 50.0)]]
    grid = Grid((1,), (8, 16), scores, [0.1])
    table = format_markdown(grid, "title").splitlines()
    assert cells_of(table[5]) == ["BM25", "", "40.00", ""]
    picture = plot_heat_map(grid, "title", tmp_path / "grid.png")
    assert [x.get_weight() for x in picture.axes[0].texts] == ["normal", "bold"]
    assert picture.axes[0].get_title() == "title\nbold: above BM25 (40.0)"


def test_default_dims_are_powers_of_two_and_the_full_width():
    assert default_dims(384) == (16, 32, 64, 128, 256, 384)
    assert default_dims(64) == (16, 32, 64)
    assert default_dims(8) == (8,)


def test_a_sweep_scores_each_way_to_cut(beir, tmp_path):
    lines = []

    def flipped(texts, role):
        sign = [1, -1 if role == "document" else 1, 1, 1]
        return letters(texts, role) * np.array(sign, np.float32)

    makers = {"none": lambda: letters, "late(2)": lambda: flipped}
    cells = compare_chunking.compare_chunkings(
        retrieval(data=beir), makers, lines.append
    )
    assert [cell["chunk"] for cell in cells] == ["none", "late(2)"]
    assert len(lines) == 2
    data = json.loads(json.dumps(compare_chunking.to_record(cells)))
    assert data["main_score"] == data["cells"][1]["main_score"] == 100
    assert data["best"] == "late(2)"
    table = compare_chunking.format_markdown(cells, "title")
    header, _, _, last = map(cells_of, table.splitlines()[2:])
    assert header == ["chunk", "ndcg@10", "recall@100", "mrr@10", "seconds"]
    assert last[:2] == ["late(2)", "100.00"]
    picture = compare_chunking.plot_chunkings(cells, "title", tmp_path / "chunks.png")
    widths = [bar.get_width() for bar in picture.axes[0].patches]
    assert widths == [cell["main_score"] for cell in cells]
    assert (tmp_path / "chunks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "similarity, expected",
    [
        ("cosine", lambda a, b: 1 - distance.cosine(a, b)),
        ("dot", np.dot),
        ("euclidean", lambda a, b: -distance.euclidean(a, b)),
        ("manhattan", lambda a, b: -distance.cityblock(a, b)),
    ],
)
def test_pairs_are_compared_as_the_similarity_is_named(similarity, expected):
    a, b = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("f4")
    expected = [expected(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(SIMILARITIES[similarity](a, b), expected, rtol=1e-4)

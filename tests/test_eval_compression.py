"""The compression study: what is fitted, counted and marked, and what is drawn."""

import numpy as np
import pytest

from research.eval.compression import (
    CompressedScore,
    compression_study,
    default_transforms,
    make_stored_embedder,
)
from research.eval.compression_table import format_markdown, plot_pareto, to_record
from research.eval.tasks.retrieval import ranking
from research.transforms.pipeline import parse_transform

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(150, 2, 16))
CORPUS = {f"d{i}": f"text {i}" for i in range(150)}
QUERIES = {f"q{i}": f"text {i}" for i in range(30)}
QRELS = {f"q{i}": {f"d{i}": 1} for i in range(30)}
TRANSFORMS = ("int8", "binary", "pca(4)", "pca(8) | int8", "random_projection(2)")


def embed_all_depths(texts, role):
    """Vectors at two depths; queries are noisy copies of their documents."""
    x = TABLE[[int(text.split()[1]) for text in texts]]
    noise = np.random.default_rng(len(texts)).normal(size=x.shape)
    return (x + 0.8 * (role == "query") * noise).astype(np.float32)


def study(transforms=TRANSFORMS, **options):
    evaluator = ranking(CORPUS, QUERIES, QRELS)
    sizes = {"depths": (1, 2), "dims": (8, 16)} | options
    indices = [depth - 1 for depth in sizes["depths"]]

    def embed(texts, role):
        return embed_all_depths(texts, role)[:, indices]

    return compression_study(evaluator, embed, transforms, **sizes)


@pytest.fixture(scope="module")
def rows():
    return study()


def select(rows, transform, depth=2, dim=16):
    (row,) = (
        r for r in rows if (r.transform, r.depth, r.dim) == (transform, depth, dim)
    )
    return row


@pytest.mark.parametrize("transform", ["none", "int8", "pca(8) | int8"])
def test_a_store_has_the_scores_of_the_study(rows, transform):
    evaluator = ranking(CORPUS, QUERIES, QRELS)

    def embed(texts, role):
        return embed_all_depths(texts, role)[:, -1]

    stored = make_stored_embedder(evaluator, embed, transform)
    assert evaluator(stored)["main_score"] == select(rows, transform).score


def test_every_transform_is_scored_at_every_size(rows):
    assert len(rows) == 2 * 2 * (1 + len(TRANSFORMS))
    full = select(rows, "none")
    assert full.difference == 0 and full.bytes_per_vector == 64
    int8 = select(rows, "int8")
    assert int8.bytes_per_vector == 16 and int8.fixed_bytes == 2 * 16 * 4
    assert abs(int8.score - full.score) < 3
    small = select(rows, "random_projection(2)")
    assert small.score < full.score - 20 and small.p_value < 0.05 and small.high < 0
    assert small.difference == pytest.approx(small.score - full.score)
    assert select(rows, "pca(8) | int8", 1, 8).bytes_per_vector == 8
    assert select(rows, "binary", 1, 8).bytes_per_vector == 1
    assert select(rows, "none", 1, 8).bytes_per_vector == 32
    assert all(row.milliseconds > 0 for row in rows)
    # Of the ten best documents of the full size, int8 finds nearly all, two dims few
    assert full.recall == 100 and int8.recall > 90 and small.recall < 50


def test_the_best_trades_are_marked(rows):
    for row in rows:
        dominated = any(
            r.bytes_per_vector <= row.bytes_per_vector
            and r.score >= row.score
            and (r.bytes_per_vector, r.score) != (row.bytes_per_vector, row.score)
            for r in rows
        )
        assert row.is_best != dominated


def test_a_score_does_not_depend_on_the_others():
    alone = select(study(("int8",), depths=(2,), dims=(16,)), "int8")
    beside = select(study(("binary", "int8"), depths=(2,), dims=(16,)), "int8")
    assert alone.score == beside.score
    # One comparison is not corrected; of two, the least p is doubled at most.
    assert beside.p_value <= min(1, 2 * alone.p_value) + 1e-9


def test_transforms_are_fitted_to_other_texts_if_there_are_some():
    texts = [f"text {i}" for i in range(120)]
    few = study(("pca(4)",), depths=(2,), dims=(16,), sample=texts)
    full = study(("pca(4)",), depths=(2,), dims=(16,))
    assert select(few, "pca(4)").fixed_bytes == select(full, "pca(4)").fixed_bytes
    with pytest.raises(ValueError, match="at least 100 vectors, not to 20"):
        study(("int8",), depths=(2,), dims=(16,), sample=texts[:20])


def test_a_transform_that_a_small_size_has_no_room_for_is_left_out():
    lines = []
    rows = study(("pca(12)",), log=lines.append)
    assert {row.dim for row in rows if row.transform == "pca(12)"} == {16}
    assert "pca(12) at 1 x 8 is left out: pca keeps 12 dimensions" in lines[1]
    with pytest.raises(ValueError, match="pca keeps 20 dimensions"):
        study(("pca(20)",))


def test_a_task_without_documents_stores_all_texts():
    texts = [f"text {i}" for i in range(150)]
    gold = np.sum(TABLE[:75, 1] * TABLE[75:, 1], axis=1)

    def evaluate(embed):
        a, b = np.split(np.asarray(embed(texts, "query")), 2)
        return {"main_score": 100 * np.corrcoef(np.sum(a * b, 1), gold)[0, 1]}

    rows = compression_study(
        evaluate,
        lambda texts, role: embed_all_depths(texts, "document"),
        ("binary", "int8"),
        depths=(1, 2),
        dims=(16,),
        normalize=False,
    )
    full, binary, int8 = (select(rows, name) for name in ("none", "binary", "int8"))
    assert full.score == pytest.approx(100) and 40 < binary.score < 95
    assert 99 < int8.score < 100
    assert binary.bytes_per_vector == 2 and full.milliseconds is full.recall is None
    assert "100.00 |" in format_markdown(rows, "pairs")


def test_the_usual_transforms_are_transforms():
    for text in default_transforms(384):
        parse_transform(text)
    assert "pca(192) | int8" in default_transforms(384)


def test_the_table_and_the_picture_show_the_rows(rows, tmp_path):
    page = format_markdown(rows, "a title")
    line = next(x for x in page.splitlines() if "random_projection(2)" in x)
    assert "*" in line.split("|")[5] and "< 0.001" in line.split("|")[7]
    # Of smaller sizes, only the best trades
    full = max(row.depth for row in rows), max(row.dim for row in rows)
    shown = [row for row in rows if row.is_best or (row.depth, row.dim) == full]
    assert len([x for x in page.splitlines() if x.startswith("|")]) == 2 + len(shown)
    assert f"{len(rows) - len(shown)} more rows" in page and len(shown) < len(rows)
    assert "pca(8) \\| int8" in page and "pca(8) | int8" not in page
    picture = plot_pareto(rows, "a title", tmp_path / "p.png")
    axes = picture.axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "bytes per vector"
    points = axes.collections[0].get_offsets()
    expected = [(row.bytes_per_vector, row.score) for row in rows]
    np.testing.assert_allclose(points, expected)
    names = [text.get_text() for text in picture.legends[0].texts]
    assert sorted(name.partition(": ")[2] for name in names) == sorted(
        f"{row.transform}, {row.depth} x {row.dim}" for row in rows if row.is_best
    )
    assert (tmp_path / "p.png").stat().st_size > 1_000
    record = to_record(rows)
    assert record["main_score"] == select(rows, "none").score
    assert len(record["rows"]) == len(rows)
    assert set(record["rows"][0]) == set(CompressedScore._fields)

"""The diagnostics of vectors and of token states by depth, on a tiny model."""

import json
from dataclasses import replace

import compiled
import jax
import numpy as np
import pytest
import scipy
from matplotlib.figure import Figure
from test_eval_bias_documents import TOKENIZER, corpus

from research.analysis.diagnostics.depth_geometry import measure_geometry
from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.layer_by_layer import score_depths
from research.analysis.diagnostics.outliers import choose_controls, measure_deviations
from research.analysis.diagnostics.reports import REPORTS
from research.eval.geometry.measures import isoscore
from research.inference.model import EmbeddingModel
from research.models.config import bert

OUTLIER = 5  # a dimension whose state is large in all tokens after the last block


def similarity_of_pairs(embed):
    """A task: the mean cosine of neighbors, in percent."""
    x = embed(corpus(8, 7), "query")
    return {"main_score": 100 * float(np.mean(np.sum(x[1:] * x[:-1], 1)))}


@pytest.fixture(scope="module")
def inputs():
    cfg = bert(
        vocab_size=TOKENIZER.get_vocab_size(),
        width=16,
        depth=2,
        num_heads=2,
        mlp=16,
        max_len=24,
    )
    params = compiled.init(jax.random.key(0), cfg)
    # The last norm of the last block: [L, D] offsets.
    bias = params["layers"]["mlp_norm"]["bias"]
    params["layers"]["mlp_norm"]["bias"] = bias.at[-1, OUTLIER].set(10.0)
    prompts = {"query": "", "document": ""}
    model = EmbeddingModel(params, cfg, TOKENIZER, "mean", 24, prompts, True)
    tasks = {"pairs": similarity_of_pairs}
    return DiagnosticInputs(model, corpus(60, 7), evaluators=tasks)


@pytest.fixture
def pictures(monkeypatch):
    drawn_pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: drawn_pictures.append(picture)
    )
    return drawn_pictures


def check_report(name, record, pictures, path):
    """The record is JSON, the table is rectangular, the figure has its title."""
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    header, *rows = REPORTS[name].make_rows(record)
    assert len(rows) > 2 and {len(row) for row in rows} == {len(header)}
    REPORTS[name].plot(record, "a title", path)
    assert pictures[-1].get_suptitle() == "a title"
    return pictures[-1].axes


def test_geometry_by_depth():
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 3, 6))
    x[:, 1] += 10  # mean cosine 100 / (100 + 1)
    x[:, 2] = random.standard_normal((300, 1)) * np.arange(6) + np.arange(6)[::-1]
    record = measure_geometry(x, (0, 1, 2))
    assert record["texts"] == 300 and record["width"] == 6
    assert record["mean_cosine"][0] == pytest.approx(0, abs=0.02)
    assert record["mean_cosine"][1] == pytest.approx(100 / 101, abs=0.002)
    unit = x[:, 2] / np.linalg.norm(x[:, 2], axis=1, keepdims=True)
    assert record["isoscore"][2] == pytest.approx(isoscore(unit))
    assert record["effective_rank"][0] == pytest.approx(6, abs=0.1)
    assert record["effective_rank"][2] < 3
    assert record["gaussian"]["isoscore"] == pytest.approx(1, abs=0.05)


def test_the_figure_of_the_geometry(tmp_path, pictures):
    x = np.random.default_rng(0).standard_normal((20, 13, 5))
    record = measure_geometry(x, range(13))
    axes = check_report("geometry", record, pictures, tmp_path / "x.png")
    for panel, name in ((2, "isoscore"), (3, "intrinsic_dimension")):
        curve, second, noise, second_noise = axes[panel].lines
        np.testing.assert_allclose(curve.get_ydata(), record[name])
        other = {"isoscore": "partition_score"}.get(name, "levina_bickel")
        np.testing.assert_allclose(second.get_ydata(), record[other])
        assert second_noise.get_ydata()[0] == record["gaussian"][other]
        assert second_noise.get_color() == second.get_color() != curve.get_color()
        assert noise.get_ydata()[0] == record["gaussian"][name]
    with pytest.raises(ValueError, match="4 different texts are too few"):
        measure_geometry(np.ones((4, 2, 3)), (0, 1))


def test_token_states_by_depth(inputs, tmp_path, pictures):
    record = REPORTS["token_states"].measure(inputs, texts=40, tokens=150)
    assert record["depths"] == [0, 1, 2] and record["texts"] == 40
    axes = check_report("token_states", record, pictures, tmp_path / "x.png")
    assert axes[0].get_title() == "SVD anisotropy"
    curve = axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(curve, record["svd_anisotropy"])
    real, masks = axes[4].lines
    assert real.get_ydata()[0] > masks.get_ydata()[0]
    plain = REPORTS["token_states"].measure(inputs, texts=40, tokens=150, mask_share=0)
    assert plain["svd_anisotropy"] == record["svd_anisotropy"]
    assert "mask_effective_rank" not in plain
    # With a mask on every token, none is left to compare with.
    masks = REPORTS["token_states"].measure(inputs, texts=40, tokens=150, mask_share=1)
    assert "mask_effective_rank" not in masks


def test_layers_and_how_they_go_with_a_task(inputs, tmp_path, pictures):
    record = REPORTS["layers"].measure(inputs, texts=20, views=3)
    axes = check_report("layers", record, pictures, tmp_path / "x.png")
    scores = record["scores"]["pairs"]
    np.testing.assert_allclose(axes[6].lines[0].get_ydata(), scores)
    for name, values in record["correlations"].items():
        expected = scipy.stats.spearmanr(record[name], scores).statistic
        assert values["pairs"] == pytest.approx(expected)
    assert len({values["pairs"] for values in record["correlations"].values()}) > 1
    assert record["summary"]["best_depth"] == {"pairs": int(np.argmax(scores))}
    with pytest.raises(ValueError, match="layers of 1 views"):
        REPORTS["layers"].measure(inputs, views=1)


def test_each_depth_is_scored_by_its_own_vectors():
    calls = []

    def embed(texts, role):
        calls.append(role)
        return np.arange(2 * len(texts) * 3.0).reshape(len(texts), 2, 3)

    def score(embed):
        return {"main_score": embed(["a", "b"], "query")[1, 2]}

    expected = [8 / np.linalg.norm([6, 7, 8]), 11 / np.linalg.norm([9, 10, 11])]
    assert score_depths(embed, {"x": score}, 2)["x"] == pytest.approx(expected)
    assert calls == ["query"]


def test_a_planted_outlier_is_found_and_clipped(inputs, tmp_path, pictures):
    record = REPORTS["outliers"].measure(inputs, texts=60)
    assert record["outliers"][-1] == [OUTLIER]
    assert OUTLIER not in record["outliers"][0]
    clipped, control = (
        record[f"{kind}_mean_cosine"][-1] for kind in ("clipped", "control")
    )
    assert clipped < control - 0.02
    scores = record["scores"]["pairs"]
    assert scores["clipped"][-1] < scores["control"][-1] - 2
    assert scores["clipped"][0] == scores["unchanged"][0] == scores["control"][0]
    # As the embedder clips before it pools.
    embed = inputs.make_embedder(clip_dims=record["outliers"][-1])
    expected = similarity_of_pairs(embed)["main_score"]
    assert scores["clipped"][-1] == pytest.approx(expected, abs=1e-3)
    axes = check_report("outliers", record, pictures, tmp_path / "x.png")
    assert [text.get_text() for text in axes[0].texts] == [str(OUTLIER)]
    for panel, values in ((1, record["clipped_mean_cosine"]), (2, scores["clipped"])):
        np.testing.assert_allclose(axes[panel].lines[1].get_ydata(), values)


def test_outliers_are_those_of_all_dimensions(inputs):
    narrow = replace(inputs, model=inputs.model._replace(dim=8))
    record = REPORTS["outliers"].measure(narrow, texts=40)
    assert len(record["deviations"]) == 16
    for name, option in (("outliers", "dim"), ("token_states", "pool")):
        with pytest.raises(ValueError, match=f"--{option} .* with the report {name}"):
            REPORTS[name].measure(replace(inputs, sizes={option: 8}))


def test_deviations_and_controls():
    values = np.append(np.zeros(99), 50.0)
    deviations = measure_deviations(values)
    assert np.flatnonzero(np.abs(deviations) > 3).tolist() == [99]
    assert not measure_deviations(np.ones(4)).any()
    dims = choose_controls([1, 2], 5, np.random.default_rng(0))
    assert len(dims) == 2 and set(dims) <= {0, 3, 4}

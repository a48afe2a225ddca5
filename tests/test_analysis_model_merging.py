"""Models merged by name, which load and embed again."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_models import TEXTS, make_model

from research.analysis import model_merging
from research.analysis.model_merging import merge_models
from research.inference.embedder import Embedder
from research.interop.load import load
from research.interop.sentence_transformers.write import export
from research.models.encoder import truncate_depth


def shift(model, seed):
    """The model with other parameters, as if it had been trained."""
    rng = np.random.default_rng(seed)

    def add_noise(x):
        return x + rng.normal(0, 0.05, np.shape(x)).astype("f4")

    params = dict(model.params)
    params["embed"] = {
        name: {key: add_noise(x) for key, x in part.items()}
        for name, part in params["embed"].items()
    }
    return model._replace(params=params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two models trained from it, and some that do not fit."""
    folder = tmp_path_factory.mktemp("models")
    base = make_model()
    cut, config = truncate_depth(base.params, base.config, 2)
    models = {
        "base": base,
        "a": shift(base, 1),
        "b": shift(base, 2),
        "shallow": base._replace(params=cut, config=config),
        "cls": base._replace(pool="cls"),
    }
    for name, model in models.items():
        export(model, folder / name)
    return folder


def token_table(model):
    return np.asarray(model.params["embed"]["token"]["embedding"])


@pytest.mark.parametrize(
    "method, coefficients",
    [
        ("average", (0.0, 0.5, 0.5)),
        ("average(weights=(3, 1))", (0.0, 0.75, 0.25)),
        ("task_vectors(base='{}/base', scale=0.5)", (0.0, 0.5, 0.5)),
        ("task_vectors(base='{}/base', scale=(1.0, -1.0))", (1.0, 1.0, -1.0)),
    ],
)
def test_the_parameters_are_the_methods(folder, method, coefficients):
    names = [f"{folder}/{name}" for name in ("a", "b")]
    merged, _ = merge_models(names, method.format(folder))
    tables = [token_table(load(f"{folder}/{name}")) for name in ("base", "a", "b")]
    expected = sum(c * table for c, table in zip(coefficients, tables, strict=True))
    np.testing.assert_allclose(token_table(merged), expected, atol=1e-6)


def test_slerp_ends_in_its_models(folder):
    names = [f"{folder}/{name}" for name in ("a", "b")]
    for base in ("", f"{folder}/base"):
        merged, _ = merge_models(names, f"slerp(t=1.0, base='{base}')")
        table = token_table(load(names[1]))
        np.testing.assert_allclose(token_table(merged), table, atol=1e-6)


def test_the_search_lowers_the_probe_loss(folder, tmp_path):
    pairs = [{"anchor": text, "positive": text.upper()} for text in TEXTS[:3]]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    call = f"self_positioning(base='{folder}/base', data='{file}', steps=12, "
    call += "batch_size=3, learning_rate=0.05, penalty=0.0)"
    merged, found = merge_models([f"{folder}/a", f"{folder}/b"], call)
    assert found["probe_loss_after"] < found["probe_loss_before"]
    assert len(found["weights"]) == 2 and found["scale"] != 1.0
    assert np.isfinite(token_table(merged)).all()


def test_a_merged_model_loads_and_embeds(folder, tmp_path):
    names = [f"{folder}/a", f"{folder}/b"]
    merged, record = merge_models(names, "average(weights=(1, 2))")
    export(merged, tmp_path / "merged")
    loaded = load(f"{tmp_path}/merged")
    np.testing.assert_array_equal(token_table(loaded), token_table(merged))
    vectors = Embedder(loaded)(TEXTS, "document")
    np.testing.assert_allclose(vectors, Embedder(merged)(TEXTS, "document"), atol=1e-6)


@pytest.mark.parametrize(
    "names, method, message",
    [
        ("a,shallow", "average", "shallow cannot be merged with .*a: it has depth 2"),
        ("a,cls", "average", "it has pool cls and not mean"),
        ("a,a", "average", "are not all different"),
        ("a,b,base", "slerp(t=0.5)", "there are 3; average and self_positioning take"),
        ("a,b", "slerp(t=1.5)", "slerp's t is 1.5; it should be in 0 ... 1"),
        ("a,b", "task_vectors()", "task_vectors needs a value for base"),
        ("a,b", "task_vectors(base='{}/shallow')", "shallow cannot be merged with"),
        (
            "a,b",
            "task_vectors(base='{}/base', scale=(1.0,))",
            "1 scales are given for 2 models",
        ),
        ("a,b", "soup()", "unknown name 'soup'; known: average, self_positioning"),
        ("a,b", "average(weights=(1,-1))", "it should be at least 0"),
    ],
)
def test_what_cannot_be_merged_is_one_sentence(folder, names, method, message):
    paths = [f"{folder}/{name}" for name in names.split(",")]
    with pytest.raises(ValueError, match=message):
        merge_models(paths, method.format(folder))


def test_another_tokenizer_and_adapters_are_refused(folder, monkeypatch):
    model = load(f"{folder}/a")
    other = model.tokenizer.from_str(model.tokenizer.to_str().replace("tree", "trex"))
    cases = [
        (model._replace(tokenizer=other), "its tokenizer has other tokens"),
        (model._replace(dim=8), "it has dim 8 and not"),
        (model._replace(adapters=("x", "y")), "b has the adapters x, y; export one"),
        (
            model._replace(config=dataclasses.replace(model.config, norm_eps=0.1)),
            "it has norm_eps 0.1 and not",
        ),
    ]
    for changed, message in cases:
        models = {"a": model, "b": changed}
        monkeypatch.setattr(model_merging, "load", models.__getitem__)
        with pytest.raises(ValueError, match=message):
            merge_models(["a", "b"])


def test_the_base_is_that_of_all_models(folder, monkeypatch):
    model = load(f"{folder}/a")
    bases = {"a": "org/base", "b": "org/base", "c": "org/other"}
    models = {name: model._replace(base=base) for name, base in bases.items()}
    monkeypatch.setattr(model_merging, "load", models.__getitem__)
    assert merge_models(["a", "b"])[0].base == "org/base"
    assert merge_models(["a", "b", "c"])[0].base == ""

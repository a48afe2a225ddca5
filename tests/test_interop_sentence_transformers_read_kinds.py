"""Folders of token vectors: sentence-transformers' and PyLate's, read and written."""

import json

import numpy as np
import pytest
from tiny_models import TEXTS, make_model

from research.inference.embedder import Embedder
from research.inference.similarity import similarity
from research.interop.load import load
from research.interop.sentence_transformers.write import export
from research.text.multi_vector_prompts import colbert
from research.text.prompts import inference_free

PROMPT = colbert(
    query_marker="[UNK]", document_marker="", query_length=12, document_length=24
)

ATTENDING = colbert(
    query_marker="[UNK]", document_marker="", query_length=9, attends=True
)


def make_colbert(**changes):
    base = make_model()
    kernel = np.random.default_rng(3).normal(size=(16, 8)).astype("f4")
    model = base._replace(
        params={**base.params, "pooling": {"kernel": kernel}},
        pool="colbert(dim=8)",
        prompt=PROMPT,
        similarity="maxsim",
    )
    return model._replace(**changes)


def multi_vector_encoder(folder):
    package = pytest.importorskip("sentence_transformers")
    return package.MultiVectorEncoder(str(folder), device="cpu")


def near(ours, theirs):
    """Vectors of the same tokens of each text."""
    assert np.diff(ours.offsets).tolist() == [len(x) for x in theirs]
    vectors = np.concatenate([np.asarray(x) for x in theirs])
    np.testing.assert_allclose(ours.vectors, vectors, atol=1e-5)


def change_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("prompt", "dim", "name"),
    [
        (PROMPT, None, "maxsim"),
        (ATTENDING, 4, "meanmaxsim"),
        (None, None, "maxsim"),
    ],
    ids=["colbert", "attends", "plain"],
)
def test_sentence_transformers_computes_our_vectors(prompt, dim, name, tmp_path):
    model = make_colbert(prompt=prompt, similarity=name)
    export(model, tmp_path / "out", dim=dim)
    theirs = multi_vector_encoder(tmp_path / "out")
    ours = Embedder(model, dim=dim)
    q, d = ours(TEXTS, "query"), ours(TEXTS, "document")
    their_q, their_d = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)
    near(q, their_q)
    near(d, their_d)
    assert theirs.similarity_fn_name == name
    scores = np.asarray(theirs.similarity(their_q, their_d))
    np.testing.assert_allclose(similarity(q, d, name), scores, atol=1e-4)
    # The folder is read again
    again = load(str(tmp_path / "out"))
    assert again.similarity == name
    for role, want in (("query", q), ("document", d)):
        found = Embedder(again)(TEXTS, role)
        np.testing.assert_array_equal(found.offsets, want.offsets)
        np.testing.assert_allclose(found.vectors, want.vectors, atol=1e-6)


def test_their_own_folder_is_read(tmp_path):
    export(make_colbert(), tmp_path / "out")
    theirs = multi_vector_encoder(tmp_path / "out")
    theirs.save(str(tmp_path / "theirs"))
    model = load(str(tmp_path / "theirs"))
    assert model.prompt.late_interaction == PROMPT.late_interaction
    assert model.pool == "colbert(dim=8)"
    near(Embedder(model)(TEXTS, "query"), theirs.encode_query(TEXTS))
    near(Embedder(model)(TEXTS, "document"), theirs.encode_document(TEXTS))


def test_a_folder_of_pylate_is_read(tmp_path):
    """Its settings are in one file, and its mask and normalization are not listed."""
    export(make_colbert(), tmp_path / "out")
    folder = tmp_path / "out"
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.models.Transformer",
        },
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    dense = json.loads((folder / "1_Dense" / "config.json").read_text())
    dense = {k: x for k, x in dense.items() if not k.startswith("module_")}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 30}')
    settings = {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[UNK]",
        "document_prefix": "",
        "query_length": 12,
        "document_length": 24,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": True,
        "prompts": {},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    model, want = load(str(folder)), make_colbert()
    assert model.prompt.late_interaction == PROMPT.late_interaction
    for role in ("query", "document"):
        found, expected = (Embedder(m)(TEXTS, role) for m in (model, want))
        np.testing.assert_array_equal(found.offsets, expected.offsets)
        np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "2_MultiVectorMask/config.json",
            {"skiplist_tasks": ["query"]},
            r"skiplist_tasks \['query'\]",
        ),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "min", "length": 12}},
            "only the strategy 'fixed'",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "cosine"},
            "similarity_fn_name 'cosine'.*maxsim, meanmaxsim",
        ),
        ("1_Dense/config.json", {"use_residual": True}, "use_residual True"),
    ],
)
def test_what_we_do_not_compute_is_named(file, changes, message, tmp_path):
    export(make_colbert(), tmp_path / "out")
    change_json(tmp_path / "out" / file, **changes)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "out"), weights=False)


def test_other_modules_are_named(tmp_path):
    export(make_colbert(), tmp_path / "out")
    file = tmp_path / "out" / "modules.json"
    modules = json.loads(file.read_text())
    file.write_text(json.dumps([modules[i] for i in (0, 2, 1, 3)]))
    with pytest.raises(ValueError, match="has the modules Transformer, Mul"):
        load(str(tmp_path / "out"), weights=False)


def test_what_sentence_transformers_cannot_express(tmp_path):
    with pytest.raises(ValueError, match="not normalized by maxsim_dot, not maxsim"):
        export(make_colbert(normalize=False), tmp_path / "out")
    # Our texts have t as a letter, which a special token would take out of words
    marked = colbert(query_marker="t", document_marker="")
    with pytest.raises(ValueError, match="does not read 't' before a text"):
        export(make_colbert(prompt=marked), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def make_splade(pool="splade"):
    base = make_model()
    rng = np.random.default_rng(5)
    vocab = base.config.vocab_size
    head = {
        "transform": {
            "kernel": rng.normal(size=(16, 16)).astype("f4"),
            "bias": rng.normal(size=16).astype("f4"),
        },
        "norm": {
            "scale": rng.normal(size=16).astype("f4"),
            "bias": rng.normal(size=16).astype("f4"),
        },
        "bias": rng.normal(size=vocab).astype("f4"),
    }
    return base._replace(
        params={**base.params, "pooling": {"head": head}},
        pool=pool,
        normalize=False,
        similarity="dot",
    )


def sparse_encoder(folder):
    package = pytest.importorskip("sentence_transformers")
    return package.SparseEncoder(str(folder), device="cpu")


@pytest.mark.parametrize(
    "pool",
    ["splade", 'splade(aggregate="sum", activation="log1p_twice")', "splade(top=6)"],
)
def test_sentence_transformers_computes_our_weights(pool, tmp_path):
    model = make_splade(pool)
    export(model, tmp_path / "out")
    theirs = sparse_encoder(tmp_path / "out")
    q, d = (Embedder(model)(TEXTS, role) for role in ("query", "document"))
    weights = theirs.encode_document(TEXTS)
    np.testing.assert_allclose(d.toarray(), weights.to_dense(), atol=1e-4)
    scores = theirs.similarity(theirs.encode_query(TEXTS), weights)
    np.testing.assert_allclose(similarity(q, d, "dot"), scores, rtol=1e-4, atol=1e-3)
    # Our folder and theirs are read again
    theirs.save(str(tmp_path / "theirs"))
    for name in ("out", "theirs"):
        again = load(str(tmp_path / name))
        assert again.similarity == "dot" and not again.normalize
        found = Embedder(again)(TEXTS, "document")
        np.testing.assert_allclose(found.toarray(), d.toarray(), atol=1e-5)


def test_modules_of_sparse_models_that_we_do_not_compute(tmp_path):
    export(make_splade(), tmp_path / "out")
    change_json(
        tmp_path / "out" / "1_SpladePooling" / "config.json", pooling_strategy="mean"
    )
    with pytest.raises(ValueError, match="pooling_strategy 'mean'"):
        load(str(tmp_path / "out"), weights=False)
    with pytest.raises(ValueError, match="neither cuts, projects nor normalizes"):
        export(make_splade()._replace(normalize=True), tmp_path / "other")
    with pytest.raises(ValueError, match="each token sparse weights, as the pooling"):
        export(make_splade("slim(top=5)"), tmp_path / "other")


def test_queries_without_an_encoder(tmp_path):
    model = make_splade("splade_doc")._replace(prompt=inference_free())
    weights = np.random.default_rng(6).random(model.config.vocab_size).astype("f4")
    model.params["pooling"]["query_weights"] = weights
    export(model, tmp_path / "out")
    theirs = sparse_encoder(tmp_path / "out")
    theirs.save(str(tmp_path / "theirs"))
    again, saved = (load(str(tmp_path / name)) for name in ("out", "theirs"))
    for role, encode in (
        ("query", theirs.encode_query),
        ("document", theirs.encode_document),
    ):
        want = Embedder(model)(TEXTS, role).toarray()
        np.testing.assert_allclose(want, encode(TEXTS).to_dense(), atol=1e-4)
        for loaded in (again, saved):
            found = Embedder(loaded)(TEXTS, role)
            np.testing.assert_allclose(found.toarray(), want, atol=1e-5)
    with pytest.raises(ValueError, match="leaves special tokens out of queries"):
        export(model._replace(prompt=None), tmp_path / "other")


def test_a_folder_of_stanford_is_read(tmp_path):
    """The projection is beside the transformer's weights, as linear.weight."""
    from safetensors.numpy import load_file, save_file

    want = make_colbert()
    export(want, tmp_path / "out")
    folder = tmp_path / "out"
    tensors = load_file(folder / "model.safetensors")
    tensors = {f"bert.{name}": x for name, x in tensors.items()}
    tensors |= load_file(folder / "1_Dense" / "model.safetensors")
    save_file(tensors, folder / "model.safetensors")
    for name in (
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ):
        (folder / name).unlink()
    metadata = {
        "query_token_id": "[UNK]",
        "doc_token_id": "[PAD]",
        "query_maxlen": 12,
        "doc_maxlen": 24,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
    }
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    change_json(folder / "config.json", architectures=["HF_ColBERT"])
    model = load(str(folder))
    assert model.prompt.late_interaction == PROMPT.late_interaction
    found, expected = (Embedder(m)(TEXTS, "query") for m in (model, want))
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    change_json(folder / "artifact.metadata", query_maxlen=None)
    with pytest.raises(ValueError, match="artifact.metadata has no query_maxlen"):
        load(str(folder))


@pytest.mark.parametrize("unit", [True, False])
def test_latents_are_those_of_a_sparse_encoder(unit, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    random, base = np.random.default_rng(5), make_model()
    weights = {"kernel": (16, 40), "bias": (40,), "center": (16,)}
    weights = {k: random.normal(size=s).astype("f4") for k, s in weights.items()}
    model = base._replace(
        params={**base.params, "pooling": weights},
        pool=f"csr(latents=40, k=3, base='cls', unit={unit})",
        normalize=False,
        similarity="dot",
    )
    export(model, tmp_path / "out")
    theirs = package.SparseEncoder(str(tmp_path / "out"), device="cpu")
    ours = Embedder(model)(TEXTS, "document").toarray()
    assert (ours > 0).sum(1).max() <= 3
    encoded = theirs.encode_document(TEXTS).to_dense().numpy()
    np.testing.assert_allclose(ours, encoded, atol=1e-5)
    # Our folder and theirs are read again
    theirs.save(str(tmp_path / "theirs"))
    for name in ("out", "theirs"):
        again = Embedder(load(str(tmp_path / name)))(TEXTS, "document")
        np.testing.assert_allclose(again.toarray(), ours, atol=1e-5)
    # Its number depends on whether there is a Normalize before it
    (config,) = (tmp_path / "out").glob("*_SparseAutoEncoder/config.json")
    change_json(config, hidden_dim=41)
    with pytest.raises(ValueError, match="hidden_dim 41 and input_dim 16"):
        load(str(tmp_path / "out"))

"""Folders of BGE-M3, with the heads of its sparse and multi-vector embeddings."""

import numpy as np
import pytest
from tiny_models import TEXTS, make_model

from research.inference.embedder import Embedder
from research.inference.similarity import similarity
from research.interop.load import load
from research.interop.sentence_transformers.m3_heads import HEADS_FILE, LINEAR_FILES
from research.interop.sentence_transformers.write import export


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(0)
    shapes = {"sparse": (16, 1), "tokens": (16, 16)}
    return {
        name: {
            "kernel": rng.normal(size=shape).astype("f4"),
            "bias": rng.normal(size=shape[1:]).astype("f4"),
        }
        for name, shape in shapes.items()
    }


@pytest.fixture
def authors_folder(heads, tmp_path):
    """A dense folder with two files of PyTorch, as the authors' has them."""
    torch = pytest.importorskip("torch")
    export(make_model(pool="cls"), tmp_path / "bge")
    for name, file in LINEAR_FILES.items():
        weight, bias = (torch.tensor(heads[name][part]) for part in ("kernel", "bias"))
        state = {"weight": weight.T.contiguous(), "bias": bias}
        torch.save(state, tmp_path / "bge" / file)
    return tmp_path / "bge"


def test_the_authors_heads_are_read(heads, authors_folder):
    model = load(str(authors_folder))
    assert model.kind == "dense"
    plain = make_model(pool="cls")
    np.testing.assert_allclose(
        Embedder(model)(TEXTS, "document"),
        Embedder(plain)(TEXTS, "document"),
        atol=1e-6,
    )
    # The weights of tokens and the vectors, by NumPy from the states of tokens
    states = Embedder(plain, pool="colbert(dim=0)", normalize=False)(TEXTS, "document")
    projected = states.vectors @ heads["tokens"]["kernel"] + heads["tokens"]["bias"]
    is_first = np.isin(np.arange(len(projected)), states.offsets[:-1])
    vectors = Embedder(model, pool="m3(output='multi_vector')", normalize=False)(
        TEXTS, "document"
    )
    np.testing.assert_allclose(vectors.vectors, projected[~is_first], atol=1e-5)
    weights = states.vectors @ heads["sparse"]["kernel"] + heads["sparse"]["bias"]
    is_last = np.isin(np.arange(len(projected)), states.offsets[1:] - 1)
    want = weights[~is_first & ~is_last, 0].max()
    sparse = Embedder(model, pool="m3(output='sparse')", normalize=False)
    assert sparse(TEXTS, "document").max() == pytest.approx(want, abs=1e-5)


@pytest.mark.slow  # another library loads the folder
def test_our_export_keeps_the_heads_and_is_dense_elsewhere(authors_folder, tmp_path):
    model = load(str(authors_folder))
    export(model, tmp_path / "out")
    again = load(str(tmp_path / "out"))
    assert (tmp_path / "out" / HEADS_FILE).is_file()
    rows = [Embedder(x, pool="m3")(TEXTS, "document") for x in (model, again)]
    np.testing.assert_allclose(
        similarity(rows[0], rows[0], "m3"),
        similarity(rows[1], rows[1], "m3"),
        atol=1e-5,
    )
    package = pytest.importorskip("sentence_transformers")
    theirs = package.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(
        theirs.encode(TEXTS), Embedder(again)(TEXTS, "document"), atol=1e-5
    )


@pytest.mark.parametrize("damage", ["text", "shape", "pooling"])
def test_damaged_heads_are_refused(damage, authors_folder):
    torch = pytest.importorskip("torch")
    file = authors_folder / LINEAR_FILES["sparse"]
    if damage == "text":
        file.write_text("no tensors")
        message = "sparse_linear.pt has no weight and bias"
    elif damage == "shape":
        torch.save({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, file)
        message = r"a head 'sparse' of the shapes .*; BGE-M3 of width 16 has a kernel"
    else:
        pooling = authors_folder / "1_Pooling" / "config.json"
        text = pooling.read_text().replace('"cls"', '"mean"')
        text = text.replace(
            '"pooling_mode_cls_token": true', '"pooling_mode_cls_token": false'
        )
        text = text.replace(
            '"pooling_mode_mean_tokens": false', '"pooling_mode_mean_tokens": true'
        )
        pooling.write_text(text)
        message = "the pooling mean; they need cls"
    with pytest.raises(ValueError, match=message):
        load(str(authors_folder))

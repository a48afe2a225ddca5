"""How many files a text, and a reader after it, goes through."""

from journey import record_files, summarize
from tiny_models import TEXTS, make_model

from research.inference.embedder import Embedder
from research.interop.load import load
from research.interop.sentence_transformers.write import export


def test_a_compiled_call_goes_through_few_files():
    embedder = Embedder(make_model())
    embedder(TEXTS, "document")
    with record_files() as files:
        embedder(TEXTS, "document")
    assert files[0] == "research/inference/embedder.py"
    assert summarize(files)["files"] <= 7
    assert not any(name.startswith("research/models/") for name in files)


def test_loading_a_model_traces_none_of_its_layers(tmp_path):
    export(make_model(), tmp_path / "model")
    with record_files() as files:
        load(str(tmp_path / "model"))
    assert "research/models/param_shapes.py" in files
    layers = {"layers", "linear", "encoder", "dropout", "attention/attend"}
    assert not {f"research/models/{name}.py" for name in layers} & set(files)

"""launch.diagnose as a user runs it, on a tiny random model."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from test_eval_bias_documents import TOKENIZER, corpus

from launch.diagnose import build_tasks, describe_reports
from research.analysis.diagnostics.reports import REPORTS
from research.inference.model import EmbeddingModel
from research.interop.sentence_transformers.write import export
from research.models import encoder
from research.models.config import bert

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and a corpus of 120 texts of 7 words."""
    folder = tmp_path_factory.mktemp("diagnose")
    vocab = TOKENIZER.get_vocab_size()
    cfg = bert(vocab_size=vocab, width=16, depth=2, num_heads=2, mlp=16, max_len=24)
    params = jax.jit(encoder.init, static_argnums=1)(jax.random.key(0), cfg)
    prompts = {"query": "", "document": ""}
    model = EmbeddingModel(params, cfg, TOKENIZER, "mean", 24, prompts, True)
    export(model, folder / "model")
    (folder / "texts.txt").write_text("\n".join(corpus(120, 7)))
    return folder


def diagnose(folder, *flags):
    return subprocess.run(
        [
            *(sys.executable, "-m", "launch.diagnose", f"--model={folder / 'model'}"),
            *(f"--corpus={folder / 'texts.txt'}", f"--output={folder / 'out'}"),
            *flags,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_three_reports(folder):
    reports = (
        "length_collapse(documents=10) | positional_bias(documents=10) | "
        "geometry(texts=50)"
    )
    done = diagnose(folder, f"--reports={reports}")
    assert done.returncode == 0, done.stderr
    names = ("geometry", "length_collapse", "positional_bias")
    files = sorted(file.name for file in (folder / "out").iterdir())
    ends = ("json", "md", "png", "svg")
    assert files == [f"{name}.{end}" for name in names for end in ends]
    geometry, collapse, bias = (
        json.loads((folder / "out" / f"{name}.json").read_text()) for name in names
    )
    assert geometry["depths"] == [0, 1, 2] and geometry["texts"] == 50
    assert collapse["lengths"] == [8, 16, 22] and collapse["documents"] == 10
    assert bias["documents"] == 10 and bias["tokens"] == 14
    plain, scaled = collapse["models"].values()
    assert list(collapse["models"]) == ["the model", "TempScale 0.8"]
    assert plain["layers"][0] == scaled["layers"][0]
    assert plain["mean"] != scaled["mean"]
    result = json.loads(done.stdout)
    assert result["geometry"]["isoscore"] == geometry["isoscore"][-1]
    means = result["length_collapse"]["the model"]
    assert list(means.values()) == plain["mean"]


def test_a_mistake_is_one_sentence(folder):
    done = diagnose(folder, "--reports=length_collapse(documents=70)")
    message = (
        "the corpus of 120 texts gives 30 documents of 22 tokens and 70 are needed"
    )
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_each_task_has_a_name_of_its_own(tmp_path):
    row = {"text": "a", "label": "x", "fine": "y"}
    for split in ("train", "test"):
        rows = [row, row | {"label": "z", "fine": "w"}]
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{split}.jsonl").write_text(lines)
    call = f"classification(data={str(tmp_path)!r}"
    tasks = build_tasks(f"{call}) | {call}, label='fine')")
    name = f"classification {tmp_path.name}"
    assert list(tasks) == [name, f"{name} label=fine"]
    with pytest.raises(ValueError, match=f"two tasks '{name}'"):
        build_tasks(f"{call}) | {call})")
    with pytest.raises(ValueError, match="geometry has no main score of embeddings"):
        build_tasks("geometry(data='x')")


def test_the_help_page_describes_every_option_of_every_report():
    page = describe_reports()
    assert "geometry(texts=1000)\n  Anisotropy" in page
    assert "mexa(data=..., sentences=100, retrieval=900)" in page
    assert "\nredundancy\n" in page
    for name, report in REPORTS.items():
        described = page.split(f"\n{name}")[1].split("\n\n")[0]
        parameters = inspect.signature(report.measure).parameters
        for option in list(parameters)[1:]:
            assert f"\n    {option}: " in described
    assert max(map(len, page.splitlines())) <= 88

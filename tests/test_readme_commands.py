"""The commands of the READMEs run as they stand, with tiny models and files.

RULES says what is replaced by what, LEFT_OUT which commands do not run here;
test_launch_scripts.py reads those for clouds.
"""

import dataclasses
import gzip
import json
import os
import random
import re
import subprocess
import sys

import pytest

from research.interop.sentence_transformers.write import export
from tests.test_readmes import PAGES, ROOT, code_blocks, page_name
from tests.tiny_models import make_model, random_params

pytestmark = pytest.mark.slow

# Beginnings of commands that need what is not here.
LEFT_OUT = (
    # Other machines
    *("sky", "docker", "kubectl", "xpk", "sbatch", "gcloud"),
    # Packages that are not among the requirements, or that are installed
    *("text-embeddings-router", "vllm", "optimum-cli", r"\S+/pip", "bash launch/setup"),
    # Minutes of training or testing, and an accelerator
    *("bash launch/quickstart", "bash launch/test", "bash launch/check_accelerator"),
    # Data sets of the hub, and a compiler for TPUs
    *("python .*--task=mteb", "python -m launch.aot", "python .*--topology"),
    # BiDR's codes and its second model, for which the files are too small
    "python .*(--output=start|bidr|runs/codes|runs/dense)",
)
# What a command has, and what runs in its place.
RULES = (
    (r"=(MODEL|TEACHER|M)\b", "=tiny"),
    (r"model='TEACHER'", "model='tiny'"),
    (r"=(DECODER|OTHER)\b", "=decoder"),
    (r"=BEIR\b", "=../shared/data/squad_retrieval"),
    (r"--data=D\b", "--data=scores.jsonl"),
    (r"--reports=REPORT", "--reports=length_collapse"),
    # Recipes with tiny models, and a file's examples with a model that is tiny anyway
    (r"configs/NAME\.py", "configs/separate.py:tiny"),
    (
        r"configs/ablations/NAME\.py",
        "configs/ablations/absolute_positions.py:tiny,model=learned",
    ),
    (r"configs/(starbucks_sts|simcse_unsup)\.py(:steps=\d+)?", r"configs/\1.py:tiny"),
    (r"quickstart\.py:scratch,steps=50", "quickstart.py:scratch,tiny"),
    (r"finetune\.py:(model=\w+,)?", "finetune.py:model=tiny,steps=2,batch=8,"),
    # Fewer and shorter texts
    (r"--task=longembed", "--task=longembed --lengths=64"),
    (r"--samples=1000", "--samples=20"),
    (r"(texts=)\d+", r"\g<1>40"),
    (r"tokens=1000", "tokens=100"),
)
WORDS = ["red", "blue", "old", "new", "sea", "tree", "leaf", "rain", "bird", "stone"]


def list_commands(block):
    """The commands of a block; lines that go on are indented."""
    return re.sub(r"\s*\\?\n\s+", " ", block).splitlines()


def is_left_out(command):
    return any(re.match(name, command) for name in LEFT_OUT)


def shrink(command):
    """The command with what RULES replaces."""
    for pattern, replacement in RULES:
        command = re.sub(pattern, replacement, command)
    return command


BLOCKS = [
    pytest.param(block, id=f"{page_name(path)}-{number}")
    for path in PAGES
    for number, block in enumerate(code_blocks(path.read_text(), "bash"))
    if not all(map(is_left_out, list_commands(block)))
]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_model(folder, preset="modern", length=64, **changes):
    """A random encoder of 4 blocks of width 128, unless told otherwise."""
    model = make_model(preset, max_length=length)
    heads = {"num_heads": 16, "num_kv_heads": 16}  # of the same size as before
    shape = {"width": 128, "depth": 4, "mlp": 64, "max_len": length}
    config = dataclasses.replace(model.config, **heads | shape | changes)
    export(model._replace(config=config, params=random_params(config)), folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The models and files that the commands name, and the data sets of ../shared."""
    root = tmp_path_factory.mktemp("readmes")
    data, folder = root / "shared" / "data", root / "files"
    write_model(folder / "tiny")
    write_model(folder / "decoder", causal=True)
    small = {"width": 16, "num_heads": 2, "num_kv_heads": 2, "depth": 1}
    write_model(folder / "learned", "bert", 512, **small)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=30)) for _ in range(200)]
    (folder / "texts.txt").write_text("\n".join(texts))
    # Pairs and their scores under the names that the pages give them
    pairs = [{"query": text[:40], "positive": text} for text in texts[:48]]
    for name in ("pairs", "train", "my"):
        write_rows(folder / f"{name}.jsonl", pairs)
    scores = [
        {"sentence1": a, "sentence2": b, "score": i % 6}
        for i, (a, b) in enumerate(zip(texts[:40], texts[40:80], strict=True))
    ]
    names = [folder / f"{name}.jsonl" for name in ("scores", "dev", "sts", "test")]
    names += [folder / "stsb/test.jsonl.gz"]
    names += [data / f"stsb/{split}.jsonl.gz" for split in ("dev", "test")]
    for path in names:
        write_rows(path, scores)
    lines = [f"{row['query']},{row['positive']}" for row in pairs]
    (folder / "faq.csv").write_text("\n".join(["ask,reply", *lines]))
    contexts = [row | {"context": f"sea {row['positive']} rain"} for row in pairs]
    write_rows(folder / "chunks.jsonl", contexts)
    # Texts with labels
    labels = [{"text": text, "label": text[:3]} for text in texts]
    for path in (folder / "banking77", data / "trec"):
        write_rows(path / "train.jsonl", labels)
        write_rows(path / "test.jsonl", labels[:40])
    # A BEIR folder, as a folder and as the files of a corpus
    corpus = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": text[:30]} for i, text in enumerate(texts[:9])]
    for path in (folder / "squad_retrieval", data / "squad_retrieval"):
        write_rows(path / "corpus.jsonl", corpus)
        write_rows(path / "queries.jsonl", queries)
        (path / "qrels").mkdir()
        for split in ("dev", "test"):
            lines = [f"q{i}\td{i}\t1\n" for i in range(len(queries))]
            (path / "qrels" / f"{split}.tsv").write_text("".join(lines))
    write_rows(folder / "queries.jsonl", queries)
    for name in ("passages.jsonl", "corpus/a.jsonl", "corpus/b.jsonl.gz"):
        write_rows(folder / name, corpus)
    (suite,) = code_blocks((ROOT / "launch/README.md").read_text(), "json")
    (folder / "suite.json").write_text(suite)
    return folder


def test_every_rule_is_needed():
    blocks = [block for p in PAGES for block in code_blocks(p.read_text(), "bash")]
    commands = [command for block in blocks for command in list_commands(block)]
    for pattern in LEFT_OUT:
        assert any(re.match(pattern, command) for command in commands), pattern
    for pattern, _ in RULES:
        assert any(re.search(pattern, command) for command in commands), pattern


@pytest.mark.parametrize("block", BLOCKS)
def test_the_commands_of_a_block_run(block, files):
    # Beside ../shared, with the packages and all files
    folder = files.parent / f"work{len(list(files.parent.iterdir()))}"
    folder.mkdir()
    packages = [ROOT / name for name in ("configs", "launch", "research")]
    for path in (*packages, *files.iterdir()):
        (folder / path.name).symlink_to(path)
    # A run of an earlier block
    if "--workdir=runs/mine" not in block:
        (folder / "runs").mkdir()
        (folder / "runs" / "mine").symlink_to(files / "tiny")
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    environ.pop("EMBAX_DATA", None)
    environ.pop("XLA_FLAGS", None)
    commands = [shrink(c) for c in list_commands(block) if not is_left_out(c)]
    for command in commands:
        python = re.sub(r"^(\.venv/bin/)?python ", f"{sys.executable} ", command)
        start = ["bash", "-c", python]
        done = subprocess.run(
            start, cwd=folder, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        assert json.loads(done.stdout.splitlines()[-1]), command

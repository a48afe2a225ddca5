"""Damaged models, checkpoints, runs, calls and flags, for tests/fuzz.py."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from tests.fuzz_files import TEXTS
from tests.fuzz_outcomes import Refused, attempt, check
from tests.mutations import mutate_bytes, mutate_json, mutate_lines, mutate_text


@cache
def make_folder():
    """A sentence-transformers folder of a tiny BERT."""
    from research.interop.sentence_transformers.write import export
    from tests.tiny_models import make_model

    folder = Path(tempfile.mkdtemp(prefix="fuzz-model-"))
    prompts = {"query": "query: ", "document": "passage: "}
    export(make_model(prompts=prompts), folder / "model")
    return folder / "model"


def fuzz_model(rng, folder):
    """Folders of models: the vectors are those of sentence-transformers."""
    folder = folder / "model"
    shutil.copytree(make_folder(), folder)
    files = [p for p in folder.rglob("*") if p.suffix in (".json", ".txt")]
    path = rng.choice(sorted(files))
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(json.dumps(mutate_json(rng, json.loads(path.read_text()))))
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    compare_vectors(folder)


def compare_vectors(folder):
    """Compares the vectors of a folder with those of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    from research.inference.embedder import Embedder
    from research.interop.load import load

    model = attempt(load, str(folder), names=(folder.name,))
    vectors = attempt(lambda: Embedder(model)(TEXTS, "document"))
    check(np.isfinite(vectors).all(), vectors)
    try:
        oracle = SentenceTransformer(str(folder), device="cpu")
        expected = oracle.encode_document(TEXTS)
    except Exception as error:
        # What the oracle cannot read has no right value
        raise Refused(f"the oracle refuses it: {error}"[:200]) from error
    check(expected.shape == vectors.shape, expected.shape, vectors.shape)
    if np.isfinite(expected).all():
        error = np.abs(expected - vectors).max() / np.abs(expected).max()
        check(error < 1e-3, error)


def fuzz_safetensors(rng, folder):
    """Weights: read as the library safetensors reads them."""
    from safetensors.numpy import load_file

    from research.interop.load import load

    folder = folder / "model"
    shutil.copytree(make_folder(), folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.6:
        text = json.dumps(mutate_json(rng, header)).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    elif rng.random() < 0.5:
        head = mutate_bytes(rng, content[: 8 + size])
        content = head + content[8 + size :]
    else:
        content = mutate_bytes(rng, content)
    path.write_bytes(content)
    model = attempt(load, str(folder), names=(folder.name,))
    tensors = load_file(path)
    table = next(
        x for name, x in tensors.items() if name.endswith("word_embeddings.weight")
    )
    ours = np.asarray(model.params["embed"]["token"]["embedding"])
    np.testing.assert_array_equal(ours, table)


@cache
def make_workdir():
    """A workdir of the linear model of tests/toy.py, and {step: parameters}."""
    from research.train import loop
    from research.train.checkpoints import restore_params
    from tests import toy

    workdir = Path(tempfile.mkdtemp(prefix="fuzz-run-")) / "run"
    loop.train(toy.experiment(4), workdir)
    params = {}
    for step in (2, 4):
        copy = workdir.parent / str(step)
        shutil.copytree(workdir / "checkpoints" / str(step), copy / str(step))
        params[step] = restore_params(copy)
    return workdir, params


def fuzz_checkpoint(rng, folder):
    """Checkpoints: the parameters of one of the steps, to the last bit."""
    import jax

    from research.train.checkpoints import restore_params

    workdir, params = make_workdir()
    folder = folder / "checkpoints"
    shutil.copytree(workdir / "checkpoints", folder)
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    if rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    restored = attempt(restore_params, folder, names=(folder,))
    equal = [
        jax.tree.all(jax.tree.map(np.array_equal, restored, p))
        for p in params.values()
        if jax.tree.structure(p) == jax.tree.structure(restored)
    ]
    check(any(equal), path.relative_to(folder))


def fuzz_run(rng, folder):
    """Files of a run: its report, its config and whether it may go on."""
    from configs import replay, separate
    from research.analysis.report import format_markdown, plot_loss
    from research.config_sections import diff_configs
    from research.experiment.config_keys import check_keys
    from research.experiment.workdir import FREE_KEYS, check_workdir

    config = separate.get_config("tiny")
    (folder / "checkpoints" / "2").mkdir(parents=True)
    rows = [{"step": i, "loss": 1.0 / i, "eval/pydocs/main_score": 2.0} for i in (1, 2)]
    (folder / "metrics.jsonl").write_bytes(
        mutate_lines(rng, rows) if rng.random() < 0.4 else b'{"step": 1, "loss": 2.0}\n'
    )
    (folder / "config.json").write_text(
        json.dumps(mutate_json(rng, json.loads(config.to_json())))
    )
    card = {"encoder": {"depth": 2, "width": 8}}
    (folder / "model.json").write_text(
        json.dumps(mutate_json(rng, card) if rng.random() < 0.3 else card)
    )
    action = rng.choice(("report", "plot", "resume", "replay"))
    if action == "report":
        attempt(format_markdown, folder, names=(folder,))
    elif action == "plot":
        attempt(plot_loss, folder, folder / "x.png", names=(folder,))
    elif action == "resume":
        attempt(check_workdir, folder, config, names=(folder,))
        # What may go on computes the same
        free = tuple(f"{key}{end}" for key in FREE_KEYS for end in (" ", "."))
        after = json.loads((folder / "config.json").read_text())
        lines = diff_configs(json.loads(config.to_json()), after)
        check(all(line.startswith(free) for line in lines), lines)
    else:
        replayed = attempt(replay.get_config, str(folder / "config.json"))
        attempt(check_keys, replayed)


CALLS = {
    "extend": (
        "yarn(scale=8) | log_length()",
        "grouped(scale=2)",
        "temp_scale(tau=0.9)",
        "self_extend(group=4, window=8)",
    ),
    "chunk": (
        "late(256)",
        "late(sentences=5)",
        "late(256, window=8192)",
        "none | naive(64)",
        "pcw(512)",
        "landmark(64)",
    ),
    "prompt": (
        "echo",
        'template(query="Query: {text}")',
        "prompteol",
        "instruct",
        "ke",
    ),
    "pool": (
        "mean",
        "latent_attention(heads=4)",
        "lexicon(clusters=8)",
        "moee(weight=2)",
    ),
    "loss": (
        "infonce(temperature=0.1)",
        "cosent(scale=20)",
        "angle()",
        "triplet(margin=1.0)",
    ),
    "size_loss": (
        "matryoshka(dims=(8, 48))",
        "starbucks_sts(pairs=((2, 8), (6, 48)))",
        "st_adaptive()",
    ),
    "optimizer": (
        "adamw(learning_rate=0.1, warmup=0.1, schedule='cosine')",
        "adamw(clip_norm=0.0, betas=(0.9, 0.99))",
    ),
    "tuning": ("lora(rank=4)", "bitfit()", "full()"),
    "encoder": (
        "bert(width=32, depth=2)",
        "modern(width=32, num_heads=4, dropout=0.1)",
    ),
}


def fuzz_calls(rng, folder):
    """Calls of flags and configs: parsed and built, or refused."""
    del folder
    from configs import separate
    from research.config_sections import build
    from research.experiment.config_keys import SECTION_TABLES, replace_section
    from research.losses.registry import build_loss
    from research.models.pooling.registry import parse_pooling
    from research.models.positions.methods import read_methods
    from research.text.chunking import parse_chunkings
    from research.text.prompts import parse_prompt

    kind = rng.choice(list(CALLS))
    text = mutate_text(rng, rng.choice(CALLS[kind]))
    parsers = {
        "extend": read_methods,
        "chunk": parse_chunkings,
        "prompt": parse_prompt,
        "pool": parse_pooling,
    }
    if kind in parsers:
        attempt(parsers[kind], text)
        return
    config = separate.get_config("tiny").lock()
    attempt(replace_section, config, kind, text, names=(f"config.{kind}",))
    if kind == "loss":
        attempt(build_loss, config.loss, "cosine")
    elif kind == "size_loss":
        attempt(build, SECTION_TABLES[kind], config[kind], lambda *_: None)
    elif kind == "optimizer":
        tx = attempt(build, SECTION_TABLES[kind], config[kind], 100)
        rates = [float(tx.rate(step)) for step in (0, 50, 100)]
        check(all(np.isfinite(r) and r >= 0 for r in rates), text, rates)
    elif kind == "encoder":
        attempt(build, SECTION_TABLES[kind], config[kind])


def fuzz_flags(rng, folder):
    """Flags of launch.train: values of the config, replaced and checked."""
    del folder
    from launch.recipes import load_recipe
    from research.experiment.config_keys import check_keys

    flags = (
        *("--config.steps=3", "--config.seed=1", "--config.loss.temperature=0.1"),
        *(
            "--config.encoder.depth=2",
            "--config.mesh.data=1",
            "--config.normalize=False",
        ),
        *("--config.loss=cosent(scale=30)", "--config.evals.a=pydocs_long(length=64)"),
        *("--config.data=texts(path='a.txt')", "--config.optimizer.betas=(0.9,0.99)"),
    )
    flag = mutate_text(rng, rng.choice(flags))
    if not flag.startswith("--config."):
        return
    config = attempt(load_recipe, "configs/separate.py:tiny", [flag])
    attempt(check_keys, config)


KINDS = {
    "model": fuzz_model,
    "safetensors": fuzz_safetensors,
    "checkpoint": fuzz_checkpoint,
    "run": fuzz_run,
    "calls": fuzz_calls,
    "flags": fuzz_flags,
}

"""Recipes beyond :tiny, as far as they can be built without their data and weights."""

import gzip
import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import tiny
from research.config_sections import bind, format_call
from research.config_sections import build as build_section
from research.data.pairs.teacher_texts import Teacher
from research.data.sources import SOURCES, Source
from research.eval.evaluators import EVALS
from research.experiment.build import build
from research.experiment.initialization import ENCODERS
from research.experiment.mining import MINING, list_negative_files
from research.experiment.model_card import find_projection, trained_width
from research.experiment.source_checks import build_losses, check_sources
from research.experiment.teachers import TEACHERS, RunTeacher
from research.inference.index.shard_files import write_shard
from research.losses.matryoshka import SIZE_LOSSES
from research.models.pooling.registry import parse_pooling
from research.models.positions.methods import config_fields
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING
from research.text.tokenization import train_tokenizer
from research.train.averaging import AVERAGES
from research.train.optimizers import OPTIMIZERS
from research.types import Labels, LossName

# {recipe: its variants}
ENCODER_RECIPES = {
    "ance": ("", "kind=mined", "kind=random", "kind=none", "kind=gist,guide=MODEL"),
    "bidr": ("", "bytes=24,batch=128", "mined=mined.jsonl,walk=snow_sample"),
    "cde": ("queries=q.npy,documents=d.npy",),
    "conan": ("", "mined=mined.jsonl"),
    "dap": ("", "both,margin=0.3", "alone"),
    "dewey": ("teacher=MODEL",),
    "e5": ("stage=1", "stage=2", "stage=2,scored=scored.jsonl,divisor=0.05"),
    "embedding_gemma": ("teacher=MODEL",),
    "gecko": ("", "generated=generated.jsonl,ranked=ranked.jsonl"),
    "gistembed": ("guide=MODEL",),
    "granite": ("teacher=MODEL", "teacher=MODEL,documents=batch"),
    "gte": ("",),
    "infersent": ("",),
    "jina_bilingual": ("stage=1", "stage=2", "stage=2,graded=stsb_de.jsonl"),
    "jina_v3": ("",),
    "labse": ("",),
    "model_soup": ("member=1",),
    "multilingual_e5": ("stage=1", "stage=2"),
    "multilingual_kd": ("teacher=MODEL", "teacher=MODEL,queries=q.npy"),
    "peg": ("", "mined=mined.jsonl"),
    "self_positioning": ("task=squad", "task=stsb", "task=trec"),
    "sitemb": (
        "baseline=MODEL",
        "alone",
        "baseline=MODEL,pairs=chunks.jsonl",
    ),
    "stella": ("teacher=MODEL", "teacher=MODEL,queries=q.npy,documents=d.npy"),
    "student": tuple(
        f"teacher=MODEL,signal={signal}"
        for signal in ("none", "kl", "kl,alone", "mse", "cosine", "relational")
    )
    + ("teacher=MODEL,signal=stella",),
    "supcon": ("", "dataset=trec"),
}
DECODER_RECIPES = {
    "e5_mistral": ("", "generated=generated.jsonl"),
    "f2llm": ("",),
    "kalm_v2": ("", "mined=mined.jsonl"),
    "lg_anna": ("", "shots=0,scored=scored.jsonl"),
    "nv_embed": ("stage=1", "stage=2,mined=mined.jsonl"),
}
CASES = [
    (recipe, variant, architecture)
    for recipes, architecture in (
        (ENCODER_RECIPES, "bert"),
        (DECODER_RECIPES, "decoder"),
    )
    for recipe, variants in recipes.items()
    for variant in variants
]
# Hard negatives per query in files, by a part of their names
NEGATIVES = {"triplets": 1, "generated": 1, "ranked": 1, "scored": 3, "mined": 7}
SCORED = ("stsb", "labelled_pairs")
BATCH = 4


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """(architecture) -> the folder of a model without weights."""
    tokenizer = train_tokenizer(["a few words"] * 3, 60)

    def make(architecture):
        folder = tmp_path_factory.getbasetemp() / architecture
        if not folder.exists():
            folder.mkdir()
            cfg = ENCODERS[architecture](
                **{"vocab_size": 60, "width": 96, "depth": 6, "mlp": 64},
                **{"num_heads": 4, "num_kv_heads": 4, "max_len": 512},
            )
            card = {"encoder": config_fields(cfg), "pool": "mean", "max_length": 512}
            card |= {"prompts": {}, "normalize": True, "dims": [], "prompt": "plain"}
            (folder / "model.json").write_text(json.dumps(card))
            tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return make


def count_documents(name, part, mining, files):
    """Documents of a query in every batch."""
    if name in files:
        return 1 + mining.rules.negatives
    if part.get("negatives", -1) >= 0:
        return 1 + part.negatives
    return 1 + sum(n for word, n in NEGATIVES.items() if word in part.path)


def make_state(part, documents, teacher):
    """What the checks read of a source."""
    has_lists, has_scores = "scored" in part.path, any(x in part.path for x in SCORED)
    table = SimpleNamespace(
        scores=np.array([0, 1] if has_scores else [np.nan] * 2, np.float32),
        text_scores=np.array([0, 1] if has_lists else [np.nan] * 2, np.float32),
        has_scores=has_scores,
        has_text_scores=has_lists,
    )
    sides = ("queries", "documents")
    has = [bool(teacher) and bool(teacher.get(side, True)) for side in sides]
    return SimpleNamespace(
        docs_per_query=documents,
        table=table,
        query_vectors=has[0] or None,
        document_vectors=has[1] or None,
        teacher=None,
    )


def make_labels(state, width, projection):
    """Shapes of the labels of a source's batches."""

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    count = BATCH * state.docs_per_query
    score = shape(BATCH) if state.table.has_scores else None
    if state.table.has_text_scores:
        score = shape(BATCH, state.docs_per_query)
    return Labels(
        score=score,
        query_id=shape(BATCH, 2, dtype=jnp.uint32),
        document_id=shape(count, 2, dtype=jnp.uint32),
        progress=shape(BATCH),
        draw=shape(BATCH, dtype=jnp.uint32),
        loss=LossName(state.loss) if state.loss else None,
        query_vector=shape(BATCH, width) if state.query_vectors else None,
        document_vector=shape(count, width) if state.document_vectors else None,
        query_projection=shape(BATCH, projection) if projection else None,
        document_projection=shape(count, projection) if projection else None,
    )


@pytest.mark.parametrize("recipe, variant, architecture", CASES)
def test_a_full_recipe_has_losses_that_its_data_suit(
    recipe, variant, architecture, make_folder
):
    model = str(make_folder(architecture))
    variant = f"model={model},{variant}".replace("MODEL", model)
    config = importlib.import_module(f"configs.{recipe}").get_config(variant)
    # Every section names arguments that there are
    for table, group in ((SOURCES, config.data), (EVALS, config.evals)):
        for part in group.values():
            bind(table, part)
    for table, key in ((OPTIMIZERS, "optimizer"), (AVERAGES, "averaging")):
        bind(table, config[key])
    mining = build_section(MINING, config.mining)
    bind(TEACHERS, config.teacher)
    encoder = build_section(ENCODERS, config.encoder)
    # The losses of all sources, at all sizes, with labels of their shapes
    sources = {
        name: Source([], 0, 1.0, {}, loss=part.loss)
        for name, part in config.data.items()
    }
    files = list_negative_files(mining, list(sources), None)
    losses = build_losses(config, sources)
    width, projection = trained_width(config, encoder), find_projection(config)
    teacher = config.teacher if config.teacher.name != "none" else None
    teacher_width = encoder.width if teacher else 0
    states = []
    for name, part in config.data.items():
        documents = count_documents(name, part, mining, files)
        state = make_state(part, documents, teacher)
        state.name, state.loss = name, part.loss
        states.append(state)
    is_classifier = "classes" in config.objective
    if not is_classifier:
        batches = SimpleNamespace(batch_size=BATCH, sources=states)
        run_teacher = RunTeacher(Teacher(), teacher_width) if teacher else None
        notes = check_sources(batches, sources, losses, width, run_teacher, projection)
        assert not [
            note for note in notes if "teacher" in note or "trains noth" in note
        ]
    for state in states:
        size_loss = build_section(SIZE_LOSSES, config.size_loss, losses[state.loss][1])
        layers = (encoder.depth + 1,) if size_loss.needs_all_layers else ()
        q, d = (
            jax.ShapeDtypeStruct((count, *layers, width), jnp.float32)
            for count in (BATCH, BATCH * state.docs_per_query)
        )
        labels = make_labels(state, teacher_width, projection)
        if not is_classifier:
            value, _ = jax.eval_shape(size_loss.loss, q, d, labels, jax.random.key(0))
            assert value.shape == (BATCH,)
    pool = parse_pooling(format_call(config.pool))
    objective = build_section(OBJECTIVES, config.objective, encoder, pool, size_loss)
    build_section(TUNING, config.tuning, objective)


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("recipe", ["infersent", "cde"])
def test_a_recipe_that_needs_files_builds_from_small_ones(
    recipe, tmp_path, make_folder, one_device
):
    """Classes, and clusters with a guide, which the tiny variants lack."""
    numbers = range(16)
    words = [[f"{side}{i}" for i in numbers] for side in ("a", "b", "c")]
    classes = ("entailment", "neutral", "contradiction")
    pairs = [
        {"premise": words[0][i], "hypothesis": words[1][i], "label": classes[i % 3]}
        for i in numbers
    ]
    names = ("anchor", "positive", "negative")
    triplets = [dict(zip(names, row, strict=True)) for row in zip(*words, strict=True)]
    pairs.append({"premise": "a", "hypothesis": "b", "label": "-"})
    write_rows(tmp_path / "nli" / "labelled_pairs.jsonl.gz", pairs)
    write_rows(tmp_path / "nli" / "triplets.jsonl.gz", triplets)
    variant = f"model={make_folder('bert')},data={tmp_path}"
    if recipe == "cde":
        for side, texts in (("q", words[0]), ("d", words[1] + words[2])):
            rng = np.random.default_rng(0)
            vectors = rng.normal(size=(len(texts), 8)).astype(np.float32)
            write_shard(tmp_path / f"{side}.npy", vectors, texts, texts)
        files = f"queries={tmp_path}/q.npy,documents={tmp_path}/d.npy"
        variant += f",{files},cluster_size=8"
    config = importlib.import_module(f"configs.{recipe}").get_config(variant)
    data = config.data
    tiny(config)
    config.data, config.evals = data, {}
    experiment = build(config, cache=tmp_path / "tokens")
    labels = experiment.batches(0).labels
    if recipe == "infersent":
        assert set(labels.score.tolist()) <= {0, 1, 2}
        note = "data 'nli': left out: 1 pairs of other classes"
        assert note in experiment.data_notes
    else:
        assert labels.query_vector.shape == (8, 8)
        assert labels.document_vector.shape == (16, 8)

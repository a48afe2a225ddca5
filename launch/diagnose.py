"""What a model's embeddings of a corpus are like: three reports, JSON and PNG each.

python -m launch.diagnose --model=M --corpus=texts.txt|pydocs [--output=folder]

length_collapse: cosines of documents cut to each length, with and without TempScale.
positional_bias: the change from text put in or taken out at start, middle and end.
geometry: anisotropy, IsoScore and effective rank of every depth.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.analysis import diagnostics, figures
from research.analysis.synthetic_documents import make_documents, truncate_document
from research.atomic_write import atomic_write
from research.data.corpus import read_corpus
from research.inference.embedder import make_embedder, make_grid_embedder
from research.models.positions.methods import extend_context
from research.models.positions.query_scale import TempScale

CORPUS = flags.DEFINE_string(
    "corpus", None, "A .txt, jsonl or BEIR folder, or pydocs.", required=True
)
OUTPUT = flags.DEFINE_string("output", "", "Folder for the files; default: this one.")
FEWEST = {"lower_bound": diagnostics.MIN_DOCUMENTS}
DOCUMENTS = flags.DEFINE_integer("documents", 64, "Documents of each length.", **FEWEST)
TEXTS = flags.DEFINE_integer("texts", 1000, "Texts of the geometry, at most.", **FEWEST)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of texts.")
TAU = flags.DEFINE_float("tau", 0.8, "TempScale's temperature of the attention.")


def main():
    """Writes the reports as each is done, and prints what they come down to."""
    model = options.model()
    settings = options.embedding(model)
    _, texts = read_corpus(CORPUS.value)
    texts = list(dict.fromkeys(texts))  # equal texts would look like a collapse
    room = _room(settings)
    lengths = diagnostics.choose_lengths(room)
    part = int(room / (1 + max(diagnostics.SIZES)))  # whole, with an insertion
    choice = {"tokenizer": settings["tokenizer"], "seed": SEED.value}
    long = make_documents(texts, length=room, count=DOCUMENTS.value, **choice)
    edited = make_documents(texts, length=part, count=2 * DOCUMENTS.value, **choice)
    edited = [truncate_document(document, part) for document in edited]
    collapse = _length_collapse(model, settings, long, lengths)
    bias = _positional_bias(model, settings, edited)
    geometry = _geometry(model, settings, texts)
    return {
        "model": options.MODEL.value,
        "corpus": CORPUS.value,
        "output": str(Path(OUTPUT.value)),
        "mean_cosine_by_length": {
            label: dict(zip(collapse["lengths"], found["mean"], strict=True))
            for label, found in collapse["models"].items()
        },
        "start_over_end": {
            variant: {k: bias[variant][k]["start_over_end"] for k in diagnostics.EDITS}
            for variant in ("as_written", "rotated")
        },
        **{
            name: geometry[name][-1]
            for name in ("mean_cosine", "isoscore", "effective_rank")
        },
    }


def _length_collapse(model, settings, chosen, lengths):
    variant = extend_context(model.params, model.config, [TempScale(tau=TAU.value)])
    embeds = {
        "the model": _every_depth(model.params, model.config, settings),
        f"TempScale {TAU.value:g}": _every_depth(*variant, settings),
    }
    record = diagnostics.measure_length_collapse(embeds, chosen, lengths)
    return _written("length_collapse", "Length collapse", record)


def _positional_bias(model, settings, chosen):
    embed = make_embedder(model.params, model.config, **settings)
    halves = chosen[::2], chosen[1::2]  # to edit, and to put in
    record = diagnostics.measure_positional_bias(embed, *halves, seed=SEED.value)
    return _written("positional_bias", "Positional bias", record)


def _geometry(model, settings, texts):
    embed = _every_depth(model.params, model.config, settings)
    order = np.random.default_rng(SEED.value).permutation(len(texts))
    sample = [texts[i] for i in order[: TEXTS.value]]
    depths = range(1 + (settings["depth"] or model.config.depth))
    record = diagnostics.measure_geometry(embed(sample, "document"), depths)
    return _written("geometry", "Geometry", record)


def _every_depth(params, config, settings):
    """texts, role -> [N, K, D] of the embedding layer and every block."""
    names = ("tokenizer", "pool", "max_length", "prompts")
    depths = range(1 + (settings["depth"] or config.depth))
    chosen = {name: settings[name] for name in names}
    embed = make_grid_embedder(params, config, depths=depths, **chosen)
    return lambda texts, role: embed(texts, role)[..., : settings["dim"]]


def _room(settings) -> int:
    """Tokens of a text that the model takes whole, its prompt and special ones off."""
    tokenizer = settings["tokenizer"]
    prompt = (settings["prompts"] or {}).get("document", "")
    used = len(tokenizer.encode(prompt).ids)  # with the special tokens
    return settings["max_length"] - used


def _written(name, heading, record):
    folder = Path(OUTPUT.value)
    model = Path(options.MODEL.value.removeprefix("package:")).name
    title = f"{heading}: {model} on {Path(CORPUS.value).name}"
    with (
        atomic_write(folder / f"{name}.json") as data,
        atomic_write(folder / f"{name}.png") as picture,
    ):
        data.write_text(json.dumps(record, indent=2) + "\n")
        getattr(figures, f"plot_{name}")(record, title, picture)
    cli.log(f"wrote {folder / name}.json and .png")
    return record


if __name__ == "__main__":
    cli.run(main)

"""Command that diagnoses a model's embeddings in three reports, as JSON and PNG.

python -m launch.diagnose --model=M --corpus=texts.txt|pydocs [--output=folder]

length_collapse: cosines of pairs of documents that are cut to each length, with and
  without TempScale.
positional_bias: how much insertions and removals at the start, the middle and the end
  of a document change its embedding.
geometry: anisotropy, IsoScore and effective rank at every depth.
"""

from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from research.analysis import diagnostics, figures
from research.analysis.synthetic_documents import make_documents, truncate_document
from research.atomic_write import atomic_write, to_json
from research.data.corpus import read_corpus
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.models.positions.methods import extend_context
from research.models.positions.query_scale import TempScale

CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "The texts: a .txt or .jsonl file, a BEIR folder, or pydocs.",
    required=True,
)
OUTPUT = cli.define_path(
    "output", "", "The folder of the files. Default: the current one."
)
DOCUMENTS = flags.DEFINE_integer(
    "documents",
    64,
    "The number of documents of each length.",
    lower_bound=diagnostics.MIN_DOCUMENTS,
)
TEXTS = flags.DEFINE_integer(
    "texts",
    1000,
    "The largest number of texts for the geometry.",
    lower_bound=diagnostics.MIN_DOCUMENTS,
)
SEED = cli.define_seed("The seed of the choice of texts.")
TAU = flags.DEFINE_float(
    "tau", 0.8, "The temperature of TempScale, which divides attention's scores."
)
cli.group_flags("Texts", CORPUS, DOCUMENTS, TEXTS, SEED)
cli.group_flags("Output", OUTPUT, TAU)


def main():
    """Writes each report when it is finished, and returns the main numbers."""
    model = options.load_model()
    options.check_plain(model, "launch.diagnose")
    _, texts = read_corpus(CORPUS.value)
    texts = list(dict.fromkeys(texts))  # equal texts would look like a collapse
    # Long documents for the collapse; shorter ones to edit, so that insertions fit.
    room = _document_room(model)
    lengths = diagnostics.choose_lengths(room)
    part = int(room / (1 + max(diagnostics.SIZES)))
    choice = {"tokenizer": model.tokenizer, "seed": SEED.value}
    long = make_documents(texts, length=room, count=DOCUMENTS.value, **choice)
    edited = make_documents(texts, length=part, count=2 * DOCUMENTS.value, **choice)
    edited = [truncate_document(document, part) for document in edited]
    # The three reports.
    collapse = _measure_length_collapse(model, long, lengths)
    bias = _positional_bias(model, edited)
    geometry = _geometry(model, texts)
    # The main numbers of each report.
    return {
        "model": options.MODEL.value,
        "corpus": CORPUS.value,
        "output": str(Path(OUTPUT.value)),
        "mean_cosine_by_length": {
            label: dict(zip(collapse["lengths"], statistics["mean"], strict=True))
            for label, statistics in collapse["models"].items()
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


def _measure_length_collapse(model, documents, lengths):
    # The model with and without TempScale.
    params, cfg = extend_context(model.params, model.config, [TempScale(tau=TAU.value)])
    embedders = {
        "the model": _embed_depths(model),
        f"TempScale {TAU.value:g}": _embed_depths(
            model._replace(params=params, config=cfg)
        ),
    }
    record = diagnostics.measure_length_collapse(embedders, documents, lengths)
    return _write("length_collapse", "Length collapse", record)


def _positional_bias(model, documents):
    embedder = Embedder(model, **options.size_options())
    # Every other document is edited; the others provide the inserted text.
    edited, inserted = documents[::2], documents[1::2]
    record = diagnostics.measure_positional_bias(
        embedder, edited, inserted, seed=SEED.value
    )
    return _write("positional_bias", "Positional bias", record)


def _geometry(model, texts):
    order = np.random.default_rng(SEED.value).permutation(len(texts))
    sample = [texts[i] for i in order[: TEXTS.value]]
    # [N, depths, D], the embedding layer first.
    vectors = _embed_depths(model)(sample, "document")
    record = diagnostics.measure_geometry(vectors, range(vectors.shape[1]))
    return _write("geometry", "Geometry", record)


def _embed_depths(model: EmbeddingModel) -> Embedder:
    """An embedder at the embedding layer and after every block: [N, K, D]."""
    sizes = options.size_options()
    depth = sizes.pop("depth", model.config.depth)
    plain = model._replace(dense=())
    return Embedder(plain, depths=range(1 + depth), normalize=False, **sizes)


def _document_room(model: EmbeddingModel) -> int:
    """Maximum number of tokens of a document without its prompt and special tokens."""
    prompt = model.prompts.get("document", "")
    prompt_length = len(model.tokenizer.encode(prompt).ids)  # and special tokens
    return options.document_length(model, None) - prompt_length


def _write(name, heading, record):
    folder = Path(OUTPUT.value)
    model = Path(options.MODEL.value.removeprefix("package:")).name
    title = f"{heading}: {model} on {Path(CORPUS.value).name}"
    with (
        atomic_write(folder / f"{name}.json") as data,
        atomic_write(folder / f"{name}.png") as picture,
    ):
        data.write_text(to_json(record, indent=2) + "\n")
        getattr(figures, f"plot_{name}")(record, title, picture)
    cli.log(f"wrote {folder / name}.json and .png")
    return record


if __name__ == "__main__":
    cli.run(main)

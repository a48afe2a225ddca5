"""Command that mines hard negatives for a training file, by a model.

python -m launch.mine --model=M --data=pairs.jsonl --output=mined.jsonl
python -m launch.mine --model=M --data=pairs.jsonl --corpus=texts.txt --output=O \\
    --negatives=7 --relative_margin=0.05 --range_min=10 --range_max=100

Negatives are the passages nearest to a query, by exact search, without those that are
known to belong to it. They come from the positives of all queries, and from --corpus or
the corpus of the data. Passages are compared as the model stores them: by their codes,
if it has some.
The output is a training file, as configs/finetune.py:train=FILE takes it: the rows of
the data, each with its negatives and the scores of its documents.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from launch.supervise import supervise
from research import processes
from research.data.columns import read_examples
from research.data.corpus import find_corpus, read_texts
from research.data.examples import Example
from research.data.pairs.mined_files import (
    PairTexts,
    make_mined_rows,
    number_texts,
    write_rows,
)
from research.data.sources import load_beir
from research.inference.embedder import Embedder
from research.inference.index.quantized_vectors import store_vectors
from research.inference.mining import (
    Negatives,
    Rescore,
    embed_and_score,
    mine_negatives,
)
from research.inference.mining_rules import MiningRules
from research.inference.shares import split_over_processes
from research.interop import load
from research.progress import show_note

DATA = flags.DEFINE_string(
    "data",
    None,
    "The queries and their positives: a jsonl, tsv or csv file, plain or .gz, with the "
    "columns of a training file; or a BEIR folder, whose corpus has the passages.",
    required=True,
)
SPLIT = flags.DEFINE_string(
    "split", "train", "The split of a BEIR folder: the name of a file in its qrels/."
)
COLUMNS = flags.DEFINE_string(
    "columns",
    "",
    'Other names of the columns, such as "query=question, positive=answer".',
)
CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "Further passages: a .txt, .jsonl, .tsv or .csv file, a BEIR folder, or pydocs. "
    "Default: that of a BEIR folder; the positives of all queries are the only "
    "passages of a file.",
)
OUTPUT = cli.define_path(
    "output", None, "The .jsonl or .jsonl.gz file to write.", required=True
)
NEGATIVES = flags.DEFINE_integer("negatives", 3, "The number of negatives of a query.")
SAMPLING = flags.DEFINE_enum(
    "sampling",
    "top",
    ["top", "random"],
    "Whether the best candidates are the negatives, or random ones.",
)
SEED = cli.define_seed("The seed of random candidates.")
FILL = flags.DEFINE_bool(
    "fill",
    False,
    "Whether queries with too few candidates get random passages, too; otherwise their "
    "rows are left out.",
)
RANGE_MIN = flags.DEFINE_integer(
    "range_min", 0, "The number of best candidates that are skipped."
)
RANGE_MAX = flags.DEFINE_integer(
    "range_max",
    None,
    "The number of best candidates that are looked at, those skipped included. Default:"
    " enough for the negatives; ten times as many with a threshold.",
)
RELATIVE_MARGIN = flags.DEFINE_float(
    "relative_margin",
    None,
    "The part of a positive's score by which negatives score less than it: 0.05 keeps "
    "those below 95 % (NV-Retriever).",
)
ABSOLUTE_MARGIN = flags.DEFINE_float(
    "absolute_margin",
    None,
    "The difference by which negatives score less than positives.",
)
MAX_SCORE = flags.DEFINE_float(
    "max_score", None, "The largest score of a negative, such as 0.8."
)
MIN_SCORE = flags.DEFINE_float(
    "min_score", None, "The smallest score of a negative, such as 0.2."
)
GUIDE = flags.DEFINE_string(
    "guide",
    None,
    "Another model, named as --model is. The candidates that --model finds are ranked "
    "by its similarities, and the thresholds hold for these.",
)
CROSS_ENCODER = flags.DEFINE_string(
    "cross_encoder",
    None,
    "A cross-encoder of sentence-transformers, a folder or a hub id, whose scores take "
    "the place of the similarities, as those of --guide do.",
)
cli.group_flags("Data", DATA, SPLIT, COLUMNS, CORPUS, OUTPUT)
cli.group_flags("Negatives", NEGATIVES, SAMPLING, SEED, RANGE_MIN, RANGE_MAX, FILL)
cli.group_flags("Thresholds", RELATIVE_MARGIN, ABSOLUTE_MARGIN, MAX_SCORE, MIN_SCORE)
cli.group_flags("Other scores", GUIDE, CROSS_ENCODER)
_RULES = (
    *(NEGATIVES, SAMPLING, RANGE_MIN, RANGE_MAX, FILL),
    *(RELATIVE_MARGIN, ABSOLUTE_MARGIN, MAX_SCORE, MIN_SCORE),
)


def main():
    """Writes the training file, and returns what was mined."""
    # Connect the processes before JAX is used.
    processes.initialize()
    # Check the flags and the data before the model is loaded.
    rules = MiningRules(**{flag.name: flag.value for flag in _RULES})
    _check_flags()
    examples = _read_examples()
    texts = _number_texts(examples)
    model = options.load_model()
    embedder = options.make_embedder(model, allow_empty=True)
    embed = split_over_processes(embedder)
    # Passages as they are stored, since these are what a search finds
    passages = embed(list(texts.passages), "document")
    mined = mine_negatives(
        embed(list(texts.queries), "query"),
        store_vectors(passages, embedder.model.quantizer),
        texts.positives,
        rules,
        excluded=texts.excluded,
        similarity=embedder.model.similarity,
        rescore=_make_rescore(texts),
        seed=SEED.value,
    )
    for name, count in mined.dropped.items():
        share = count / max(mined.candidates, 1)
        show_note(f"--{name} left out {count:,} candidates ({share:.1%})")
    # The rows of the data that have all their negatives.
    rows = make_mined_rows(
        examples,
        texts,
        mined.passages,
        mined.scores,
        mined.positive_scores,
    )
    complete = [row for row in rows if row is not None]
    if mined.missing.any():
        _report_missing(texts, mined, rules, is_empty=not complete)
    if processes.is_first():
        write_rows(Path(OUTPUT.value), complete)
    return {
        "output": OUTPUT.value,
        "rows": len(complete),
        "left_out": len(rows) - len(complete),
        "negatives": rules.negatives,
        "queries": len(texts.queries),
        "passages": len(texts.passages),
        "positive_score": float(mined.positive_scores.mean()),
        "negative_score": float(mined.scores[np.isfinite(mined.scores)].mean()),
    }


def _check_flags() -> None:
    output = Path(OUTPUT.value)
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--output={output} should end in .jsonl or .jsonl.gz")
    for flag, takes_folder in ((SPLIT, True), (COLUMNS, False)):
        if flag.value != flag.default and _is_folder() != takes_folder:
            raise ValueError(
                f"--{flag.name}={flag.value} does not go with --data={DATA.value}, "
                f"which is {'no' if takes_folder else 'a'} folder"
            )
    sources = [Path(f.value).expanduser() for f in (DATA, CORPUS) if f.value]
    if output.resolve() in [source.resolve() for source in sources]:
        raise ValueError(f"--output={output} would replace the input")
    if options.CHUNK.value != options.CHUNK.default:
        raise ValueError(f"--chunk={options.CHUNK.value} does not go with launch.mine")
    if GUIDE.value and CROSS_ENCODER.value:
        raise ValueError("--guide and --cross_encoder exclude each other")


def _is_folder() -> bool:
    return Path(DATA.value).expanduser().is_dir()


def _read_examples() -> Sequence[Example]:
    """The examples of --data, about which it says what may surprise."""
    if _is_folder():
        examples, _, _, note = load_beir(path=DATA.value, split=SPLIT.value)
        if note:
            show_note(f"{DATA.value}: {note}")
    else:
        examples = read_examples(DATA.value, COLUMNS.value).examples
    if any(example.negatives for example in examples):
        show_note(f"{DATA.value} has negatives, which the mined ones replace")
    if any(example.contexts for example in examples):
        show_note(
            f"{DATA.value} has contexts, which are left out: texts are mined alone"
        )
    return examples


def _number_texts(examples: Sequence[Example]) -> PairTexts:
    """The texts of the examples and the corpus; it says if they do not match."""
    path = CORPUS.value or (DATA.value if _is_folder() else None)
    if not path:
        return number_texts(examples)
    # Some BEIR sets have documents without a text
    files, is_folder = find_corpus([path]), Path(path).expanduser().is_dir()
    corpus = [text.text for text in read_texts(files, allow_blank=is_folder)]
    corpus = [text for text in corpus if text.strip()]
    texts = number_texts(examples, corpus)
    size, known = len(set(corpus)), len(np.unique(texts.positives[:, 1]))
    missing = len(texts.passages) - size
    note = f"{path}: {size:,} different texts of {len(corpus):,}"
    if missing:
        note += f"; the {missing:,} of {known:,} positives that it lacks are added"
    show_note(note)
    if missing == known:
        show_note(
            f"warning: {path} has none of the positives of {DATA.value}: those that it "
            "holds in another form, as with a title, may become negatives"
        )
    return texts


def _make_rescore(texts: PairTexts) -> Rescore | None:
    """The function that scores pairs by --guide or --cross_encoder; None without."""
    queries, passages = list(texts.queries), list(texts.passages)
    if GUIDE.value:
        guide = load.load(GUIDE.value)
        embedder = Embedder(guide, mesh=options.make_mesh(), allow_empty=True)
        embed = split_over_processes(embedder)

        def score_by_guide(pairs):
            return embed_and_score(
                lambda rows: embed([queries[i] for i in rows], "query"),
                lambda rows: embed([passages[i] for i in rows], "document"),
                pairs,
                guide.similarity,
            )

        return score_by_guide
    if CROSS_ENCODER.value:
        cross_encoder = _load_cross_encoder(CROSS_ENCODER.value)

        def score_by_cross_encoder(pairs):
            texts = [(queries[i], passages[j]) for i, j in pairs]
            return cross_encoder.predict(texts, show_progress_bar=True)

        return score_by_cross_encoder
    return None


def _load_cross_encoder(name: str):
    """A cross-encoder of sentence-transformers, imported only here."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise ValueError(
            "--cross_encoder needs sentence-transformers: pip install "
            "sentence-transformers"
        ) from None
    return CrossEncoder(name)


def _report_missing(
    texts: PairTexts, mined: Negatives, rules: MiningRules, *, is_empty: bool
) -> None:
    """Says which queries have too few negatives.

    Raises:
        ValueError: No query has enough, so that the file would be empty.
    """
    short = mined.missing > 0  # [Q]
    none = int((mined.missing == rules.negatives).sum())
    query = next(text for text, number in texts.queries.items() if short[number])
    query = query if len(query) <= 60 else f"{query[:57]}..."
    sentence = (
        f"{int(short.sum()):,} of {len(short):,} queries have fewer than "
        f"{rules.negatives} negatives ({none:,} have none), such as {query!r}"
    )
    if rules.fill:
        show_note(f"{sentence}; random passages take their places")
        return
    # What would leave in more.
    strictest = max(mined.dropped, key=mined.dropped.get, default="")
    advice = "a larger --range_max" + (f", another --{strictest}" if strictest else "")
    sentence = f"{sentence}; {advice} or --fill keeps them"
    if is_empty:
        raise ValueError(f"nothing to write: {sentence}")
    show_note(f"left out: {sentence}")


if __name__ == "__main__":
    supervise()
    cli.run(main)

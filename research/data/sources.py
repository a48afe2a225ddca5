"""Sources of training data: examples with a weight and prompts, and their table."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from research.data import files
from research.data.chunks import load_chunks, load_passages
from research.data.columns import read_examples, select_part
from research.data.datasets import load_hub, load_pydocs, load_tfds
from research.data.examples import (
    POSITIVES,
    QUERIES,
    Example,
    LoadedExamples,
    read_labeled_texts,
    read_texts,
)
from research.data.fields import Record
from research.data.ranked_candidates import load_ranked_candidates

HASH_CHUNK = 1024  # examples hashed at once


@dataclass(frozen=True)
class Source:
    """Examples to train on.

    Attributes:
        examples: Sequence of Example; it need not be in memory.
        negatives_per_query: Number of hard negatives per query in every step.
        weight: Share of the steps, relative to the other sources.
        prompts: Prefix of the texts for each role, "query" and "document", that has
            one.
        identity: Name of the content, if it is known without reading the examples.
        note: What was read and what was left out, for the start of a run.
        loss: Call text of the loss of its batches; "" for that of the config.
        clusters: Vectors of the queries, or of queries and documents, on disk, within
            whose clusters batches are drawn; () draws from all examples.
        cluster_size: Mean number of examples of a cluster.
        walk: Call of the walk from query to query in whose order batches are drawn,
            such as "random_walk(length=64)"; "" for a random order.
    """

    examples: Sequence[Example]
    negatives_per_query: int
    weight: float
    prompts: Mapping[str, str]
    identity: str = ""
    note: str = ""
    loss: str = ""
    clusters: tuple[str, ...] = ()
    cluster_size: int = 256
    walk: str = ""

    @functools.cached_property
    def content_hash(self) -> str:
        """Hash of the examples, or of the identity that stands for them."""
        digest = hashlib.blake2b(self.identity.encode(), digest_size=10)
        if not self.identity:
            for start in range(0, len(self.examples), HASH_CHUNK):
                for example in self.examples[start : start + HASH_CHUNK]:
                    digest.update(repr(tuple(example)).encode())
        return digest.hexdigest()


def weighted_source(load: Callable[..., LoadedExamples]) -> Callable[..., Source]:
    """Turns a loader of examples into a function that makes a Source.

    Args:
        load: Function that loads the examples.

    Returns:
        A function with the keyword arguments of `load` and more: `weight`, the share of
        the steps relative to the other sources; `query_prompt` and `document_prompt`,
        prefixes of every query and every document; None for those of the model that
        the run starts from; `loss`, as "infonce(temperature=0.02)", "" for that of the
        config; `clusters`, the vectors of the queries, or of the queries and of the
        documents, that launch.embed --examples wrote; `cluster_size`, the mean number
        of examples of their clusters; `walk`, a call of one of `walks.WALKS`.
    """

    def make_source(
        *,
        weight: float = 1.0,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        loss: str = "",
        clusters: tuple[str, ...] = (),
        cluster_size: int = 256,
        walk: str = "",
        **arguments,
    ) -> Source:
        # Mistakes in the arguments of all sources
        if not weight > 0:
            raise ValueError(f"weight {weight} should be positive")
        if len(clusters) > 2:
            raise ValueError(
                f"clusters names {len(clusters)} files; it takes the vectors of the "
                "queries, or of queries and documents"
            )
        loaded = load(**arguments)
        prompts = {"query": query_prompt, "document": document_prompt}
        return Source(
            examples=loaded.examples,
            negatives_per_query=loaded.negatives_per_query,
            weight=weight,
            prompts={r: text for r, text in prompts.items() if text is not None},
            identity=loaded.identity,
            note=loaded.note,
            loss=loss,
            clusters=clusters,
            cluster_size=cluster_size,
            walk=walk,
        )

    # The signature lists the arguments of both: config sections and error messages read
    # it.
    signature = inspect.signature(load)
    shared = list(inspect.signature(make_source).parameters.values())[:-1]
    parameters = [*signature.parameters.values(), *shared]
    source = functools.wraps(load)(make_source)
    source.__signature__ = inspect.Signature(parameters, return_annotation=Source)
    return source


def load_files(
    *,
    path: str,
    negatives: int = -1,
    corpus: str = "",
    score_range: float = 1.0,
    columns: str = "",
    part: str = "all",
) -> LoadedExamples:
    """Examples of a jsonl, tsv or csv file, plain or gzipped.

    The columns follow one of three conventions:

    sentence-transformers  anchor | query | question | sentence1; positive | answer |
                           sentence2 or a list of positives; negative, negative_1..n;
                           score | label; or their other usual names in `examples`
    FlagEmbedding          query, pos, neg
    Tevatron               query | query_text; positive_passages, negative_passages, or
                           positive_document_ids, negative_document_ids with `corpus`

    A teacher's scores of the documents are a list in score | label | scores |
    teacher_scores, or the lists pos_scores and neg_scores: one number for each positive
    and each negative. Examples with the same value in an optional column `group` are
    never each other's negatives.

    Args:
        path: The file.
        negatives: Number of hard negatives per query; -1 for the smallest number that
            any row has, which may not be 0 if other rows have some.
        corpus: Tevatron's corpus file, with the columns docid and document_text.
        score_range: Scores are divided by it (5 for STS-B).
        columns: Other names of the columns: "query=question, positive=answer,
            negative=bad*", and score, group and context, the text around a document,
            within which it is read; columns without a name here are then not used.
        part: "all", or "train" without the "held_out" tenth of the queries.
    """
    examples, lines, unused = read_examples(path, columns, corpus)
    if score_range != 1.0:
        examples = tuple(_scale_score(example, score_range) for example in examples)
    # Every query gets the same number of negatives, so that batches have one shape.
    counts = [len(example.negatives) for example in examples]
    least, most = min(counts), max(counts)
    row = counts.index(least)
    if least < negatives or (negatives < 0 and least == 0 < most):
        wanted = f"the {negatives} asked for" if negatives > 0 else f"{most} as others"
        raise ValueError(
            f"{path} line {lines[row]} has {least} negatives, not {wanted}; the option "
            f"negatives={least} uses {least or 'none'} of each query"
        )
    if negatives < 0:
        negatives = least
    # What a user might miss: columns and negatives that are left out.
    notes = []
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    if least == negatives < most:
        notes.append(
            f"{negatives} negatives per query, as many as line {lines[row]} has; other "
            f"lines have up to {most}"
        )
    examples = select_part(examples, part, path)
    return LoadedExamples(examples, negatives, note="; ".join(notes))


def _scale_score(example: Example, score_range: float) -> Example:
    """The example with its scores, if it has any, divided by the range."""
    scores = tuple(score / score_range for score in example.document_scores)
    example = example._replace(document_scores=scores)
    if example.score is None:
        return example
    return example._replace(score=example.score / score_range)


def load_labeled_texts(
    *, path: str, positives: int = 4, negatives: int = 1, seed: int = 0
) -> LoadedExamples:
    """Texts with class labels (NV-Embed, Lee et al. 2024).

    The positives of a text are of its class, its hard negatives of other classes. Both
    are drawn once per text. A text that is alone in its class is only a negative. The
    class is the group of its examples, which are never each other's negatives.

    Args:
        path: A jsonl, tsv or csv file with the fields text and label.
        positives: Maximum number of positives per query; each step draws one of them.
        negatives: Number of hard negatives per query.
        seed: int of the draws.
    """
    texts, labels = read_labeled_texts(path)
    _, classes = np.unique(labels, return_inverse=True)  # [N] class numbers
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(classes.max() + 1):
        members = np.flatnonzero(classes == number)
        outsiders = np.flatnonzero(classes != number)
        if len(outsiders) < negatives:
            raise ValueError(
                f"{path}: {len(outsiders)} texts are not of the class "
                f"{labels[members[0]]!r}, fewer than the {negatives} negatives "
                "asked for"
            )
        if len(members) == 1:  # its text has no positive
            continue
        for query in members:
            # Positives of the same class, negatives of all others.
            near = rng.permutation(members[members != query])[:positives]
            far = rng.choice(outsiders, negatives, replace=False)
            near, far = (tuple(texts[i] for i in part) for part in (near, far))
            example = Example(texts[query], near, far, group=labels[query])
            examples.append(example)
    if not examples:
        raise ValueError(f"{path}: no class has two texts")
    return LoadedExamples(examples, negatives)


def load_labeled_pairs(*, path: str, classes: tuple[str, ...] = ()) -> LoadedExamples:
    """Pairs of texts with a class, whose number is their score (NLI).

    Args:
        path: A jsonl, tsv or csv file with the fields premise and hypothesis, or other
            names of a query and its positive, and label.
        classes: Names of the classes, in the order of their numbers; pairs of other
            classes are left out. () for all, in alphabetical order.
    """
    rows = []
    for line, values in files.read_records(path):
        record = Record(f"{path} line {line}", values)
        texts = record.read_text(*QUERIES), record.read_text(*POSITIVES)
        rows.append((*texts, record.read_name("label")))
    # The numbers of the classes, in the order that is asked for
    found = sorted({label for *_, label in rows})
    numbers = {name: number for number, name in enumerate(classes or found)}
    if missing := [name for name in numbers if name not in found]:
        raise ValueError(
            f"{path} has no pair of the class {missing[0]!r}; it has {', '.join(found)}"
        )
    examples = [
        Example(query, (document,), (), float(numbers[label]))
        for query, document, label in rows
        if label in numbers
    ]
    count = len(rows) - len(examples)
    note = f"left out: {count} pairs of other classes" if count else ""
    return LoadedExamples(examples, note=note)


def load_texts(*, path: str, unit: str = "line", min_chars: int = 0) -> LoadedExamples:
    """Every text as its own positive (unsupervised SimCSE, Gao et al. 2021).

    Args:
        path: A .txt file, a jsonl, tsv or csv file with the field text, each plain or
            gzipped, or a folder of such files, which is searched recursively.
        unit: What one text of a .txt file is: a "line", a "block" between blank lines,
            or the whole "file". Texts that are empty or all spaces are skipped.
        min_chars: Texts with fewer characters are left out.
    """
    texts = read_texts(path, unit)
    examples = [Example(t, (t,)) for t in texts if t.strip() and len(t) >= min_chars]
    if not examples:
        raise ValueError(f"{path} holds no texts")
    return LoadedExamples(examples)


def load_beir(*, path: str, split: str = "train", negatives: int = 0) -> LoadedExamples:
    """The judged queries of a BEIR folder, with their relevant documents as positives.

    Args:
        path: The folder.
        split: Name of the file in qrels/, without its ending.
        negatives: Number of hard negatives per query, drawn from the documents that are
            judged irrelevant (grade 0).
    """
    data = files.read_beir(path, split)
    # Judged documents that have a text; some data sets have documents without.
    texts = {name: text for name, text in data.corpus.items() if text.strip()}
    judged = {name for grades in data.qrels.values() for name in grades}
    examples = []
    for identifier, grades in data.qrels.items():
        # Queries without a relevant document have no positive.
        graded = [(texts[name], g) for name, g in grades.items() if name in texts]
        relevant = tuple(text for text, grade in graded if grade > 0)
        irrelevant = tuple(text for text, grade in graded if grade <= 0)
        if not relevant:
            continue
        examples.append(Example(data.queries[identifier], relevant, irrelevant))
        if len(irrelevant) < negatives:
            raise ValueError(
                f"{path}: query {identifier!r} has {len(irrelevant)} documents of "
                f"grade 0, not the {negatives} negatives asked for"
            )
    # What is left out of the data.
    counts = {
        "judged documents without a text": len(judged - texts.keys()),
        "judged queries without a text": len(data.unknown_queries),
        "queries without a relevant document": len(data.qrels) - len(examples),
    }
    notes = [f"{count} {kind}" for kind, count in counts.items() if count]
    note = f"left out: {', '.join(notes)}" if notes else ""
    return LoadedExamples(examples, negatives, note=note)


# {name in a config: function that makes the source}
SOURCES: Mapping[str, Callable[..., Source]] = {
    "files": weighted_source(load_files),
    "labeled_texts": weighted_source(load_labeled_texts),
    "labeled_pairs": weighted_source(load_labeled_pairs),
    "texts": weighted_source(load_texts),
    "beir": weighted_source(load_beir),
    "ranked_candidates": weighted_source(load_ranked_candidates),
    "passages": weighted_source(load_passages),
    "chunks": weighted_source(load_chunks),
    "pydocs": weighted_source(load_pydocs),
    "tfds": weighted_source(load_tfds),
    "hub": weighted_source(load_hub),
}

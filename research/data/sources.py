"""Sources of training data: examples with a weight and prompts, and their table."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from research.config_sections import Seed
from research.data import examples as example_files
from research.data import files
from research.data.datasets import load_hub, load_pydocs, load_tfds
from research.data.examples import Example, LoadedExamples


@dataclass(frozen=True)
class Source:
    """Examples to train on.

    Attributes:
        examples: Sequence of Example; it need not be in memory.
        negatives_per_query: Number of hard negatives per query in every step.
        weight: Share of the steps, relative to the other sources.
        prompts: Prefix of the texts for each role, "query" and "document".
        identity: Name of the content, if it is known without reading the examples.
    """

    examples: Sequence[Example]
    negatives_per_query: int
    weight: float
    prompts: Mapping[str, str]
    identity: str = ""


def weighted_source(load: Callable[..., LoadedExamples]) -> Callable[..., Source]:
    """Turns a loader of examples into a function that makes a Source.

    Args:
        load: Function that loads the examples.

    Returns:
        A function with the keyword arguments of `load` and three more: `weight`, the
        share of the steps relative to the other sources; `query_prompt` and
        `document_prompt`, prefixes of every query and every document.
    """

    def make_source(
        *,
        weight: float = 1.0,
        query_prompt: str = "",
        document_prompt: str = "",
        **arguments,
    ) -> Source:
        if not weight > 0:
            raise ValueError(f"weight {weight} should be positive")
        examples, negatives, identity = load(**arguments)
        prompts = {"query": query_prompt, "document": document_prompt}
        return Source(examples, negatives, weight, prompts, identity)

    # The signature lists the arguments of both: config sections and error messages read
    # it.
    signature = inspect.signature(load)
    shared = list(inspect.signature(make_source).parameters.values())[:-1]
    parameters = [*signature.parameters.values(), *shared]
    source = functools.wraps(load)(make_source)
    source.__signature__ = inspect.Signature(parameters, return_annotation=Source)
    return source


def load_files(
    *, path: str, negatives: int = -1, corpus: str = "", score_range: float = 1.0
) -> LoadedExamples:
    """Examples of a jsonl, tsv or csv file, plain or gzipped.

    The columns follow one of three conventions:

    sentence-transformers  anchor | query | question | sentence1; positive | answer |
                           sentence2; negative, negative_1..n; score | label
    FlagEmbedding          query, pos, neg
    Tevatron               query | query_text; positive_passages, negative_passages, or
                           positive_document_ids, negative_document_ids with `corpus`

    Examples with the same value in an optional column `group` are never each other's
    negatives.

    Args:
        path: The file.
        negatives: Number of hard negatives per query; -1 for the smallest number that
            any row has.
        corpus: Tevatron's corpus file, with the columns docid and document_text.
        score_range: Scores are divided by it (5 for STS-B).
    """
    # {id: text}, for rows that name documents by id.
    documents = example_files.read_tevatron_corpus(corpus) if corpus else None
    examples = []
    for line, record in files.read_records(path):
        example = example_files.parse_example(path, line, record, documents)
        if example.score is not None:
            example = example._replace(score=example.score / score_range)
        examples.append(example)
        if len(example.negatives) < negatives:
            raise ValueError(
                f"{path} line {line} has {len(example.negatives)} negatives, "
                f"not the {negatives} asked for"
            )
    # Every query gets the same number of negatives, so that batches have one shape.
    if negatives < 0:
        negatives = min(len(example.negatives) for example in examples)
    return LoadedExamples(examples, negatives)


def load_labeled_texts(
    *, path: str, positives: int = 4, negatives: int = 1, seed: Seed = 0
) -> LoadedExamples:
    """Texts with class labels (NV-Embed, Lee et al. 2024).

    The positives of a text are of its class, its hard negatives of other classes. Both
    are drawn once per text. A text that is alone in its class is only a negative.

    Args:
        path: A jsonl, tsv or csv file with the fields text and label.
        positives: Maximum number of positives per query; each step draws one of them.
        negatives: Number of hard negatives per query.
        seed: Seed of the draws.
    """
    texts, labels = example_files.read_labeled_texts(path)
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
            examples.append(Example(texts[query], near, far))
    if not examples:
        raise ValueError(f"{path}: no class has two texts")
    return LoadedExamples(examples, negatives)


def load_texts(*, path: str, unit: str = "line", min_chars: int = 0) -> LoadedExamples:
    """Every text as its own positive (unsupervised SimCSE, Gao et al. 2021).

    Args:
        path: A .txt file, a jsonl, tsv or csv file with the field text, each plain or
            gzipped, or a folder of such files, which is searched recursively.
        unit: What one text of a .txt file is: a "line", a "block" between blank lines,
            or the whole "file". Empty texts are skipped.
        min_chars: Texts with fewer characters are left out.
    """
    texts = map(str.strip, example_files.read_texts(path, unit))
    examples = [Example(t, (t,)) for t in texts if t and len(t) >= min_chars]
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
    corpus, queries, qrels = files.read_beir(path, split)
    examples = []
    for identifier, grades in qrels.items():
        # Queries without a relevant document have no positive.
        relevant = tuple(corpus[d] for d, grade in grades.items() if grade > 0)
        irrelevant = tuple(corpus[d] for d, grade in grades.items() if grade <= 0)
        if not relevant:
            continue
        examples.append(Example(queries[identifier], relevant, irrelevant))
        if len(irrelevant) < negatives:
            raise ValueError(
                f"{path}: query {identifier!r} has {len(irrelevant)} documents of "
                f"grade 0, not the {negatives} negatives asked for"
            )
    return LoadedExamples(examples, negatives)


# {name in a config: function that makes the source}
SOURCES: Mapping[str, Callable[..., Source]] = {
    "files": weighted_source(load_files),
    "labeled_texts": weighted_source(load_labeled_texts),
    "texts": weighted_source(load_texts),
    "beir": weighted_source(load_beir),
    "pydocs": weighted_source(load_pydocs),
    "tfds": weighted_source(load_tfds),
    "hub": weighted_source(load_hub),
}

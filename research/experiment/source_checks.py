"""Losses of the sources of a run, and checks of its data before the first step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import build, format_call, parse_section
from research.data.pairs.pair_batches import PairBatches
from research.data.pairs.pair_rows import PairSourceState
from research.data.sources import SOURCES, Source
from research.experiment.teachers import RunTeacher
from research.inference.settings import check_kind_similarity
from research.losses.registry import LOSSES, MATCHING_LOSSES, Loss, build_loss
from research.losses.similarity import TOKEN_SIMILARITIES
from research.transforms.token_rows import ROW_TERMS
from research.types import Labels

# Labels of natural language inference, whose 0 is entailment in the usual files.
CLASSES = [0.0, 1.0, 2.0]

# {call text: (name, loss)} of the losses of all sources; "" is that of the config
NamedLosses = Mapping[str, tuple[str, Loss]]


def build_sources(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    """The sources of the config's sections, by their names.

    Raises:
        ValueError: A source has an argument that does not fit, or its file is damaged.
    """
    sources = {}
    for name, section in sections.items():
        try:
            sources[name] = build(SOURCES, section)
        except ValueError as error:
            raise ValueError(f"data {name!r}: {error}") from error
    return sources


def build_losses(config, sources: Mapping[str, Source]) -> NamedLosses:
    """The loss of a config and those of its sources; {} for pre-training.

    Raises:
        ValueError: A source names a loss that there is not, or any in pre-training, or
            the similarity is not one of the pooling's embeddings.
    """
    if "loss" not in config:
        for name, source in sources.items():
            nouns = {"loss": "a loss", "clusters": "clusters", "walk": "a walk"}
            if own := [noun for key, noun in nouns.items() if getattr(source, key)]:
                raise ValueError(
                    f"data {name!r} has {own[0]} of its own, but "
                    f"{config.objective.name} trains on rows of text, without pairs"
                )
        return {}
    # Vectors of tokens are compared otherwise than one vector per text
    check_kind_similarity(format_call(config.pool), config.similarity)
    if config.similarity in ROW_TERMS and config.size_loss.name != "full_size":
        raise ValueError(
            f"size_loss {config.size_loss.name} cuts vectors, but pool "
            f"{config.pool.name} gives rows, which are not cut; allowed: full_size"
        )
    losses = {"": (config.loss.name, build_loss(config.loss, config.similarity))}
    for name, source in sources.items():
        if not (text := source.loss):
            continue
        try:
            section = parse_section(LOSSES, text)
            losses[text] = section.name, build_loss(section, config.similarity)
        except ValueError as error:
            raise ValueError(f"data {name!r}: loss: {error}") from None
    return losses


def check_sources(
    batches: PairBatches,
    sources: Mapping[str, Source],
    losses: NamedLosses,
    width: int,
    teacher: RunTeacher | None = None,
    projection: int = 0,
    stored: bool = False,
) -> tuple[str, ...]:
    """Checks that every source has what its loss needs; nothing is computed.

    Args:
        batches: Batches of the run.
        sources: Their sources by name.
        losses: Losses of the sources.
        width: Width of the vectors that the losses get.
        teacher: Teacher of the run; None without one.
        projection: Width of the projections that are compared with its vectors; 0 if
            the vectors themselves are.
        stored: Whether the teacher's vectors are the objective's inputs.

    Returns:
        Sentences about data that are not used, or used in a way that may surprise.

    Raises:
        ValueError: The loss needs scores, hard negatives or a teacher's vectors that a
            source lacks, or scores of another range or vectors of another width.
    """
    notes = describe_sources(sources)
    for state in batches.sources:
        name, loss = losses[state.loss]
        labels = _make_label_shapes(state, batches.batch_size, teacher, projection)
        has_scores = labels.score is not None
        by_document = state.table.has_text_scores
        scores = state.table.text_scores if by_document else state.table.scores
        low = high = 0.0
        if has_scores:
            low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
        try:
            _trace_loss(loss, state, labels, width)
            # Of a sum, the names of all terms
            names = [name, *(term for term, *_ in loss.terms)]
            is_cosine = "cosine_mse" in names and loss.similarity == "cosine"
            if is_cosine and not -1 <= low <= high <= 1:
                raise ValueError(
                    f"the scores are from {low:g} to {high:g}, but cosines are at most "
                    f"1: set score_range={max(-low, high):g}"
                )
            compared = projection or width
            if teacher and loss.matches_teacher and teacher.width != compared:
                raise ValueError(
                    f"the teacher's vectors have {teacher.width} dims and the model's "
                    f"{compared}: objective.projection_width={teacher.width} trains a "
                    "projection for the loss alone, objective.head='linear' with "
                    f"objective.head_width={teacher.width} one for embedding, too"
                )
        except ValueError as error:
            raise ValueError(f"data {state.name!r}: loss {name}: {error}") from None
        # Some losses read no vectors of a teacher, which costs as much as if they did
        vectors = dict.fromkeys(("query_vector", "document_vector"))
        is_unread = teacher and not stored
        if is_unread and not _reads_labels(loss, state, labels, width, **vectors):
            notes += (f"data {state.name!r}: {name} does not use the teacher",)
        if not has_scores:
            continue
        # Some losses ignore scores, even those of pairs that are not alike.
        use = f"{name} learns from its scores, from {low:g} to {high:g}"
        if not _reads_labels(loss, state, labels, width, score=None):
            pairs = "" if by_document else ": every pair is a positive one"
            use = f"{name} does not use its scores{pairs}"
        elif np.unique(scores).tolist() == CLASSES:
            use += ", not as classes: pairs of score 2 should be the most similar"
        notes += (f"data {state.name!r}: {use}",)
    if projection and not any(loss.matches_teacher for _, loss in losses.values()):
        notes += (
            f"objective.projection_width={projection} trains nothing: no loss compares "
            f"vectors with a teacher's, as {', '.join(MATCHING_LOSSES)} do",
        )
    return notes


def check_classes(batches: PairBatches, sources: Mapping[str, Source], config) -> None:
    """Checks that a classifier of pairs has classes, and nothing that it ignores.

    Args:
        batches: Batches of the run.
        sources: Their sources by name.
        config: The config of the run.

    Raises:
        ValueError: A score is no class below `objective.classes`, or the config has
            several sizes, a loss of a source, a teacher or mining.
    """
    ignored = [f"data.{name}.loss" for name, source in sources.items() if source.loss]
    defaults = {"size_loss": "full_size", "teacher": "none", "mining": "none"}
    ignored += [key for key, name in defaults.items() if config[key].name != name]
    if ignored:
        raise ValueError(
            f"{config.objective.name} trains a classifier, and does not use config."
            f"{', config.'.join(ignored)}"
        )
    classes = config.objective.classes
    for state in batches.sources:
        scores = state.table.scores
        numbers = set(np.unique(scores).tolist())
        if not numbers <= set(range(classes)):
            raise ValueError(
                f"data {state.name!r} has the scores {sorted(numbers)[:5]}, which are "
                f"not all classes 0 ... {classes - 1} (objective.classes); the source "
                "labeled_pairs reads classes"
            )


def describe_sources(sources: Mapping[str, Source]) -> tuple[str, ...]:
    """What the sources say of their data, and whether their prompts differ."""
    notes = [f"data {name!r}: {s.note}" for name, s in sources.items() if s.note]
    if len({tuple(sorted(source.prompts.items())) for source in sources.values()}) > 1:
        notes.append(
            "the sources have different prompts: the model learns with them, and is "
            "evaluated and embeds without"
        )
    return tuple(notes)


def _reads_labels(
    loss: Loss, state: PairSourceState, labels: Labels, width: int, **changes
) -> bool:
    """Whether a loss that takes this source fails with these labels changed."""
    try:
        _trace_loss(loss, state, labels._replace(**changes), width)
    except ValueError:
        return True
    return False


def _make_label_shapes(
    state: PairSourceState,
    batch_size: int,
    teacher: RunTeacher | None,
    projection: int,
) -> Labels:
    """The shapes of the labels of a source's batches."""
    shape, docs = jax.ShapeDtypeStruct, batch_size * state.docs_per_query
    score = None
    if state.table.has_text_scores:
        score = shape((batch_size, state.docs_per_query), jnp.float32)
    elif state.table.has_scores:
        score = shape((batch_size,), jnp.float32)
    # A teacher's vectors, of the sides that it has, and what is compared with them
    has_queries = (state.query_vectors or state.teacher) is not None
    has_documents = (state.document_vectors or state.teacher) is not None

    def vectors(count: int, width: int):
        return shape((count, width), jnp.float32)

    return Labels(
        score=score,
        query_id=shape((batch_size, 2), jnp.uint32),
        document_id=shape((docs, 2), jnp.uint32),
        query_vector=vectors(batch_size, teacher.width) if has_queries else None,
        document_vector=vectors(docs, teacher.width) if has_documents else None,
        query_projection=vectors(batch_size, projection) if projection else None,
        document_projection=vectors(docs, projection) if projection else None,
        progress=shape((batch_size,), jnp.float32),
    )


def _trace_loss(loss: Loss, state: PairSourceState, labels: Labels, width: int) -> None:
    """Calls a loss with the shapes of a source's batches."""
    queries = labels.query_id.shape[0]
    counts = (queries, queries * state.docs_per_query)
    # Of several vectors per text, two
    shape = (2, width) if loss.similarity in TOKEN_SIMILARITIES else (width,)
    q, d = (jax.ShapeDtypeStruct((count, *shape), jnp.float32) for count in counts)
    jax.eval_shape(loss, q, d, labels)

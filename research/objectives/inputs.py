"""Decorators that declare which batches an objective is trained on."""

from collections.abc import Callable
from dataclasses import dataclass

from research.types import Batch, PretrainingBatch


@dataclass(frozen=True)
class ObjectiveInputs:
    """The batches that an objective is trained on.

    Attributes:
        batch: Batch (pairs of texts) or PretrainingBatch (rows of raw text).
        span_kind: Kind of spans that its rows must hold (row layout "spans"); "" if it
            accepts any rows.
    """

    batch: type
    span_kind: str = ""

    @property
    def is_pretraining(self) -> bool:
        """Whether the objective is trained on rows of raw text."""
        return self.batch is PretrainingBatch


def reads_pairs(objective: Callable) -> Callable:
    """Marks an objective on pairs: objective(cfg, pool, size_loss, *, options)."""
    return _mark(objective, ObjectiveInputs(Batch))


def reads_rows(objective: Callable) -> Callable:
    """Marks an objective on rows: objective(cfg, tokenizer, *, options)."""
    return _mark(objective, ObjectiveInputs(PretrainingBatch))


def reads_spans(kind: str) -> Callable:
    """Marks an objective on rows that hold one kind of spans."""

    def mark_spans(objective):
        return _mark(objective, ObjectiveInputs(PretrainingBatch, kind))

    return mark_spans


def _mark(objective, inputs: ObjectiveInputs):
    # An attribute of the function, which the registry reads
    objective.inputs = inputs
    return objective

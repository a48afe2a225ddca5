"""Dynamic hard negatives: those that have become easy are replaced (Conan-embedding).

Li et al. 2024. The initial model ranks the documents of a source once. Every few steps,
the negatives of an example give way to the next ones of its list if their mean score
has fallen enough; the list, the scores and the counts are files of the workdir.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import numpy as np

from research.data.pairs.pair_rows import PairSourceState
from research.experiment.table_mining import embed_table, mine_source
from research.inference.embedder import Embedder
from research.inference.mining import embed_and_score
from research.inference.mining_rules import MiningRules
from research.processes import call_on_first


@dataclasses.dataclass(frozen=True)
class ReplacementRule:
    """When the negatives of an example are replaced, and by which ones.

    Attributes:
        ratio: They are replaced if their mean score times this is below the mean score
            that they had when they were taken.
        max_score: Scores of at least this magnitude are never replaced.
        skip: The i-th replacement has N documents from rank skip + (i - 1) * N on.
        replacements: Most replacements of an example.
    """

    ratio: float
    max_score: float
    skip: int
    replacements: int

    def count_ranks(self, negatives: int) -> int:
        """Number of documents in the list of an example with N negatives."""
        return self.skip + self.replacements * negatives

    def find_due(
        self, scores: np.ndarray, initial: np.ndarray, replaced: np.ndarray
    ) -> np.ndarray:
        """The examples whose negatives are replaced: [n] bool.

        Args:
            scores: [n] mean scores of the negatives, by the current model.
            initial: [n] mean scores that they had when they were taken.
            replaced: [n] numbers of earlier replacements.
        """
        has_fallen = self.ratio * scores < initial
        is_easy = np.abs(scores) < self.max_score
        return has_fallen & is_easy & (replaced < self.replacements)

    def take_ranks(self, ranks: np.ndarray, replaced: np.ndarray, count: int):
        """The negatives [n, N] of a replacement, from the lists [n, L]."""
        first = self.skip + (replaced - 1) * count  # [n]
        return np.take_along_axis(ranks, first[:, None] + np.arange(count), axis=1)


class DynamicNegatives(NamedTuple):
    """The negatives of a source after a step.

    Attributes:
        negatives: [n, N] indices of texts.
        initial: [n] mean score that they had when they were taken.
        replaced: [n] number of replacements so far.
    """

    negatives: np.ndarray
    initial: np.ndarray
    replaced: np.ndarray


def update_negatives(
    source: PairSourceState,
    embedder: Embedder,
    rules: MiningRules,
    rule: ReplacementRule,
    step: int,
    similarity: str = "cosine",
    seed: int | str = 0,
) -> tuple[np.ndarray, str]:
    """Ranks the documents at step 0, and replaces negatives at later steps.

    Args:
        source: The source, with the tokens of its texts.
        embedder: Embedder of this process.
        rules: Which documents are ranked, and the number of negatives.
        rule: When negatives are replaced.
        step: The step of the model.
        similarity: As in `mine_negatives`.
        seed: Seed of random documents, for queries with too few candidates.

    Returns:
        [n, N] indices of texts, and a sentence about them.

    Raises:
        ValueError: There are too few documents, or files of earlier steps are missing.
    """
    count, files = rules.negatives, source.refreshed
    score = partial(_score_means, source, embedder, similarity)
    if step == 0:
        length = rule.count_ranks(count)
        rules = dataclasses.replace(rules, negatives=length)
        try:
            ranks, _ = mine_source(source, embedder, rules, similarity, seed)
        except ValueError as error:
            raise ValueError(
                f"{error}: a list has mining.skip + mining.replacements * "
                f"mining.negatives = {length} documents"
            ) from None
        call_on_first(partial(files.write_array, "ranks", ranks), "writing the ranks")
        negatives = ranks[:, :count]
        examples = np.arange(len(negatives))
        state = DynamicNegatives(
            negatives, score(examples, negatives), np.zeros(len(negatives), np.int64)
        )
        note = f"{length} documents ranked for each query"
    else:
        before = step - files.every
        size = len(source.table.query_text)
        state = DynamicNegatives(
            np.array(files.read(before, size)),
            *files.read_arrays(f"{before}-scores", f"{before}-counts"),
        )
        (ranks,) = files.read_arrays("ranks")
        # [n] the mean scores of the negatives, by the current model
        scores = score(np.arange(size), state.negatives)
        due = np.flatnonzero(rule.find_due(scores, state.initial, state.replaced))
        state.replaced[due] += 1
        replacements = rule.take_ranks(ranks[due], state.replaced[due], count)
        state.negatives[due] = replacements
        if len(due):
            state.initial[due] = score(due, replacements)
        note = f"negatives of {len(due) / size:.0%} of the examples replaced"
    # The negatives themselves come last: where they are, these are, too
    for name, values in (("scores", state.initial), ("counts", state.replaced)):
        write = partial(files.write_array, f"{step}-{name}", values)
        call_on_first(write, "writing mined negatives")
    return state.negatives, note


def _score_means(
    source: PairSourceState,
    embedder: Embedder,
    similarity: str,
    examples: np.ndarray,
    negatives: np.ndarray,
) -> np.ndarray:
    """[E] the mean score of the negatives [E, N] of some examples."""
    queries = source.table.query_text[examples]
    embed = partial(embed_table, embedder, source.table, name=source.name)
    pairs = np.stack(np.broadcast_arrays(queries[:, None], negatives), axis=-1)
    scores = embed_and_score(
        partial(embed, role="query"),
        partial(embed, role="document"),
        pairs.reshape(-1, 2),
        similarity,
    )
    return scores.reshape(negatives.shape).mean(axis=1)

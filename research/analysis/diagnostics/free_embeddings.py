"""Free embeddings: the most documents whose pairs vectors of a width can all retrieve.

The vectors of queries and documents are trained directly, without texts, so that no
model of this width can do better (Weller et al. 2025, "On the Theoretical Limitations
of Embedding-Based Retrieval").
"""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from research.types import Array, Key

TEMPERATURE = 0.1
LEARNING_RATE = 0.01
MAX_STEPS = 100_000
PATIENCE = 1000  # steps without improvement of the loss by MIN_GAIN
MIN_GAIN = 1e-5
CHECK_EVERY = 50  # steps between two measurements of the accuracy
NEARBY = range(-4, 6)  # numbers of documents around the critical one, tried as well
SEED = 42
# Coefficients of the paper's fit of the critical number of documents over the width,
# for pairs; as we remember them.
PUBLISHED_FIT = (-10.5322, 4.0309, 0.0520, 0.0037)


def predict_critical_count(width: float) -> float:
    """The paper's cubic fit of the critical number of documents of a width."""
    return sum(c * width**power for power, c in enumerate(PUBLISHED_FIT))


def find_critical_count(
    width: int, *, size: int = 2, start: int | None = None
) -> tuple[int, dict[int, float]]:
    """The critical number of documents: the last one whose subsets are all retrieved.

    From `start`, steps of 1, 2, 4 ... lead to a success and a failure, between which
    the interval is halved. Numbers near the result are tried too, which shows cases
    that are not monotone.

    Args:
        width: D of the vectors.
        size: Number of relevant documents of each query, all subsets of this size.
        start: First number of documents; None for the published fit.

    Returns:
        The critical number, and {number of documents: accuracy} of all that were tried.
    """
    accuracies: dict[int, float] = {}

    def can_retrieve(count: int) -> bool:
        if count not in accuracies:
            accuracies[count] = train_free_embeddings(count, width, size=size)
        return accuracies[count] == 1.0

    # Gallop to a success and a failure.
    smallest = size + 1
    count = max(start or round(predict_critical_count(width)), smallest)
    direction, step = (1 if can_retrieve(count) else -1), 1
    low = high = count
    while can_retrieve(count) == (direction > 0):
        low, high = (count, high) if direction > 0 else (low, count)
        if count == smallest and direction < 0:
            return size, accuracies
        count = max(count + direction * step, smallest)
        step *= 2
    low, high = (low, count) if direction > 0 else (count, high)
    # Halve the interval between the last success and the first failure.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if can_retrieve(middle) else (low, middle)
    for offset in NEARBY:
        if low + offset >= smallest:
            can_retrieve(low + offset)
    return low, dict(sorted(accuracies.items()))


def train_free_embeddings(
    documents: int, width: int, *, size: int = 2, max_steps: int = MAX_STEPS
) -> float:
    """Trains vectors so that each query's documents come first, for all subsets.

    Args:
        documents: n.
        width: D of the vectors.
        size: k, the number of relevant documents of each of the C(n, k) queries.
        max_steps: Largest number of steps.

    Returns:
        The largest share of relevant documents among the first k that was seen.
    """
    relevant = np.array(list(combinations(range(documents), size)))  # [M, k]
    key = jax.random.key(SEED)
    return float(_train(key, relevant, documents, width, max_steps))


@partial(jax.jit, static_argnames=("documents", "width"))
def _train(
    key: Key, relevant: Array, documents: int, width: int, max_steps: int
) -> Array:
    """The best accuracy of a training run; see `train_free_embeddings`."""
    # [M, D] queries and [n, D] documents, rows of length 1.
    query_key, document_key = jax.random.split(key)
    params = (
        _normalize(jax.random.normal(query_key, (len(relevant), width))),
        _normalize(jax.random.normal(document_key, (documents, width))),
    )
    optimizer = optax.adam(LEARNING_RATE)
    gradient = jax.value_and_grad(_compute_loss)

    def advance(_, state):
        step, params, optimizer_state, best, last = state
        loss, grads = gradient(params, relevant)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        params = jax.tree.map(lambda p, u: _normalize(p + u), params, updates)
        # The last step at which the loss improved.
        is_better = loss < best - MIN_GAIN
        best = jnp.where(is_better, loss, best)
        last = jnp.where(is_better, step, last)
        return step + 1, params, optimizer_state, best, last

    def should_continue(carry):
        (step, _, _, _, last), accuracy = carry
        return (accuracy < 1) & (step < max_steps) & (step - last <= PATIENCE)

    def run_block(carry):
        state, accuracy = carry
        state = jax.lax.fori_loop(0, CHECK_EVERY, advance, state)
        return state, jnp.maximum(accuracy, _compute_accuracy(state[1], relevant))

    first, best = jnp.int32(0), jnp.float32(jnp.inf)
    start = first, params, optimizer.init(params), best, first
    accuracy = _compute_accuracy(params, relevant)
    return jax.lax.while_loop(should_continue, run_block, (start, accuracy))[1]


def _compute_loss(params: tuple[Array, Array], relevant: Array) -> Array:
    """InfoNCE of each relevant document; the others stay in the denominator."""
    queries, documents = params
    logits = queries @ documents.T / TEMPERATURE  # [M, n]
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    return -jnp.take_along_axis(log_probabilities, relevant, axis=1).mean()


def _compute_accuracy(params: tuple[Array, Array], relevant: Array) -> Array:
    """The share of relevant documents among the first k of each query."""
    queries, documents = params
    _, first = jax.lax.top_k(queries @ documents.T, relevant.shape[1])  # [M, k]
    hits = first[:, :, None] == relevant[:, None]  # [M, k, k]
    return hits.any(1).mean(dtype=jnp.float32)


def _normalize(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

"""Losses of the relations between texts, which should be those of a teacher.

They need the vectors of the whole batch, (q [B, D], d [B*K, D], Labels) -> [B]. The
teacher's vectors are in the labels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.losses.similarity import cosine, dot
from research.losses.teacher import teacher_texts
from research.transforms.normalize import l2_norm, l2_normalize, to_float32
from research.types import Array, Labels

# Most differences of pairs of similarities in memory at a time: 16 MiB of float32.
BLOCK_DIFFERENCES = 2**22
# Distances up to this one are those of equal vectors, in float32.
SMALLEST_DISTANCE = 1e-6


def relational_kd(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    distance_weight: float = 1.0,
    angle_weight: float = 2.0,
    distance: str = "euclidean",
    penalty: str = "huber",
) -> Array:
    """Differences of distances and of angles between texts (RKD, Park et al. 2019).

    Distances are divided by their mean over the pairs of different vectors. The angle
    at a text is that between two others, by its cosine. Both are averaged over all
    pairs and triples of the batch's queries and documents. No widths need to be equal.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.
        labels: The teacher's vectors of both.
        distance_weight: Weight of the distances' term.
        angle_weight: Weight of the angles' term; its cost grows with the third power
            of the number of texts.
        distance: "euclidean", or "cosine" for 1 - cosine.
        penalty: "huber" (quadratic below 1, linear above), or "squared".

    Returns:
        [B] float32, the loss of the batch, repeated.

    Raises:
        ValueError: The labels lack vectors, or an option is unknown.
    """
    check_option("distance", distance, ("euclidean", "cosine"))
    check_option("penalty", penalty, ("huber", "squared"))
    students, teachers = _join_texts(q, d, labels)  # [N, D], [N, E]

    def penalize(errors: Array) -> Array:
        if penalty == "squared":
            return jnp.square(errors)
        size = jnp.abs(errors)
        return jnp.where(size < 1, jnp.square(errors) / 2, size - 0.5)

    @jax.checkpoint
    def compare_anchor(anchors: tuple[Array, Array]) -> Array:
        # [N, N] cosines of the angles at one text, of both models
        angles = []
        for x, anchor in zip((students, teachers), anchors, strict=True):
            directions = l2_normalize(x - anchor[None])
            angles.append(dot(directions, directions))
        return jnp.mean(penalize(angles[0] - angles[1]))

    loss = jnp.float32(0)
    if distance_weight:
        lengths = [_relative_distances(x, distance) for x in (students, teachers)]
        loss += distance_weight * jnp.mean(penalize(lengths[0] - lengths[1]))
    if angle_weight:
        angles = jax.lax.map(compare_anchor, (students, teachers))  # [N]
        loss += angle_weight * jnp.mean(angles)
    return jnp.full(len(q), loss)


def stella(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    cosine_weight: float = 10.0,
    similarity_weight: float = 200.0,
    relative_weight: float = 20.0,
    margin: float = 0.015,
    widths: tuple[int, ...] = (),
    sides_apart: bool = False,
) -> Array:
    """The three losses of Stella and Jasper (Zhang et al. 2024), over all texts.

    1 - cosine of each vector and the teacher's; the squared error of the cosines of all
    pairs of texts; and a hinge on every two of these cosines, whose order should be the
    teacher's by a margin. The last two are averaged over the widths. The first needs
    the teacher's width: it compares the projections (`contrastive`'s projection_width)
    if there are any, and is otherwise left out at narrower sizes of a Matryoshka loss.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.
        labels: The teacher's vectors of both.
        cosine_weight: Weight of the first loss.
        similarity_weight: Weight of the second loss.
        relative_weight: Weight of the third loss; its cost grows with the fourth power
            of the number of texts.
        margin: Margin of the third loss.
        widths: Widths at which cosines of texts are computed; () for D alone.
        sides_apart: Whether the loss is the sum of that of the queries and that of the
            documents, whose similarities to each other are then left out.

    Returns:
        [B] float32, the loss of the batch, repeated.

    Raises:
        ValueError: The labels lack vectors, or the model has no such width.
    """
    students, teachers = _join_texts(q, d, labels)  # [N, D], [N, E]
    width = students.shape[1]
    if widths and max(widths) > width:
        raise ValueError(f"stella's width {max(widths)} is beyond the {width} dims")
    # [N, k] what is compared with the teacher's vectors
    compared = students
    if (projections := labels.query_projection) is not None:
        compared = to_float32(
            jnp.concatenate([projections, labels.document_projection])
        )
    weights = cosine_weight, similarity_weight, relative_weight
    texts = students, compared, teachers
    # All texts together, or queries and documents
    parts = [texts]
    if sides_apart:
        parts = zip(*(jnp.split(x, [len(q)]) for x in texts), strict=True)
    loss = sum(
        _compare_texts(*part, weights, margin, widths or (width,)) for part in parts
    )
    return jnp.full(len(q), loss)


def _compare_texts(
    students: Array,
    compared: Array,
    teachers: Array,
    weights: tuple[float, float, float],
    margin: float,
    sizes: tuple[int, ...],
) -> Array:
    """[] the three losses of `stella` over some texts.

    Args:
        students: [N, D] the model's vectors.
        compared: [N, k] those that are compared with the teacher's.
        teachers: [N, E] the teacher's vectors.
        weights: Weights of the three losses.
        margin: Margin of the third loss.
        sizes: Widths at which cosines of texts are computed.
    """
    cosine_weight, similarity_weight, relative_weight = weights
    loss = jnp.float32(0)
    # Cosines of vectors of one width
    if compared.shape[1] == teachers.shape[1]:
        cosines = jnp.sum(l2_normalize(compared) * l2_normalize(teachers), axis=1)
        loss += cosine_weight * jnp.mean(1 - cosines)
    # [N, N] cosines of texts: the teacher's, and the model's at each width
    targets = cosine(teachers, teachers)
    for size in sizes:
        cut = students[:, :size]
        similarities = cosine(cut, cut)
        error = jnp.mean(jnp.square(similarities - targets))
        loss += similarity_weight / len(sizes) * error
        if relative_weight:
            hinge = _compare_orders(similarities, targets, margin)
            loss += relative_weight / len(sizes) * hinge
    return loss


def _join_texts(q: Array, d: Array, labels: Labels) -> tuple[Array, Array]:
    """The model's vectors [N, D] and the teacher's [N, E] of all texts of a batch."""
    return to_float32(jnp.concatenate([q, d])), teacher_texts(labels)


def _relative_distances(x: Array, distance: str) -> Array:
    """[N, N] distances of vectors, divided by the mean of those above 0."""
    if distance == "cosine":
        different = ~jnp.eye(len(x), dtype=bool)
        distances = jnp.where(different, 1 - cosine(x, x), 0.0)
    else:
        # Row by row: the differences of all pairs would not fit the memory
        measure_row = jax.checkpoint(lambda row: l2_norm(x - row[None]))
        distances = jax.lax.map(measure_row, x)
    # Equal vectors are at 0, up to rounding
    positive = distances > SMALLEST_DISTANCE
    count = jnp.maximum(jnp.sum(positive, dtype=jnp.float32), 1)
    mean = jnp.sum(jnp.where(positive, distances, 0.0)) / count
    return distances / jnp.where(mean > 0, mean, 1.0)


def _compare_orders(student: Array, teacher: Array, margin: float) -> Array:
    """[] mean hinge over every two pairs of texts, whose order should be the teacher's.

    Args:
        student: [N, N] similarities of the model.
        teacher: [N, N] similarities of the teacher.
        margin: Least difference in the teacher's order.
    """
    rows, columns = np.triu_indices(len(student), 1)
    student, teacher = student[rows, columns], teacher[rows, columns]  # [P]
    numbers = jnp.arange(len(rows))

    @jax.checkpoint
    def compare_pair(pair: tuple[Array, Array, Array]) -> Array:
        # One pair with all later ones: the sign of the order, then the hinge
        number, own_score, own_target = pair
        sign = jnp.where(teacher - own_target < 0, 1.0, -1.0)
        hinge = jax.nn.relu(sign * (student - own_score) + margin)
        return jnp.sum(jnp.where(numbers > number, hinge, 0.0))

    # [P] sums, several pairs at a time
    count = max(1, len(rows))
    sums = jax.lax.map(
        compare_pair,
        (numbers, student, teacher),
        batch_size=max(1, min(count, BLOCK_DIFFERENCES // count)),
    )
    return sums.sum() / max(1, count * (count - 1) // 2)

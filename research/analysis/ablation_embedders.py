"""Embedders of an ablation's rows, which share what several rows embed."""

from collections.abc import Sequence

from research.analysis.ablation import EMBEDDING_FIELDS, Ablation, fill_row
from research.eval.vector_cache import VectorCache
from research.inference.embedder import Embedder, Embeddings
from research.inference.model import EmbeddingModel
from research.inference.options import embedder_options
from research.inference.similarity import get_width
from research.inference.token_transforms import has_one_vector, parse_token_transform
from research.models.positions.methods import extend_context
from research.text import chunking


class TransformedEmbedder:
    """Embeds as an `Embedder`, from vectors that may be there already.

    Args:
        cache: The vectors of an embedder without a transform.
        model: The embedder's model.
        token_transform: As in `Embedder`.

    Attributes:
        model: The model, with the similarity of the transformed vectors.
    """

    def __init__(self, cache: VectorCache, model: EmbeddingModel, token_transform: str):
        if has_one_vector(token_transform):
            model = model._replace(similarity="dot")
        self.model, self._cache, self._transform = model, cache, token_transform

    def __call__(self, texts: Sequence[str], role: str) -> Embeddings:
        """The embeddings of texts for a role."""
        vectors = self._cache(texts, role)
        if not self._transform:
            return vectors
        return parse_token_transform(self._transform, get_width(vectors))(vectors, role)


def make_embedder(
    ablation: Ablation,
    model: EmbeddingModel,
    row: str,
    column: str,
    cache: dict[str, VectorCache],
) -> Embedder | TransformedEmbedder:
    """Makes the embedder for a cell from its row and column.

    Args:
        ablation: The ablation.
        model: The model of the row.
        row: Name of the row.
        column: Name of the column.
        cache: Vectors of this model, by how it embeds, which rows with a transform of
            token vectors share. It is filled here.
    """
    fields, line = ablation.columns[column], fill_row(ablation, row, column)
    # The column truncates the model and its texts; the row sets how it embeds.
    options = {"max_length": model.max_length}
    for name in ("depth", "dim", "max_length"):
        if name in fields:
            options[name] = fields[name]
    options |= embedder_options(**{n: getattr(line, n) for n in EMBEDDING_FIELDS})
    # A transform of stored vectors is fitted to them before they are normalized.
    if line.transform:
        options["normalize"] = False
    # For longer texts, extend the context, use chunks, or cut the texts.
    if line.extend:
        params, cfg = extend_context(model.params, model.config, line.extend)
        model = model._replace(params=params, config=cfg)
    if line.chunk:
        options["chunk"] = chunking.parse_chunking(line.chunk)
    elif not line.extend:
        options["max_length"] = min(options["max_length"], model.config.max_len)
    if not ablation.shares_vectors:
        return Embedder(model, allow_empty=True, **options)
    # Vectors without the transform, and what else they depend on
    transform = options.pop("token_transform", "")
    embedder = Embedder(model, allow_empty=True, **options)
    key = repr((options, line.extend))
    vectors = cache.setdefault(key, VectorCache(embedder))
    return TransformedEmbedder(vectors, embedder.model, transform)

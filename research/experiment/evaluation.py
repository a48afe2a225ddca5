"""Evaluation within a run: its model as an embedder, and its scores without one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from tokenizers import Tokenizer

from research.eval.grid import score_sizes
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel, head_layers
from research.inference.shares import split_over_processes
from research.models.config import EncoderConfig
from research.models.lora import full_params
from research.text.templates import Prompt
from research.types import EmbedFn, Evaluator, ModelEvaluator, Params


def make_embedder(*arguments, depths: Sequence[int] | None = None) -> EmbedFn:
    """Makes an embedder from trained and frozen parameters, for evaluators.

    Each process embeds its share of the texts. Arguments as in `make_local_embedder`.
    """
    return split_over_processes(make_local_embedder(*arguments, depths=depths))


def make_local_embedder(
    encoder: EncoderConfig,
    tokenizer: Tokenizer,
    prompt: Prompt | None,
    mesh: Mesh,
    card: Mapping[str, Any],
    params: Params,
    frozen: Params,
    *,
    depths: Sequence[int] | None = None,
) -> Embedder:
    """Makes the embedder of this process from trained and frozen parameters.

    With `depths`, it returns vectors [N, len(depths), D], which are not normalized.
    """
    parts = full_params(params, frozen)
    trained = EmbeddingModel(
        params=parts["encoder"],
        config=encoder,
        tokenizer=tokenizer,
        pool=card["pool"],
        max_length=card["max_length"],
        prompts=card["prompts"],
        normalize=card["normalize"],
        dense=head_layers(parts["head"], card["head"]) if card["head"] else (),
        similarity=card["similarity"],
        prompt=prompt,
        adapters=tuple(card["adapters"]),
    )
    # Vectors of several depths are normalized at each size
    normalize = False if depths else None
    return Embedder(
        trained, mesh=mesh, allow_empty=True, depths=depths, normalize=normalize
    )


def measure_sizes(
    evaluator: Evaluator,
    sizes: Sequence[tuple[int, int]],
    make_run_embedder: Callable[..., EmbedFn],
    encoder: EncoderConfig,
    card: Mapping[str, Any],
    params: Params,
    frozen: Params,
) -> Mapping[str, float]:
    """The scores of `score_sizes` from trained and frozen parameters.

    Args:
        evaluator: The evaluator.
        sizes: Pairs (depth, dim).
        make_run_embedder: `make_embedder` with all but the parameters.
        encoder: The encoder.
        card: Content of model.json.
        params, frozen: The parameters.
    """
    depths = sorted({depth for depth, _ in sizes} | {encoder.depth})
    return score_sizes(
        evaluator,
        make_run_embedder(params, frozen, depths=depths),
        sizes=sizes,
        depths=depths,
        normalize=card["normalize"],
    )


def measure_model(
    evaluator: ModelEvaluator,
    encoder: EncoderConfig,
    tokenizer: Tokenizer,
    card: Mapping[str, Any],
    mesh: Mesh,
    params: Params,
    frozen: Params,
) -> Mapping[str, float]:
    """Scores of an evaluator that needs the encoder itself, such as perplexity."""
    # The encoder alone, without head and decoder
    encoder_params = full_params(params, frozen)["encoder"]
    return evaluator.evaluate(
        encoder_params, encoder, tokenizer, card["max_length"], mesh
    )

"""Flags that choose a model and its embedding options, shared by several commands."""

from typing import Any

from absl import flags
from jax.sharding import Mesh

from launch import main as cli
from research.data.corpus import read_corpus
from research.inference.embedder import Embedder
from research.inference.fitting import fit_to_texts
from research.inference.model import EmbeddingModel, hash_model
from research.inference.options import embedder_options, parse_dims
from research.inference.token_transforms import has_one_vector
from research.interop import load
from research.models.positions.base import Extrapolate
from research.models.positions.methods import (
    extend_context,
    read_methods,
    suggest_method,
)
from research.sharding import make_inference_mesh
from research.text.chunking import Chunking, parse_chunkings
from research.transforms.pipeline import VectorTransform, parse_transform

# The model and its size.
MODEL = flags.DEFINE_string(
    "model",
    None,
    "The model: a workdir of launch.train, a sentence-transformers or Hugging Face "
    "folder, package:NAME for the model inside an installed Python package, or the id "
    "of a model of the Hugging Face hub.",
    required=True,
)
DEPTH = flags.DEFINE_integer(
    "depth", None, "The model's first blocks that are used. Default: all of them."
)
DIM = flags.DEFINE_integer(
    "dim", None, "The leading values of an embedding that are kept. Default: all."
)
POOL = flags.DEFINE_string(
    "pool",
    None,
    "The pooling of token states, such as mean, cls, last or latent_attention(heads=4)."
    " Default: the prompt's, or else the model's own.",
)
MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "The number of tokens that texts are cut to. Default: the model's own, or the "
    "longer context that --extend gives it.",
)
ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "The name of one of the model's adapters, which all texts go through, or a folder "
    "that peft wrote. Default: the only adapter, or the one of each text's role.",
)
# Long texts.
EXTEND = flags.DEFINE_string(
    "extend",
    None,
    "The methods that extend the model's context beyond the lengths that it was trained"
    " on, such as yarn(scale=8) or interpolated(scale=8) | log_length().",
)
CHUNK = flags.DEFINE_string(
    "chunk",
    "none",
    "How documents are cut into chunks: late(256), which counts tokens, "
    "late(sentences=5), late(256, window=8192), naive(256), pcw(512) or landmark(64). "
    "Default: documents are embedded as one text.",
)
# Prompts, and which hidden states are pooled.
PROMPT = flags.DEFINE_string(
    "prompt",
    None,
    "The prompt that texts are put into, such as plain, echo, prompteol or "
    'template(query="Query: {text}"). Default: the model\'s own.',
)
INSTRUCTION = flags.DEFINE_string(
    "instruction", "", "The instruction that --prompt puts before queries."
)
PREPEND = flags.DEFINE_string(
    "prepend",
    None,
    "The window of blocks before which token prepending copies the last token's state: "
    "(1, 7) for the blocks 1 to 6.",
)
LAYERS = flags.DEFINE_string(
    "layers",
    "-1",
    "The layer whose states are pooled, as transformers numbers hidden_states, or the "
    "layers whose pooled states are averaged: -2 or (1, 12).",
)
BIDIRECTIONAL = flags.DEFINE_bool(
    "bidirectional",
    None,
    "Whether tokens attend to the tokens after them, too. Default: as the model does.",
)
MODEL_PARALLEL = flags.DEFINE_integer(
    "model_parallel",
    1,
    "The number of a machine's devices that each copy of the model is split over; rows "
    "of texts are split over the copies.",
    lower_bound=1,
)
CLIP_DIMS = flags.DEFINE_string(
    "clip_dims",
    None,
    "The dimensions of hidden states that are set to 0 before they are pooled, such as "
    "the outliers that launch.diagnose finds: (308, 381).",
)
# Transforms of the embeddings.
TOKEN_TRANSFORM = flags.DEFINE_string(
    "token_transform",
    "",
    "What is done to the vectors of tokens, of a model that gives these: "
    "pool_tokens(factor=2) keeps half of a document's, muvera() makes one vector.",
)
TRANSFORM = flags.DEFINE_string(
    "transform",
    None,
    "The transform of embeddings: pca(128), whitening, random_projection(128), or codes"
    " of documents, which come last: int8, uint8, float16, bfloat16, float8, binary, "
    "pq(96), such as pca(128) | int8(). Default: the model's own.",
)
TRANSFORM_TEXTS = flags.DEFINE_string(
    "transform_texts",
    None,
    "The texts that --transform is fitted to: a file, or pydocs.",
)
# Flags that a manifest does not hold as they are.
OTHER_FLAGS = ("model", "model_parallel", "transform", "transform_texts")
cli.group_flags("Model", MODEL, DEPTH, DIM, POOL, MAX_LENGTH, ADAPTER)
cli.group_flags("Long texts", EXTEND, CHUNK, last=True)
cli.group_flags(
    *("Prompts and layers", PROMPT, INSTRUCTION, PREPEND, LAYERS, BIDIRECTIONAL),
    CLIP_DIMS,
    last=True,
)
cli.group_flags(
    *("Transforms and devices", TRANSFORM, TRANSFORM_TEXTS, TOKEN_TRANSFORM),
    MODEL_PARALLEL,
    last=True,
)


def load_model(name: str | None = None, *, lm_head: bool = False) -> EmbeddingModel:
    """Loads a model, applies --extend, and checks --depth and --dim.

    Args:
        name: Name of the model; None for that of --model, with its --adapter.
        lm_head: Whether an untied output layer is kept, as in `load.load`.

    Raises:
        FileNotFoundError, ValueError: There is no such model, depth or dim, or --extend
            does not fit the model.
    """
    adapter = ADAPTER.value if name is None else None
    name = name or MODEL.value
    model = _extend(load.load_adapted(name, adapter, lm_head=lm_head))
    # Sizes that the model does not have.
    for flag, largest in ((DEPTH, model.config.depth), (DIM, model.width)):
        if flag.value is not None and not 1 <= flag.value <= largest:
            raise ValueError(
                f"--{flag.name}={flag.value}: {name} has {flag.name} 1 ... {largest}"
            )
    return model


def make_embedder(
    model: EmbeddingModel,
    chunk: Chunking | None = None,
    *,
    normalize: bool | None = None,
    allow_empty: bool = False,
    transform: VectorTransform | None = None,
) -> Embedder:
    """Makes an embedder of a model from the flags.

    Args:
        model: The model.
        chunk: How documents are cut; None embeds them as one text.
        normalize: Whether vectors are scaled to length 1; None for the model's own.
        allow_empty: Whether a text may be empty, as in `Embedder`.
        transform: The fitted transform; None for that of --transform, or the model's.

    Raises:
        ValueError: --max_length exceeds the model's maximum, or two flags exclude each
            other.
    """
    if TRANSFORM.value is None and TRANSFORM_TEXTS.value is not None:
        raise ValueError(f"--transform_texts={TRANSFORM_TEXTS.value} needs --transform")
    # Chunked documents take no prompt templates or layers.
    options = size_options() | {"mesh": make_mesh(), "allow_empty": allow_empty}
    if chunk is not None:
        check_plain(model, f"--chunk={CHUNK.value}")
        options["chunk"] = chunk
    else:
        _check_max_length(model)
        is_bidirectional = BIDIRECTIONAL.value
        options |= embedder_options(
            prompt=PROMPT.value or "",
            instruction=INSTRUCTION.value,
            prepend=PREPEND.value or "",
            layers=LAYERS.value,
            bidirectional="" if is_bidirectional is None else str(is_bidirectional),
        )
    if transform is None and TRANSFORM.value is not None:
        # A mistake is found before texts are embedded
        parse_transform(TRANSFORM.value)
        texts = read_corpus(TRANSFORM_TEXTS.value)[1] if TRANSFORM_TEXTS.value else []
        raw = Embedder(model._replace(transform=None), normalize=False, **options)
        is_unit = model.normalize if normalize is None else normalize
        is_unit = is_unit and not has_one_vector(TOKEN_TRANSFORM.value)
        transform = fit_to_texts(TRANSFORM.value, raw, texts, normalize=is_unit)
    return Embedder(model, normalize=normalize, transform=transform, **options)


def make_mesh() -> Mesh | None:
    """The mesh of this process's devices, as --model_parallel splits them."""
    return make_inference_mesh(MODEL_PARALLEL.value)


def describe_embedder(embedder: Embedder) -> dict[str, Any]:
    """The model and the flags that embeddings depend on, as a manifest holds them."""
    values = {
        flag.name: flag.value
        for flag in flags.FLAGS.flags_by_module_dict()[__name__]
        if flag.name not in OTHER_FLAGS
    }
    transform = embedder.model.transform
    return {
        "model": MODEL.value,
        "weights": hash_model(embedder.model),
        "kind": embedder.kind,
        "dim": embedder.width,
        "transform": transform and transform.text,
        "options": values,
    }


def size_options() -> dict[str, Any]:
    """Keyword arguments of `Embedder` from the flags that every command takes.

    These are --depth, --dim, --max_length, --pool and --clip_dims; flags that are not
    set leave the embedder's own defaults.
    """
    flag_values = {f.name: f.value for f in (DEPTH, DIM, MAX_LENGTH, POOL)}
    options = {name: value for name, value in flag_values.items() if value is not None}
    if TOKEN_TRANSFORM.value:
        options["token_transform"] = TOKEN_TRANSFORM.value
    if CLIP_DIMS.value is not None:
        options["clip_dims"] = parse_dims(CLIP_DIMS.value)
    return options


def check_plain(model: EmbeddingModel, reader: str) -> None:
    """Rejects flags and models that do not go with a flag or command.

    Args:
        model: The model.
        reader: Flag or command that embeds texts without templates.

    Raises:
        ValueError: One of the flags is set, or the model has prompt templates.
    """
    # Flags that must have their default values.
    for flag in (PROMPT, INSTRUCTION, PREPEND, LAYERS, BIDIRECTIONAL):
        if flag.value != flag.default:
            raise ValueError(f"--{flag.name}={flag.value} does not go with {reader}")
    if model.prompt is not None and model.prompt.late_interaction is None:
        raise ValueError(
            f"{MODEL.value} was trained with a prompt's templates, which do not go with"
            f" {reader}"
        )


def check_no_transform(reader: str) -> None:
    """Raises ValueError if --transform is set, which a flag or command ignores."""
    if TRANSFORM.value is not None:
        raise ValueError(f"--transform={TRANSFORM.value} does not go with {reader}")


def parse_chunks() -> dict[str, Chunking | None]:
    """{name: chunking} of --chunk; the chunking None embeds documents as one text.

    Raises:
        ValueError: There is no such chunking, or its arguments are wrong.
    """
    return {str(chunk).lower(): chunk for chunk in parse_chunkings(CHUNK.value)}


def parse_single_chunk() -> Chunking | None:
    """The chunking of --chunk, for commands that take only one.

    Raises:
        ValueError: The flag has several chunkings, or as in `parse_chunks`.
    """
    chunks = list(parse_chunks().values())
    if len(chunks) > 1:
        raise ValueError(f"--chunk={CHUNK.value}: this command takes one chunking")
    return chunks[0]


def document_length(model: EmbeddingModel, chunk: Chunking | None) -> int | None:
    """Maximum number of tokens of a document; None if documents are not cut."""
    if MAX_LENGTH.value is not None:
        return MAX_LENGTH.value
    return model.max_length if chunk is None or chunk.reads_full_text else None


def _extend(model: EmbeddingModel) -> EmbeddingModel:
    """Applies the position methods of --extend to a model.

    The maximum length of texts becomes that of the extended context. Some methods set
    no length; --max_length then does.
    """
    if EXTEND.value is None:
        return model
    methods = read_methods(EXTEND.value)
    # --max_length is the new maximum where the methods set none.
    if MAX_LENGTH.value and "extrapolate" not in [m.name for m in methods]:
        methods = (*methods, Extrapolate(length=MAX_LENGTH.value))
    # Texts are cut at the new maximum only if it is larger than the old one.
    params, cfg = extend_context(model.params, model.config, methods)
    is_longer = cfg.max_len > model.config.max_len
    max_length = cfg.max_len if is_longer else model.max_length
    return model._replace(params=params, config=cfg, max_length=max_length)


def _check_max_length(model: EmbeddingModel) -> None:
    # The error names a method that fits the model's positions.
    max_length = MAX_LENGTH.value
    if max_length is not None and max_length > model.config.max_len:
        method = suggest_method(model.config, max_length)
        raise ValueError(
            f"--max_length={max_length}: {MODEL.value} embeds texts of up to "
            f"{model.config.max_len} tokens; for longer ones use --extend={method}"
        )

"""The flags that choose a model and how it embeds, for the commands that embed."""

from absl import flags

from research.data.corpus import read_corpus
from research.inference import model as pretrained
from research.inference.chunk_embedder import make_chunk_embedder
from research.inference.embedder import make_embedder
from research.inference.options import reads
from research.interop import load
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.base import Extrapolate
from research.models.positions.methods import (
    extend_context,
    read_methods,
    suggest_method,
)
from research.text.chunking import Chunking, parse_chunkings
from research.transforms.whitening import whiten_embedder
from research.types import EmbedFn

MODEL = flags.DEFINE_string(
    "model",
    None,
    "A workdir, a sentence-transformers or Hugging Face folder, or a hub id.",
    required=True,
)
DEPTH = flags.DEFINE_integer("depth", None, "Use the first blocks only.")
DIM = flags.DEFINE_integer("dim", None, "Keep the first numbers only.")
POOL = flags.DEFINE_enum(
    "pool", None, list(BASIC_POOLINGS), "Default: the model's own."
)
MAX_LENGTH = flags.DEFINE_integer(
    "max_length",
    None,
    "Tokens of a text, more are cut. Default: the model's own, or what --extend adds.",
)
ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "The adapter of the model that texts go through, or a folder of peft's with one. "
    "Default: the only one, or that of each text's role.",
)
EXTEND = flags.DEFINE_string(
    "extend",
    None,
    "Methods for texts longer than those of the training, such as yarn(scale=8) or "
    "interpolated(scale=8) | log_length().",
)
CHUNK = flags.DEFINE_string(
    "chunk",
    "none",
    "How documents are cut into chunks: late(256), which counts tokens, "
    "late(sentences=5), late(256, window=8192, overlap=512), landmark(sentences=1), "
    "naive(256), pcw(512) or none.",
)
PROMPT = flags.DEFINE_string(
    "prompt",
    None,
    "The prompt that texts are embedded in: plain, echo, metaeol(pool='mean'), "
    "template(query='Represent this, please: {text}'), ... "
    "Default: the model's own.",
)
INSTRUCTION = flags.DEFINE_string("instruction", "", "The instruction of --prompt.")
PREPEND = flags.DEFINE_string(
    "prepend",
    None,
    "Token prepending before the blocks start <= l < exit, such as 1:7.",
)
LAYERS = flags.DEFINE_string(
    "layers",
    "-1",
    "As transformers numbers hidden_states: -2, or 1;12 (average).",
)
BIDIRECTIONAL = flags.DEFINE_bool(
    "bidirectional", None, "Let tokens see both sides. Default: the model's own."
)
WHITEN = flags.DEFINE_string(
    "whiten", None, "Texts to fit a whitening on, in a file as of --corpus."
)
WHITEN_DIM = flags.DEFINE_integer("whiten_dim", None, "Numbers that whitening keeps.")


def model() -> pretrained.EmbeddingModel:
    """The model of --model, extended, with the flags' sizes checked against it.

    Raises:
        FileNotFoundError, ValueError: no such model, depth or dim, or --extend does not
            fit it.
    """
    loaded = _extended(load.load_adapted(MODEL.value, ADAPTER.value))
    sizes = (
        ("depth", DEPTH.value, loaded.config.depth),
        ("dim", DIM.value, loaded.width),
    )
    for name, value, most in sizes:
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"--{name}={value}: {MODEL.value} has {name} 1 ... {most}")
    return loaded


def _extended(loaded: pretrained.EmbeddingModel) -> pretrained.EmbeddingModel:
    """The model with a longer context, if --extend asks for it.

    Its texts are then as long as it reaches. A method without an end reaches as far as
    --max_length says.
    """
    if EXTEND.value is None:
        return loaded
    methods = read_methods(EXTEND.value)
    if MAX_LENGTH.value and "extrapolate" not in [m.name for m in methods]:
        methods = (*methods, Extrapolate(length=MAX_LENGTH.value))
    params, cfg = extend_context(loaded.params, loaded.config, methods)
    longer = cfg.max_len > loaded.config.max_len
    max_length = cfg.max_len if longer else loaded.max_length
    return loaded._replace(params=params, config=cfg, max_length=max_length)


def embedding(model: pretrained.EmbeddingModel, *, plain: str = "this command") -> dict:
    """The keyword arguments of `make_embedder` for a model and the flags.

    Args:
        model: the model.
        plain: what cannot do as the flags of `reads` say; empty if it can.

    Raises:
        ValueError: a flag does not go with `plain`, or says what there is not.
    """
    if plain and (given := _unusual()):
        raise ValueError(f"{given[0]} does not go with {plain}")
    flags = {"pool": POOL, "max_length": MAX_LENGTH, "depth": DEPTH, "dim": DIM}
    given = {name: f.value for name, f in flags.items() if f.value is not None}
    settings = {"depth": None, **pretrained.embedder_kwargs(model), **given}
    if not plain:
        return settings | _reads()
    if model.prompt is not None:
        raise ValueError(
            f"{MODEL.value} was trained with a method, which does not go with {plain}"
        )
    return settings


def _unusual() -> list[str]:
    """The flags that say how a model is read, where they differ from their default."""
    every = (PROMPT, INSTRUCTION, PREPEND, LAYERS, BIDIRECTIONAL, WHITEN, WHITEN_DIM)
    return [f"--{f.name}={f.value}" for f in every if f.value != f.default]


def _reads() -> dict:
    """The keyword arguments of `make_embedder` that say how a model is read."""
    both = BIDIRECTIONAL.value
    return reads(
        prompt=PROMPT.value or "",
        instruction=INSTRUCTION.value,
        prepend=PREPEND.value or "",
        layers=LAYERS.value,
        bidirectional="" if both is None else str(both).lower(),
        pool=POOL.value or "",
    )


def chunkings() -> dict[str, Chunking | None]:
    """{its name: how documents are cut} of --chunk; None where they are not.

    Raises:
        ValueError: the flag names what there is not.
    """
    return {str(chunk).lower(): chunk for chunk in parse_chunkings(CHUNK.value)}


def chunking() -> Chunking | None:
    """The one chunking of --chunk, for a command that takes no more.

    Raises:
        ValueError: there are several, or as `chunkings`.
    """
    found = list(chunkings().values())
    if len(found) > 1:
        raise ValueError(f"--chunk={CHUNK.value}: this command takes one chunking")
    return found[0]


def document_length(
    model: pretrained.EmbeddingModel, chunk: Chunking | None
) -> int | None:
    """Tokens of a document that are read; None, by default for parts of one, is all."""
    if MAX_LENGTH.value is not None:
        return MAX_LENGTH.value
    return model.max_length if chunk is None or chunk.reads_full_text else None


def embedder(
    model: pretrained.EmbeddingModel, chunk: Chunking | None, **settings
) -> EmbedFn:
    """The embedder of a model and the flags; `settings` go before them.

    Raises:
        ValueError: --max_length is more than the model reads.
    """
    plain = "" if chunk is None else f"--chunk={CHUNK.value}"
    settings = embedding(model, plain=plain) | settings
    if chunk is None:
        if settings["max_length"] > model.config.max_len:
            more = suggest_method(model.config, settings["max_length"])
            raise ValueError(
                f"--max_length={settings['max_length']}: {MODEL.value} reads texts of "
                f"{model.config.max_len} tokens; longer ones with --extend={more}"
            )
        return _whitened(model, settings)
    settings["max_length"] = document_length(model, chunk)
    return make_chunk_embedder(model.params, model.config, chunk=chunk, **settings)


def _whitened(model: pretrained.EmbeddingModel, settings: dict) -> EmbedFn:
    """The embedder of these settings, whitened if --whiten says so."""
    if WHITEN.value is None and WHITEN_DIM.value is not None:
        raise ValueError(f"--whiten_dim={WHITEN_DIM.value} needs --whiten=FILE")
    if WHITEN.value is None:
        return make_embedder(model.params, model.config, **settings)
    _, texts = read_corpus(WHITEN.value)
    raw = settings | {"normalize": False}
    embed = make_embedder(model.params, model.config, **raw)
    last = {"dims": WHITEN_DIM.value, "normalize": settings["normalize"]}
    return whiten_embedder(embed, texts, **last)

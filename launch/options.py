"""The flags that choose a model and how it embeds, for the commands that embed."""

from absl import flags

from research import pretrained
from research.models.pooling import POOLS

MODEL = flags.DEFINE_string(
    "model",
    None,
    "A workdir, a sentence-transformers or Hugging Face folder, or a hub id.",
    required=True,
)
DEPTH = flags.DEFINE_integer("depth", None, "Use the first blocks only.")
DIM = flags.DEFINE_integer("dim", None, "Keep the first numbers only.")
POOL = flags.DEFINE_enum("pool", None, list(POOLS), "Default: the model's own.")
MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Tokens of a text, more are cut. Default: the model's own."
)


def model() -> pretrained.Pretrained:
    """The model of --model, with the sizes of the flags checked against it.

    Raises:
        FileNotFoundError, ValueError: no such model, depth or dim.
    """
    loaded = pretrained.load(MODEL.value)
    sizes = (
        ("depth", DEPTH.value, loaded.config.depth),
        ("dim", DIM.value, loaded.dim or loaded.config.width),
    )
    for name, value, most in sizes:
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"--{name}={value}: {MODEL.value} has {name} 1 ... {most}")
    return loaded


def embedding(model: pretrained.Pretrained) -> dict:
    """The keyword arguments of `make_embedder` for a model and the flags."""
    flags = {"pool": POOL, "max_length": MAX_LENGTH, "depth": DEPTH, "dim": DIM}
    given = {name: f.value for name, f in flags.items() if f.value is not None}
    return {"depth": None, **pretrained.settings(model), **given}

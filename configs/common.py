"""Shared parts of recipes: the top-level keys, variants, data and starting points."""

import ast
import os
import re

import ml_collections

from research.config_sections import build, section
from research.data.row_packing import ROW_LAYOUTS
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.config_keys import CONTRASTIVE_KEYS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.experiment.mining import MINING
from research.experiment.teachers import TEACHERS
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.registry import OBJECTIVES
from research.objectives.tuning import TUNING
from research.text.prompts import PROMPTS
from research.train.averaging import AVERAGES
from research.train.optimizers import OPTIMIZERS

# Folder of the public text sets, unless a recipe's data= names another.
DATA = os.environ.get("EMBAX_DATA", "../shared/data")
# On the hub; `interop.load` takes it from its Python package if that is installed.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# Files of DATA/pairs: captions of the same image, questions with answers, headings with
# paragraphs.
PAIRS = ("multi30k_captions", "medquad", "openstax_heading_paragraph")

# {name: (source, its file or folder in DATA, its arguments)}
PUBLIC_SETS = {
    "nli": ("files", "nli/triplets.jsonl.gz", {}),
    "squad": ("beir", "squad_retrieval", {}),
    "stsb": ("files", "stsb/train.jsonl.gz", {"score_range": 5.0}),
    "banking77": ("labeled_texts", "banking77/train.jsonl.gz", {}),
    "trec": ("labeled_texts", "trec/train.jsonl.gz", {}),
}

# An item between commas; commas within brackets or quotes do not separate items.
VARIANT_ITEM = re.compile(r"""(?:\((?:[^()]|\([^()]*\))*\)|"[^"]*"|'[^']*'|[^,])+""")


def parse_arg(arg: str, **defaults) -> ml_collections.ConfigDict:
    """Reads a recipe's variant, such as "tiny,depth=6,dims=(64,128),model=a/b".

    Values are Python literals of the same type as the default. Strings need no quotes,
    and the name of a boolean alone sets it to true.

    Args:
        arg: The variant.
        **defaults: Names and default values of the recipe's variants.

    Raises:
        ValueError: The recipe has no such name, or the value has another type.
    """
    # Each item is "name" or "name=value".
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
    """Parses a variant's value, which must have the type of the default."""
    # Unquoted text is a string; anything else is a Python literal.
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
    """All top-level keys with their defaults; a recipe changes some of them."""
    return ml_collections.ConfigDict(
        {
            # Length of the training, and sizes of a batch
            "seed": 0,
            "steps": 1_000,
            "batch_size": 64,  # number of pairs over all devices
            "max_length": 128,  # number of tokens; longer texts are cut
            # Model
            "tokenizer": section(TOKENIZERS, "trained"),
            "encoder": section(ENCODERS, "bert"),
            "init_from": "",  # model whose weights the training starts from
            "position_methods": "",  # for a longer context, such as "yarn(scale=8)"
            # From texts to embeddings
            "prompt": section(PROMPTS, "plain"),  # prompt templates of the texts
            "pool": section(POOLINGS, "mean"),
            "normalize": True,  # embeddings to length 1; False for dot products
            # Objective and loss
            "objective": section(OBJECTIVES, "contrastive"),
            "tuning": section(TUNING, "full"),  # which parameters are trained
            "loss": section(LOSSES, "infonce"),
            "size_loss": section(SIZE_LOSSES, "full_size"),
            "similarity": "cosine",  # of embeddings in the loss; or "dot"
            "teacher": section(TEACHERS, "none"),  # vectors for losses that need them
            # Data, optimizer and devices
            "data": {},  # sources by their names
            "data_exponent": 0.0,  # a source's weight grows with its size to this power
            "mining": section(MINING, "none"),  # of hard negatives: refresh(every=1000)
            "optimizer": section(OPTIMIZERS, "adamw"),
            "averaging": section(AVERAGES, "none"),  # of the weights, over steps
            "mesh": {"data": -1, "fsdp": 1, "model": 1},
            # Evaluation, logging and checkpoints
            "evals": {},  # evaluators by their names
            "eval_sizes": (),  # (depth, dim) that they score besides the full size
            "log_every": 10,  # steps
            "save_every": 500,  # steps
            "keep": 2,  # number of newest checkpoints that are kept
            "keep_every": 0,  # steps between further kept checkpoints; 0 for none
            "keep_best": "",  # score whose best checkpoint is kept: "dev/main_score"
            "eval_every": 0,  # 0: only at the end; otherwise before training, too
            "patience": 0,  # evaluations without a better one, then the run ends
        }
    )


def start_from(config: ml_collections.ConfigDict, model: str, **encoder) -> None:
    """Takes the tokenizer, the encoder (with changes) and the weights of a model."""
    config.tokenizer = section(TOKENIZERS, "pretrained", model=model)
    config.encoder = section(ENCODERS, "pretrained", model=model, **encoder)
    config.init_from = model


def tiny(config: ml_collections.ConfigDict, depth: int = 6, **encoder) -> None:
    """Shrinks a recipe to a few seconds: a small encoder from scratch, four steps."""
    # Few short texts in small batches.
    config.steps, config.batch_size, config.max_length = 4, 8, 32
    config.log_every = config.save_every = 2
    # A random encoder, and pairs that need no files.
    config.tokenizer = section(TOKENIZERS, "trained", vocab=512)
    shape = {"vocab_size": 512, "width": 48, "num_heads": 2, "mlp": 64, "max_len": 64}
    config.encoder = section(ENCODERS, "bert", depth=depth, **shape, **encoder)
    config.init_from = ""
    config.data = {"pairs": section(SOURCES, "pydocs", limit=400)}
    config.eval_sizes = ()
    config.evals = {
        "pydocs": section(EVALS, "pydocs_retrieval", candidates=50, queries=50)
    }


def starbucks_pairs(config: ml_collections.ConfigDict) -> tuple[tuple[int, int], ...]:
    """The six sizes of Starbucks (Zhuang et al. 2024), scaled to the config's encoder.

    The paper's sizes (2,32) ... (12,768) of a 12 x 768 encoder are, relative to it,
    depths of 1/6, 2/6 ... 1 and widths of 1/24, 1/12, 1/6, 1/3, 2/3 and 1.
    """
    # Six (depth, width) pairs, from small to large.
    shape = build(ENCODERS, config.encoder)
    return tuple(
        (max(1, shape.depth * (i + 1) // 6), max(1, shape.width * part // 24))
        for i, part in enumerate((1, 2, 4, 8, 16, 24))
    )


def starbucks_dims(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """The widths of `starbucks_pairs`, from the full width down."""
    return tuple(dim for _, dim in reversed(starbucks_pairs(config)))


def public_source(data: str, name: str, **arguments) -> ml_collections.ConfigDict:
    """The config section of one of PUBLIC_SETS in a folder, with changed arguments."""
    kind, path, options = PUBLIC_SETS[name]
    return section(SOURCES, kind, path=f"{data}/{path}", **options | arguments)


def train_on_squad(
    config: ml_collections.ConfigDict, data: str, similarity: str
) -> None:
    """Gives a recipe SQuAD's training questions, and its dev questions to score."""
    config.data = {"squad": public_source(data, "squad", split="train")}
    options = {"split": "dev", "similarity": similarity}
    retrieval = section(EVALS, "retrieval", data=f"{data}/squad_retrieval", **options)
    config.evals = {"squad": retrieval}


def make_tiny_mixture(**losses: str) -> dict[str, ml_collections.ConfigDict]:
    """Sources of pairs that need no files, by their names, each with its loss."""
    return {
        name: section(SOURCES, "pydocs", limit=400, loss=loss)
        for name, loss in losses.items()
    }


def supplementary_pairs(data: str) -> dict[str, ml_collections.ConfigDict]:
    """Three sources of pairs, which together have the weight of one source."""
    weight = 1 / len(PAIRS)
    return {
        name: section(
            SOURCES, "files", path=f"{data}/pairs/{name}.jsonl.gz", weight=weight
        )
        for name in PAIRS
    }


def make_bitext_sources(
    data: str, languages: tuple[str, ...], query: str = "sentence1"
) -> dict[str, ml_collections.ConfigDict]:
    """Sources of sentences and their translations, one for each language.

    Args:
        data: Folder with tatoeba/, whose sentence1 is in the language named by the file
            and whose sentence2 is English.
        languages: Codes of the languages, such as "deu".
        query: The column of the queries; the other one has the documents.
    """
    positive = {"sentence1": "sentence2", "sentence2": "sentence1"}[query]
    columns = f"query={query}, positive={positive}"
    return {
        code: section(
            SOURCES,
            "files",
            path=f"{data}/tatoeba/{code}-eng.jsonl.gz",
            columns=columns,
        )
        for code in languages
    }


def make_bitext_evals(data: str, language: str) -> dict[str, ml_collections.ConfigDict]:
    """The evaluation of translations of a language that is held out from training."""
    path = f"{data}/tatoeba/{language}-eng.jsonl.gz"
    return {f"bitext_{language}": section(EVALS, "bitext_mining", data=path)}


def teach(
    config: ml_collections.ConfigDict,
    model: str,
    queries: str = "",
    documents: str = "",
) -> None:
    """Gives a recipe a teacher: a model within the step, or vectors on disk."""
    if queries or documents:
        files = {"queries": queries or (), "documents": documents or ()}
        config.teacher = section(TEACHERS, "vectors", **files)
    else:
        config.teacher = section(TEACHERS, "model", model=model)


def fine_tuning(arg: ml_collections.ConfigDict, **encoder) -> ml_collections.ConfigDict:
    """The common part of recipes on NLI triplets: all but the loss over sizes.

    The settings are those of Starbucks' fine-tuning: AdamW at 5e-5 with 10 % warm-up
    and linear decay, InfoNCE of cosines at temperature 0.05 with in-batch and hard
    negatives, mean pooling.

    Args:
        arg: Variants, of which tiny, model, data and steps are used.
        **encoder: Changes of the encoder, such as its depth.
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
    # Triplets for training, STS-B for evaluation.
    start_from(config, arg.model, **encoder)
    config.data = {
        "nli": section(SOURCES, "files", path=f"{arg.data}/nli/triplets.jsonl.gz")
    }
    config.evals = {
        "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
    }
    return config


def pre_training(arg: str, *, pool: str = "cls", **rows) -> ml_collections.ConfigDict:
    """The common part of recipes for pre-training on raw text: all but the objective.

    A BERT of six blocks is trained from scratch on textbooks and on docstrings with
    code, in rows of `length` tokens. There is no dropout, since no text is seen twice.
    The variants are tiny, model, data, steps, depth, width, vocab_size and length.

    Args:
        arg: The variant.
        pool: Pooling in evaluations, and in later uses of the trained model.
        **rows: Arguments of the row layout; "packed" if they do not name another.
    """
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 400},
        **{"depth": 6, "width": 192, "vocab_size": 8_192, "length": 128},
    )
    # Pre-training has no contrastive loss.
    config = make_base()
    for key in CONTRASTIVE_KEYS:
        del config[key]
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
    # A new encoder and tokenizer, or those of a model.
    config.tokenizer = section(TOKENIZERS, "trained", vocab=arg.vocab_size)
    shape = {"vocab_size": arg.vocab_size, "width": arg.width, "depth": arg.depth}
    shape |= {"num_heads": max(1, arg.width // 64), "mlp": 4 * arg.width}
    shape["max_len"] = config.max_length = arg.length
    config.batch_size = 8_192 // arg.length  # rows
    config.encoder = section(ENCODERS, "bert", dropout=0.0, **shape)
    if arg.model:
        start_from(config, arg.model, dropout=0.0)
    # Two steps out of three on textbooks, one on docstrings and code.
    books = f"{arg.data}/rawtext/openstax.txt.gz"
    config.data = {
        "openstax": section(SOURCES, "texts", path=books, unit="block", weight=2.0),
        "pydocs": section(SOURCES, "pydocs"),
    }
    config.evals = {
        "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
    }
    return config

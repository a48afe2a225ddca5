"""Fine-tuning of a model on a file of one's own.

Source: none; the settings are those of `fine_tuning` in configs/common.py.
Command: python -m launch.train --config=configs/finetune.py:train=my.jsonl --workdir=W
Variants: train=FILE (jsonl, tsv or csv, plain or .gz, whose usual column names are in
    research/data/sources.py; or a .toml file that lists several sources, as
    research/experiment/train_sets.py shows), model=NAME (hub id, folder, package or
    workdir), dev=FILE or FOLDER (scored pairs, examples as in train, a BEIR folder, or
    one with the splits of another task; a tenth of the queries of train if it is not
    given), columns="query=question, positive=answer, negative=bad*", loss=CALL
    (infonce, or cosent if the file has scores), sizes=full_size, matryoshka or
    starbucks, batch=N, epochs=X or steps=N, rate=X (learning rate), patience=N
    (evaluations without a better score, after which the run ends), query_prompt=TEXT,
    document_prompt=TEXT, negatives=N (-1 for as many as every row has), pool=NAME,
    max_length=N and similarity=cosine or dot (the model's if they are not given), tiny.
Cost: that of the model, the file and the number of epochs.
Expected: a better main_score of the evaluation "dev" than before training.
"""

from configs.common import (
    MINILM,
    make_base,
    parse_arg,
    starbucks_dims,
    starbucks_pairs,
    start_from,
    tiny,
)
from research.config_sections import check_option, parse_section, section
from research.experiment.dev_sets import choose_dev_set
from research.experiment.train_sets import (
    choose_held_out,
    choose_sources,
    read_first_examples,
)
from research.interop.load import load
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.losses.similarity import SIMILARITIES
from research.models.pooling.registry import POOLINGS

DATA_OPTIONS = {"train": "", "dev": "", "columns": "", "negatives": -1}
PROMPT_OPTIONS = {"query_prompt": "", "document_prompt": ""}
# The model's own pooling, length and similarity unless they are given
MODEL_OPTIONS = {"model": MINILM, "pool": "", "max_length": 0, "similarity": ""}
TRAIN_OPTIONS = {"batch": 64, "epochs": 1.0, "steps": 0, "rate": 5e-5, "patience": 0}
SIZES = ("full_size", "matryoshka", "starbucks")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    loss_options = {"loss": "", "sizes": "full_size", "tiny": False}
    options = DATA_OPTIONS | PROMPT_OPTIONS | MODEL_OPTIONS | TRAIN_OPTIONS
    arg = parse_arg(arg, **loss_options, **options)
    config = make_base()
    config.batch_size = arg.batch
    config.optimizer.learning_rate = arg.rate
    config.optimizer.warmup = 0.1
    loss = arg.loss
    if arg.tiny:
        tiny(config)
    else:
        _set_model(config, arg)
        has_scores = _set_data(config, arg)
        loss = loss or ("cosent" if has_scores else "infonce")
    config.loss = parse_section(LOSSES, loss or "infonce")
    _set_sizes(config, arg.sizes)
    return config


def _set_model(config, arg) -> None:
    """Starts from the model, and embeds as it does unless told otherwise."""
    base = load(arg.model, weights=False)
    if base.kind != "dense":
        raise ValueError(
            f"{arg.model} gives {base.kind.replace('_', '-')} embeddings, which other "
            "recipes train, such as configs/colbert.py:model=NAME"
        )
    start_from(config, arg.model)
    config.pool = parse_section(POOLINGS, arg.pool or base.pool)
    config.max_length = arg.max_length or base.max_length
    # Vectors of length 1 have the same dot product and cosine.
    similarity = "cosine" if base.normalize else base.similarity
    config.similarity = arg.similarity or similarity
    config.normalize = base.normalize and config.similarity == "cosine"
    if not arg.similarity and similarity not in SIMILARITIES:
        raise ValueError(
            f"{arg.model} compares by {similarity} similarity, which no loss trains; "
            "name one by similarity=cosine or similarity=dot"
        )
    check_option("similarity", config.similarity, SIMILARITIES)


def _set_data(config, arg) -> bool:
    """Sets the sources, evaluations and steps; whether the examples have scores."""
    if not arg.train:
        raise ValueError(
            "configs/finetune.py needs a file to train on: "
            "--config=configs/finetune.py:train=FILE"
        )
    prompts = {name: arg[name] or None for name in PROMPT_OPTIONS}
    config.data = choose_sources(
        arg.train, columns=arg.columns, negatives=arg.negatives, **prompts
    )
    # A part of each file is held out where there is no other file for evaluation.
    if arg.dev:
        config.evals = {"dev": choose_dev_set(arg.dev, arg.columns)}
    else:
        config.evals = choose_held_out(config.data)
    # Steps of the epochs, with an evaluation before, after and three times between.
    count, examples = read_first_examples(config.data)
    config.steps = arg.steps or max(1, round(arg.epochs * count / arg.batch))
    config.eval_every = config.save_every = max(1, config.steps // 4)
    config.patience = arg.patience
    config.keep_best = f"{next(iter(config.evals))}/main_score"
    # Sources of a list may have a loss of their own
    examples = {name: x for name, x in examples.items() if not config.data[name].loss}
    scored = [name for name in examples if examples[name].score is not None]
    if not arg.loss and 0 < len(scored) < len(examples):
        others = sorted(examples.keys() - set(scored))
        raise ValueError(
            f"data {', '.join(scored)} has scores and {', '.join(others)} has none: "
            "name the loss that learns from both, such as loss=infonce, or give each "
            'its own in the list, such as loss = "cosent()"'
        )
    return bool(scored)


def _set_sizes(config, sizes: str) -> None:
    check_option("sizes", sizes, SIZES)
    pairs = starbucks_pairs(config)
    if sizes == "matryoshka":
        dims = starbucks_dims(config)
        config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
        depth = pairs[-1][0]
        pairs = tuple((depth, dim) for dim in dims)
    elif sizes == "starbucks":
        config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)
    if sizes != "full_size" and config.evals:
        # The full size may lose what smaller ones gain: the mean chooses the best step
        config.eval_sizes = pairs
        config.keep_best = config.keep_best.replace("/main_score", "/size_mean")

"""Fine-tuning of a model on a file of one's own.

Source: none; the settings are those of `fine_tuning` in configs/common.py.
Command: python -m launch.train --config=configs/finetune.py:train=my.jsonl --workdir=W
Variants: train=FILE (jsonl, tsv or csv, plain or .gz; its usual column names are in
    research/data/sources.py), model=NAME (hub id, folder, package or workdir),
    dev=FILE or FOLDER (scored pairs, examples as in train, or a BEIR folder; a tenth of
    the queries of train if it is not given), columns="query=question,
    positive=answer, negative=bad*", loss=CALL (infonce, or cosent if the file has
    scores), sizes=full_size, matryoshka or starbucks, batch=N, epochs=X or steps=N,
    rate=X (learning rate), max_length=N, pool=NAME (the model's if it is not given),
    query_prompt=TEXT, document_prompt=TEXT, negatives=N (-1 for as many as every row
    has), tiny.
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
from research.config_sections import parse_section, section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.dev_sets import choose_dev_set
from research.interop.load import find_pooling
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS

DATA_OPTIONS = {"train": "", "dev": "", "columns": "", "negatives": -1}
PROMPT_OPTIONS = {"query_prompt": "", "document_prompt": ""}
TRAIN_OPTIONS = {"batch": 64, "epochs": 1.0, "steps": 0, "rate": 5e-5}
SIZES = ("full_size", "matryoshka", "starbucks")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    model_options = {"model": MINILM, "pool": "", "max_length": 128}
    loss_options = {"loss": "", "sizes": "full_size", "tiny": False}
    options = DATA_OPTIONS | PROMPT_OPTIONS | TRAIN_OPTIONS
    arg = parse_arg(arg, **model_options, **loss_options, **options)
    config = make_base()
    config.batch_size, config.max_length = arg.batch, arg.max_length
    config.optimizer.learning_rate = arg.rate
    config.optimizer.warmup = 0.1
    loss = arg.loss
    if arg.tiny:
        tiny(config)
    else:
        start_from(config, arg.model)
        config.pool = parse_section(POOLINGS, arg.pool or find_pooling(arg.model))
        has_scores = _set_data(config, arg)
        loss = loss or ("cosent" if has_scores else "infonce")
    config.loss = parse_section(LOSSES, loss or "infonce")
    _set_sizes(config, arg.sizes)
    return config


def _set_data(config, arg) -> bool:
    """Sets the source, the evaluation and the steps; whether examples have scores."""
    if not arg.train:
        raise ValueError(
            "configs/finetune.py needs a file to train on: "
            "--config=configs/finetune.py:train=FILE"
        )
    # A part of the file is held out where there is no other file for evaluation.
    files = {"path": arg.train, "columns": arg.columns, "negatives": arg.negatives}
    files["part"] = "all" if arg.dev else "train"
    prompts = {name: arg[name] or None for name in PROMPT_OPTIONS}
    config.data = {"train": section(SOURCES, "files", **files, **prompts)}
    if arg.dev:
        dev = choose_dev_set(arg.dev, arg.columns)
    else:
        dev = section(
            EVALS, "examples", data=arg.train, columns=arg.columns, part="held_out"
        )
    config.evals = {"dev": dev}
    # Steps of the epochs, with an evaluation before, after and three times between.
    examples = SOURCES["files"](**files).examples
    config.steps = arg.steps or max(1, round(arg.epochs * len(examples) / arg.batch))
    config.eval_every = config.save_every = max(1, config.steps // 4)
    return examples[0].score is not None


def _set_sizes(config, sizes: str) -> None:
    if sizes not in SIZES:
        raise ValueError(f"sizes is {sizes!r}; allowed: {', '.join(SIZES)}")
    if sizes == "matryoshka":
        dims = starbucks_dims(config)
        config.size_loss = section(SIZE_LOSSES, "matryoshka", dims=dims)
    elif sizes == "starbucks":
        pairs = starbucks_pairs(config)
        config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)

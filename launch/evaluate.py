"""Scores a model on similarity, retrieval or long texts, at one size or at all sizes.

Or the perplexity of a causal one.

python -m launch.evaluate --model=M --task=sts --data=stsb/test.jsonl.gz [--grid]
python -m launch.evaluate --model=M --task=longembed [--lengths=256,512] [--data=qmsum]
python -m launch.evaluate --model=M --task=retrieval --data=D \\
    --chunk="none | late(64) | late(128)"
python -m launch.evaluate --model=M --task=perplexity --data=texts.txt|pydocs
python -m launch.evaluate --model=M --task=sts --data=D --prompt=prompteol --prepend=1:7
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from research.atomic_write import atomic_write
from research.eval import compare_chunking, grid, longembed
from research.eval.evaluators import EVALS
from research.inference.embedder import make_embedder, make_grid_embedder
from research.models import encoder as models_encoder
from research.types import ModelEvaluator

TASK = flags.DEFINE_enum("task", None, list(EVALS), "What to score.", required=True)
DATA = flags.DEFINE_string("data", None, "An STS file, a BEIR folder, or texts.")
SPLIT = flags.DEFINE_string("split", "test", "Which qrels of a BEIR folder.")
GRID = flags.DEFINE_bool("grid", False, "Score every depth and width.")
TASKS = flags.DEFINE_list("tasks", list(longembed.TASKS), "Of longembed; may be none.")
LENGTHS = flags.DEFINE_list("lengths", list(longembed.LENGTHS), "Tokens, of longembed.")
TEXT = flags.DEFINE_string(
    "text", "", "File or folder that longembed hides needles in."
)
SAMPLES = flags.DEFINE_integer(
    "samples", 0, "Of a bootstrap, for the score's 95 % interval: sts and retrieval."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the files of a table.")


def main():
    """The scores; those of longembed or of --grid also as JSON, markdown and PNG.

    So also those of several ways to cut documents.
    """
    chunkings = options.chunkings()
    if any(chunkings.values()) and (GRID.value or TASK.value in ("sts", "perplexity")):
        other = "--grid" if GRID.value else f"--task={TASK.value}"
        raise ValueError(f"--chunk={options.CHUNK.value} does not go with {other}")
    if GRID.value and TASK.value == "perplexity":
        raise ValueError(f"--grid does not go with --task={TASK.value}")
    evaluator = _evaluator()
    if isinstance(evaluator, ModelEvaluator):
        return _evaluate_model(evaluator)
    model = options.model()
    if GRID.value:
        found = _grid(evaluator, model)
        record = grid.to_record(found)
        return _written("grid", found, record, grid.format_markdown, grid.plot_heat_map)
    if len(chunkings) > 1:
        return _sweep(evaluator, model, chunkings)
    (chunk,) = chunkings.values()
    scores = evaluator(options.embedder(model, chunk))
    if TASK.value == "longembed":
        cli.log(longembed.format_markdown(scores, _title()))
        reach = options.document_length(model, chunk)
        picture = partial(longembed.plot_longembed, document_length=reach)
        return _written("longembed", scores, scores, longembed.format_markdown, picture)
    return {"model": options.MODEL.value, "task": TASK.value, **scores}


def _evaluate_model(evaluator: ModelEvaluator) -> dict:
    """The scores of an evaluator that reads the model, not its embeddings."""
    model = options.model()
    settings = options.embedding(model)
    found = model.params, model.config
    if settings["depth"]:
        found = models_encoder.truncate_depth(*found, settings["depth"])
    scores = evaluator.evaluate(*found, model.tokenizer, settings["max_length"])
    return {"model": options.MODEL.value, "task": TASK.value, **scores}


def _sweep(evaluator, model, chunkings) -> dict:
    makers = {
        name: partial(options.embedder, model, chunk)
        for name, chunk in chunkings.items()
    }
    cells = compare_chunking.compare_chunkings(evaluator, makers, cli.log)
    record = compare_chunking.to_record(cells)
    return _written(
        "chunks",
        cells,
        record,
        compare_chunking.format_markdown,
        compare_chunking.plot_chunkings,
    )


def _evaluator():
    sources = {
        "sts": {"data": DATA.value, "samples": SAMPLES.value},
        "retrieval": {
            "data": DATA.value,
            "split": SPLIT.value,
            "samples": SAMPLES.value,
        },
        "longembed": {
            "tasks": TASKS.value,
            "lengths": [_tokens(length) for length in LENGTHS.value],
            "data": DATA.value or "",
            "split": SPLIT.value,
            "text": TEXT.value,
        },
        "perplexity": {"data": DATA.value or "pydocs"},
    }
    arguments = sources.get(TASK.value, {})
    if arguments.get("data", "") is None:
        raise ValueError(f"--task={TASK.value} needs --data")
    return EVALS[TASK.value](**arguments)


def _tokens(length: str | int) -> int:
    try:
        return int(length)
    except ValueError:
        raise ValueError(f"--lengths: {length!r} is not a number of tokens") from None


def _grid(evaluator, model) -> grid.Grid:
    settings = options.embedding(model, plain="--grid")
    normalize, dim = settings.pop("normalize"), settings.pop("dim")
    depth = settings.pop("depth")
    depths = [depth] if depth else list(range(1, model.config.depth + 1))
    known = sorted(model.dims) or grid.default_dims(model.width)
    dims = [dim] if options.DIM.value else known
    encoder = model.params, model.config

    def cut(depth):
        cli.log(f"measuring the speed of depth {depth}")
        return make_embedder(*encoder, depth=depth, normalize=normalize, **settings)

    every = make_grid_embedder(*encoder, depths=depths, **settings)
    return grid.score_grid(
        evaluator, every, cut, depths=depths, dims=dims, normalize=normalize
    )


def _folder() -> Path:
    """evals/ of a workdir; the current folder for a model from elsewhere."""
    workdir = Path(options.MODEL.value).expanduser()
    return workdir / "evals" if (workdir / "model.json").exists() else Path()


def _title() -> str:
    return f"{Path(options.MODEL.value).name}: {TASK.value}"


def _written(
    name: str, found, record: dict, markdown: Callable, plot: Callable
) -> dict:
    """The record of what was found, written beside a table and a picture of it."""
    result = {"model": options.MODEL.value, "task": TASK.value, **record}
    folder = Path(OUTPUT.value) if OUTPUT.value else _folder()
    with (
        atomic_write(folder / f"{name}.json") as data,
        atomic_write(folder / f"{name}.md") as table,
        atomic_write(folder / f"{name}.png") as picture,
    ):
        data.write_text(json.dumps(result, indent=2) + "\n")
        table.write_text(markdown(found, _title()))
        plot(found, _title(), picture)
    return result


if __name__ == "__main__":
    cli.run(main)

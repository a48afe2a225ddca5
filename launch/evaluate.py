"""Scores a model on sentence similarity or retrieval, at one size or at all of them.

python -m launch.evaluate --model=M --task=sts --data=stsb/test.jsonl.gz [--grid]
"""

import json
from pathlib import Path

from absl import flags

from launch import cli, options
from research.eval import grid as grids
from research.eval.embed import make_embedder, make_grid_embedder
from research.eval.evaluators import EVALS

TASK = flags.DEFINE_enum("task", None, list(EVALS), "What to score.", required=True)
DATA = flags.DEFINE_string("data", None, "An STS file, or a BEIR folder.")
SPLIT = flags.DEFINE_string("split", "test", "Which qrels of a BEIR folder.")
GRID = flags.DEFINE_bool("grid", False, "Score every depth and width.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the grid's files.")


def main():
    """The scores; with --grid, of every size, also as JSON, markdown and PNG files."""
    evaluator = _evaluator()
    model = options.model()
    if not GRID.value:
        embed = make_embedder(model.params, model.config, **options.embedding(model))
        return {"model": options.MODEL.value, "task": TASK.value, **evaluator(embed)}
    found = _grid(evaluator, model)
    folder = Path(OUTPUT.value) if OUTPUT.value else _folder()
    title = f"{Path(options.MODEL.value).name}: {TASK.value}"
    result = {"model": options.MODEL.value, "task": TASK.value, **grids.record(found)}
    _write(found, title, result, folder)
    return result


def _evaluator():
    sources = {
        "sts": {"data": DATA.value},
        "retrieval": {"data": DATA.value, "split": SPLIT.value},
    }
    arguments = sources.get(TASK.value, {})
    if "data" in arguments and DATA.value is None:
        raise ValueError(f"--task={TASK.value} needs --data")
    return EVALS[TASK.value](**arguments)


def _grid(evaluator, model) -> grids.Grid:
    settings = options.embedding(model)
    normalize, dim = settings.pop("normalize"), settings.pop("dim")
    depth = settings.pop("depth")
    depths = [depth] if depth else list(range(1, model.config.depth + 1))
    known = sorted(model.dims) or grids.widths(model.dim or model.config.width)
    dims = [dim] if options.DIM.value else known
    encoder = model.params, model.config

    def cut(depth):
        cli.say(f"measuring the speed of depth {depth}")
        return make_embedder(*encoder, depth=depth, normalize=normalize, **settings)

    every = make_grid_embedder(*encoder, depths=depths, **settings)
    return grids.grid(
        evaluator, every, cut, depths=depths, dims=dims, normalize=normalize
    )


def _folder() -> Path:
    """evals/ of a workdir; the current folder for a model from elsewhere."""
    workdir = Path(options.MODEL.value).expanduser()
    return workdir / "evals" if (workdir / "model.json").exists() else Path()


def _write(found: grids.Grid, title: str, result: dict, folder: Path) -> None:
    with (
        cli.replacing(folder / "grid.json") as data,
        cli.replacing(folder / "grid.md") as table,
        cli.replacing(folder / "grid.png") as picture,
    ):
        data.write_text(json.dumps(result, indent=2) + "\n")
        table.write_text(grids.markdown(found, title))
        grids.heat_map(found, title, picture)


if __name__ == "__main__":
    cli.run(main)

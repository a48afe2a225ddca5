"""Command that runs an ablation: trains and scores recipes over seeds, in one table.

python -m launch.ablate --config=configs/ablations/x.py[:arg] --workdir=DIR [--jobs=N]
python -m launch.ablate --config=configs/ablations/x.py[:arg] --workdir=DIR --share=I/N
python -m launch.ablate --config=configs/ablations/x.py[:arg] --workdir=DIR --verify=ROW
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import main as cli
from launch.recipes import load_recipe
from research.analysis import ablation as ablations
from research.analysis import (
    ablation_manifest,
    ablation_plot,
    ablation_runs,
    ablation_significance,
    ablation_table,
)
from research.atomic_write import atomic_write, write_json
from research.config_sections import build
from research.eval.evaluators import EVALS
from research.eval.figures import write_picture
from research.experiment.inputs import hash_inputs, hash_path
from research.file_lock import lock_folder
from research.interop.load import resolve_folder

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The ablation, such as configs/ablations/starbucks.py."
)
WORKDIR = cli.define_path(
    "workdir", None, "The folder of the ablation's runs.", required=True
)
ROW = flags.DEFINE_multi_string(
    "row", [], "Name of a row to run, once for each; all rows if unset."
)
SHARE = flags.DEFINE_string(
    "share",
    None,
    "I/N: the I-th of N shares of the runs, for one of N hosts with the same folder. "
    "It makes no table; the same command without --share makes it afterwards.",
)
JOBS = flags.DEFINE_integer("jobs", 1, "The number of runs at a time.", lower_bound=1)

VERIFY = flags.DEFINE_string(
    "verify",
    None,
    "Name of a row that has its scores: its runs of the first seed are made again, in "
    "a folder of their own, and the scores are compared.",
)
TOLERANCE = flags.DEFINE_float(
    "tolerance",
    0.01,
    "The largest difference of a score in points that --verify accepts.",
    lower_bound=0.0,
)


def main():
    """Trains and scores what is missing; writes the tables, a plot and a manifest."""
    if CONFIG.value is None:
        raise ValueError("--config is needed, such as configs/ablations/starbucks.py")
    config = CONFIG.value.to_dict()
    sections = config.pop("evals")
    evals = {name: build(EVALS, part) for name, part in sections.items()}
    # What scores depend on: the settings, and the contents of the files.
    settings = {name: [part, hash_inputs(part)] for name, part in sections.items()}
    # Rows and columns are (name, fields) pairs, because a ConfigDict sorts its keys.
    pairs = {name: dict(config.pop(name)) for name in ("rows", "columns")}
    if config.get("reference") not in (None, "", *pairs["rows"]):
        rows = ", ".join(map(repr, pairs["rows"]))
        raise ValueError(f"reference is {config['reference']!r}; the rows are {rows}")
    names = ROW.value + ([VERIFY.value] if VERIFY.value else [])
    chosen = ablations.choose_rows(pairs["rows"], names)
    if not VERIFY.value:
        pairs["rows"] = chosen
    ablation = ablations.Ablation(
        evals=evals, eval_settings=settings, **pairs, **config
    )
    workdir = Path(WORKDIR.value)
    options = {"jobs": JOBS.value, "report": cli.log, "describe": _describe_recipe}
    if SHARE.value is not None:
        return _run_share(ablation, workdir, options)
    with lock_folder(workdir):
        if VERIFY.value:
            options["tolerance"] = TOLERANCE.value
            return ablation_manifest.verify_row(
                ablation, VERIFY.value, workdir, **options
            )
        return _run(ablation, workdir, options)


def _run(ablation: ablations.Ablation, workdir: Path, options: dict) -> dict:
    scores = ablation_runs.run_ablation(ablation, workdir, **options)
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    manifest = ablation_manifest.make_manifest(ablation, filename, workdir)
    # The table in four forms, and what it was made by, written atomically.
    records = ablation_table.summarize_scores(ablation, scores)
    records = ablation_significance.compare_rows(ablation, scores, records, workdir)
    with (
        atomic_write(workdir / "table.md") as table,
        atomic_write(workdir / "table.csv") as data,
        atomic_write(workdir / "table.tex") as latex,
    ):
        table.write_text(ablation_table.format_markdown(ablation, records))
        ablation_table.write_csv(records, data)
        latex.write_text(ablation_table.format_latex(ablation, records))
        plot = partial(ablation_plot.plot_ablation, ablation, records)
        write_picture(workdir / "table.png", plot)
    write_json(workdir / "manifest.json", manifest)
    print((workdir / "table.md").read_text())
    failed = ablations.collect_failures(scores)
    return {"workdir": str(workdir), "table": records, "failed": failed}


def _run_share(ablation: ablations.Ablation, workdir: Path, options: dict) -> dict:
    """Runs a host's share of an ablation; the result has no table."""
    index, count = _parse_share(SHARE.value)
    if VERIFY.value:
        raise ValueError("--verify runs a row as a whole; leave out --share")
    options["share"] = index - 1, count
    with lock_folder(workdir, f"share{index}of{count}.lock"):
        scores = ablation_runs.run_ablation(ablation, workdir, **options)
    failed = ablations.collect_failures(scores)
    return {"workdir": str(workdir), "runs": list(scores), "failed": failed}


def _parse_share(text: str) -> tuple[int, int]:
    """Index from 1 and number of shares of I/N."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"--share={text}: give the I-th of N, such as 1/4")
    return index, count


def _describe_recipe(recipe: str, overrides: Sequence[str]) -> list:
    """All that the model of a recipe depends on: its config, and the contents of files.

    Raises:
        FileNotFoundError, ValueError: There is no such recipe or model.
    """
    if recipe.startswith(ablations.MODEL):
        model = recipe.removeprefix(ablations.MODEL)
        return [model, hash_path(resolve_folder(model))]
    config = json.loads(load_recipe(recipe, overrides).to_json())
    return [config, hash_inputs(config)]


if __name__ == "__main__":
    cli.run(main)

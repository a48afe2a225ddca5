"""Command that runs an ablation: trains and scores recipes over seeds, in one table.

python -m launch.ablate --config=configs/ablations/x.py[:arg] --workdir=DIR [--jobs=N]
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import main as cli
from research.analysis import ablation as ablations
from research.analysis import ablation_table
from research.atomic_write import atomic_write
from research.config_sections import build
from research.eval.evaluators import EVALS

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The ablation, such as configs/ablations/starbucks.py."
)
WORKDIR = cli.define_path(
    "workdir", None, "The folder of the ablation's runs.", required=True
)
JOBS = flags.DEFINE_integer("jobs", 1, "The number of runs at a time.", lower_bound=1)


def main():
    """Trains and scores what is missing; writes table.md, table.csv and table.png."""
    if CONFIG.value is None:
        raise ValueError("--config is needed, such as configs/ablations/starbucks.py")
    config = CONFIG.value.to_dict()
    evals = {name: build(EVALS, part) for name, part in config.pop("evals").items()}
    # Rows and columns are (name, fields) pairs, because a ConfigDict sorts its keys.
    pairs = {name: dict(config.pop(name)) for name in ("rows", "columns")}
    ablation = ablations.Ablation(evals=evals, **pairs, **config)
    workdir = Path(WORKDIR.value)
    scores = ablations.run_ablation(ablation, workdir, jobs=JOBS.value, report=cli.log)
    # The table in three forms, written atomically.
    records = ablation_table.summarize_scores(ablation, scores)
    with (
        atomic_write(workdir / "table.md") as table,
        atomic_write(workdir / "table.csv") as data,
        atomic_write(workdir / "table.png") as picture,
    ):
        table.write_text(ablation_table.format_markdown(ablation, records))
        ablation_table.write_csv(records, data)
        ablation_table.plot_ablation(ablation, records, picture)
    print((workdir / "table.md").read_text())
    failed = ablations.collect_failures(scores)
    return {"workdir": str(workdir), "table": records, "failed": failed}


if __name__ == "__main__":
    cli.run(main)

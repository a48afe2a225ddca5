"""Command that merges models of one architecture into a sentence-transformers folder.

python -m launch.merge --models=A,B,C --output=DIR [--method="average(weights=(1,2,1))"]
python -m launch.merge --models=A,B --output=DIR --method="slerp(t=0.3)"

A model may be a checkpoint of a run, such as runs/mine/checkpoints/300. Prompts and all
other settings are those of the first model.
"""

from pathlib import Path

from absl import flags

from launch import main as cli
from research.analysis.model_merging import merge_models
from research.atomic_write import write_json
from research.interop.sentence_transformers.write import export

MODELS = flags.DEFINE_list(
    "models", None, "The names of the models, separated by commas.", required=True
)
METHOD = flags.DEFINE_string(
    "method",
    "average",
    "How they are merged: average(weights=(1, 2)); slerp(t=0.5) of two; "
    "task_vectors(base='M', scale=0.5), which adds the differences from the model they "
    "started from; or self_positioning(base='M', data='pairs.jsonl'), which searches "
    "the weights of these differences on pairs.",
)
OUTPUT = cli.define_path(
    "output", None, "The folder to write: new, or empty.", required=True
)
cli.group_flags("Models", MODELS, METHOD)
cli.group_flags("Output", OUTPUT)


def main() -> dict:
    """Merges the models, and returns what was written."""
    output = Path(OUTPUT.value)
    # Before the models are loaded
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there and not empty")
    model, search = merge_models(MODELS.value, METHOD.value)
    inputs = {"models": MODELS.value, "method": METHOD.value}
    record = {**export(model, output), **inputs, **search}
    write_json(output / "merge.json", record)
    return record


if __name__ == "__main__":
    cli.run(main)

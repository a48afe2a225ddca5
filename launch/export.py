"""Command that writes a model as a sentence-transformers folder.

python -m launch.export --model=M --output=DIR [--depth=L] [--dim=D] [--adapter=A]
python -m launch.export --model=M --output=DIR --transform="pca(9)" --transform_texts=F

With --adapter_only, the folder holds only an adapter of the model, in peft's layout.
With --push_to_hub, the folder is uploaded to the Hugging Face hub, too.
"""

import contextlib
from functools import partial
from pathlib import Path

from absl import flags

from launch import main as cli
from research.analysis.report import plot_loss
from research.data.corpus import read_corpus
from research.eval.figures import write_picture
from research.inference import model as pretrained
from research.inference.embedder import Embedder
from research.inference.fitting import fit_to_texts
from research.interop import load
from research.interop.hub import check_hub_access, push_folder
from research.interop.peft import export_adapter
from research.interop.sentence_transformers.write import export
from research.transforms.pipeline import parse_transform

MODEL = flags.DEFINE_string(
    "model",
    None,
    "The model: a workdir of launch.train, a model folder, package:NAME or a hub id.",
)
OUTPUT = cli.define_path("output", None, "The folder to write: new, or empty.")
DEPTH = flags.DEFINE_integer(
    "depth", None, "The number of first blocks to keep. Default: all.", 1
)
DIM = flags.DEFINE_integer(
    "dim", None, "The number of leading values to keep. Default: all.", 1
)
ADAPTER = flags.DEFINE_string(
    "adapter", None, "The name of one of several adapters, or a peft folder."
)
ADAPTER_ONLY = flags.DEFINE_bool(
    "adapter_only", False, "Whether only the adapter is written."
)
PUSH_TO_HUB = flags.DEFINE_string(
    "push_to_hub",
    None,
    "The repository ORG/NAME of the Hugging Face hub that the folder is uploaded to; "
    "needs `hf auth login`. A new one is public, unless the organization says "
    "otherwise.",
)
TRANSFORM = flags.DEFINE_string(
    "transform",
    None,
    "The transform of embeddings that is fitted and kept with the model, such as "
    "pca(128) | int8(); the command launch.embed lists all. Default: the model's own.",
)
TRANSFORM_TEXTS = flags.DEFINE_string(
    "transform_texts",
    None,
    "The texts that --transform is fitted to: a file, or pydocs.",
)
flags.mark_flags_as_required(["model", "output"])
cli.group_flags("Model", MODEL, DEPTH, DIM, ADAPTER, TRANSFORM, TRANSFORM_TEXTS)
cli.group_flags("Output", OUTPUT, ADAPTER_ONLY, PUSH_TO_HUB)


def main() -> dict:
    """Exports the model or its adapter, and returns what was written."""
    output = Path(OUTPUT.value)
    if PUSH_TO_HUB.value is not None:
        check_hub_access(PUSH_TO_HUB.value)
    record = _export(output)
    if PUSH_TO_HUB.value is not None:
        record["commit"] = push_folder(output, PUSH_TO_HUB.value)
    return record


def _export(output: Path) -> dict:
    if TRANSFORM.value is None and TRANSFORM_TEXTS.value is not None:
        raise ValueError(f"--transform_texts={TRANSFORM_TEXTS.value} needs --transform")
    # The adapter alone, or the model with its adapter merged.
    if ADAPTER_ONLY.value:
        if TRANSFORM.value is not None:
            raise ValueError("--adapter_only does not go with --transform")
        model = load.load(MODEL.value, merge=False)
        return export_adapter(pretrained.select_adapter(model, ADAPTER.value), output)
    model = load.load_adapted(MODEL.value, ADAPTER.value)
    if TRANSFORM.value is not None:
        model = _fit_transform(model)
    workdir = load.find_workdir(load.resolve_folder(MODEL.value))
    if workdir is not None:
        _draw_curve(workdir)
    return export(
        model,
        output,
        depth=DEPTH.value,
        dim=DIM.value,
        name=PUSH_TO_HUB.value or "",
        workdir=workdir,
    )


def _fit_transform(model: pretrained.EmbeddingModel) -> pretrained.EmbeddingModel:
    """The model with --transform, fitted to its vectors at --depth and --dim."""
    parse_transform(TRANSFORM.value)
    # Fitted to vectors that nothing has been done to
    model = model._replace(transform=None)
    texts = read_corpus(TRANSFORM_TEXTS.value)[1] if TRANSFORM_TEXTS.value else []
    embedder = Embedder(model, depth=DEPTH.value, dim=DIM.value, normalize=False)
    transform = fit_to_texts(
        TRANSFORM.value, embedder, texts, normalize=model.normalize
    )
    return model._replace(transform=transform)


def _draw_curve(workdir: Path) -> None:
    """Draws the loss of a run, for the model card; a card may be without it."""
    # Nothing is logged yet, or the run's folder cannot be written
    with contextlib.suppress(ValueError, OSError):
        write_picture(workdir / "evals" / "curve.png", partial(plot_loss, workdir))


if __name__ == "__main__":
    cli.run(main)

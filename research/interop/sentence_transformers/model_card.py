"""Model card of an exported folder: how to use the model, its training and scores."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from tabulate import tabulate

from research.atomic_write import read_json
from research.config_sections import format_call
from research.inference.model import EmbeddingModel
from research.interop.public_sets import find_entry
from research.interop.sentence_transformers.citations import list_citations
from research.train.logging import read_rows, versions
from research.transforms.pipeline import FILE

# Pictures of a run, in WORKDIR/evals, which the card shows: {file: description}.
PICTURES = {
    "grid.png": "score by depth and width",
    "curve.png": "loss and score by step",
}


def make_card(
    model: EmbeddingModel,
    sizes: Mapping[str, int],
    name: str,
    workdir: Path | None = None,
    pictures: Sequence[str] = (),
) -> ModelCard:
    """Writes the model card, README.md.

    Args:
        model: The model as it is exported.
        sizes: Its depth, dim and number of parameters.
        name: What `SentenceTransformer` is called with: the folder, or the hub id.
        workdir: Folder of the run that trained it; None leaves out data, loss and
            scores.
        pictures: Those of PICTURES that are beside the card.

    Raises:
        ValueError: A file of the run is damaged.
    """
    config = read_json(workdir / "config.json", missing={}) if workdir else {}
    grid = read_grid(workdir, model) if workdir else {}
    has_log = workdir and (workdir / "metrics.jsonl").exists()
    rows = read_rows(workdir / "metrics.jsonl") if has_log else []
    # The training up to the checkpoint that is exported
    rows = [row for row in rows if model.step is None or row["step"] <= model.step]
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=model.base if _is_hub_id(model.base) else None,
        datasets=_list_hub_sets(config) or None,
        tags=[
            *("sentence-transformers", "feature-extraction", "sentence-similarity"),
            *(["matryoshka"] if len(remaining_dims(model)) > 1 else []),
            "embax",
        ],
    )
    # Sections without content are left out.
    parts = [
        _describe_model(model, sizes, name),
        _describe_usage(model, sizes["dim"], name),
        _describe_training(model, config, rows),
        _describe_scores(config, sizes, rows, grid),
        *(f"![{PICTURES[file]}]({file})" for file in pictures),
        list_citations(config),
        _list_versions(workdir),
    ]
    text = "\n\n".join(filter(None, parts))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")


def read_grid(workdir: Path, model: EmbeddingModel) -> dict[str, Any]:
    """The scores of `launch.evaluate --grid`; {} without any of this checkpoint.

    Raises:
        ValueError: The file is damaged.
    """
    record = read_json(workdir / "evals" / "grid.json", missing={})
    return record if record and record.get("step") == model.step else {}


def remaining_dims(model: EmbeddingModel) -> list[int]:
    """The trained widths that the truncated model still has, in rising order."""
    return sorted(dim for dim in model.dims if dim <= model.width)


def _is_hub_id(base: str) -> bool:
    """Whether the base is ORG/NAME on the hub, and not a folder such as runs/nli."""
    is_local = Path(base).exists() or Path(base).parent.exists()
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base)) and not is_local


def _base_name(model: EmbeddingModel) -> str:
    """The base model without the folders of this machine."""
    if not model.base or _is_hub_id(model.base):
        return model.base
    return model.base if model.base.startswith("package:") else Path(model.base).name


def _describe_model(model: EmbeddingModel, sizes: Mapping[str, int], name: str) -> str:
    """Title, and a paragraph about the encoder and its vectors."""
    cfg = model.config
    positions = [name for name in (cfg.position, cfg.position_bias) if name != "none"]
    dims = ", ".join(map(str, remaining_dims(model)))
    return CARD.format(
        **sizes,
        name=Path(name).name,
        width=cfg.width,
        heads=cfg.num_heads,
        direction="causal" if cfg.causal else "bidirectional",
        position=" and ".join(positions) or "no",
        vocab=cfg.vocab_size,
        output=OUTPUTS[model.kind].format(pool=model.pool.replace("_", " ")),
        length="of length 1" if model.normalize else "not normalized",
        max_length=model.max_length,
        similarity=model.similarity,
        dims=f" It was trained at the widths {dims}." if dims else "",
    )


def _describe_usage(model: EmbeddingModel, dim: int, name: str) -> str:
    """Example for the prompts that the model has, and for a smaller width."""
    prompts, default = model.prompts, model.default_prompt
    extra = [role for role in prompts if role not in ("query", "document")]
    class_name = CLASSES[model.kind]
    lines = [
        f"from sentence_transformers import {class_name}\n",
        f'model = {class_name}("{name}")',
    ]
    # Each role puts its own prompt before the texts; without any, encode is enough.
    if model.kind != "dense":
        lines += [
            'queries = model.encode_query(["how do I read a file?"])',
            'documents = model.encode_document(["a text", "another text"])',
            "scores = model.similarity(queries, documents)  # [1, 2]",
        ]
    elif prompts["query"] != prompts["document"]:
        lines += [
            'queries = model.encode_query(["how do I read a file?"])  '
            f"# [1, {dim}], float32",
            'documents = model.encode_document(["a text", "another text"])  '
            f"# [2, {dim}]",
            "scores = model.similarity(queries, documents)  # [1, 2]",
        ]
    else:
        lines += [
            'vectors = model.encode(["a text", "another text"])  '
            f"# [2, {dim}], float32",
            "scores = model.similarity(vectors, vectors)  # [2, 2]",
        ]
    lines += [f'model.encode(["a text"], prompt_name="{role}")' for role in extra]
    parts = ["## Usage", "```python\n" + "\n".join(lines) + "\n```"]
    if model.transform is not None:
        parts.append(
            f"`{FILE}` holds the fitted `{model.transform.text}` that makes "
            f"{model.transform.quantizer.bytes_per_vector:,} bytes of a document's "
            "vector; Embax applies it to the documents that it stores."
        )
    # The prompts, which other servers have to be given.
    if any(prompts.values()):
        listed = [f"* {role}: `{text}`" for role, text in prompts.items() if text]
        parts += ["Prompts, put before the text:", "\n".join(listed)]
    if default:
        parts.append(f"`encode` without a role uses the prompt of {default}.")
    # Trained widths below that of the folder.
    if smaller := [str(d) for d in remaining_dims(model) if d < dim]:
        length = ", since they are not of length 1" if model.normalize else ""
        parts.append(
            f"The first {', '.join(smaller)} numbers of a vector are trained to be an "
            f'embedding, too: `SentenceTransformer("{name}", truncate_dim='
            f"{smaller[-1]})`. Compare these by cosine{length}."
        )
    return "\n\n".join(parts)


def _describe_training(
    model: EmbeddingModel, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    """List of base model, data, loss and sizes of the training."""
    facts = [("base model", _base_name(model))]
    # Sources, with the license of those that `launch.fetch` brought
    sources = config.get("data", {})
    for name, source in sources.items():
        about = _name_source(source)
        if entry := find_entry(Path(source.get("path", ""))):
            about += f" of {entry['repo']} (license: {entry['license']})"
        if len(sources) > 1:
            about += f", weight {source.get('weight', 1.0):g}"
        facts.append((f"data `{name}`", about))
    # Settings, as calls
    if "objective" in config:
        done = max((row["step"] for row in rows if "loss" in row), default=0)
        noun = "queries" if "loss" in config else "rows"
        facts += [
            (key.replace("_", " "), f"`{_format_settings(config[key])}`")
            for key in ("objective", "loss", "size_loss", "tuning", "optimizer")
            if key in config
        ]
        facts += [
            (
                "steps",
                f"{done:,} of {config['steps']:,}, each of {config['batch_size']:,} "
                f"{noun}",
            ),
            ("longest text in training", f"{config['max_length']:,} tokens"),
            ("precision", config["encoder"].get("dtype", "float32")),
        ]
    lines = [f"* {key}: {value}" for key, value in facts if value]
    if not lines:
        return ""
    note = (
        "No license is stated for this model: those of the base model and of the data "
        "apply."
    )
    return "\n\n".join(["## Training", "\n".join(lines), note])


def _list_hub_sets(config: Mapping[str, Any]) -> list[str]:
    """Ids of the hub's data sets that a run was trained on."""
    sources = config.get("data", {}).values()
    fetched = [find_entry(Path(source.get("path", ""))) for source in sources]
    ids = [entry["repo"] for entry in fetched if entry]
    ids += [s["dataset"] for s in sources if s["name"] == "hub" and s.get("dataset")]
    return sorted(set(ids))


def _name_source(section: Mapping[str, Any]) -> str:
    """The data of a section of data or evals: names of files, not their folders."""
    # Folders are those of the machine that trained
    file = Path(str(section.get("path") or section.get("data") or "")).name
    if section.get("part") == "held_out":
        return f"a held-out part of {file}"
    return file or str(section.get("dataset") or section["name"])


def _format_settings(section: Mapping[str, Any]) -> str:
    """A section as a call, without the options that are off or empty."""
    off = (None, False, 0, "", "none", (), [])
    return format_call({k: v for k, v in section.items() if v not in off})


def _describe_scores(
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    rows: Sequence[Mapping[str, Any]],
    grid: Mapping[str, Any],
) -> str:
    """Tables of the evaluations during training, and of all depths and widths."""
    parts = []
    # First and last evaluation of each metric, at full size.
    first: dict[str, tuple] = {}
    last: dict[str, tuple] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("eval/") and isinstance(value, float | int):
                entry = (row["step"], value)
                first.setdefault(key, entry)
                last[key] = entry
    cells = [
        [
            key.removeprefix("eval/"),
            f"{first[key][1]:.2f} (step {first[key][0]})",
            f"{value:.2f} (step {step})",
        ]
        for key, (step, value) in last.items()
        if not key.endswith("/main_score")
    ]
    if cells:
        table = _markdown_table(["", "first evaluation", "this checkpoint"], cells)
        evals = config.get("evals", {})
        listed = ", ".join(
            f"`{name}` is {_name_source(section)}" for name, section in evals.items()
        )
        size = "at full size"
        if any(key.endswith("/size_mean") for key in last):
            size += " unless depth x width is named"
        parts += [f"During training, {size}{f' ({listed})' if listed else ''}:"]
        parts += [table]
    if grid:
        parts += _grid_table(grid, sizes)
    return "\n\n".join(["## Scores", *parts]) if parts else ""


def _grid_table(record: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Heading and table of `launch.evaluate --grid`."""
    size = sizes["depth"], sizes["dim"]
    try:
        scores = {(c["depth"], c["dim"]): c["main_score"] for c in record["cells"]}
        cells = {key: f"{score:.2f}" for key, score in scores.items()}
        if size in cells:
            cells[size] = f"**{cells[size]}**"
        depths, dims = (sorted(set(axis)) for axis in zip(*cells, strict=True))
        rows = [[str(depth), *(cells[depth, dim] for dim in dims)] for depth in depths]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "evals/grid.json is not a grid of launch.evaluate --grid"
        ) from None
    data = f" ({record['data']})" if record.get("data") else ""
    title = (
        f"Main scores of the task {record.get('task', '')}{data} after step "
        f"{record['step']}, by depth (rows) and width (columns); this folder has depth "
        f"{size[0]} and width {size[1]}:"
    )
    return [title, _markdown_table(["depth", *map(str, dims)], rows)]


def _list_versions(workdir: Path | None) -> str:
    """Versions of the libraries that the model was trained with, or exported with."""
    record = read_json(workdir / "versions.json", missing={}) if workdir else {}
    listed = [f"{name} {version}" for name, version in (record or versions()).items()]
    verb = "Trained" if record else "Exported"
    return (
        f"## Versions\n\n{verb} with Embax, elastic text embeddings in JAX: "
        f"{', '.join(listed)}."
    )


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    alignment = ("left", *("right",) * (len(header) - 1))
    options = {"tablefmt": "pipe", "disable_numparse": True, "colalign": alignment}
    return tabulate(rows, headers=header, **options)


CARD = """# {name}: text embeddings of {dim} numbers

A {direction} encoder of {depth} layers, width {width}, {heads} heads and {position}
positions ({parameters:,} parameters, {vocab:,} of vocabulary). A text of up to
{max_length} tokens becomes {output}, {dim} numbers, {length}, to be
compared by {similarity}.{dims}"""
# {kind of embeddings: what a text becomes}, and their classes.
OUTPUTS = {
    "dense": "one vector: {pool} pooling",
    "multi_vector": "a vector for each of its tokens",
    "sparse": "a sparse vector of weights of the vocabulary's tokens",
}
CLASSES = {
    "dense": "SentenceTransformer",
    "multi_vector": "MultiVectorEncoder",
    "sparse": "SparseEncoder",
}

"""A model as a sentence-transformers folder, whole or cut in depth and width.

The layout is the one of before version 6: every version of sentence-transformers loads
it, and it is the only one that text-embeddings-inference parses.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from research.models import encoder
from research.models.families import write_config
from research.models.huggingface import save_tensors, write_safetensors
from research.pretrained import IDENTITY, POOLING_FLAGS, POOLINGS, Pretrained


def export(
    model: Pretrained,
    output: Path,
    *,
    depth: int | None = None,
    dim: int | None = None,
) -> dict[str, Any]:
    """Writes a folder that `SentenceTransformer(output)` loads, whole or not at all.

    `encode` of it gives our embeddings. The width is cut by a Dense module that keeps
    the first numbers, before the vector is normalised.

    Args:
        model: what to write.
        output: a folder that does not exist yet, or is empty.
        depth: how many blocks to keep, all by default.
        dim: how many numbers of the embedding to keep, by default what the model says.

    Returns:
        output, depth, dim, parameters: what was written.

    Raises:
        FileExistsError: the folder is there and not empty.
        ValueError: the model has no such depth or dim, or no family of `transformers`
            computes it.
        OSError: no space, or no right to write.
    """
    depth = model.config.depth if depth is None else depth
    widest = model.config.width if model.dim is None else model.dim
    dim = widest if dim is None else dim
    params, cfg = encoder.truncated(model.params, model.config, depth)
    if not 1 <= dim <= widest:
        raise ValueError(f"dim {dim} is not in 1 ... {widest} of this model")
    model = model._replace(params=params, config=cfg, dim=dim)
    with _replacing(output) as folder:
        write_safetensors(folder, params, cfg)
        _write_json(folder / "config.json", _config(model))
        _write_tokenizer(folder, model)
        _write_modules(folder, model)
        sizes = {
            "depth": cfg.depth,
            "dim": dim,
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
        }
        (folder / "README.md").write_text(_card(model, sizes), encoding="utf-8")
    return {"output": str(output), **sizes}


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, which becomes it on success."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there and not empty")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        inside = folder / output.name  # made with the usual rights, unlike `folder`
        inside.mkdir()
        yield inside
        inside.replace(output)
    finally:
        shutil.rmtree(folder)


def _config(model: Pretrained) -> dict[str, Any]:
    """The fields of config.json."""
    special = {name: number for name, _, number in _special(model.tokenizer)}
    ids = {
        "pad_token_id": special.get("pad_token"),
        "bos_token_id": special.get("cls_token"),
        "eos_token_id": special.get("sep_token"),
    }
    fields = write_config(model.config)
    fields |= {name: ids[name] for name in ids.keys() & fields.keys()}
    fields["torch_dtype"] = "float32"
    dims = _dims(model)
    return fields | ({"matryoshka_dimensions": dims} if dims else {})


def _dims(model: Pretrained) -> list[int]:
    """The widths that it was trained at and that it still has."""
    return [dim for dim in model.dims if dim <= model.dim]


def _special(tokenizer: Tokenizer) -> Iterator[tuple[str, str, int]]:
    """(name in `transformers`, token, id) of the special tokens that there are."""
    for name, candidates in SPECIAL.items():
        for token in candidates:
            if (number := tokenizer.token_to_id(token)) is not None:
                yield name, token, number
                break


def _write_tokenizer(folder: Path, model: Pretrained) -> None:
    """tokenizer.json, and what AutoTokenizer wants beside it."""
    special = {name: token for name, token, _ in _special(model.tokenizer)}
    inputs = ["input_ids", "attention_mask"]
    if model.config.type_vocab:
        inputs.insert(1, "token_type_ids")
    model.tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.max_length,
            "model_input_names": inputs,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )


def _write_modules(folder: Path, model: Pretrained) -> None:
    """modules.json, each module's folder, and the options of the whole."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if model.dim < model.config.width:
        modules.append(("Dense", f"{len(modules)}_Dense"))
    if model.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    for kind, path in modules[1:]:
        (folder / path).mkdir()
        _write_json(folder / path / "config.json", MODULE_CONFIGS[kind](model))
        if kind == "Dense":
            cut = {"linear.weight": np.eye(model.dim, model.config.width, dtype="f4")}
            save_tensors(folder / path / "model.safetensors", cut)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{PACKAGE}.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": model.max_length, "do_lower_case": False},
    )
    # One prompt for every text is what `encode` puts before it unasked.
    same = model.prompts["query"] == model.prompts["document"] != ""
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": model.prompts,
            "default_prompt_name": "document" if same else None,
            "similarity_fn_name": "cosine",
        },
    )


def _pooling_config(model: Pretrained) -> dict[str, Any]:
    """1_Pooling/config.json, for versions before 6 and after."""
    theirs = {ours: name for name, ours in POOLINGS.items()}[model.pool]
    return {
        "word_embedding_dimension": model.config.width,
        **{flag: name == theirs for flag, name in POOLING_FLAGS.items()},
        "include_prompt": True,
        "embedding_dimension": model.config.width,
        "pooling_mode": theirs,
    }


def _dense_config(model: Pretrained) -> dict[str, Any]:
    """2_Dense/config.json: a matrix and nothing else."""
    return {
        "in_features": model.config.width,
        "out_features": model.dim,
        "bias": False,
        "activation_function": IDENTITY,
    }


def _normalize_config(model: Pretrained) -> dict[str, Any]:
    """3_Normalize/config.json; there because git and the hub drop empty folders."""
    name = "sentence_embedding"
    return {"module_input_name": name, "module_output_name": name}


def _card(model: Pretrained, sizes: dict[str, int]) -> str:
    """README.md: what the model is, its sizes and how to use it."""
    cfg = model.config
    dims = ", ".join(map(str, _dims(model)))
    prompts = "".join(
        f"* before a {role}: `{prompt}`\n"
        for role, prompt in model.prompts.items()
        if prompt
    )
    return CARD.format(
        **sizes,
        width=cfg.width,
        heads=cfg.heads,
        position=cfg.position,
        vocab=cfg.vocab,
        pool=model.pool.replace("_", " "),
        unit="of length 1" if model.normalize else "not normalised",
        max_length=model.max_length,
        dims=f" It was trained at the widths {dims}." if dims else "",
        prompts=prompts and f"\nPrompts:\n\n{prompts}",
    )


def _write_json(file: Path, fields: Any) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


PACKAGE = "sentence_transformers.models"
MODULE_CONFIGS = {
    "Pooling": _pooling_config,
    "Dense": _dense_config,
    "Normalize": _normalize_config,
}
# Names of special tokens in `transformers`, and what tokenisers call them.
SPECIAL = {
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, sentence-similarity, embax]
---

# Text embeddings of {dim} numbers

A bidirectional encoder of {depth} layers, width {width}, {heads} heads and {position}
positions ({parameters:,} parameters, {vocab:,} of vocabulary). A text of up to
{max_length} tokens becomes one vector: {pool} pooling, {dim} numbers, {unit}.{dims}
{prompts}
Trained and exported with Embax, elastic text embeddings in JAX.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this folder")
embeddings = model.encode(["a text", "another text"])  # [2, {dim}]
```
"""

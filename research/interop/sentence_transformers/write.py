"""Writes a model as a sentence-transformers folder, at full or smaller depth and width.

The layout of dense models is that of versions before 6: every version of
sentence-transformers loads it, and text-embeddings-inference parses only this one.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from research.atomic_write import atomic_write, to_json
from research.config_sections import parse_call
from research.inference.model import EmbeddingModel, bake_maps, merge_adapter
from research.inference.settings import check_quantizer, check_transform
from research.interop.hf.families import find_family, write_config
from research.interop.hf.safetensors import save_tensors, write_safetensors
from research.interop.hf.tokenizer import read_tokenizer
from research.interop.hf.weight_names import MLM_HEADS
from research.interop.sentence_transformers.autoencoder import describe_autoencoder
from research.interop.sentence_transformers.layouts import (
    LAYOUTS,
    ROUTER_TYPE,
    STATIC_TYPE,
    Layout,
    describe_m3,
)
from research.interop.sentence_transformers.m3_heads import write_heads
from research.interop.sentence_transformers.model_card import (
    PICTURES,
    make_card,
    read_grid,
    remaining_dims,
)
from research.models import encoder
from research.models.lora import num_params
from research.transforms.pipeline import FILE, save_transform
from research.transforms.quantization import ScalarQuantizer


def export(
    model: EmbeddingModel,
    output: Path,
    *,
    depth: int | None = None,
    dim: int | None = None,
    name: str = "",
    workdir: Path | None = None,
) -> dict[str, Any]:
    """Writes a folder that sentence-transformers loads, in one atomic step.

    Models of one vector per text are a SentenceTransformer, those of a vector per token
    a MultiVectorEncoder, and sparse ones a SparseEncoder.

    Its `encode` returns the same embeddings as Embax. A Dense module truncates the
    width: it keeps the leading values, before the vector is normalized. The linear maps
    of the model's transform, such as a PCA, are further Dense modules. A file holds its
    quantizer, which Embax applies, and `ranges.npy` the ranges of int8 and uint8 for
    `quantize_embeddings`.

    Args:
        model: The model; its adapter is merged, if it has one.
        output: A folder that does not exist yet, or is empty.
        depth: Number of first blocks to keep; None for all.
        dim: Number of leading values to keep; None for those of the model.
        name: What the model card's example loads; the folder if empty.
        workdir: Folder of the run that trained the model, whose data, loss, scores and
            pictures the card shows; None without one.

    Returns:
        A record of output, depth, dim and number of parameters.

    Raises:
        FileExistsError: The folder exists and is not empty.
        ValueError: The model has no such depth or dim, no family of `transformers`
            computes it, or sentence-transformers does not have its pooling.
        OSError: No space, or no right to write.
    """
    # The model at the requested size.
    if model.adapters:
        model = merge_adapter(model)
    depth = model.config.depth if depth is None else depth
    dim = model.width if dim is None else dim
    params, cfg = encoder.truncate_depth(model.params, model.config, depth)
    if not 1 <= dim <= model.width:
        raise ValueError(f"dim {dim} is not in 1 ... {model.width} of this model")
    model = model._replace(params=params, config=cfg, dim=dim)
    check_transform(model)
    check_quantizer(model, model.transformed_width)
    model = bake_maps(model)
    model = model._replace(dim=model.width)
    # Its modules, or an error if sentence-transformers cannot compute it.
    pooling = parse_call(model.pool).name
    layout = (POOLING_LAYOUTS.get(pooling) or LAYOUTS[model.kind])(model)
    has_m3_heads = pooling == "m3" and dim >= cfg.width
    model = layout.model
    if layout.mlm_head and find_family(cfg) not in MLM_HEADS:
        raise ValueError(
            f"the masked language model of {find_family(cfg)} has another head than "
            f"this model; those of {', '.join(MLM_HEADS)} have it"
        )
    # Weights, config, tokenizer, modules, model card.
    special = _name_special_tokens(model)
    fields = _transformer_config(model, special)
    with atomic_write(output, folder=True) as folder:
        body = {name: part for name, part in params.items() if name != "pooling"}
        if layout.mlm_head:
            body["head"] = params["pooling"]["head"]
            fields["architectures"] = [MLM_HEADS[find_family(cfg)][2]]
        transformer = folder / layout.body
        transformer.mkdir(exist_ok=True)
        write_safetensors(transformer, body, cfg)
        _write_json(transformer / "config.json", fields)
        _write_tokenizer(transformer, model, special)
        _check_tokenizer(transformer, model.tokenizer, fields)
        _write_modules(folder, layout)
        _write_transform(folder, model)
        if has_m3_heads:
            write_heads(params["pooling"], folder)
        if layout.query_weights is not None:
            static = folder / QUERY_FOLDER
            static.mkdir()
            weights = np.asarray(layout.query_weights, np.float32)
            save_tensors(static / "model.safetensors", {"weight": weights})
            _write_json(static / "config.json", {"frozen": False})
            _write_tokenizer(static, model, special)
        sizes = {
            "depth": cfg.depth,
            "dim": model.width,
            "parameters": num_params(params),
        }
        pictures = _copy_pictures(workdir, model, folder)
        card = make_card(model, sizes, name or output.name, workdir, pictures)
        card.save(folder / "README.md")
    return {"output": str(output), **sizes}


def _copy_pictures(
    workdir: Path | None, model: EmbeddingModel, folder: Path
) -> list[str]:
    """Copies the pictures that a run has of a model, and returns their names."""
    if workdir is None:
        return []
    names = [name for name in PICTURES if (workdir / "evals" / name).exists()]
    if not read_grid(workdir, model):
        names = [name for name in names if name != "grid.png"]
    for name in names:
        shutil.copyfile(workdir / "evals" / name, folder / name)
    return names


def _transformer_config(
    model: EmbeddingModel, special: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of config.json; `special` are the special tokens by name."""
    fields = write_config(model.config)
    ids = {
        f"{name}_id": model.tokenizer.token_to_id(token)
        for name, token in special.items()
    }
    ids.setdefault("bos_token_id", ids.get("cls_token_id"))
    ids.setdefault("eos_token_id", ids.get("sep_token_id"))
    # In RoBERTa, positions begin after the pad id, and that token has none.
    if fields["model_type"] == "xlm-roberta" and (
        ids["pad_token_id"] != fields["pad_token_id"]
    ):
        raise ValueError(
            f"transformers gives the token of id {fields['pad_token_id']} of a RoBERTa "
            f"no position, but this model's pad token has the id {ids['pad_token_id']}"
        )
    fields |= {name: ids[name] for name in ids.keys() & fields.keys()}
    fields["torch_dtype"] = "float32"
    dims = remaining_dims(model)
    return fields | ({"matryoshka_dimensions": dims} if dims else {})


def _name_special_tokens(model: EmbeddingModel) -> dict[str, str]:
    """{name in `transformers`: special token}, always with a pad token.

    Padding is masked, so that any token of the table can be the pad token of a model
    that does not name one.
    """
    tokenizer, vocab_size = model.tokenizer, model.config.vocab_size
    named = {
        name: token
        for name, candidates in SPECIAL_TOKENS.items()
        if (token := _find_token(tokenizer, vocab_size, candidates)) is not None
    }
    for name, token in model.special_tokens.items():
        if _find_token(tokenizer, vocab_size, [token]) is not None:
            named[name] = token
    # In RoBERTa, it is the token before the positions; in others, the first token.
    first = max(model.config.position_offset - 1, 0)
    named.setdefault("pad_token", tokenizer.id_to_token(first))
    return named


def _find_token(
    tokenizer: Tokenizer, vocab_size: int, candidates: Iterable[str]
) -> str | None:
    """The first of the tokens that has a row in the token table."""
    for token in candidates:
        token_id = tokenizer.token_to_id(token)
        if token_id is not None and token_id < vocab_size:
            return token
    return None


def _write_tokenizer(
    folder: Path, model: EmbeddingModel, special: Mapping[str, str]
) -> None:
    """tokenizer.json, and the files that AutoTokenizer reads with it."""
    # Token type ids are inputs only if the encoder has a table for them.
    types = ["token_type_ids"] if model.config.type_vocab else []
    inputs = ["input_ids", *types, "attention_mask"]
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


def _check_tokenizer(
    folder: Path, tokenizer: Tokenizer, fields: Mapping[str, Any]
) -> None:
    """Checks that `transformers` reads the written tokenizer by the same rules.

    Raises:
        ValueError: For this family, it takes the rules from its own code.
    """
    reread = read_tokenizer(folder, fields).tokenizer
    for part in ("normalizer", "pre_tokenizer"):
        ours, theirs = (getattr(t, part) for t in (tokenizer, reread))
        # Parts have no equality, but a JSON form.
        if (ours and ours.__getstate__()) != (theirs and theirs.__getstate__()):
            raise ValueError(
                f"transformers reads every tokenizer of a {fields['model_type']} model "
                f"with the {part} of its own code, which this tokenizer does not have"
            )


def _write_modules(folder: Path, layout: Layout) -> None:
    """modules.json, each module's folder, and the options of the model."""
    # A folder for each of the modules after the transformer.
    model, paths = layout.model, [(layout.transformer, layout.body)]
    for i, module in enumerate(layout.modules, start=1):
        path = f"{i}_{module.type.split('.')[-1]}"
        if layout.body:
            path = f"document_{path}"
        (folder / path).mkdir()
        _write_json(folder / path / "config.json", module.config)
        if module.tensors:
            save_tensors(folder / path / "model.safetensors", module.tensors)
        paths.append((module.type, path))
    # Queries and documents go different ways
    if layout.body:
        _write_json(folder / "router_config.json", _describe_routes(paths))
        paths = [(ROUTER_TYPE, "")]
    # modules.json and the options.
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (kind, path) in enumerate(paths)
    ]
    _write_json(folder / "modules.json", entries)
    options = {"max_seq_length": model.max_length, "do_lower_case": False}
    if find_family(model.config) in HAS_POOLER and not layout.mlm_head:
        # We have no weights for the pooler, which would be made at random
        options["model_args"] = {"add_pooling_layer": False}
    options |= layout.options
    _write_json(folder / layout.body / "sentence_bert_config.json", options)
    # `encode` uses a default prompt: the model's, or that of both roles.
    is_shared = model.prompts["query"] == model.prompts["document"] != ""
    default = model.default_prompt or ("document" if is_shared else None)
    _write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": model.prompts, "default_prompt_name": default, **layout.fields},
    )


def _write_transform(folder: Path, model: EmbeddingModel) -> None:
    """The file of the model's quantizer, if it has one."""
    if model.transform is None:
        return
    save_transform(model.transform, folder / FILE)
    quantizer = model.transform.quantizer
    if isinstance(quantizer, ScalarQuantizer):
        np.save(folder / "ranges.npy", quantizer.ranges)


def _describe_routes(paths: list[tuple[str, str]]) -> dict[str, Any]:
    """router_config.json of documents that are encoded and queries that are not."""
    types = {QUERY_FOLDER: STATIC_TYPE, **{path: kind for kind, path in paths}}
    documents = [path for _, path in paths]
    return {
        "types": types,
        "structure": {"query": [QUERY_FOLDER], "document": documents},
        "parameters": {
            "default_route": "document",
            "allow_empty_key": True,
            "route_mappings": {},
        },
    }


def _write_json(file: Path, fields: Any) -> None:
    file.write_text(to_json(fields, indent=2) + "\n", encoding="utf-8")


# {pooling: the layout of a model}, where the kind of embeddings does not tell
POOLING_LAYOUTS = {"csr": describe_autoencoder, "m3": describe_m3}
# Folder of the weights of queries that have no encoder.
QUERY_FOLDER = "query_0_SparseStaticEmbedding"
# Families whose encoder in `transformers` has a pooler, which embedding does not use.
HAS_POOLER = ("bert", "xlm-roberta", "mpnet")
# {name in `transformers`: tokens to look for in the tokenizer, by preference}
SPECIAL_TOKENS = {
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>", "<|end_of_text|>", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "sep_token": ("[SEP]", "</s>", "<eos>", "<|im_end|>", "<|end_of_text|>"),
    "mask_token": ("[MASK]", "<mask>"),
}

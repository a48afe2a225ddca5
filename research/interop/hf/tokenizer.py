"""Reads the tokenizer of a Hugging Face folder, as `transformers` 5 builds it.

For some classes of tokenizers, `transformers` takes only the vocabulary from
tokenizer.json, and the rules from tokenizer_config.json or from its own code. Of
tokenizer_config.json, every field that changes token ids there is used or rejected
here; the others are about padding, decoding and chats.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, models

from research.atomic_write import read_json
from research.interop.hf.tokenizer_rules import RULES
from research.interop.json_files import check_number
from research.text.tokenization import load_tokenizer, num_token_ids

Fields = Mapping[str, Any]


class FolderTokenizer(NamedTuple):
    """A tokenizer and what its folder says about it.

    Attributes:
        tokenizer: The tokenizer, without padding and truncation.
        max_length: Maximum number of tokens of a text; None if the folder has none.
        special_tokens: {name, such as "pad_token": token}.
    """

    tokenizer: Tokenizer
    max_length: int | None
    special_tokens: dict[str, str]


def read_tokenizer(
    folder: Path, model_fields: Fields, overrides: Fields | None = None
) -> FolderTokenizer:
    """Reads tokenizer.json or a WordPiece vocab.txt, and the files beside it.

    Args:
        folder: Folder of the model.
        model_fields: Fields of its config.json.
        overrides: Fields that replace those of tokenizer_config.json.

    Raises:
        FileNotFoundError: There is neither a tokenizer.json nor a vocab.txt.
        ValueError: A file cannot be parsed, or asks for what we do not compute.
    """
    file = folder / "tokenizer_config.json"
    fields = {**read_json(file, missing={}), **(overrides or {})}
    _check_fields(file, fields)
    length = check_number(file, fields, "model_max_length")
    # Files from before transformers 4.34 name the tokens in two more files.
    if "added_tokens_decoder" not in fields:
        fields |= read_json(folder / "special_tokens_map.json", missing={})
    try:
        special, added = _read_added_tokens(folder, fields)
        extra = _extra_tokens(fields)
    except (TypeError, AttributeError, KeyError, ValueError):
        raise ValueError(
            f"{file}, or a file beside it, has a token that is neither a text nor an "
            "object with its content"
        ) from None
    rules = RULES.get(name := _find_class(model_fields, fields))
    usual = rules.special_tokens if rules else {}
    # The vocabulary, and the rules of tokenizer.json or of the class.
    vocab_file = folder / "vocab.txt"
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)
        if rules is not None and not rules.fit(tokenizer):
            if model_fields.get("model_type") == "qwen2":
                raise ValueError(
                    f"{folder} has a tokenizer.json whose vocabulary is not of bytes: "
                    "transformers reads every tokenizer of a qwen2 model with Qwen2's "
                    "own rules"
                )
            rules = None
    elif not vocab_file.is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json and no vocab.txt")
    elif rules is None or rules.model is not models.WordPiece:
        raise ValueError(
            f"{folder} has a vocab.txt, but no tokenizer.json, for a tokenizer of the "
            f"class {name}; we read such a file only for a BertTokenizer or an "
            "MPNetTokenizer: save the tokenizer with transformers 5 first"
        )
    else:
        unk_token = special.get("unk_token")
        unk_token = unk_token.content if unk_token else usual["unk_token"]
        tokenizer = _read_vocab(vocab_file, unk_token)
    # Tokens beside the vocabulary, in the order of their ids.
    tokenizer.add_tokens(added)
    for token_name, token in usual.items():
        if tokenizer.token_to_id(token) is not None:
            special.setdefault(token_name, AddedToken(token, normalized=False))
    tokenizer.add_special_tokens([*special.values(), *extra])
    special_tokens = {name: token.content for name, token in special.items()}
    if rules is not None:
        rules.apply(tokenizer, fields, special_tokens)
    _try_tokenizer(folder, tokenizer)
    return FolderTokenizer(tokenizer, length, special_tokens)


def _try_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a tokenizer that can be read, but not applied."""
    try:
        count = num_token_ids(tokenizer)
    except BaseException as error:  # a panic of the library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{folder} has a tokenizer whose parts name tokens that it lacks: {error}"
        ) from None
    if count > np.iinfo(np.int32).max:
        raise ValueError(f"{folder} has a tokenizer with ids that no 32 bits hold")


def _check_fields(file: Path, fields: Fields) -> None:
    """Rejects fields that change token ids in a way that we do not compute."""
    faults = [
        f"{name} {fields[name]!r}"
        for name, harmless in REJECTED.items()
        if name in fields and fields[name] not in harmless
    ]
    inputs = fields.get("model_input_names", ["attention_mask"])
    if not isinstance(inputs, list) or "attention_mask" not in inputs:
        faults.append(f"model_input_names {inputs!r}")
    if faults:
        raise ValueError(
            f"{file} asks for what our tokenization does not do: {', '.join(faults)}"
        )


def _read_added_tokens(
    folder: Path, fields: Fields
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Reads the tokens that stand beside the vocabulary.

    Returns:
        {name, such as "pad_token": special token}, and all added tokens by their ids.
    """
    by_id = fields.get("added_tokens_decoder", {})
    added = [_make_token(by_id[number]) for number in sorted(by_id, key=int)]
    by_content = {token.content: token for token in added}
    special = {
        name: by_content.get(token.content, token)
        for name in SPECIAL_NAMES
        if fields.get(name) and (token := _make_token(fields[name], special=True))
    }
    if "added_tokens_decoder" not in fields:
        contents = {token.content for token in special.values()}
        ids = read_json(folder / "added_tokens.json", missing={})
        for content in sorted(ids, key=ids.get):
            is_special = content in contents
            token = {"content": content, "normalized": not is_special}
            added.append(_make_token(token, special=is_special))
    return special, added


def _extra_tokens(fields: Fields) -> list[AddedToken]:
    """Special tokens that have no role in the tokenizer."""
    tokens = fields.get("extra_special_tokens")
    tokens = tokens or fields.get("additional_special_tokens") or []
    tokens = tokens.values() if isinstance(tokens, Mapping) else tokens
    return [_make_token(token, special=True) for token in tokens]


def _make_token(token: str | Fields, **options: Any) -> AddedToken:
    """A token from its text, or from its text and options."""
    if isinstance(token, str):
        return AddedToken(token, **{"normalized": False, **options})
    options = {**token, **options}
    options.pop("__type", None)
    return AddedToken(options.pop("content"), **options)


def _find_class(model_fields: Fields, fields: Fields) -> str:
    """The class with which AutoTokenizer of `transformers` 5 reads the folder."""
    family = model_fields.get("model_type")
    usual = CLASSES.get(family, PLAIN)
    named = fields.get("tokenizer_class") or model_fields.get("tokenizer_class")
    named = f"{named or usual}".removesuffix("Fast")
    # Of these families, files on the hub name the wrong class.
    if usual == PLAIN and family != "llama" or family == "qwen2":
        return usual
    return ALIASES.get(named, named)


def _read_vocab(file: Path, unk_token: str) -> Tokenizer:
    """A WordPiece tokenizer with a token per line of a file."""
    try:
        return Tokenizer(models.WordPiece.from_file(str(file), unk_token=unk_token))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{file} is not a list of tokens: {error}") from None


# Names of special tokens, in the order in which they get ids.
SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# {field that changes token ids: values without an effect}
REJECTED = {
    "auto_map": ({}, None),
    "truncation_side": ("right", None),
    "split_special_tokens": (False, None),
    "fix_mistral_regex": (False, None),
    "fast_tokenizer_files": ([], ["tokenizer.json"], None),
}
PLAIN = "PreTrainedTokenizer"  # the rules are those of tokenizer.json
# {family: class of tokenizers in `transformers`}, if not PLAIN.
CLASSES = {
    "bert": "BertTokenizer",
    "nomic_bert": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "t5": "T5Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "opt": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
}
# Classes that are BertTokenizer by another name.
ALIASES = {
    f"{name}Tokenizer": "BertTokenizer"
    for name in ("DistilBert", "Electra", "MobileBert", "SqueezeBert", "LayoutLM")
}

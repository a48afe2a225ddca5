"""Model families of Hugging Face `transformers`: `config.json` <-> EncoderConfig.

A family has a reader and a writer in `FAMILIES`, and the names of its tensors in
`weight_names.WEIGHT_NAMES`. A reader raises an error for whatever our encoder does not
compute, so that a model that loads computes the same as in `transformers`.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from research.interop.hf import bert, gpt, llama, t5
from research.interop.hf.common import Fields, require
from research.interop.hf.weight_names import OUTPUT_LAYERS
from research.models.config import EncoderConfig
from research.models.positions.methods import config_fields


class Family(NamedTuple):
    """How the `config.json` of one architecture is read and written.

    Attributes:
        read: Fields of a `config.json` -> EncoderConfig.
        write: EncoderConfig -> fields of a `config.json`, with `model_type` only if it
            is not the family's name; what the family cannot express is left out (see
            `find_family`).
    """

    read: Callable[[Fields], EncoderConfig]
    write: Callable[[EncoderConfig], dict[str, Any]]


def read_config(fields: Fields) -> EncoderConfig:
    """The EncoderConfig that a `config.json` describes.

    Args:
        fields: The parsed `config.json` of a Hugging Face model folder.

    Raises:
        ValueError: The family is unknown, a field is missing, or our encoder does not
            compute the value of a field.
    """
    name = fields.get("model_type")
    if name == "bert" and fields.get("position_embedding_type") == "alibi":
        name = "jina_bert"
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"config.json has model_type {name!r}; known are {', '.join(FAMILIES)}"
        )
    _check_fields(name, fields)
    try:
        cfg = FAMILIES[name].read(fields)
    except KeyError as missing:
        raise ValueError(f"config.json of a {name} model lacks {missing}") from None
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"config.json of a {name} model has a null, a value of another type, or a "
            f"zero where a number belongs: {error}"
        ) from None
    except ValueError as error:
        if f"{error}".startswith("could not convert"):
            raise ValueError(
                f"config.json of a {name} model has a text where a number belongs"
            ) from None
        if "config.json" in f"{error}":
            raise
        # Of the fields of EncoderConfig, by our names
        raise ValueError(f"config.json of a {name} model: {error}") from None
    for field, value in dataclasses.asdict(cfg).items():
        if isinstance(value, int) and value >= 2**31:
            raise ValueError(f"config.json's {field} is {value}, over 32 bits")
    for size in ("vocab_size", "width", "depth", "num_heads", "mlp", "max_len"):
        if getattr(cfg, size) < 1:
            raise ValueError(f"config.json's {size} is {getattr(cfg, size)}")
    return cfg


def _check_fields(name: str, fields: Fields) -> None:
    """Rejects what no family computes: other code, quantized weights, text as numbers.

    Args:
        name: The family.
        fields: The parsed `config.json`.
    """
    require(fields, quantization_config=(None, {}), pruned_heads=(None, {}))
    # Code of the model's own, except that which we have read.
    code = str((fields.get("auto_map") or {}).get("AutoModel", ""))
    if code and code.split(".")[-1] != KNOWN_CODE.get(name):
        raise ValueError(
            f"config.json has an auto_map: the model is computed by its own code, "
            f"{code}, which we neither run nor know; without the auto_map we would "
            f"compute a plain {name} model"
        )
    texts = [
        f"{key} {value!r}"
        for key, value in fields.items()
        if isinstance(value, str) and NUMBER.fullmatch(value)
    ]
    if texts:
        raise ValueError(f"config.json has numbers as text: {', '.join(texts)}")


def has_output_layer(fields: Fields) -> bool:
    """Whether a `config.json` describes a causal LM with an untied output layer.

    Args:
        fields: The parsed `config.json` of a Hugging Face model folder.
    """
    family = fields.get("model_type")
    # Whether the output layer is the token table, by default or explicitly.
    tied = fields.get("tie_word_embeddings", family not in UNTIED)
    causal_lm = any(
        "ForCausalLM" in name or "LMHead" in name
        for name in fields.get("architectures") or ()
    )
    return causal_lm and not tied and family in OUTPUT_LAYERS


def write_config(cfg: EncoderConfig, *, lm_head: bool = False) -> dict[str, Any]:
    """The `config.json` fields of the family that computes an encoder.

    Args:
        cfg: The encoder's shape.
        lm_head: Whether the weights have an untied output layer, `lm_head`; the config
            is then that of the family's causal language model.

    Raises:
        ValueError: No family of `transformers` computes this encoder.
    """
    name = find_family(cfg)
    fields = {"model_type": name, **FAMILIES[name].write(cfg)}
    if lm_head:
        base = (
            fields["architectures"][0].removesuffix("TextModel").removesuffix("Model")
        )
        fields["architectures"] = [f"{base}{CAUSAL_LM.get(name, 'ForCausalLM')}"]
        fields["tie_word_embeddings"] = False
    return fields


@cache  # tries family after family, and every tensor's name is looked up in it
def find_family(cfg: EncoderConfig) -> str:
    """The first family whose `config.json` can express the encoder completely.

    A family can if writing `cfg` and reading it back gives `cfg`. Fields without an
    effect are not compared, nor are those of the implementation, such as the dtype.

    Raises:
        ValueError: No family can; the message names the nearest one.
    """
    ours, nearest = config_fields(_normalize_config(cfg)), None
    for name, family in FAMILIES.items():
        # A family may reject values when it reads them back.
        try:
            read_back = config_fields(_normalize_config(family.read(family.write(cfg))))
        except ValueError:
            continue
        differing = [field for field in ours if ours[field] != read_back[field]]
        if not differing:
            return name
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = name, differing, read_back
    message = f"no Hugging Face family ({', '.join(FAMILIES)}) computes this encoder"
    if nearest is not None:
        name, differing, read_back = nearest
        values = (f"{f} ({ours[f]!r} instead of {read_back[f]!r})" for f in differing)
        message += f"; {name} is nearest, but for {', '.join(values)}"
    raise ValueError(message)


def _normalize_config(cfg: EncoderConfig) -> EncoderConfig:
    """Sets the fields that not every `config.json` has to defaults.

    One of them is the anchor token that packed texts share, which has no effect with
    one text per row; another is the token that no token attends to, which only prompts
    put into texts. Dropout only acts in training, and some families have none.
    """
    theta = cfg.rope_theta_local if cfg.sliding_window_layers else 0.0
    defaults = {
        "dtype": "float32",
        "remat": "dots",
        "unroll": False,
        "attention": "auto",
        "anchor_token": False,
        "unattended_id": -1,
        "dropout": 0.0,
        "attention_dropout": None,
    }
    return replace(cfg, rope_theta_local=theta, **defaults)


NUMBER = re.compile(r"[+-]?(\d+|\d*\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# {family: class of the remote code that its reader follows}
KNOWN_CODE = {
    "jina_bert": "JinaBertModel",
    "nomic_bert": "NomicBertModel",
    "eurobert": "EuroBertModel",
}
# Families whose output layer is untied by default.
UNTIED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox")
# {family: end of the name of its causal language model}, if not "ForCausalLM".
CAUSAL_LM = {"gpt2": "LMHeadModel"}
# In the order in which `find_family` tries them.
FAMILIES = {
    "bert": Family(bert.read_bert, bert.write_bert),
    "xlm-roberta": Family(bert.read_roberta, bert.write_roberta),
    "roberta": Family(bert.read_roberta, bert.write_roberta),
    "mpnet": Family(bert.read_mpnet, bert.write_mpnet),
    "jina_bert": Family(bert.read_jina_bert, bert.write_jina_bert),
    "nomic_bert": Family(bert.read_nomic_bert, bert.write_nomic_bert),
    "modernbert": Family(bert.read_modernbert, bert.write_modernbert),
    "t5": Family(t5.read_t5, t5.write_t5),
    "llama": Family(llama.read_llama, llama.write_llama),
    "eurobert": Family(llama.read_eurobert, llama.write_eurobert),
    "mistral": Family(llama.read_mistral, llama.write_mistral),
    "qwen2": Family(llama.read_qwen2, llama.write_qwen2),
    "qwen3": Family(llama.read_qwen3, llama.write_qwen3),
    "gemma2": Family(llama.read_gemma2, llama.write_gemma2),
    "gemma3_text": Family(llama.read_gemma3, llama.write_gemma3),
    "mixtral": Family(llama.read_mixtral, llama.write_mixtral),
    "gpt2": Family(gpt.read_gpt2, gpt.write_gpt2),
    "gpt_neox": Family(gpt.read_gpt_neox, gpt.write_gpt_neox),
    "opt": Family(gpt.read_opt, gpt.write_opt),
}

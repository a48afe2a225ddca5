"""Model families of Hugging Face `transformers`: `config.json` <-> EncoderConfig.

A family is a pair of functions, reader and writer, in `FAMILIES`, and the rows of
`rows.ROWS` that name its tensors. The reader refuses whatever our encoder does not
compute, so that what is read is what `transformers` would compute.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from research.interop.hf import bert, gpt, llama, t5
from research.interop.hf.common import Fields
from research.models.config import EncoderConfig
from research.models.positions.methods import config_fields


class Family(NamedTuple):
    """How the `config.json` of one architecture is read and written.

    Attributes:
        read: the fields of a `config.json` -> EncoderConfig.
        write: EncoderConfig -> the fields of a `config.json`, `model_type` only where
            it is not the family's name; fields of the config that the family cannot
            say are left out (see `family_of`).
    """

    read: Callable[[Fields], EncoderConfig]
    write: Callable[[EncoderConfig], dict[str, Any]]


def read_config(fields: Fields) -> EncoderConfig:
    """The EncoderConfig that a `config.json` describes.

    Args:
        fields: the parsed `config.json` of a Hugging Face model folder.
    Raises:
        ValueError: an unknown family, a missing field, or a field whose value our
            encoder does not compute.
    """
    name = fields.get("model_type")
    if name == "bert" and fields.get("position_embedding_type") == "alibi":
        name = "jina_bert"
    if name not in FAMILIES:
        raise ValueError(
            f"config.json has model_type {name!r}; known are {', '.join(FAMILIES)}"
        )
    try:
        return FAMILIES[name].read(fields)
    except KeyError as missing:
        raise ValueError(f"config.json of a {name} model lacks {missing}") from None


def write_config(cfg: EncoderConfig) -> dict[str, Any]:
    """The `config.json` fields of the family that computes what `cfg` says.

    Raises:
        ValueError: no family of `transformers` computes it.
    """
    name = family_of(cfg)
    return {"model_type": name, **FAMILIES[name].write(cfg)}


def family_of(cfg: EncoderConfig) -> str:
    """The first family that can say everything in `cfg`: reading back gives `cfg`.

    How the arithmetic is run is ours and not compared, nor is what has no effect.

    Raises:
        ValueError: no family can.
    """
    ours, nearest = config_fields(_said(cfg)), None
    for name, family in FAMILIES.items():
        try:
            again = config_fields(_said(family.read(family.write(cfg))))
        except ValueError:
            continue
        differing = [field for field in ours if ours[field] != again[field]]
        if not differing:
            return name
        if nearest is None or len(differing) < len(nearest[1]):
            nearest = name, differing, again
    message = f"no Hugging Face family ({', '.join(FAMILIES)}) computes this encoder"
    if nearest is not None:
        name, differing, again = nearest
        values = (f"{f} ({ours[f]!r} instead of {again[f]!r})" for f in differing)
        message += f"; {name} is nearest, but for {', '.join(values)}"
    raise ValueError(message)


def _said(cfg: EncoderConfig) -> EncoderConfig:
    """The config with what no `config.json` says at its default.

    Texts have no anchor in common where each has a row of its own.
    """
    theta = cfg.rope_theta_local if cfg.sliding_window_layers else 0.0
    ours = {
        "dtype": "float32",
        "remat": "dots",
        "attention": "auto",
        "anchor_token": False,
    }
    return replace(cfg, rope_theta_local=theta, **ours)


# In the order in which `family_of` tries them.
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

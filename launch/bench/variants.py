"""Variants of a training step that the accelerator check times, and their configs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from launch.bench.workloads import Setting, lora_config, starbucks_config
from research.config_sections import section
from research.losses.matryoshka import SIZE_LOSSES


class Variant(NamedTuple):
    """A training step to time.

    Attributes:
        name: Name of its record.
        encoder: Fields of the encoder's section.
        texts: 'passages' or 'nli'.
        batch_size: Number of pairs or triplets; 0 for the setting's.
        length: Number of tokens of a row, and the longest of a text.
        size_loss: 'starbucks_sts', or 'full_size' for the last layer only.
        bfloat16: Whether parameters and moments are bfloat16 too.
        inherits: Whether the encoder's fields are those of the fastest variant so far,
            with the variant's own fields over them.
    """

    name: str
    encoder: Mapping[str, Any] = {}
    texts: str = "passages"
    batch_size: int = 0
    length: int = 128
    size_loss: str = "starbucks_sts"
    bfloat16: bool = False
    inherits: bool = False


NO_DROPOUT = {"dropout": 0.0}
# The recipe as it is, then what may be faster: attention, remat.
FLASH = NO_DROPOUT | {"attention": "flash"}
UNROLLED = {"unroll": True, "remat": "none"}
FIRST = (
    Variant("default"),
    Variant("flash, unrolled, no remat", FLASH | UNROLLED),
    Variant(
        "flash, dropout of hidden states, unrolled, no remat",
        {"attention_dropout": 0.0, "attention": "flash"} | UNROLLED,
    ),
)
NLI = Variant("default, nli", texts="nli")
BEST_NLI = Variant("best, nli", texts="nli", inherits=True)
# Variants of the fastest one, to learn where the time goes.
SECOND = (
    Variant("best, 256 tokens", length=256, inherits=True),
    Variant("best, last layer only", size_loss="full_size", inherits=True),
    Variant("best, bfloat16 parameters", bfloat16=True, inherits=True),
    Variant("best, batch 128", batch_size=128, inherits=True),
    Variant("best, gelu_tanh", {"act": "gelu_tanh"}, inherits=True),
    Variant("best, batch 2048 nli", texts="nli", batch_size=2_048, inherits=True),
    Variant("best, remat all", {"remat": "all"}, inherits=True),
)


def make_starbucks_config(setting: Setting, variant: Variant):
    """The config of a variant of Starbucks fine-tuning."""
    batch_size = variant.batch_size or 512
    if setting.tiny:
        batch_size = 8
    config = starbucks_config(
        setting, variant.texts, batch_size, variant.length, **variant.encoder
    )
    if variant.size_loss == "full_size":
        config.size_loss = section(SIZE_LOSSES, "full_size")
    return config


def make_lora_config(setting: Setting, variant: Variant):
    """The config of a variant of LoRA tuning."""
    return lora_config(setting, 8 if setting.tiny else 512, **variant.encoder)


def describe_variant(variant: Variant) -> dict[str, Any]:
    """The fields of a variant, for its record."""
    return {
        "encoder": dict(variant.encoder),
        "size_loss": variant.size_loss,
        "texts": variant.texts,
        "bfloat16_parameters": variant.bfloat16,
    }

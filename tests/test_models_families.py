import dataclasses

import pytest

from research.models.config import bert, modern
from research.models.families import FAMILIES, family_of, read_config, write_config

BERT = bert(vocab=60, width=32, depth=3, heads=4, mlp=48, max_len=40, dropout=0.2)
MODERN = modern(vocab=60, width=32, depth=3, heads=4, mlp=48, rope_theta=5e3)


@pytest.mark.parametrize("cfg", [BERT, MODERN])
def test_written_config_reads_back(cfg):
    assert read_config(write_config(cfg)) == cfg


def test_family_of_each_body():
    assert family_of(BERT) == "bert"
    assert family_of(MODERN) == "llama"
    assert family_of(dataclasses.replace(MODERN, bias=True)) == "llama"
    assert family_of(dataclasses.replace(BERT, act="gelu_tanh", type_vocab=1)) == "bert"


def test_how_arithmetic_is_run_does_not_choose_the_family():
    cfg = dataclasses.replace(
        BERT, dtype="bfloat16", remat="all", attention="fused", norm_eps=1e-6
    )
    assert family_of(cfg) == "bert"


@pytest.mark.parametrize("field", ["gated", "embed_norm"])
def test_encoder_of_no_family(field):
    cfg = dataclasses.replace(BERT, **{field: not getattr(BERT, field)})
    with pytest.raises(ValueError, match=f"no Hugging Face family.*{field}="):
        write_config(cfg)


def test_unknown_family_names_the_known():
    with pytest.raises(ValueError, match="'t5'; known are bert, llama"):
        read_config({"model_type": "t5"})
    with pytest.raises(ValueError, match="None; known are"):
        read_config({})


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_field_is_named(name):
    cfg = {"bert": BERT, "llama": MODERN}[name]
    fields = FAMILIES[name].write(cfg)
    del fields["vocab_size"]
    with pytest.raises(ValueError, match=f"{name} model lacks 'vocab_size'"):
        read_config(fields)


@pytest.mark.parametrize(
    ("cfg", "field", "value"),
    [
        (BERT, "position_embedding_type", "relative_key"),
        (BERT, "is_decoder", True),
        (BERT, "hidden_act", "mish"),
        (MODERN, "is_causal", True),
        (MODERN, "num_key_value_heads", 2),
        (MODERN, "head_dim", 16),
        (MODERN, "mlp_bias", True),
    ],
)
def test_what_we_do_not_compute_is_refused(cfg, field, value):
    with pytest.raises(ValueError, match=f"{field} {value!r}.*allowed"):
        read_config(write_config(cfg) | {field: value})


def test_all_unsupported_fields_are_listed_at_once():
    fields = write_config(BERT) | {"is_decoder": True, "add_cross_attention": True}
    with pytest.raises(ValueError, match="is_decoder True.*add_cross_attention True"):
        read_config(fields)


def test_llama_is_causal_unless_it_says_not():
    fields = write_config(MODERN)
    del fields["is_causal"]
    with pytest.raises(ValueError, match="is_causal True"):
        read_config(fields)


def test_rotary_fields_of_both_versions():
    fields = write_config(MODERN)
    old = {k: v for k, v in fields.items() if k != "rope_parameters"}
    new = {k: v for k, v in fields.items() if k not in ("rope_theta", "rope_scaling")}
    assert read_config(old) == read_config(new) == MODERN
    with pytest.raises(ValueError, match="rope_type 'yarn'"):
        read_config(old | {"rope_scaling": {"type": "yarn", "factor": 4.0}})

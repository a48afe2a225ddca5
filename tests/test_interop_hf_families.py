import dataclasses

import pytest

from research.interop.hf.families import (
    FAMILIES,
    find_family,
    read_config,
    write_config,
)
from research.models.config import bert, modern
from research.models.positions.relative_rope import SelfExtend

BERT = bert(
    vocab_size=60, width=32, depth=3, num_heads=4, mlp=48, max_len=40, dropout=0.2
)
MODERN = modern(vocab_size=60, width=32, depth=3, num_heads=4, mlp=48, rope_theta=5e3)
CAUSAL = dataclasses.replace(MODERN, causal=True)
ROBERTA = dataclasses.replace(BERT, position_offset=2)
MPNET = dataclasses.replace(ROBERTA, position_bias="t5", type_vocab=0)
JINA = dataclasses.replace(
    BERT,
    position="none",
    position_bias="alibi",
    gated=True,
    bias=("qkv", "out", "down"),
)
NOMIC = dataclasses.replace(
    BERT,
    position="rope",
    bias=(),
    act="silu",
    gated=True,
    rope_theta=1e3,
    rope_theta_local=1e3,
)
MODERNBERT = dataclasses.replace(
    MODERN,
    norm="layer",
    norm_bias=False,
    first_norm=False,
    act="gelu",
    embed_norm=True,
    sliding_window_layers=(False, True, True),
    window=7,
    rope_theta_local=1e3,
)
T5 = dataclasses.replace(
    MODERN,
    position="none",
    position_bias="t5",
    rope_theta=1e4,
    rope_theta_local=1e4,
    scale=1.0,
    act="relu",
    gated=False,
)
WINDOW = dataclasses.replace(
    CAUSAL, sliding_window_layers=(True,) * 3, window=7, num_kv_heads=2
)
GEMMA2 = dataclasses.replace(
    CAUSAL,
    norm="rms_plus_one",
    norm_at="sandwich",
    embed_scale=32**0.5,
    scale=24**-0.5,
    attn_logit_softcap=50.0,
    sliding_window_layers=(True, False, True),
    window=7,
)
GEMMA3 = dataclasses.replace(
    GEMMA2, attn_logit_softcap=0.0, qk_norm=True, rope_theta_local=1e3, causal=False
)
GPT2 = dataclasses.replace(
    BERT, norm_at="pre", causal=True, type_vocab=0, embed_norm=False
)
OPT = dataclasses.replace(GPT2, position_offset=2, norm_eps=1e-5, act="relu")
NEOX = dataclasses.replace(
    GPT2, position="rope", norm_at="parallel", rope_fraction=0.5, dropout=0.0
)
CONFIGS = {
    "bert": BERT,
    "xlm-roberta": ROBERTA,
    "roberta": ROBERTA,
    "mpnet": MPNET,
    "jina_bert": JINA,
    "nomic_bert": NOMIC,
    "modernbert": MODERNBERT,
    "t5": T5,
    "llama": MODERN,
    "eurobert": MODERN,
    "mistral": WINDOW,
    "mixtral": dataclasses.replace(CAUSAL, num_experts=4, experts_per_token=3),
    "qwen2": dataclasses.replace(CAUSAL, bias=("qkv",)),
    "qwen3": dataclasses.replace(CAUSAL, qk_norm=True, head_dim=6, scale=6**-0.5),
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "opt": OPT,
}
# Families that say the same as one before them.
TWINS = {"roberta": "xlm-roberta", "eurobert": "llama"}


def fields_of(name):
    """The config.json of a family, also of one that has a twin."""
    return {"model_type": name, **FAMILIES[name].write(CONFIGS[name])}


@pytest.mark.parametrize("name", FAMILIES)
def test_written_config_reads_back(name):
    cfg = CONFIGS[name]
    assert read_config(fields_of(name)) == cfg
    assert find_family(cfg) == TWINS.get(name, name)
    assert read_config(write_config(cfg)) == cfg


@pytest.mark.parametrize(
    ("family", "changes"),  # of one of the configs above
    [
        ("llama", {"bias": ("qkv", "out", "up", "down")}),
        ("llama", {"bias": ("up", "down")}),
        ("bert", {"act": "gelu_tanh", "type_vocab": 1}),
        ("bert", {"attention_dropout": 0.0}),
        ("opt", {"attention_dropout": 0.3}),
        ("xlm-roberta", {"position_offset": 4}),
        ("nomic_bert", {"rope_theta": 2e4, "rope_theta_local": 2e4}),
        ("modernbert", {"norm_bias": True, "bias": ("up", "down")}),
        ("modernbert", {"sliding_window_layers": (), "window": 0}),
        ("t5", {"act": "gelu_tanh", "gated": True}),
        ("mistral", {"causal": False}),
        ("qwen2", {"sliding_window_layers": (False, True, True), "window": 3}),
        ("gemma2", {"causal": False, "attn_logit_softcap": 0.0}),
        ("gemma3_text", {"causal": True}),
        ("gpt2", {"scale": 1.0, "causal": False}),
        ("gpt_neox", {"norm_at": "pre", "bias": ("up", "down"), "causal": False}),
        ("opt", {"bias": (), "causal": False}),
    ],
)
def test_other_configs_of_a_family_read_back(family, changes):
    cfg = dataclasses.replace(CONFIGS[family], **changes)
    assert find_family(cfg) == family
    assert read_config(write_config(cfg)) == cfg


def test_how_arithmetic_is_run_does_not_choose_the_family():
    cfg = dataclasses.replace(
        BERT, dtype="bfloat16", remat="all", attention="plain", norm_eps=1e-6
    )
    assert find_family(cfg) == "bert"
    assert find_family(dataclasses.replace(CAUSAL, anchor_token=True)) == "llama"
    # A fine-tuning may have dropout where its family has none
    for family in ("llama", "gemma2", "t5"):
        cfg = dataclasses.replace(CONFIGS[family], dropout=0.3)
        assert find_family(cfg) == family


@pytest.mark.parametrize("field", ["gated", "embed_norm"])
def test_encoder_of_no_family(field):
    cfg = dataclasses.replace(BERT, **{field: not getattr(BERT, field)})
    with pytest.raises(
        ValueError, match=f"no Hugging Face family.*is nearest, but for .*{field}"
    ):
        write_config(cfg)


def test_unknown_family_names_the_known():
    with pytest.raises(ValueError, match="'xlnet'; known are bert, .*modernbert.*opt"):
        read_config({"model_type": "xlnet"})
    with pytest.raises(ValueError, match="None; known are"):
        read_config({})


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_field_is_named(name):
    fields = fields_of(name)
    del fields["vocab_size"]
    with pytest.raises(ValueError, match=f"{name} model lacks 'vocab_size'"):
        read_config(fields)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": ["bert"]}, r"model_type \['bert'\]; known are"),
        ({"hidden_dropout_prob": "\ud800"}, "bert model has a text where a number"),
        ({"hidden_size": None}, "bert model: encoder's width is None"),
        ({"intermediate_size": 2**40}, "config.json's mlp is 1099511627776, over 32"),
    ],
)
def test_values_of_another_kind_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(fields_of("bert") | changes)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "hidden_act", "mish"),
        ("mpnet", "relative_attention_num_buckets", 64),
        ("jina_bert", "feed_forward_type", "original"),
        ("nomic_bert", "prenorm", True),
        ("nomic_bert", "rotary_scaling_factor", 16),
        ("modernbert", "layer_types", ["chunked_attention"] * 3),
        ("t5", "feed_forward_proj", "tanh"),
        ("t5", "is_decoder", True),
        ("gemma2", "use_bidirectional_attention", True),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("opt", "do_layer_norm_before", False),
        ("opt", "word_embed_proj_dim", 16),
    ],
)
def test_what_we_do_not_compute_is_refused(family, field, value):
    shown = "chunked_attention" if isinstance(value, list) else repr(value)
    with pytest.raises(ValueError, match=f"{field} .*{shown}.*allowed"):
        read_config(fields_of(family) | {field: value})


def test_all_unsupported_fields_are_listed_at_once():
    fields = write_config(BERT) | {"is_decoder": True, "add_cross_attention": True}
    with pytest.raises(ValueError, match="is_decoder True.*add_cross_attention True"):
        read_config(fields)


def test_decoders_are_causal_unless_they_say_not():
    fields = write_config(MODERN)
    assert fields.pop("is_causal") is False
    assert read_config(fields) == CAUSAL
    assert "is_causal" not in write_config(CAUSAL)


def test_window_of_embedding_gemma():
    # 512 // 2 + 1, exclusive: tokens at most 256 apart.
    fields = write_config(GEMMA3) | {"sliding_window": 512}
    assert fields["use_bidirectional_attention"] is True
    assert read_config(fields).window == 256
    del fields["use_bidirectional_attention"]
    assert read_config(fields).window == 511  # causal, the token itself counts
    assert read_config(fields | {"is_causal": False}).window == 512


def test_period_of_global_blocks_is_written_if_there_is_one():
    windows = {
        "modernbert": [((False, True, True), 3), ((), 1), ((True, False, True), None)],
        "gemma3_text": [((True, True, False), 3), ((True,) * 3, 4), ((), 1)],
    }
    names = {"modernbert": "global_attn_every_n_layers"}
    for family, cases in windows.items():
        name = names.get(family, "_sliding_window_pattern")
        for is_local, period in cases:
            cfg = dataclasses.replace(
                CONFIGS[family], depth=3, sliding_window_layers=is_local
            )
            assert FAMILIES[family].write(cfg).get(name) == period


def test_window_of_modernbert_and_its_old_fields():
    fields = write_config(MODERNBERT) | {"local_attention": 128}
    assert read_config(fields).window == 64
    old = {k: v for k, v in fields.items() if k not in ("rope_parameters",)}
    del old["layer_types"]
    assert read_config(old | {"global_attn_every_n_layers": 3}) == read_config(fields)


def test_nomic_bert_of_its_remote_code():
    old = {
        "model_type": "nomic_bert",
        "vocab_size": 60,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 40,
        "resid_pdrop": 0.2,
        "attn_pdrop": 0.2,
        "activation_function": "swiglu",
        "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "rotary_scaling_factor": None,
        "qkv_proj_bias": False,
        "prenorm": False,
        "causal": False,
    }
    assert read_config(old) == NOMIC


def test_rotary_fields_of_both_versions():
    fields = write_config(MODERN)
    old = {k: v for k, v in fields.items() if k != "rope_parameters"}
    new = {k: v for k, v in fields.items() if k not in ("rope_theta", "rope_scaling")}
    assert read_config(old) == read_config(new) == MODERN
    with pytest.raises(ValueError, match="rope_type 'axial'"):
        read_config(old | {"rope_scaling": {"type": "axial", "factor": 4.0}})
    with pytest.raises(ValueError, match="partial_rotary_factor 0.5"):
        read_config(old | {"rope_scaling": {"partial_rotary_factor": 0.5}})


@pytest.mark.parametrize(
    ("rope", "max_len"),
    [
        ({"rope_type": "linear", "factor": 2.0}, 64),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),  # it goes on growing
        ({"rope_type": "yarn", "factor": 4.0}, 64),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            64,
        ),
    ],
)
@pytest.mark.parametrize("family", ["llama", "modernbert", "gemma3_text", "gpt_neox"])
def test_rope_scaling_reads_back(family, rope, max_len):
    fields = fields_of(family) | {"max_position_embeddings": 64}
    parameters = fields["rope_parameters"]
    parameters.get("full_attention", parameters).update(rope)
    cfg = read_config(fields)
    assert (len(cfg.position_methods), cfg.max_len) == (1, max_len)
    assert find_family(cfg) == family
    assert read_config(write_config(cfg)) == cfg
    assert write_config(cfg)["max_position_embeddings"] == 64


def test_position_method_that_transformers_does_not_have():
    cfg = dataclasses.replace(MODERN, position_methods=[SelfExtend(group=2, window=4)])
    with pytest.raises(ValueError, match="position_methods .*'self_extend"):
        write_config(cfg)

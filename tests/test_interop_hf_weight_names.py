"""Every family against `transformers`: a tiny random model to ours and back."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from research.interop.hf.families import (
    FAMILIES,
    has_output_layer,
    read_config,
    write_config,
)
from research.interop.hf.safetensors import read_safetensors, write_safetensors
from research.models import encoder
from research.models.heads import output_embeddings
from research.objectives.causal import next_token_loss
from research.types import Tokens

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = SIZES | {"num_key_value_heads": 2}
GEMMA = GQA | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 4}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 42}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
# What to ask of `transformers`: (model_type, fields of its configuration).
MODELS = {
    "bert": ("bert", SIZES),
    "xlm-roberta": ("xlm-roberta", SIZES | {"type_vocab_size": 1, "pad_token_id": 1}),
    "roberta": ("roberta", SIZES | {"pad_token_id": 3, "hidden_act": "gelu_new"}),
    "mpnet": ("mpnet", SIZES | {"pad_token_id": 1}),
    "jina_bert": ("bert", SIZES | {"position_embedding_type": "alibi"}),
    "nomic_bert": ("nomic_bert", SIZES),
    "modernbert": ("modernbert", SIZES | {"local_attention": 4}),
    "modernbert_biases": (
        "modernbert",
        SIZES | {"attention_bias": True, "mlp_bias": True, "norm_bias": True},
    ),
    "t5": ("t5", T5 | {"num_heads": 4}),
    "t5_gated": ("t5", T5 | {"num_heads": 4, "feed_forward_proj": "gated-gelu"}),
    "llama": ("llama", GQA),
    "llama_both_ways": ("llama", GQA | {"is_causal": False, "attention_bias": True}),
    "llama_yarn": ("llama", GQA | {"rope_parameters": YARN, "mlp_bias": True}),
    "eurobert": ("eurobert", GQA | {"mask_token_id": 4}),
    "mistral": ("mistral", GQA | {"sliding_window": 4}),
    "mistral_both_ways": ("mistral", GQA | {"sliding_window": 4, "is_causal": False}),
    "mixtral": ("mixtral", GQA | {"num_local_experts": 4}),
    "mixtral_window": (
        "mixtral",
        GQA | {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 4},
    ),
    "qwen2": ("qwen2", GQA),
    "qwen2_window": (
        "qwen2",
        GQA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", GQA | {"head_dim": 16}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma2_both_ways": ("gemma2", GEMMA | {"is_causal": False}),
    "gemma3_text": ("gemma3_text", GEMMA | {"sliding_window_pattern": 2}),
    "embedding_gemma": (
        "gemma3_text",
        GEMMA | {"use_bidirectional_attention": True, "sliding_window_pattern": 3},
    ),
    "gpt2": ("gpt2", GPT2 | {"n_inner": 48, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neox": ("gpt_neox", SIZES | {"rotary_pct": 0.5}),
    "gpt_neox_sequential": ("gpt_neox", SIZES | {"use_parallel_residual": False}),
    "opt": ("opt", SIZES | {"ffn_dim": 48}),
}
# These count positions in padding too, unless `position_ids` are passed.
EXPLICIT_POSITIONS = ("bert", "gpt2")


def jina(config):
    """JinaBERT with the configuration of `transformers`' BERT."""
    from jina_bert import JinaBert

    return JinaBert(config)


def build(name):
    """A model of that name in the head of this file, with noise on every weight."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{"pad_token_id": 0} | fields)
    if name == "jina_bert":
        model = jina(config)
    elif kind == "t5":
        model = transformers.T5EncoderModel(config)
    else:
        model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for value in model.parameters():  # biases and scales too
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()


def save(model, folder, name):
    """Writes config.json and model.safetensors."""
    if name != "jina_bert":
        model.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    fields = model.config.to_dict() | {"feed_forward_type": "geglu"}
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(model.state_dict(), folder / "model.safetensors")


def load(folder, name):
    """The model that `transformers` reads from a folder."""
    transformers = pytest.importorskip("transformers")
    if name == "jina_bert":
        from safetensors.torch import load_file

        model = jina(transformers.AutoConfig.from_pretrained(folder))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    elif MODELS[name][0] == "t5":
        model = transformers.T5EncoderModel.from_pretrained(folder)
    else:
        model = transformers.AutoModel.from_pretrained(folder)
    return model.eval()


def padded_rows(model):
    """A full row, one padded to the right and one to the left: ids, mask [3, 9]."""
    place = np.arange(9)[None]
    mask = np.concatenate([place >= 0, place < 6, place >= 4])
    ids = np.random.default_rng(0).integers(4, 60, mask.shape)
    return np.where(mask, ids, model.config.pad_token_id), mask


def hf_hidden_states(model, ids, mask):
    """The last hidden states [3, 9, D]."""
    torch = pytest.importorskip("torch")
    ids, valid = torch.tensor(ids), torch.tensor(mask, dtype=torch.long)
    positions = {}
    if model.config.model_type in EXPLICIT_POSITIONS:
        positions["position_ids"] = (valid.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        if type(model).__name__ == "JinaBert":
            return model(ids, valid)[-1].numpy()
        output = model(input_ids=ids, attention_mask=valid, **positions)
    return output.last_hidden_state.numpy()


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    """A model of `transformers`, its folder, and what we read there."""
    name, folder = request.param, tmp_path_factory.mktemp("theirs")
    model = build(name)
    save(model, folder, name)
    cfg = read_config(json.loads((folder / "config.json").read_text()))
    params = read_safetensors(folder, cfg)
    return SimpleNamespace(
        name=name, model=model, folder=folder, cfg=cfg, params=params
    )


def test_hidden_states_of_the_full_and_the_pruned_model(case, tmp_path):
    ids, mask = padded_rows(case.model)
    tokens = Tokens(jnp.int32(ids), jnp.int32(mask), jnp.asarray(mask))
    ours = encoder.forward(case.params, tokens, case.cfg, every_layer=True)
    final = hf_hidden_states(case.model, ids, mask)
    assert np.abs(final[mask]).max() > 0.5
    np.testing.assert_allclose(ours.hidden_states[mask], final[mask], atol=1e-4)
    params, cfg = encoder.truncate_depth(case.params, case.cfg, 2)
    write_safetensors(tmp_path, params, cfg)
    (tmp_path / "config.json").write_text(json.dumps(write_config(cfg)))
    reloaded = load(tmp_path, case.name)
    assert reloaded.config.num_hidden_layers == 2
    np.testing.assert_allclose(
        ours.layers[2][mask], hf_hidden_states(reloaded, ids, mask)[mask], atol=1e-4
    )


def test_import_then_export_is_the_identity(case, tmp_path):
    write_safetensors(tmp_path, case.params, case.cfg)
    before = load_file(case.folder / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == {k for k in before if not k.startswith("pooler.")}
    for name, value in after.items():
        assert value.tobytes() == before[name].tobytes(), name


def test_written_config_reads_back(case):
    fields = json.loads(json.dumps(write_config(case.cfg)))
    assert read_config(fields) == case.cfg


def test_every_family_is_tested():
    pytest.importorskip("transformers")
    kinds = {kind for kind, _ in MODELS.values()} | {"jina_bert"}
    assert kinds == FAMILIES.keys()


# Causal language models whose output layer is not tied to the token table.
UNTIED = ("llama", "gpt_neox")


@pytest.mark.parametrize("name", UNTIED)
def test_untied_output_layers_give_the_logits_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, **{"pad_token_id": 0, "tie_word_embeddings": False} | fields
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    (tmp_path / "theirs").mkdir()
    model.save_pretrained(tmp_path / "theirs")
    config_fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert has_output_layer(config_fields)
    assert not has_output_layer(config_fields | {"tie_word_embeddings": True})
    cfg = read_config(config_fields)
    params = read_safetensors(tmp_path / "theirs", cfg, lm_head=True)
    # Logits, and the loss of `perplexity`
    ids, mask = padded_rows(model)
    ids, mask = ids[:2], mask[:2]  # `transformers` counts positions in padding
    tokens = Tokens(jnp.int32(ids), jnp.int32(mask), jnp.asarray(mask))
    states = encoder.forward(params, tokens, cfg).hidden_states
    logits = states @ output_embeddings(params).T
    labels = np.where(mask, ids, -100)
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            labels=torch.tensor(labels),
        )
    np.testing.assert_allclose(logits[mask], output.logits.numpy()[mask], atol=1e-4)
    mean, _ = next_token_loss(params, tokens, cfg)
    np.testing.assert_allclose(mean, output.loss.item(), atol=1e-4)
    # Written back: the same names and bytes, and `transformers` reads them
    (tmp_path / "ours").mkdir()
    write_safetensors(tmp_path / "ours", params, cfg)
    fields = write_config(cfg, lm_head=True)
    (tmp_path / "ours" / "config.json").write_text(json.dumps(fields))
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[key].tobytes() == before[key].tobytes() for key in after)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs, ours = (m.get_output_embeddings().weight for m in (model, reloaded))
    assert torch.equal(ours, theirs)


HEADS = {
    "bert": "BertForPreTraining",
    "xlm-roberta": "XLMRobertaForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "nomic_bert": "NomicBertForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "eurobert": "EuroBertForMaskedLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "opt": "OPTForCausalLM",
}


@pytest.mark.parametrize("name", HEADS)
def test_files_of_models_with_a_head(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, fields = MODELS[name]
    config = transformers.AutoConfig.for_model(kind, **{"pad_token_id": 0} | fields)
    model = getattr(transformers, HEADS[name])(config)
    model.save_pretrained(tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    table = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(params["embed"]["token"]["embedding"], table)

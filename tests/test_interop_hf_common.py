"""An audit of config.json: what `transformers` reads of it, and what we read."""

import importlib.util
import re
from pathlib import Path

import pytest
from test_interop_hf_families import fields_of

from research.interop.hf.families import FAMILIES, read_config

# Fields that the code of an encoder in `transformers` reads without an effect on its
# states: heads, decoders, initialization, training, other names of fields that are
# read, and special tokens, which the tokenizer has.
WITHOUT_EFFECT = """
_attn_implementation chunk_size_feed_forward classifier_activation classifier_bias
classifier_dropout classifier_pooling decoder_bias decoder_start_token_id dense_act_fn
deterministic_flash_attn embd_pdrop embedding_dropout eos_token_id
final_logit_softcapping get_text_config hidden_dropout hidden_size image_token_id
initializer_cutoff_factor initializer_factor initializer_range is_decoder
is_encoder_decoder is_gated_act layerdrop max_position_embeddings mm_tokens_per_image
num_attention_heads num_decoder_layers num_hidden_layers num_labels output_attentions
output_hidden_states output_router_logits pad_token_id problem_type
reorder_and_upcast_attn return_dict router_aux_loss_coef scale_decoder_outputs
sliding_window sparse_pred_ignore_index sparse_prediction summary_first_dropout
summary_last_dropout summary_proj_to_labels summary_use_proj text_config
tie_word_embeddings use_cache vision_config
"""
MODULES = {"xlm-roberta": "xlm_roberta", "gemma3_text": "gemma3"}


def is_read(fields: dict, field: str) -> bool:
    """Whether some other value of a field changes the encoder, or is refused."""
    expected, value = read_config(fields), fields.get(field)
    others = ["other", 2.5, 3, True, {"rope_type": "linear", "factor": 2.0}]
    if isinstance(value, int | float):
        others = [not value] if isinstance(value, bool) else [2 * value + 1]
    for other in others:
        try:
            if read_config({**fields, field: other}) != expected:
                return True
        except ValueError:
            return True
    return False


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "jina_bert"])
def test_every_field_that_transformers_reads_is_read_or_has_no_effect(name):
    spec = importlib.util.find_spec("transformers")
    if spec is None:
        pytest.skip("transformers is not installed")
    module = MODULES.get(name, name)
    file = Path(spec.origin).parent / "models" / module / f"modeling_{module}.py"
    read = set(re.findall(r"\bconfig\.(\w+)", file.read_text()))
    assert len(read) > 8
    fields = {**fields_of(name), "model_type": name}
    unread = {field for field in read if not is_read(fields, field)}
    assert not unread - set(WITHOUT_EFFECT.split())

"""Tiny random decoders of `transformers`, and what we read of their files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from research.interop.hf.families import read_config
from research.interop.hf.safetensors import read_safetensors

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "llama": SIZES,
    "mistral": SIZES | {"sliding_window": None},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 16},
    "gemma2": SIZES
    | {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 40},
}


def decoder(kind, folder):
    """A model with noise on every weight: theirs, our params, our cfg."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **DECODERS[kind])
    eager = {"attn_implementation": "eager"}
    model = transformers.AutoModel.from_config(config, **eager).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    cfg = read_config(json.loads((folder / "config.json").read_text()))
    params = read_safetensors(folder, cfg)
    return SimpleNamespace(kind=kind, model=model, params=params, cfg=cfg)


def hidden_states(model, texts, side):
    """For each text (a list of ids) its states [K+1, n, D] of `transformers`.

    They are computed alone ("none"), or as rows padded to the left or to the right.
    """
    if side == "none":
        return [hidden_states(model, [text], "right")[0] for text in texts]
    torch = pytest.importorskip("torch")
    longest = max(map(len, texts))
    ids, mask = np.zeros((2, len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        start = longest - len(text) if side == "left" else 0
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    ids, real = torch.tensor(ids), torch.tensor(mask)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=real, output_hidden_states=True)
    states = torch.stack(output.hidden_states).numpy()
    return [states[:, row, mask[row] > 0] for row in range(len(texts))]


def prepended(model, ids, target, window):
    """The final states [n, D] of token prepending, by a loop over their layers."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        ids = torch.tensor([ids])
        x = model.embed_tokens(ids)
        if model.config.model_type == "gemma2":
            scale = torch.tensor(model.config.hidden_size**0.5)
            if not hasattr(model.embed_tokens, "embed_scale"):
                x = x * scale
        place = torch.arange(ids.shape[1])[None]
        turns = model.rotary_emb(x, place)
        hidden = torch.ones(ids.shape[1], ids.shape[1]).triu(1) * torch.finfo().min
        for number, layer in enumerate(model.layers):
            if window[0] <= number < window[1]:
                x = x.clone()
                x[:, target] = x[:, -1]
            x = layer(
                x,
                attention_mask=hidden[None, None],
                position_ids=place,
                position_embeddings=turns,
            )
            x = x[0] if isinstance(x, tuple) else x
        return model.norm(x)[0].numpy()

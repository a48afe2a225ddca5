"""JinaBERT v2 in PyTorch, which `transformers` has as remote code only.

Written from its description: BERT without a position table, ALiBi on both sides, and a
gated feed-forward layer whose first half is activated.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu

from research.models.positions.bias import alibi_slopes


def named(**children: nn.Module) -> nn.Module:
    """A module of modules, whose names may be Python's."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


class Layer(nn.Module):
    """Post-norm attention and gated feed-forward layer."""

    def __init__(self, config):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        eps = config.layer_norm_eps
        self.inner = config.intermediate_size
        parts = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        norm = nn.LayerNorm(width, eps)
        output = named(dense=nn.Linear(width, width), LayerNorm=norm)
        self.attention = named(self=named(**parts), output=output)
        self.mlp = named(
            gated_layers=nn.Linear(width, 2 * self.inner, bias=False),
            wo=nn.Linear(self.inner, width),
            layernorm=nn.LayerNorm(width, eps),
        )

    def forward(self, x, bias):
        """x: [B, S, D]; bias: [B, H, S, S]."""
        part, output = dict(self.attention.named_children()).values()
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (part.query, part.key, part.value)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = output.LayerNorm(x + output.dense(y))
        gate, up = self.mlp.gated_layers(x).split(self.inner, -1)
        return self.mlp.layernorm(x + self.mlp.wo(gelu(gate) * up))


class JinaBert(nn.Module):
    """The names of its parameters are those of jina-embeddings-v2-base-en."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.embeddings = named(
            word_embeddings=nn.Embedding(config.vocab_size, width),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, width),
            LayerNorm=nn.LayerNorm(width, config.layer_norm_eps),
        )
        layers = [Layer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = named(layer=nn.ModuleList(layers))

    def forward(self, ids, mask):
        """ids, mask: [B, S] -> hidden states [L+1, B, S, D]."""
        parts = self.embeddings
        x = parts.word_embeddings(ids) + parts.token_type_embeddings.weight[0]
        place = torch.arange(ids.shape[1])
        distance = (place[:, None] - place[None]).abs()
        slope = torch.tensor(np.asarray(alibi_slopes(self.config.num_attention_heads)))
        bias = -slope[:, None, None] * distance
        bias = bias + torch.where(mask[:, None, None] > 0, 0.0, -1e9)
        states = [parts.LayerNorm(x)]
        for layer in self.encoder.layer:
            states.append(layer(states[-1], bias))
        return states

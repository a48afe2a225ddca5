"""PyTorch counterparts of our training steps, for the benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from research.models.config import EncoderConfig


class StarbucksPeer:
    """A transformers encoder trained by the Starbucks loss for similarity.

    Columns are padded to their longest text, as sentence-transformers pads them.

    Args:
        model: The encoder.
        pairs: Sizes (depth, dim) of the loss.
        settings: Optimizer section of the recipe.
        rates: Learning rate of each step; empty for the constant one of `settings`.
        dropout: Whether the model's dropout is on.
        device: Torch device to train on.
        autocast: Whether matrix products are in bfloat16.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        pairs: Sequence[tuple[int, int]],
        settings: Mapping[str, Any],
        *,
        rates: Sequence[float] = (),
        dropout: bool = True,
        device: str = "cpu",
        autocast: bool = False,
    ):
        self.model = model.train(dropout).to(device)
        self.rates = iter(rates)
        self.pairs, self.device, self.autocast = pairs, device, autocast
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=0.0,
            fused=device != "cpu",
        )
        self.clip = settings.clip_norm

    def update(self, *columns: list[np.ndarray]) -> float:
        """Makes one step on columns of texts; returns the loss before it."""
        return float(self.queue(*columns))

    def queue(self, *columns: list[np.ndarray]) -> torch.Tensor:
        """Starts a step on columns of texts; returns the loss before it, a scalar."""
        # A list over depths of [B, D] vectors, for each column of texts.
        self.optimizer.zero_grad()
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self.autocast):
            layers = [self._pool_layers(texts) for texts in columns]
            value = self._loss([torch.stack(x) for x in layers])
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = next(self.rates, group["lr"])
        self.optimizer.step()
        return value.detach()

    def _pool_layers(self, texts: list[np.ndarray]) -> list[torch.Tensor]:
        """Mean-pooled states [B, D] of every layer."""
        ids, mask = pad_texts(texts, self.device)
        # The mean over the valid tokens of each layer.
        states = self.model(ids, attention_mask=mask, output_hidden_states=True)
        weights = mask[..., None].float()
        total = weights.sum(1)
        return [(h * weights).sum(1) / total for h in states.hidden_states]

    def _loss(self, columns: list[torch.Tensor]) -> torch.Tensor:
        """Sum over the sizes of InfoNCE and, below the last layer, feature KL."""
        total = torch.zeros((), device=self.device)
        for depth, dim in self.pairs:
            q, *d = (F.normalize(x[depth, :, :dim], dim=-1) for x in columns)
            # InfoNCE of cosines at temperature 0.05: [B, B*K].
            scores = 20 * q @ torch.cat(d).T
            labels = torch.arange(len(q), device=self.device)
            total = total + F.cross_entropy(scores, labels)
            if depth < len(columns[0]) - 1:
                # KL divergence of the features from those of the last layer.
                rows = torch.cat([x[depth, :, :dim] for x in columns])
                teacher = torch.cat([x[-1, :, :dim] for x in columns])
                kl = F.kl_div(
                    F.log_softmax(rows, -1),
                    F.log_softmax(teacher, -1),
                    log_target=True,
                    reduction="batchmean",
                )
                total = total + 0.3 * kl
        return total


class LoraPeer:
    """A causal decoder with LoRA (peft), trained by InfoNCE of last-token vectors.

    Args:
        model: The decoder, with adapters.
        rate: Learning rate.
        temperature: Temperature of InfoNCE.
        device: Torch device to train on.
    """

    def __init__(
        self, model: torch.nn.Module, rate: float, temperature: float, device: str
    ):
        self.model, self.device = model.train().to(device), device
        self.temperature = temperature
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=rate, weight_decay=0.0, fused=device != "cpu"
        )

    def queue(self, *columns: list[np.ndarray]) -> torch.Tensor:
        """Starts a step on columns of texts; returns the loss before it, a scalar."""
        self.optimizer.zero_grad()
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16):
            q, *d = (self._embed(texts) for texts in columns)
            scores = q @ torch.cat(d).T / self.temperature  # [B, B*K]
            labels = torch.arange(len(q), device=self.device)
            value = F.cross_entropy(scores.float(), labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return value.detach()

    def _embed(self, texts: list[np.ndarray]) -> torch.Tensor:
        """Normalized state [B, D] of each text's last token."""
        ids, mask = pad_texts(texts, self.device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(ids), device=self.device)
        return F.normalize(states[rows, mask.sum(1) - 1].float(), dim=-1)


def pad_texts(
    texts: Sequence[np.ndarray], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded token ids [B, S] of texts, and the mask of their tokens."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


class MaskedPeer:
    """BertForMaskedLM of transformers, with the shape of one of our encoders.

    The model is unchanged: it computes logits for every token, and the loss uses those
    of masked tokens.
    """

    def __init__(self, cfg: EncoderConfig, settings):
        # The same sizes and dropout as our encoder.
        config = transformers.BertConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.width,
            num_hidden_layers=cfg.depth,
            num_attention_heads=cfg.num_heads,
            intermediate_size=cfg.mlp,
            max_position_embeddings=cfg.max_len,
            hidden_dropout_prob=cfg.dropout,
            attention_probs_dropout_prob=cfg.dropout,
        )
        self.model = transformers.BertForMaskedLM(config).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.clip = settings.clip_norm

    def update(self, ids: np.ndarray, labels: np.ndarray) -> float:
        """Makes one step on ids and labels [R, S] (-100 for none); returns the loss."""
        self.optimizer.zero_grad()
        ids, labels = torch.from_numpy(ids), torch.from_numpy(labels)
        value = self.model(input_ids=ids, labels=labels).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return float(value.detach())

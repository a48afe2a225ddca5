"""PyTorch counterparts of our training steps, for the benchmarks."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from research.models.config import EncoderConfig
from research.types import Batch, max_segments


def unpack_texts(batch: Batch) -> list[list[np.ndarray]]:
    """Token ids of a packed batch's texts: K+1 columns of B texts each."""
    token_ids, segment_ids = batch.tokens.token_ids, batch.tokens.segment_ids
    size = max_segments(token_ids.shape[1])

    # The index of a text is row * size + its number in the row, see `Batch`.
    def read_text(index):
        row, number = divmod(int(index), size)
        return token_ids[row][segment_ids[row] == number + 1]

    # Documents are stored query by query: column k holds the k-th of each query.
    docs_per_query = len(batch.document_index) // len(batch.query_index)
    documents = [batch.document_index[k::docs_per_query] for k in range(docs_per_query)]
    return [list(map(read_text, column)) for column in (batch.query_index, *documents)]


class StarbucksPeer:
    """A transformers encoder trained by the Starbucks loss for similarity.

    Columns are padded to their longest text, as sentence-transformers pads them.
    """

    def __init__(self, folder: Path, pairs, settings):
        self.model = transformers.AutoModel.from_pretrained(folder).train()
        self.pairs = pairs
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=0.0
        )
        self.clip = settings.clip_norm

    def update(self, *columns: list[np.ndarray]) -> float:
        """Makes one step on columns of texts; returns the loss before it."""
        # A list over depths of [B, D] vectors, for each column of texts.
        self.optimizer.zero_grad()
        layers = [self._pool_layers(texts) for texts in columns]
        value = self._loss([torch.stack(x) for x in layers])
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return float(value.detach())

    def _pool_layers(self, texts: list[np.ndarray]) -> list[torch.Tensor]:
        """Mean-pooled states [B, D] of every layer."""
        padded = [torch.from_numpy(text.astype(np.int64)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(padded, batch_first=True)
        # [B, S] mask of valid tokens.
        lengths = torch.tensor([len(text) for text in texts])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        # The mean over the valid tokens of each layer.
        states = self.model(ids, attention_mask=mask, output_hidden_states=True)
        weights = mask[..., None].float()
        total = weights.sum(1)
        return [(h * weights).sum(1) / total for h in states.hidden_states]

    def _loss(self, columns: list[torch.Tensor]) -> torch.Tensor:
        """Sum over the sizes of InfoNCE and, below the last layer, feature KL."""
        total = torch.zeros(())
        for depth, dim in self.pairs:
            q, *d = (F.normalize(x[depth, :, :dim], dim=-1) for x in columns)
            # InfoNCE of cosines at temperature 0.05: [B, B*K].
            scores = 20 * q @ torch.cat(d).T
            total = total + F.cross_entropy(scores, torch.arange(len(q)))
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

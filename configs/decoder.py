"""A small causal language model, trained from scratch on raw text.

Source: the pre-training of decoders such as Llama (Touvron et al. 2023,
    arXiv:2302.13971), at a size for one machine: RMSNorm, rotary positions, gated SiLU,
    tied embeddings, byte-level BPE.
Command: python -m launch.train --config=configs/decoder.py --workdir=runs/decoder
Variants: tiny, model=NAME, data=DIR (with rawtext/), steps=N, depth=N, width=N,
    vocab_size=N, length=N (tokens per row). For the perplexity of any text:
    python -m launch.evaluate --model=runs/decoder --task=perplexity --data=FILE
Cost: one hour of one CPU core with
    steps=400,width=256,depth=6,vocab_size=8192,length=256.
Expected: with these variants, the perplexity on code of held-out packages in
    notebooks/README.md#a-decoder-as-an-embedder, 27 November 2026.
"""

from configs.common import pre_training
from research.config_sections import section
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.objectives.registry import OBJECTIVES

# Fields that the decoder takes from the BERT of `pre_training`.
SIZES = ("vocab_size", "width", "depth", "num_heads", "max_len")


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    config = pre_training(arg, pool="mean")
    config.objective = section(OBJECTIVES, "causal_lm")
    if config.encoder.name == "bert":  # no model= is given
        shape = {name: config.encoder[name] for name in SIZES}
        shape["mlp"] = config.encoder.width * 8 // 3  # a gated layer has three kernels
        config.encoder = section(ENCODERS, "modern", causal=True, **shape)
        vocab = config.tokenizer.vocab
        config.tokenizer = section(TOKENIZERS, "trained", vocab=vocab, kind="causal")
        config.optimizer.learning_rate = 2e-3
    # AdamW as is common for language models.
    config.optimizer.weight_decay = 0.1
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.schedule = "cosine"
    config.evals["perplexity"] = section(EVALS, "perplexity", documents=100)
    return config


def set_tiny_decoder(config, causal: bool) -> None:
    """Replaces the config's encoder and tokenizer by those of a tiny random decoder."""
    body = get_config("tiny")
    config.tokenizer, config.encoder = body.tokenizer, body.encoder
    config.encoder.causal = causal

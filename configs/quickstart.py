"""all-MiniLM-L6-v2 at four sizes, on docstrings and code of installed packages.

Source: Zhuang et al. 2024, arXiv:2410.13230 (sizes, and distillation from the full
    size's scores), without the two smallest sizes, on text that needs no download.
Command: bash launch/quickstart.sh
Variants: scratch (a small encoder without pre-training, for 250 steps, at all six
    sizes), tiny, steps=N.
Cost: eight minutes on 2 CPU cores, with evaluation, search and report.
Expected: nDCG@10 of code search on held-out packages, before and after, in
    notebooks/README.md#the-quickstart, 27 November 2026. Other installed packages give
    other numbers.
"""

from configs.common import (
    MINILM,
    make_base,
    parse_arg,
    starbucks_pairs,
    start_from,
    tiny,
)
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, scratch=False, tiny=False, steps=0)
    config = make_base()
    config.max_length = 64
    config.loss.symmetric = True
    config.data = {"pydocs": section(SOURCES, "pydocs", split="train")}
    config.evals = {"pydocs": section(EVALS, "pydocs_retrieval")}
    config.optimizer.warmup = 0.1
    if arg.scratch:
        config.steps, config.batch_size = arg.steps or 250, 128
        config.optimizer.learning_rate = 3e-3
        _set_small_encoder(config)
    else:
        config.steps, config.batch_size = arg.steps or 150, 32
        config.optimizer.learning_rate = 3e-4
        start_from(config, MINILM)
    # Scored before and after
    config.eval_every = config.steps
    config.save_every = max(1, config.steps // 2)
    if arg.tiny:
        tiny(config)
    # The sizes follow the encoder, which is another in the tiny variant.
    pairs = starbucks_pairs(config)
    if arg.scratch:
        config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)
    else:
        pairs = pairs[2:]
        config.size_loss = section(SIZE_LOSSES, "starbucks_retrieval", pairs=pairs)
        config.eval_sizes = pairs[:1]
    return config


def _set_small_encoder(config) -> None:
    """A pre-norm encoder with RoPE, and its tokenizer, from scratch."""
    config.tokenizer = section(TOKENIZERS, "trained", vocab=8_192)
    shape = {"vocab_size": 8_192, "width": 192, "depth": 4, "num_heads": 6, "mlp": 512}
    config.encoder = section(ENCODERS, "modern", max_len=64, **shape)

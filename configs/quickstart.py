"""A Starbucks encoder from scratch on docstrings and code of the installed packages.

Source: Zhuang et al. 2024, arXiv:2410.13230 (sizes and loss), with a small pre-norm
    encoder with RoPE, on text that needs no download.
Command: bash launch/quickstart.sh
Variants: tiny, steps=N.
Cost: 4 minutes of training on 2 CPU cores, 5.5 with evaluation and search.
Expected: nDCG@10 of code search with docstrings on held-out packages 39.8 (untrained
    5.7, BM25 51.9) with the packages of requirements.txt; other installed packages
    give other numbers.
"""

from configs.common import make_base, parse_arg, starbucks_pairs, tiny
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.matryoshka import SIZE_LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, steps=250)
    config = make_base()
    config.steps, config.batch_size, config.max_length = arg.steps, 128, 64
    # A small encoder, and its tokenizer, from scratch.
    config.tokenizer = section(TOKENIZERS, "trained", vocab=8_192)
    shape = {"vocab_size": 8_192, "width": 192, "depth": 4, "num_heads": 6, "mlp": 512}
    config.encoder = section(ENCODERS, "modern", max_len=64, **shape)
    config.loss.symmetric = True
    config.data = {"pydocs": section(SOURCES, "pydocs", split="train")}
    config.evals = {"pydocs": section(EVALS, "pydocs_retrieval")}
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 0.1
    config.save_every = config.eval_every = 125
    if arg.tiny:
        tiny(config)
    # The sizes follow the encoder, which is another in the tiny variant.
    pairs = starbucks_pairs(config)
    config.size_loss = section(SIZE_LOSSES, "starbucks_sts", pairs=pairs)
    return config

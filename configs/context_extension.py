"""A small encoder with learned, rotary, ALiBi or no positions, on short texts.

Source: Zhu et al. 2024, arXiv:2404.12096 (LongEmbed), who compare learned and rotary
    positions in the same BERT-base architecture. Here a small pre-norm encoder with one
    of four kinds of positions is trained on docstrings and code of the installed
    packages, cut at 128 tokens; configs/ablations/context_extension.py compares them.
Command: python -m launch.train --config=configs/context_extension.py:positions=alibi \
    --workdir=runs/alibi
Variants: tiny, positions=learned|rope|alibi|none, steps=N.
Cost: 4 minutes on 2 CPU cores.
Expected: the rows of its positions in
    notebooks/README.md#longer-contexts-a-controlled-comparison, 27 November 2026.
"""

from configs.common import make_base, parse_arg, tiny
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS

# {variant: fields of the encoder}
POSITIONS = {
    "learned": {"position": "learned"},
    "rope": {"position": "rope"},
    "alibi": {"position": "none", "position_bias": "alibi"},
    "none": {"position": "none"},
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, positions="rope", steps=160)
    if arg.positions not in POSITIONS:
        raise ValueError(
            f"variant positions is {arg.positions!r}; allowed: {', '.join(POSITIONS)}"
        )
    config = make_base()
    config.steps, config.batch_size, config.max_length = arg.steps, 128, 128
    config.tokenizer = section(TOKENIZERS, "trained", vocab=8_192)
    shape = {"vocab_size": 8_192, "width": 192, "depth": 4, "num_heads": 6, "mlp": 512}
    # Both directions: from docstring to code and back.
    config.loss.symmetric = True
    config.data = {"pydocs": section(SOURCES, "pydocs", split="train")}
    config.evals = {"pydocs": section(EVALS, "pydocs_retrieval")}
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 0.1
    # The tiny variant: less data, and the smallest shape.
    if arg.tiny:
        tiny(config)
        shape = {"vocab_size": 512, "width": 48, "depth": 6, "num_heads": 2, "mlp": 64}
    config.encoder = section(
        ENCODERS,
        "modern",
        max_len=config.max_length,
        **shape,
        **POSITIONS[arg.positions],
    )
    return config

"""A longer table of learned positions, of which only the new rows are trained.

Source: Zhu et al. 2024, arXiv:2404.12096 (LongEmbed), section 4.1: the table is
    extended to 8 times its rows by interpolation (or repetition), its old rows are
    frozen, and short texts get random positions; 5e-4, 100 steps of warm-up,
    temperature 0.01. They train E5-base on MS MARCO, NQ and NLI, 3 epochs at batch 512
    with 7 hard negatives.
Command: python -m launch.train --config=configs/tuned_positions.py --workdir=runs/long
Variants: tiny, model=NAME, start=interpolated|recurrent, scale=N, steps=N.
Cost: not measured here.
Expected: not measured here; texts within the old length keep their embeddings.
"""

from configs.common import MINILM, make_base, parse_arg, start_from, tiny
from research.config_sections import build, section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS
from research.models.positions.methods import read_methods


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg, tiny=False, model=MINILM, start="interpolated", scale=8, steps=1_000
    )
    config = make_base()
    config.steps, config.max_length = arg.steps, 256
    config.loss.temperature = 0.01
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup = 0.1
    if arg.tiny:
        tiny(config)
    else:
        # Without dropout of attention weights, GPUs and TPUs use fused kernels
        start_from(config, arg.model, attention_dropout=0.0)
        config.data = {"pydocs": section(SOURCES, "pydocs", split="train")}
        config.evals = {"pydocs": section(EVALS, "pydocs_long", length=1_024)}
    # Freeze all parameters but the position table, and of that the old rows.
    config.position_methods = f"{arg.start}(scale={arg.scale})"
    # Old rows: every position_stride-th row of the new table, after the offset.
    shape = build(ENCODERS, config.encoder)
    begin, rows = shape.position_offset, shape.max_len
    (method,) = read_methods(config.position_methods)
    stride = method.position_stride
    old = (begin, begin + rows * stride, stride)
    table = "encoder/embed/position/"
    config.optimizer.freeze = f"^(?!{table})"
    config.optimizer.freeze_rows = ((table, *old),)
    return config

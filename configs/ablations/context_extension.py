"""Context extension from 128 to 2,048 tokens: kinds of positions, and methods.

Source: Zhu et al. 2024, arXiv:2404.12096 (LongEmbed), tables 2 and 3, at a small scale:
    the same encoder is trained with learned, rotary, ALiBi and no positions, and
    evaluated at 1 to 16 times the length with all applicable training-free methods.
Command: python -m launch.ablate --config=configs/ablations/context_extension.py \
    --workdir=runs/context_extension
Variants: tiny, steps=N, seeds=(0,1).
Rows: a kind of positions and a method; rows with the same positions share one trained
    model. "cut" uses only the first 128 tokens; "as it is" applies the model to longer
    texts without any change.
Columns: the number of tokens. pydocs: nDCG@10 of code search with many docstrings
    (`pydocs_long`). passkey: Acc@1; the nominal length of the documents is 0.75 times
    the column's, since this tokenizer needs more tokens per word.
Cost: 4 trainings of 4 minutes, and 170 evaluations of 3 to 10 seconds, on 2 CPU cores.
Expected: the tables of notebooks/README.md#longer-contexts-a-controlled-comparison, 27
    November 2026.
"""

import ml_collections

from configs.common import parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# {row: (kind of positions, fields)}; "{scale}" and the like are values of the column
ROWS = {
    "learned, cut": ("learned", {}),
    "learned, grouped": (
        "learned",
        {"extend": "grouped(scale={scale}, per_text=True)"},
    ),
    "learned, recurrent": ("learned", {"extend": "recurrent(scale={scale})"}),
    "learned, interpolated": ("learned", {"extend": "interpolated(scale={scale})"}),
    "learned, windows": ("learned", {"chunk": "pcw({original})"}),
    "rope, cut": ("rope", {}),
    "rope, as it is": ("rope", {"extend": "extrapolate(length={max_length})"}),
    "rope, linear": ("rope", {"extend": "linear(scale={scale})"}),
    "rope, ntk_aware": ("rope", {"extend": "ntk_aware(scale={scale})"}),
    "rope, rebase": ("rope", {"extend": "rebase(factor={factor})"}),
    "rope, dynamic_ntk": (
        "rope",
        {"extend": "dynamic_ntk(scale=1) | extrapolate(length={max_length})"},
    ),
    "rope, yarn": ("rope", {"extend": "yarn(scale={scale})"}),
    "rope, self_extend": (
        "rope",
        {"extend": "self_extend(group={group}, window={window})"},
    ),
    "rope, log_length": (
        "rope",
        {"extend": "log_length() | extrapolate(length={max_length})"},
    ),
    "rope, windows": ("rope", {"chunk": "pcw({original})"}),
    "alibi, as it is": ("alibi", {"extend": "extrapolate(length={max_length})"}),
    "none, as it is": ("none", {"extend": "extrapolate(length={max_length})"}),
}
# Factors of the RoPE base: LongEmbed's for 2, 4 and 8 times the length, and one more.
FACTORS = {1: 1, 2: 3, 4: 5, 8: 10, 16: 20}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    arg = parse_arg(arg, tiny=False, steps=160, seeds=(0,))
    original, scales, sizes = 128, (1, 2, 4, 8, 16), {}
    variant = f"steps={arg.steps}"
    if arg.tiny:
        original, scales, sizes = 32, (1, 2), {"candidates": 20}
        variant = "tiny"
    recipe = "configs/context_extension.py:" + variant + ",positions="
    # A column for each task and length, with the values that rows fill in.
    columns, evals = {}, {}
    for task in ("pydocs", "passkey"):
        for scale in scales:
            name, length = f"{task} {scale * original}", scale * original
            columns[name] = {
                "max_length": length,
                "eval": name,
                "panel": task,
                "original": original,
                "scale": scale,
                "factor": FACTORS[scale],
                # Keeps the largest distance at that of training (table 6).
                "group": scale + 1,
                "window": original // scale,
            }
            if task == "pydocs":
                evals[name] = section(EVALS, "pydocs_long", length=length, **sizes)
            else:
                lengths = (max(40, 3 * length // 4),)
                tasks = {"tasks": ("passkey",), "lengths": lengths}
                evals[name] = section(EVALS, "longembed", **tasks)
    return ml_collections.ConfigDict(
        {
            "title": f"Trained at {original} tokens, read at more",
            "rows": tuple(
                (name, {"recipe": recipe + positions, **fields})
                for name, (positions, fields) in ROWS.items()
            ),
            "columns": tuple(columns.items()),
            "seeds": arg.seeds,
            "evals": evals,
        }
    )

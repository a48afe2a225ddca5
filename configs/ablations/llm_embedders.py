"""A causal language model as an embedder without training: prompts and poolings.

Source: Springer et al. 2024, arXiv:2402.15449 (echo); Jiang et al. 2024,
    arXiv:2307.16645 (PromptEOL); Zhang et al. 2024, arXiv:2404.03921 (Pretended CoT,
    knowledge); Lei et al. 2024, arXiv:2402.18458 (MetaEOL); Fu et al. 2024,
    arXiv:2412.11556 (token prepending); Muennighoff 2022, arXiv:2202.08904 (weighted
    mean). Theirs are models of 7 billion parameters.
Command: python -m launch.ablate --config=configs/ablations/llm_embedders.py \
    --workdir=runs/llm_embedders
Variants: tiny, model=NAME (a decoder, instead of training one), data=DIR (with
    rawtext/, stsb/ and squad_retrieval/), steps=N, width=N, depth=N, vocab_size=N.
Rows: ways to embed with the same model. Echo has the same token budget as the others,
    so that each copy of a long text is cut to half of it. Token prepending applies to
    the blocks from 1 to half of the depth; its published baseline is the prompt without
    <PST>. The control "PST, no copying" has the token, but copies no state. "Both
    sides" is bidirectional attention.
Columns: STS-B dev (Spearman x 100), and SQuAD paragraphs for 2,000 questions (nDCG@10).
Cost: one training of the decoder and 32 evaluations, 100 minutes of one CPU core.
Expected: the table of notebooks/README.md#a-decoder-as-an-embedder, 27 November 2026.
    MetaEOL's row is not measured.
"""

import ml_collections

from configs import decoder
from configs.common import DATA, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    shape = {"steps": 400, "width": 256, "depth": 6, "vocab_size": 8_192}
    arg = parse_arg(arg, tiny=False, model="", data=DATA, **shape)
    sizes = ",".join(f"{name}={arg[name]}" for name in ("data", *shape))
    variant = "tiny" if arg.tiny else f"{sizes},length=256"
    recipe = f"configs/decoder.py:{variant}"
    # The prompts are longer than the maximum length of the tiny decoder.
    extended = {"extend": "extrapolate(length=256)"} if arg.tiny else {}
    lengths = {"max_length": 256} if arg.tiny else {}
    # Columns, with bootstrap intervals.
    evals = {
        "STS-B": section(
            EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz", samples=1_000
        ),
        "SQuAD": section(
            EVALS,
            "retrieval",
            data=f"{arg.data}/squad_retrieval",
            samples=1_000,
            queries=2_000,
        ),
    }
    if arg.tiny:
        limits = {"candidates": 50, "queries": 20}
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", **limits)}
    # Token prepending over the first half of the blocks.
    depth = decoder.get_config(variant).encoder.depth
    source = f"model={arg.model}" if arg.model else recipe
    window = f"(1, {max(1, depth // 2)})"
    return ml_collections.ConfigDict(
        {
            "title": "A causal language model read as an embedder",
            "rows": tuple(
                (name, {"recipe": source, **fields, **extended})
                for name, fields in make_rows(window).items()
            ),
            "columns": tuple(
                (name, {"eval": name, "panel": name, **lengths}) for name in evals
            ),
            "seeds": (0,),
            "evals": evals,
        }
    )


def make_rows(window: str) -> dict[str, dict[str, str]]:
    """The rows of the table.

    Args:
        window: Blocks of token prepending, such as "(1, 3)".
    """
    prompts = ("prompteol", "cot", "ke")
    # Each prompt with <PST>; an empty window copies no state.
    prepended = {
        f"{name} + {change}": {"prompt": name, "prepend": blocks}
        for name in prompts
        for change, blocks in (
            ("PST, no copying", "(1, 1)"),
            ("prepending", window),
        )
    }
    return {
        "mean": {"pool": "mean"},
        "last": {"pool": "last"},
        "weighted mean": {"pool": "weighted_mean"},
        "mean, both sides": {"pool": "mean", "bidirectional": "True"},
        "echo, mean": {"prompt": "echo(pool='mean')"},
        "echo, last": {"prompt": "echo(pool='last')"},
        **{name: {"prompt": name} for name in prompts},
        **prepended,
        "metaeol": {"prompt": "metaeol"},
    }

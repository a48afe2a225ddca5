"""A causal language model tuned into an embedder: tuning, attention and echo compared.

Source: Springer et al. 2024, arXiv:2402.15449 (echo), and BehnamGhader et al. 2024,
    arXiv:2404.05961 (bidirectional), with LoRA on models of 7 billion parameters.
Command: python -m launch.ablate --config=configs/ablations/llm_tuning.py \
    --workdir=runs/llm_tuning
Variants: tiny, data=DIR (with rawtext/, nli/ and stsb/), steps=N, width=N, depth=N and
    vocab_size=N (pre-training of the decoder), tuning=N (steps of tuning), seeds=(0,1).
Rows: the decoder untuned, tuned with LoRA of rank 16 (learning rate 1e-3) or in all
    parameters (2e-4) on NLI triplets; with causal or bidirectional attention ("both
    sides"); with or without echo. All use mean pooling.
Columns: STS-B test (Spearman x 100), with intervals over bootstrap samples.
Cost: one pre-training, 8 tunings and 12 evaluations: 2 hours of one CPU core.
Expected: the table of notebooks/README.md#a-decoder-tuned-into-an-embedder, 21 November
    2026.
"""

import ml_collections

from configs.common import DATA, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# {part of a row's name: variants of configs/lora_llm.py}
TUNED = {"LoRA": "rank=16,rate=0.001", "full": "rank=0,rate=0.0002"}
SIDES = {"causal": "", "both sides": "bidirectional"}
READ = {"": "symmetric", ", echo": "echo"}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    shape = {"steps": 400, "width": 256, "depth": 6, "vocab_size": 8_192}
    options = {"tuning": 40, "seeds": (0,)}
    arg = parse_arg(arg, tiny=False, data=DATA, **options, **shape)
    sizes = ",".join(f"{name}={arg[name]}" for name in ("data", *shape))
    start = f"configs/decoder.py:{'tiny' if arg.tiny else f'{sizes},length=256'}"
    data = section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz", samples=1_000)
    evals, longer = {"STS-B": data}, {}
    if arg.tiny:
        limits = {"candidates": 50, "queries": 20}
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", **limits)}
        longer = {"max_length": 64}
    # A row for each attention mask, with and without echo, and kind of tuning.
    rows = {}
    for side, mask in SIDES.items():
        for texts, variant in READ.items():
            fields = {"bidirectional": "True"} if mask else {}
            fields |= (
                {"prompt": "echo(symmetric=True, pool='mean')"}
                if variant == "echo"
                else {}
            )
            untuned = {"recipe": "model={start}", "start": start, "pool": "mean"}
            rows[f"untuned, {side}{texts}"] = untuned | fields
            for name, amount in TUNED.items():
                tuned = ["tiny"] if arg.tiny else [f"data={arg.data}", "dtype=float32"]
                tuned += ["model={start}", f"steps={arg.tuning}", "batch=64"]
                tuned += ["pool=mean", amount, variant, mask]
                recipe = f"configs/lora_llm.py:{','.join(filter(None, tuned))}"
                rows[f"{name}, {side}{texts}"] = {"recipe": recipe, "start": start}
    return ml_collections.ConfigDict(
        {
            "title": "A causal language model tuned on NLI",
            "rows": tuple(rows.items()),
            "columns": tuple((name, {"eval": name, **longer}) for name in evals),
            "seeds": arg.seeds,
            "evals": evals,
        }
    )

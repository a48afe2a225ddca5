"""One vector, ColBERT, pooled tokens, MUVERA and SPLADE, each also with BM25.

Source: Khattab and Zaharia 2020, arXiv:2004.12832 (ColBERT), Clavié et al. 2024,
    arXiv:2409.14683 (token pooling), Jayaram et al. 2024, arXiv:2405.19504 (MUVERA),
    and Formal et al. 2021, arXiv:2109.10086 (SPLADE v2), compared at a small scale.
Command: python -m launch.ablate --config=configs/ablations/late_interaction.py \\
    --workdir=runs/late_interaction
    python -m launch.bench kinds --data=../shared/data/squad_retrieval --split=test \\
        --queries=500 --systems=runs/late_interaction/dense-seed0 ...
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/ and cosqa/), steps=N,
    length=N (tokens of a document), queries=N (scored, of each set), sets=("SQuAD",)
    (without CoSQA), seeds=(0,1).
Rows: start is the model before training; dense, colbert and splade are trained on
    SQuAD's questions with in-batch negatives, at the same batch, rate and steps; pooled
    and muvera change the vectors of colbert when texts are embedded.
Columns: nDCG@10 of SQuAD's test questions and of CoSQA's; with BM25, of the fusion with
    its ranking by reciprocal ranks. launch.bench kinds measures bytes and speed.
Cost: trainings of 60 steps at length=96 take 10 minutes of a CPU core, of splade 30;
    a row is scored in 5 minutes for SQuAD.
Expected: by launch.bench kinds, notebooks/README.md#kinds-of-embeddings, 28 November
    2026.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

# {column: folder of the data}
SETS = {"SQuAD": "squad_retrieval", "CoSQA": "cosqa"}
# {row: transform of colbert's vectors}
TRANSFORMS = {
    "pooled 2x": "pool_tokens(factor=2)",
    "pooled 3x": "pool_tokens(factor=3)",
    "pooled 4x": "pool_tokens(factor=4)",
    "muvera": "muvera()",
}


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "steps": 100}
    options |= {"queries": 500, "sets": tuple(SETS)}
    arg = parse_arg(arg, **options, length=128, seeds=(0,))
    shared = f"model={arg.model},data={arg.data},steps={arg.steps}"
    overrides = {"max_length": arg.length}
    # The model's own similarity, which differs by row
    options = {"similarity": "", "queries": arg.queries}
    evals = {
        name + suffix: section(
            EVALS,
            "retrieval",
            data=f"{arg.data}/{SETS[name]}",
            hybrid=hybrid,
            **options,
        )
        for name in arg.sets
        for suffix, hybrid in (("", ""), (" with BM25", "rrf()"))
    }
    recipes = {
        "dense": f"ance.py:kind=none,batch=32,rate=1e-4,{shared}",
        "colbert": f"colbert.py:document_length={arg.length},{shared}",
        "splade": f"splade.py:{shared}",
    }
    if arg.tiny:
        recipes = {name: f"{name}.py:tiny" for name in ("colbert", "splade")}
        overrides = {"steps": 2}
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
        evals["pydocs"].similarity = ""
    rows = {name: f"configs/{recipe}" for name, recipe in recipes.items()}
    for name, transform in TRANSFORMS.items():
        rows[name] = {"recipe": rows["colbert"], "token_transform": transform}
    if not arg.tiny:
        rows = {"start": f"model={arg.model}"} | rows
    return ml_collections.ConfigDict(
        {
            "title": "Kinds of embeddings for retrieval",
            "rows": tuple(rows.items()),
            "columns": tuple(
                (
                    name,
                    {"eval": name} | ({} if arg.tiny else {"max_length": arg.length}),
                )
                for name in evals
            ),
            "seeds": arg.seeds,
            "evals": evals,
            "overrides": overrides,
            "reference": "colbert",
            "shares_vectors": True,
        }
    )

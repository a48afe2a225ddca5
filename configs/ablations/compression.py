"""Transforms of stored vectors, on four kinds of tasks: what a smaller index costs.

Source: the protocol of CoRECT, Caspari et al. 2025, arXiv:2510.19340, on tasks of this
    project: each transform is fitted once, and compared with float32 on the same items.
Command: python -m launch.ablate --config=configs/ablations/compression.py \\
    --workdir=runs/compression
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/, stsb/ and trec/), width=N
    (of the model), queries=N (of SQuAD), length=N (tokens of a text).
Rows: transforms, as --transform takes them. A search stores its documents, and queries
    keep their values; other tasks compare texts that are all stored.
Columns: nDCG@10 of SQuAD's development questions, Spearman's correlation of STS-B test,
    accuracy and V-measure on TREC's questions.
    launch.evaluate --compress --grid has the smaller sizes of a model, bytes and speed.
Cost: every text is embedded once; 8 minutes on a CPU core for all-MiniLM-L6-v2.
Expected: the table in notebooks/README.md#smaller-vectors, 28 November 2026.
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.compression import NONE
from research.eval.evaluators import EVALS


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "width": 384}
    arg = parse_arg(arg, **options, queries=0, length=128)
    retrieval = {"data": f"{arg.data}/squad_retrieval", "split": "dev"}
    evals = {
        "SQuAD": section(EVALS, "retrieval", **retrieval, queries=arg.queries),
        "STS-B": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz"),
        "TREC": section(EVALS, "classification", data=f"{arg.data}/trec"),
        "TREC clusters": section(
            EVALS,
            "clustering",
            data=f"{arg.data}/trec/test.jsonl.gz",
            repetitions=3,
            texts_per_repetition=500,
        ),
    }
    # The tiny variant has one evaluator, which needs no files.
    if arg.tiny:
        arg.width = 48
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    half, quarter = arg.width // 2, arg.width // 4
    transforms = [
        *(NONE, "bfloat16", "float8", "int8", "int4", "int2", "binary"),
        *(f"pca({half})", f"pca({quarter})", f"random_projection({quarter})"),
        *(f"pca({half}) | int8", f"pca({half}) | binary"),
    ]
    # Product quantization needs faiss, and 256 texts for its centroids
    if not arg.tiny:
        transforms.append(f"pq({arg.width // 8})")
    recipe = "configs/finetune.py:tiny" if arg.tiny else f"model={arg.model}"
    rows = {name: {"recipe": recipe, "transform": name} for name in transforms}
    return ml_collections.ConfigDict(
        {
            "title": "Transforms of stored vectors",
            "rows": tuple(rows.items()),
            "columns": tuple(
                (
                    name,
                    {"eval": name} | ({} if arg.tiny else {"max_length": arg.length}),
                )
                for name in evals
            ),
            "seeds": (0,),
            "evals": evals,
            "overrides": {"steps": 2} if arg.tiny else {},
            "shares_vectors": True,
        }
    )

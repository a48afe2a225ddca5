"""Contextual document embeddings, first stage: batches within clusters of near pairs.

Source: Morris and Rush 2024, arXiv:2410.02525: batches are drawn within clusters of
    pairs, by the vectors of a small model (GTR-base); documents that it finds as near
    to a query as the query's positive are no negatives; temperature 0.02. Here these
    are the documents that are nearer, the query's own hard negatives included, which
    the authors' code keeps. The encoder that also reads other documents of the corpus
    is left out.
Command: N=../shared/data/nli/triplets.jsonl.gz
    M=sentence-transformers/all-MiniLM-L6-v2
    python -m launch.embed --model=$M --input=$N --examples --role=query --output=q.npy
    python -m launch.embed --model=$M --input=$N --examples --output=d.npy
    python -m launch.train --config=configs/cde.py:queries=q.npy,documents=d.npy \
    --workdir=runs/cde
Variants: tiny, model=NAME, data=DIR (with nli/ and stsb/), steps=N, batch=N,
    queries=FILE, documents=FILE (vectors of the texts), cluster_size=N (pairs).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    parse_arg,
    public_source,
    teach,
)
from research.config_sections import section
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"batch": 256, "queries": "", "documents": "", "cluster_size": 256}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=300, **options)
    config = fine_tuning(arg)
    config.loss.temperature = 0.02
    # Vectors come with files.
    if arg.tiny:
        return config
    if not arg.queries or not arg.documents:
        raise ValueError(
            "configs/cde.py needs the vectors of the texts, queries=FILE and "
            "documents=FILE; its header has the commands that write them"
        )
    config.batch_size = arg.batch
    files = {"clusters": (arg.queries, arg.documents)}
    files["cluster_size"] = arg.cluster_size
    config.data = {"nli": public_source(arg.data, "nli", **files)}
    # The same vectors tell which documents are no negatives.
    config.loss = section(LOSSES, "gist", temperature=0.02, same_side=False)
    teach(config, "", queries=arg.queries, documents=arg.documents)
    return config

"""BiDR: codes that are trained with the encoder, and a model that verifies them.

Source: Xiao et al. 2022, arXiv:2201.05409, and their code. First stage: the encoder and
    a product quantizer of its documents are trained together, from a dense model and a
    quantizer that was fitted to its vectors. Second stage, mined=FILE: another encoder
    is trained on the negatives that a search of these codes finds, in batches that go
    from query to query by shared negatives. They take 96 bytes for 768 dimensions,
    1,024 queries with one negative each, 1e-4, 24 and 128 tokens, dot products, and 200
    mined candidates. Here cosines at temperature 0.05, with the rate of `fine_tuning`.
    In the search the second model ranks what the codes of the first one find.
Command: M=sentence-transformers/all-MiniLM-L6-v2 D=../shared/data/squad_retrieval
    python -m launch.export --model=$M --output=runs/start --transform="pq(48)" \\
        --transform_texts=$D
    python -m launch.train --workdir=runs/codes \\
        --config=configs/bidr.py:codebook=runs/start/transform.safetensors
    python -m launch.mine --model=runs/codes --data=$D --output=mined.jsonl \\
        --negatives=30 --range_max=30
    python -m launch.train --workdir=runs/dense \\
        --config=configs/bidr.py:mined=mined.jsonl
    python -m launch.index --model=runs/codes --input=$D --output=codes
    python -m launch.index --model=runs/dense --input=$D --output=dense
    python -m launch.search --model=runs/codes --index=codes --query="Who was Tesla?" \\
        --rerank_model=runs/dense --rerank_index=dense
Variants: tiny, model=NAME, data=DIR (with squad_retrieval/), steps=N, batch=N,
    bytes=N (per document), codebook=FILE (a transform; random without), mined=FILE,
    negatives=N (per query, of those of the file), walk=random_walk or snow_sample.
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, train_on_squad
from research.config_sections import section
from research.data.sources import SOURCES
from research.objectives.registry import OBJECTIVES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "steps": 300, "batch": 64}
    options |= {"bytes": 48, "codebook": "", "mined": "", "walk": "random_walk"}
    arg = parse_arg(arg, negatives=1, **options)
    config = fine_tuning(arg)
    if arg.tiny:
        arg.bytes = 12
    else:
        config.batch_size, config.max_length = arg.batch, 256
        train_on_squad(config, arg.data, "cosine")
    if not arg.mined:
        # Codes of the documents, from the first step on
        config.objective = section(
            OBJECTIVES,
            "product_quantization",
            parts=arg.bytes,
            codebook=arg.codebook,
        )
        return config
    # Each batch is one walk
    walk = f"{arg.walk}(length={config.batch_size})"
    pairs = {"path": arg.mined, "negatives": arg.negatives, "walk": walk}
    config.data = {"mined": section(SOURCES, "files", **pairs)}
    return config

"""Dewey: a text and its chunks, read in one context, get a teacher's vectors.

Source: Zhang et al. 2025, arXiv:2503.20376: ModernBERT-large with more positions,
    teacher Linq-Embed-Mistral, texts alone: the vector of a text is the teacher's, and
    that of a chunk, the mean of its tokens within the text, is the teacher's of the
    chunk alone; a linear layer to the teacher's width; losses of cosines and of
    similarities. Their weights are those of Stella, and the sizes of chunks are not
    verified. Here the vector of a text is the mean of its tokens (there also [CLS]),
    and a step draws one chunk of each text. A text beyond the maximum length has the
    vector of its beginning, and its chunks are read with what is around them.
Command: python -m launch.train --config=configs/dewey.py --workdir=runs/dewey
    python -m launch.embed --model=runs/dewey --input=texts.txt \
    --chunk="late(256)" --output=chunks.npy
Variants: tiny, model=NAME, teacher=NAME (it embeds within the step), data=DIR (with
    rawtext/ and stsb/), texts=PATH (.txt, or with the column text), unit=line, block or
    file, steps=N, batch=N, length=N (tokens).
Cost: the text of a chunk is encoded for the chunk again; a step also embeds texts and
    chunks by the teacher.
Expected: not measured here.
"""

from configs.common import DATA, MINILM, fine_tuning, parse_arg, teach
from research.config_sections import section
from research.data.sources import SOURCES
from research.interop.load import load
from research.losses.registry import LOSSES


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "teacher": MINILM, "data": DATA}
    options |= {"texts": "", "unit": "line", "steps": 1_000, "batch": 32}
    arg = parse_arg(arg, **options, length=256)
    config = fine_tuning(arg)
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-4, 0.05
    # The layer to the teacher's width is a part of the trained model
    config.objective.head, config.objective.keep_head = "linear", True
    config.objective.head_width = load(arg.teacher, weights=False).width
    config.loss = section(LOSSES, "stella", relative_weight=0.0, sides_apart=True)
    teach(config, arg.teacher)
    # Texts without labels, cut into chunks of few words
    if arg.tiny:
        chunks = {"path": "pydocs", "words": (10, 40), "overlap": (0, 5)}
        config.data = {"chunks": section(SOURCES, "chunks", limit=400, **chunks)}
        return config
    config.batch_size, config.max_length = arg.batch, arg.length
    path = arg.texts or f"{arg.data}/rawtext/openstax.txt.gz"
    chunks = {"unit": arg.unit, "words": (20, 100), "overlap": (5, 15), "min_words": 60}
    config.data = {"chunks": section(SOURCES, "chunks", path=path, **chunks)}
    return config

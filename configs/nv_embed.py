"""NV-Embed: two stages on a mixture of tasks, with latent attention pooling.

Source: NV-Embed (Lee et al. 2024, arXiv:2405.17428): bidirectional attention, latent
    attention pooling, LoRA of rank 16. Stage 1 is retrieval, with hard and in-batch
    negatives; stage 2 adds other tasks, where a batch may contain similar texts, and
    uses only hard negatives. They have 7 hard negatives per query. Here NLI, which is
    among their retrieval sets, has one, and SQuAD none, so that it is in stage 1 only;
    `launch.mine --relative_margin=0.05 --negatives=7` mines theirs (mined=FILE).
Command: python -m launch.train --config=configs/nv_embed.py:model=DIR --workdir=DIR1
    python -m launch.train --config=configs/nv_embed.py:stage=2,model=DIR1 \
    --workdir=DIR2
Variants: tiny, stage=1|2, model=NAME (a decoder; for stage 2 the run of stage 1),
    data=DIR (with squad_retrieval/, nli/, banking77/, trec/ and stsb/), steps=N,
    dtype=float32 (for CPU), mined=FILE (query, positive and negatives of a retrieval
    set, as launch.mine writes them, in both stages; it replaces SQuAD).
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import DATA, MINILM, fine_tuning, parse_arg, start_from
from research.config_sections import section
from research.data.sources import SOURCES
from research.losses.registry import LOSSES
from research.models.pooling.registry import POOLINGS
from research.objectives.tuning import TUNING

ASKED = "Instruct: {}\nQuery: "
RETRIEVAL = ASKED.format("Given a question, retrieve passages that answer it")
NLI = ASKED.format("Given a premise, retrieve a hypothesis that is entailed by it")
# {data set: description of the task}, for stage 2
TASKS = {
    "banking77": "Given a question to a bank, retrieve questions of the same intent",
    "trec": "Given a question, retrieve questions about the same kind of thing",
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"stage": 1, "dtype": "bfloat16", "mined": ""}
    arg = parse_arg(arg, tiny=False, model="", data=DATA, steps=1_000, **options)
    if arg.stage not in (1, 2):
        raise ValueError(f"variant stage is {arg.stage}; allowed: 1, 2")
    decoder_model, arg.model = arg.model, MINILM  # replaced by the decoder below
    config = fine_tuning(arg)
    rank, sizes = 16, {"latents": 512, "heads": 8}
    if arg.tiny:
        decoder.set_tiny_decoder(config, causal=False)
        rank, sizes = 2, {"latents": 16, "heads": 2}
    if decoder_model:
        start_from(config, decoder_model, causal=False, dropout=0.0, dtype=arg.dtype)
    elif not arg.tiny:
        raise ValueError("configs/nv_embed.py needs model=NAME, a decoder")
    # Pooling, adapters and loss.
    config.pool = section(POOLINGS, "latent_attention", **sizes)
    lora = {"rank": rank, "alpha": 2.0 * rank, "base_dtype": arg.dtype}
    config.tuning = section(TUNING, "lora", **lora)
    config.optimizer.learning_rate = 2e-5 if arg.stage == 1 else 1.5e-5
    config.loss = section(LOSSES, "infonce", temperature=0.02)
    # In-batch texts may be similar in stage 2.
    if arg.stage == 2:
        config.loss.negatives = "hard"
    if not arg.tiny:
        config.data = _mixture(arg)
    elif arg.stage == 2:
        raise ValueError("stage 2 has no tiny variant: docstrings have no negatives")
    return config


def _mixture(arg) -> dict:
    """The data sources of a stage."""
    # Triplets, with a hard negative each, in both stages.
    triplets = f"{arg.data}/nli/triplets.jsonl.gz"
    mixture = {"nli": section(SOURCES, "files", path=triplets, query_prompt=NLI)}
    if arg.mined:
        mixture["mined"] = section(
            SOURCES, "files", path=arg.mined, query_prompt=RETRIEVAL
        )
    elif arg.stage == 1:
        path = f"{arg.data}/squad_retrieval"
        squad = section(SOURCES, "beir", path=path, query_prompt=RETRIEVAL)
        return {**mixture, "squad": squad}
    if arg.stage == 1:
        return mixture
    # Stage 2: an instruction for each task.
    prompts = {name: ASKED.format(task) for name, task in TASKS.items()}
    for name, prompt in prompts.items():
        path = f"{arg.data}/{name}/train.jsonl.gz"
        # Queries and documents are both questions, with the same prompt.
        roles = {"query_prompt": prompt, "document_prompt": prompt}
        mixture[name] = section(SOURCES, "labeled_texts", path=path, **roles)
    return mixture

"""A decoder made an embedder in two stages: retrieval, then every task.

Source: NV-Embed (Lee et al. 2024, arXiv:2405.17428): both sides, latent attention, LoRA
    of rank 16; first retrieval with in-batch negatives, then also other tasks, whose
    texts may be alike, with nothing but hard negatives. Their 7 hard negatives are one
    here, and the second stage has no retrieval: SQuAD has no hard negatives.
Command: python -m launch.train --config=configs/nv_embed.py:model=DIR --workdir=DIR
    and again with stage=2,model=DIR, the folder of the first stage.
Variants: tiny, stage=1|2, model=NAME (a decoder; of stage 2 the run of stage 1),
    data=DIR (with squad_retrieval/, nli/, banking77/, trec/ and stsb/), steps=N,
    dtype=float32 (for CPU).
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
TASKS = {
    "nli": "Given a premise, retrieve a hypothesis that is entailed by it",
    "banking77": "Given a question to a bank, retrieve questions of the same intent",
    "trec": "Given a question, retrieve questions about the same kind of thing",
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"stage": 1, "dtype": "bfloat16"}
    arg = parse_arg(arg, tiny=False, model="", data=DATA, steps=1_000, **options)
    if arg.stage not in (1, 2):
        raise ValueError(f"variant stage is {arg.stage}; allowed: 1, 2")
    decoder_model, arg.model = arg.model, MINILM  # which the decoder replaces below
    config = fine_tuning(arg)
    rank, sizes = 16, {"latents": 512, "heads": 8}
    if arg.tiny:
        decoder.set_tiny_decoder(config, causal=False)
        rank, sizes = 2, {"latents": 16, "heads": 2}
    if decoder_model:
        start_from(config, decoder_model, causal=False, dropout=0.0, dtype=arg.dtype)
    elif not arg.tiny:
        raise ValueError("configs/nv_embed.py needs model=NAME, a decoder")
    config.pool = section(POOLINGS, "latent_attention", **sizes)
    lora = {"rank": rank, "alpha": 2.0 * rank, "base_dtype": arg.dtype}
    config.tuning = section(TUNING, "lora", **lora)
    config.optimizer.learning_rate = 2e-5 if arg.stage == 1 else 1.5e-5
    config.loss = section(LOSSES, "infonce", temperature=0.02)
    if arg.stage == 2:
        config.loss.negatives = "hard"
    if not arg.tiny:
        config.data = _mixture(arg)
    elif arg.stage == 2:
        raise ValueError("stage 2 has no tiny variant: docstrings have no negatives")
    return config


def _mixture(arg) -> dict:
    """The sources of a stage."""
    if arg.stage == 1:
        path = f"{arg.data}/squad_retrieval"
        return {"squad": section(SOURCES, "beir", path=path, query_prompt=RETRIEVAL)}
    prompts = {name: ASKED.format(task) for name, task in TASKS.items()}
    triplets = f"{arg.data}/nli/triplets.jsonl.gz"
    mixture = {
        "nli": section(SOURCES, "files", path=triplets, query_prompt=prompts.pop("nli"))
    }
    for name, prompt in prompts.items():
        path = f"{arg.data}/{name}/train.jsonl.gz"
        roles = {"query_prompt": prompt, "document_prompt": prompt}  # texts of one kind
        mixture[name] = section(SOURCES, "labeled_texts", path=path, **roles)
    return mixture

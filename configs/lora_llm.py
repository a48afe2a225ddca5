"""A decoder tuned into an embedder with LoRA, on NLI triplets with an instruction.

Source: Wang et al. 2024, arXiv:2401.00368 (E5-Mistral): LoRA of rank 16, last-token
    pooling, temperature 0.02, "Instruct: ... Query: ..." before queries only, 1e-4 at
    batch 2,048. The variant bidirectional, with mean pooling, follows BehnamGhader et
    al. 2024, arXiv:2404.05961 (LLM2Vec). alpha is twice the rank.
Command: python -m launch.train --config=configs/lora_llm.py:model=DIR --workdir=DIR
    python -m launch.train --config=configs/lora_llm.py:shape=mistral7b --dry_run
Variants: tiny, model=NAME (any decoder), data=DIR (with nli/ and stsb/), steps=N,
    batch=N, rate=X (learning rate), rank=N (0 trains all parameters), bidirectional,
    pool=NAME, dtype=float32 (for CPU), symmetric (no instruction), echo (every text is
    repeated; see configs/ablations/llm_tuning.py), shape=mistral7b (that architecture
    without weights, for --dry_run).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import DATA, make_base, parse_arg, start_from, tiny
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS, TOKENIZERS
from research.losses.registry import LOSSES
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.tuning import TUNING
from research.text.prompts import PROMPTS

INSTRUCTION = (
    "Instruct: Given a premise, retrieve a hypothesis that is entailed by it\nQuery: "
)
# Architectures without weights: changes of the preset "decoder", for --dry_run.
SHAPES = {"mistral7b": {"window": 4_095}}
# Shape of the tiny decoder.
SMALL = {
    "vocab_size": 512,
    "width": 48,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp": 64,
    "max_len": 64,
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg,
        **{"tiny": False, "model": "", "data": DATA, "steps": 1_000, "rank": 16},
        **{"batch": 512, "rate": 1e-4, "bidirectional": False, "shape": ""},
        **{"pool": "", "dtype": "bfloat16", "symmetric": False, "echo": False},
    )
    config = make_base()
    config.steps, config.batch_size, config.max_length = arg.steps, arg.batch, 128
    pool = "mean" if arg.bidirectional else "last"
    config.pool = section(BASIC_POOLINGS, arg.pool or pool)
    config.loss = section(LOSSES, "infonce", temperature=0.02)
    config.optimizer.learning_rate = arg.rate
    config.optimizer.warmup = 0.1
    # Sharded parameters, and GradCache in batches of 64.
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.objective.micro_batch = 64
    # LoRA, unless all parameters are trained.
    if arg.rank:
        lora = {"rank": arg.rank, "alpha": 2.0 * arg.rank, "base_dtype": arg.dtype}
        config.tuning = section(TUNING, "lora", **lora)
    if arg.echo:
        config.prompt = section(PROMPTS, "echo", symmetric=True, pool=config.pool.name)
    # Data and model; the tiny decoder is random unless a model is given.
    if arg.tiny:
        tiny(config)
        config.objective.micro_batch = 4
        causal = not arg.bidirectional
        config.encoder = section(ENCODERS, "decoder", depth=6, causal=causal, **SMALL)
        if arg.model:
            start_from(config, arg.model, causal=causal)
        return config
    config.data = {
        "nli": section(
            SOURCES,
            "files",
            path=f"{arg.data}/nli/triplets.jsonl.gz",
            query_prompt="" if arg.symmetric or arg.echo else INSTRUCTION,
        )
    }
    config.evals = {
        "stsb_dev": section(EVALS, "sts", data=f"{arg.data}/stsb/dev.jsonl.gz")
    }
    _set_encoder(config, arg)
    return config


def _set_encoder(config, arg) -> None:
    """Sets the encoder: a model, or only the shape of one."""
    # Recomputing all activations saves memory.
    changes = {"dtype": arg.dtype, "remat": "all", "dropout": 0.0}
    if arg.shape:
        if arg.shape not in SHAPES:
            raise ValueError(
                f"variant shape is {arg.shape!r}; allowed: {', '.join(SHAPES)}"
            )
        changes["causal"] = not arg.bidirectional
        config.tokenizer = section(TOKENIZERS, "trained")
        config.encoder = section(ENCODERS, "decoder", **changes | SHAPES[arg.shape])
        return
    if not arg.model:
        raise ValueError("configs/lora_llm.py needs model=NAME, a decoder")
    if arg.bidirectional:
        changes["causal"] = False
    start_from(config, arg.model, **changes)

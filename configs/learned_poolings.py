"""A decoder with a learned pooling: latent attention, attention over layers, LENS.

Source: latent_attention: NV-Embed (Lee et al. 2024, arXiv:2405.17428; 512 latents, 8
    heads of the full width). layer_attention: Tang & Yang 2024, arXiv:2409.02727 (768
    latents, 32 heads, over the vectors of all layers). lexicon: LENS (Lei et al. 2025,
    arXiv:2501.09749; 4,000 or 8,000 clusters of the vocabulary). Here they are smaller
    and trained on NLI triplets. dupmae (Xiao et al. 2023, arXiv:2211.08769) fine-tunes
    an encoder that configs/dupmae.py has trained, together with its head.
Command: python -m launch.train --config=configs/learned_poolings.py:model=runs/mntp \
    --workdir=runs/pooling
Variants: tiny, model=NAME (a run of configs/llm2vec_mntp.py, or any model; default
    runs/mntp, with pool=dupmae runs/dupmae), data=DIR (with nli/ and stsb/), steps=N,
    pool=latent_attention|layer_attention|lexicon|dupmae.
Cost: not measured here.
Expected: not measured here.
"""

from configs import decoder
from configs.common import DATA, MINILM, fine_tuning, parse_arg, start_from
from research.config_sections import section
from research.models.pooling.registry import POOLINGS

# {pooling: its arguments}, smaller than in the papers
SIZES = {
    "latent_attention": {"latents": 64, "heads": 2},
    "layer_attention": {"latents": 64, "heads": 4},
    "lexicon": {"clusters": 1_000},
    "dupmae": {"dim": 128, "top": 384},
}


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    arg = parse_arg(
        arg, tiny=False, model="", data=DATA, steps=128, pool="latent_attention"
    )
    if arg.pool not in SIZES:
        raise ValueError(f"variant pool is {arg.pool!r}; allowed: {', '.join(SIZES)}")
    model, arg.model = arg.model, MINILM  # replaced by the decoder below
    config = fine_tuning(arg)
    sizes = dict(SIZES[arg.pool])
    # The decoder without its causal mask: a tiny random one, or a model.
    if arg.tiny and not model:
        decoder.set_tiny_decoder(config, causal=False)
        sizes = {name: 2 if name == "heads" else 16 for name in sizes}
    else:
        usual = "runs/dupmae" if arg.pool == "dupmae" else "runs/mntp"
        start_from(config, model or usual, causal=False, dropout=0.0)
    config.pool = section(POOLINGS, arg.pool, **sizes)
    if arg.pool == "dupmae":  # the paper scores by dot products
        config.similarity, config.loss.temperature = "dot", 1.0
        config.normalize = False
    return config

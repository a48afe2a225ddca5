"""The members of a model soup: fine-tunings that launch.merge averages.

Source: Wortsman et al. 2022, arXiv:2203.05482, of fine-tunings with other settings;
    EmbeddingGemma (arXiv:2509.20354) averages those of other mixtures of data. Here a
    member has its own seed and its own shares of NLI and SQuAD.
Command: for i in 0 1 2; do python -m launch.train \
    --config=configs/model_soup.py:member=$i --workdir=runs/soup$i; done
    python -m launch.merge --models=runs/soup0,runs/soup1,runs/soup2 --output=runs/soup
    python -m launch.evaluate --model=runs/soup --task=sts \
    --data=../shared/data/stsb/test.jsonl.gz --against=runs/soup0 --against=runs/soup1 \
    --against=runs/soup2
Variants: tiny, member=N, model=NAME, data=DIR (with nli/, squad_retrieval/ and stsb/),
    steps=N, rate=X (learning rate).
Cost: not measured here.
Expected: not measured here.
"""

from configs.common import (
    DATA,
    MINILM,
    fine_tuning,
    make_tiny_mixture,
    parse_arg,
    public_source,
)

# Weights of NLI, of which SQuAD's is the rest, for members 0, 1, 2 and again
SHARES = (0.5, 0.75, 0.25)


def get_config(arg: str = ""):
    """The recipe; see the header for its variants."""
    options = {"member": 0, "rate": 2e-5}
    arg = parse_arg(arg, tiny=False, model=MINILM, data=DATA, steps=300, **options)
    config = fine_tuning(arg)
    config.seed = arg.member
    config.optimizer.learning_rate = arg.rate
    names = ("nli", "squad")
    if arg.tiny:
        config.data = make_tiny_mixture(**dict.fromkeys(names, ""))
    else:
        config.data = {name: public_source(arg.data, name) for name in names}
    # What makes the members differ besides the seed.
    share = SHARES[arg.member % len(SHARES)]
    config.data.nli.weight, config.data.squad.weight = share, 1 - share
    return config

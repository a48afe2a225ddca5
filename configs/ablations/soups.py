"""A soup of fine-tunings against its members.

Source: Wortsman et al. 2022, arXiv:2203.05482 (soups), and EmbeddingGemma,
    arXiv:2509.20354, whose members have other mixtures of data, compared at a small
    scale.
Command: python -m launch.ablate --config=configs/ablations/soups.py \
    --workdir=runs/soups
Variants: tiny, model=NAME, data=DIR (with nli/, squad_retrieval/ and stsb/), steps=N,
    rate=X (learning rate), seeds=(0,1).
Rows: start is the model before training; the members are those of
    configs/model_soup.py, with a half, three quarters and a quarter of the steps on NLI
    and the others on SQuAD, all with the seed of the table's run; soup is their mean,
    slerp the middle between the last two.
Columns: Spearman x 100 on STS-B's test pairs, nDCG@10 of SQuAD's test questions, both
    with texts of up to 64 tokens.
Cost: 3 runs for a seed, 45 minutes of one CPU core beside other programs.
Expected: the table of notebooks/README.md#a-soup-and-its-members, 28 November 2026 (one
    seed).
"""

import ml_collections

from configs.common import DATA, MINILM, parse_arg
from research.config_sections import section
from research.eval.evaluators import EVALS

LENGTH = 64  # tokens of a text


def get_config(arg: str = ""):
    """The ablation; see the header for its variants."""
    options = {"tiny": False, "model": MINILM, "data": DATA, "rate": 2e-5}
    arg = parse_arg(arg, **options, steps=100, seeds=(0, 1))
    variant = f"model={arg.model},data={arg.data},steps={arg.steps},rate={arg.rate}"
    # Similar texts, and questions with the paragraphs that answer them
    evals = {
        "STS-B": section(EVALS, "sts", data=f"{arg.data}/stsb/test.jsonl.gz"),
        "SQuAD": section(EVALS, "retrieval", data=f"{arg.data}/squad_retrieval"),
    }
    overrides = {"max_length": LENGTH}
    if arg.tiny:
        variant, overrides = "tiny", {}
        evals = {"pydocs": section(EVALS, "pydocs_retrieval", candidates=50)}
    # The members are trained once, and serve both merged rows
    members = {
        f"member {i}": f"configs/model_soup.py:member={i},{variant}" for i in range(3)
    }
    soup = {"recipe": "merge=average()", "members": " | ".join(members)}
    middle = {"recipe": "merge=slerp(t=0.5)", "members": " | ".join([*members][1:])}
    rows = members | {"soup": soup, "slerp": middle}
    if not arg.tiny:
        rows = {"start": f"model={arg.model}"} | rows
    return ml_collections.ConfigDict(
        {
            "title": "A soup and its members",
            "rows": tuple(rows.items()),
            "columns": tuple(
                (name, {"eval": name, "max_length": 32 if arg.tiny else LENGTH})
                for name in evals
            ),
            "seeds": arg.seeds,
            "evals": evals,
            "overrides": overrides,
            "reference": "member 0",
        }
    )

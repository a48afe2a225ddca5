"""BibTeX of the papers that a model card cites."""

import re
from collections.abc import Mapping
from typing import Any

from research.config_sections import format_call


def list_citations(config: Mapping[str, Any]) -> str:
    """BibTeX of the methods that the training used."""
    names = {config.get(key, {}).get("name") for key in ("size_loss", "objective")}
    # Losses of the config and of sources, as call text, with the terms of sums
    texts = [source.get("loss", "") for source in config.get("data", {}).values()]
    if "classify_pairs" in names:  # the classifier is the only loss
        names = {"classify_pairs"}
    elif loss := config.get("loss"):
        texts.append(format_call(loss))
    names |= {name for text in texts for name in re.findall(r"\w+", text)}
    entries = [
        f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{author}}},\n"
        f"  year = {{{year}}},\n  eprint = {{{eprint}}},\n"
        "  archivePrefix = {arXiv}\n}"
        for key, (methods, title, author, year, eprint) in PAPERS.items()
        if names & set(methods) or not methods
    ]
    return "## Citation\n\n```bibtex\n" + "\n\n".join([*entries, EMBAX]) + "\n```"


EMBAX = """@software{embax,
  title = {Embax: elastic text embeddings in JAX},
  year = {2026}
}"""
# {key: (names of losses, or none for every model; title, author, year, arXiv id)}
PAPERS = {
    "reimers2019sentence": (
        (),
        "Sentence-{BERT}: Sentence Embeddings using Siamese {BERT}-Networks",
        *("Reimers, Nils and Gurevych, Iryna", "2019", "1908.10084"),
    ),
    "oord2018representation": (
        ("infonce",),
        "Representation Learning with Contrastive Predictive Coding",
        *("van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol", "2018", "1807.03748"),
    ),
    "khosla2020supervised": (
        ("supcon",),
        "Supervised Contrastive Learning",
        *("Khosla, Prannay and others", "2020", "2004.11362"),
    ),
    "li2023towards": (
        ("gte",),
        "Towards General Text Embeddings with Multi-stage Contrastive Learning",
        *("Li, Zehan and others", "2023", "2308.03281"),
    ),
    "li2023angle": (
        ("angle", "angle_triplets"),
        "{AnglE}-optimized Text Embeddings",
        *("Li, Xianming and Li, Jing", "2023", "2309.12871"),
    ),
    "kusupati2022matryoshka": (
        ("matryoshka", "two_dimensional"),
        "Matryoshka Representation Learning",
        *("Kusupati, Aditya and others", "2022", "2205.13147"),
    ),
    "li20242d": (
        (
            *("two_dimensional", "mse2d_v1", "mse2d_later"),
            *("st5_adaptive", "st6_adaptive", "ese"),
        ),
        "{2D} Matryoshka Sentence Embeddings",
        *("Li, Xianming and others", "2024", "2402.14776"),
    ),
    "zhuang2024starbucks": (
        ("starbucks_sts", "starbucks_retrieval"),
        "Starbucks: Improved Training for {2D} Matryoshka Embeddings",
        *("Zhuang, Shengyao and others", "2024", "2410.13230"),
    ),
}

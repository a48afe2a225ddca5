"""Prompts that ask a language model for one word with the meaning of a sentence.

Each ends in an open quote; the state of that last token is the embedding (PromptEOL).
"""

from collections.abc import Callable, Sequence

from research.text.templates import Prompt, escape_braces, parse_template
from research.text.tokens import PST

PROMPTEOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, "
    "while descriptive terms provide additional but less central details. With this "
    'in mind , this sentence : "{text}" means in one word:"'
)
# In our words after the description of Lei et al. 2024: two prompts for each of
# classification, sentiment, similarity and information extraction.
METAEOL = (
    "Sort short passages by their subject, such as science, money, sport, law, art or "
    'travel. The subject of this sentence : "{text}" is in one word:"',
    "Tell what can be checked from what is somebody's view. As a fact or as a view, "
    'this sentence : "{text}" counts in one word:"',
    "Grade what customers write from 1, very unhappy, to 5, very happy. The grade of "
    'this sentence : "{text}" is in one word:"',
    "Name the feeling that speaks most clearly from a private note, such as delight, "
    'grief, rage or worry. The feeling in this sentence : "{text}" is in one word:"',
    "Judge how close two sentences are in meaning, from the same to having nothing in "
    'common. To compare it with others, this sentence : "{text}" means in one word:"',
    "Judge whether a phrase could stand in for a part of a sentence without changing "
    'what it says. To find such a phrase, this sentence : "{text}" means in one word:"',
    "Pick from a report the one thing that a reader has to know. The main point of "
    'this sentence : "{text}" is in one word:"',
    "Pick from a study what it is about and how these things act on one another. What "
    'matters most in this sentence : "{text}" is in one word:"',
)


def prompteol(
    *,
    example: str = "",
    answer: str = "",
    prepend: bool = False,
    pool: str = "last",
) -> Prompt:
    """PromptEOL (Jiang et al. 2023): the one word that a sentence means.

    Args:
        example, answer: a demonstration before the sentence, such as "A jockey riding a
            horse." and "Equestrian"; empty for none.
        prepend: whether <PST> stands before the sentence (Fu et al. 2024), as it also
            does in the baseline of token prepending.
        pool: name of a pooling.
    """
    if bool(example) != bool(answer):
        raise ValueError(f"example {example!r} and answer {answer!r} go together")
    demonstration = ""
    if example:
        demonstration = PROMPTEOL.replace("{text}", escape_braces(example))
        demonstration += f'{escape_braces(answer)}".'
    return _make_prompt([PROMPTEOL], prepend, pool, demonstration=demonstration)


def cot(*, prepend: bool = False, pool: str = "last") -> Prompt:
    """Pretended chain of thought (Zhang et al. 2024); arguments as in `prompteol`."""
    return _make_prompt([COT], prepend, pool)


def ke(*, prepend: bool = False, pool: str = "last") -> Prompt:
    """Knowledge enhancement (Zhang et al. 2024); arguments as in `prompteol`."""
    return _make_prompt([KE], prepend, pool)


def metaeol(
    *,
    prompts: tuple[str, ...] = METAEOL,
    prepend: bool = False,
    pool: str = "last",
) -> Prompt:
    """MetaEOL (Lei et al. 2024): the average of eight prompts for four kinds of tasks.

    The default prompts are not the authors'; they describe the same tasks in our words.

    Args:
        prompts: the prompts, each with "{text}" in place of the sentence.
        prepend: as in `prompteol`.
        pool: name of a pooling.
    """
    return _make_prompt(prompts, prepend, pool, rewrite=punctuate_statement)


def punctuate(text: str) -> str:
    """Adds a full stop unless the text ends in . ? " or '; makes double quotes single.

    From the code of PromptEOL.
    """
    if text.strip() and text[-1] not in ".?\"'":
        text += "."
    return text.replace('"', "'")


def punctuate_statement(text: str) -> str:
    """As `punctuate`, and the last question mark becomes a full stop.

    From the code of MetaEOL and of token prepending.
    """
    text = punctuate(text)
    return f"{text[:-1]}." if text.endswith("?") else text


def _make_prompt(
    lines: Sequence[str],
    prepend: bool,
    pool: str,
    *,
    demonstration: str = "",
    rewrite: Callable[[str], str] = punctuate,
) -> Prompt:
    """The prompt of template lines, each after the same demonstration."""
    if prepend:
        quoted = '"{text}"'
        if unquoted := [line for line in lines if quoted not in line]:
            raise ValueError(f"{unquoted[0]!r} has no {quoted} to put {PST} before")
        lines = [line.replace(quoted, f"{PST} {quoted}") for line in lines]
        rewrite = punctuate_statement
    templates = tuple(
        parse_template(demonstration + line, pool_all=True) for line in lines
    )
    return Prompt({"query": templates, "document": templates}, pool or None, rewrite)

"""Prompts that ask for the one word that a sentence means, and end in a quote."""

from collections.abc import Callable, Sequence

from research.text.templates import Prompt, escape_braces, parse_template
from research.text.tokens import PST

EOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, "
    "while descriptive terms provide additional but less central details. With this "
    'in mind , this sentence : "{text}" means in one word:"'
)
# In our words after the description of Lei et al. 2024: two prompts for each of
# classification, sentiment, similarity and information extraction.
TASKS = (
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
    """The one word that a sentence means (PromptEOL, Jiang et al. 2023).

    Args:
        example, answer: a demonstration that comes first, such as "A jockey riding a
            horse." and "Equestrian"; empty for none.
        prepend: <PST> before the sentence (Fu et al. 2024). The baseline of token
            prepending has it too.
    """
    if bool(example) != bool(answer):
        raise ValueError(f"example {example!r} and answer {answer!r} go together")
    shown = EOL.replace("{text}", escape_braces(example)) + escape_braces(answer) + '".'
    return _asking([EOL], prepend, pool, shown if example else "")


def cot(*, prepend: bool = False, pool: str = "last") -> Prompt:
    """Pretended chain of thought (Zhang et al. 2024); arguments as of `prompteol`."""
    return _asking([COT], prepend, pool)


def ke(*, prepend: bool = False, pool: str = "last") -> Prompt:
    """Knowledge enhancement (Zhang et al. 2024); arguments as of `prompteol`."""
    return _asking([KE], prepend, pool)


def metaeol(
    *,
    prompts: tuple[str, ...] = TASKS,
    prepend: bool = False,
    pool: str = "last",
) -> Prompt:
    """The average of eight prompts for four kinds of tasks (MetaEOL, Lei et al. 2024).

    The prompts are not the authors': they say the same in other words.

    Args:
        prompts: others, each with "{text}" where the sentence goes.
        prepend: as of `prompteol`.
    """
    return _asking(prompts, prepend, pool, rewrite=punctuate_statement)


def punctuate(text: str) -> str:
    """A sentence that ends in . ? " or ', without double quotes (PromptEOL)."""
    if text.strip() and text[-1] not in ".?\"'":
        text += "."
    return text.replace('"', "'")


def punctuate_statement(text: str) -> str:
    """As `punctuated`, a last question mark a full stop (MetaEOL, token prepending)."""
    text = punctuate(text)
    return f"{text[:-1]}." if text.endswith("?") else text


def _asking(
    prompts: Sequence[str],
    prepend: bool,
    pool: str,
    shown: str = "",
    rewrite: Callable[[str], str] = punctuate,
) -> Prompt:
    """Prompts that end in an open quote, each after the demonstration `shown`."""
    if prepend:
        place = '"{text}"'
        if lacking := [prompt for prompt in prompts if place not in prompt]:
            raise ValueError(f"{lacking[0]!r} has no {place} to put {PST} before")
        prompts = [prompt.replace(place, f"{PST} {place}") for prompt in prompts]
        rewrite = punctuate_statement
    templates = tuple(parse_template(shown + p, pool_all=True) for p in prompts)
    return Prompt({"query": templates, "document": templates}, pool or None, rewrite)

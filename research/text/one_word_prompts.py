"""Prompts that make a language model summarize a sentence in one word.

Each prompt ends in an opening quotation mark, whose state is the embedding (PromptEOL).
"""

from collections.abc import Sequence

from research.text.templates import Prompt, escape_braces, parse_template
from research.text.tokens import PST

PROMPTEOL = 'This sentence : "{text}" means in one word:"'
COT = 'After thinking step by step , this sentence : "{text}" means in one word:"'
KE = (
    "The essence of a sentence is often captured by its main subjects and actions, "
    "while descriptive terms provide additional but less central details. With this "
    'in mind , this sentence : "{text}" means in one word:"'
)
# Our own wording of the prompts that Lei et al. 2024 describe: two prompts for each of
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
    """PromptEOL (Jiang et al. 2023): what a sentence means in one word.

    Args:
        example, answer: A demonstration before the sentence, such as "A jockey riding a
            horse." and "Equestrian"; empty for none.
        prepend: Whether the token <PST> comes before the sentence, as for token
            prepending (Fu et al. 2024); the published baselines have no <PST>.
        pool: Name of a pooling.
    """
    if bool(example) != bool(answer):
        raise ValueError(f"example {example!r} and answer {answer!r} go together")
    # The demonstration is the same prompt with its answer.
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
    """MetaEOL (Lei et al. 2024): the mean over eight prompts for four kinds of tasks.

    The default prompts are not the authors'; they describe the same tasks in our words.

    Args:
        prompts: The prompts, each with "{text}" in place of the sentence.
        prepend: As in `prompteol`.
        pool: Name of a pooling.
    """
    return _make_prompt(prompts, prepend, pool)


def punctuate(text: str) -> str:
    """Ends a text in a period or a quote, and makes double quotes single.

    A question mark at the end becomes a period, as in the code of PromptEOL, of CoT and
    KE, of MetaEOL and of token prepending.
    """
    if text.strip() and text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return f"{text[:-1]}." if text.endswith("?") else text


def _make_prompt(
    lines: Sequence[str],
    prepend: bool,
    pool: str,
    *,
    demonstration: str = "",
) -> Prompt:
    """Makes a prompt of one or several templates, the same for both roles.

    Args:
        lines: Templates as `parse_template` reads them.
        prepend: Whether <PST> is put before the quoted text of every template.
        pool: Name of a pooling; empty for the model's own.
        demonstration: Text before every template.
    """
    if prepend:
        # <PST> goes before the quotation mark that opens the text.
        quoted = '"{text}"'
        if unquoted := [line for line in lines if quoted not in line]:
            raise ValueError(f"{unquoted[0]!r} has no {quoted} to put {PST} before")
        lines = [line.replace(quoted, f"{PST} {quoted}") for line in lines]
    # All tokens are pooled, which last-token pooling reduces to the last one.
    templates = tuple(
        parse_template(demonstration + line, pool_all=True) for line in lines
    )
    return Prompt({"query": templates, "document": templates}, pool or None, punctuate)

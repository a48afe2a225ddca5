"""The prompts that turn a language model into an embedder, as published.

All bytes are the papers' or their code's unless a function says otherwise. Instructions
that are not given by a paper are those of its demonstration, or E5's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.data.pieces import PST, Piece, Template
from research.data.templates import Method, escaped, parse_template, unchanged
from research.sections import build

# The instruction of E5-Mistral for web search (Wang et al. 2024, table 13).
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
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


def plain() -> Method:
    """Texts as they are, with what the tokenizer puts around them."""
    template = (
        Piece(special="bos", pooled=True),
        Piece(slot=True, pooled=True),
        Piece(special="close", pooled=True),
    )
    return _both(template)


def template(*, query: str, document: str = "", pool: str = "") -> Method:
    """A user's own templates, as `parse_template` reads them.

    Args:
        document: that of documents; that of queries if empty.
        pool: a pooling that the templates are made for; empty for the model's.
    """
    found = parse_template(query)
    return _both(found, parse_template(document) if document else found, pool=pool)


def echo(
    *,
    instruction: str = "Retrieve passages that answer the question",
    symmetric: bool = False,
    pool: str = "mean",
) -> Method:
    """The text twice, of which the second is pooled (Springer et al. 2024).

    Every piece is tokenised by itself, the instruction with its comma. The end token is
    pooled too.

    Args:
        symmetric: documents are put as queries.
        pool: "mean" or "last", the two that the paper compares.
    """
    if not instruction:
        raise ValueError("echo needs an instruction")

    def twice(*before: str, again: str) -> Template:
        return (
            Piece(special="bos"),
            *map(Piece, before),
            Piece(slot=True),
            Piece(again),
            Piece(slot=True, pooled=True),
            Piece(special="eos", pooled=True),
        )

    said = escaped(instruction) + ","
    query = twice("Instruct:", said, "\nQuery:", again="\nQuery again:")
    document = twice("Document:", again="\nDocument again:")
    return _both(query, query if symmetric else document, pool=pool)


def prompteol(
    *,
    example: str = "",
    answer: str = "",
    prepend: bool = False,
    pool: str = "last",
) -> Method:
    """The one word that a sentence means (PromptEOL, Jiang et al. 2023).

    Args:
        example, answer: a demonstration that comes first, such as "A jockey riding a
            horse." and "Equestrian"; empty for none.
        prepend: <PST> before the sentence (Fu et al. 2024). The baseline of token
            prepending has it too.
    """
    if bool(example) != bool(answer):
        raise ValueError(f"example {example!r} and answer {answer!r} go together")
    shown = EOL.replace("{text}", escaped(example)) + escaped(answer) + '".'
    return _asking([EOL], prepend, pool, shown if example else "")


def cot(*, prepend: bool = False, pool: str = "last") -> Method:
    """Pretended chain of thought (Zhang et al. 2024); arguments as of `prompteol`."""
    return _asking([COT], prepend, pool)


def ke(*, prepend: bool = False, pool: str = "last") -> Method:
    """Knowledge enhancement (Zhang et al. 2024); arguments as of `prompteol`."""
    return _asking([KE], prepend, pool)


def metaeol(
    *,
    prompts: tuple[str, ...] = TASKS,
    prepend: bool = False,
    pool: str = "last",
) -> Method:
    """The average of eight prompts for four kinds of tasks (MetaEOL, Lei et al. 2024).

    The prompts are not the authors': they say the same in other words.

    Args:
        prompts: others, each with "{text}" where the sentence goes.
        prepend: as of `prompteol`.
    """
    return _asking(prompts, prepend, pool, rewrite=stated)


def sgpt(*, pool: str = "weighted_mean") -> Method:
    """Queries in [ ] and documents in { } (SGPT specb, Muennighoff 2022).

    The brackets are tokens of their own, whatever the text begins and ends with, and
    have weights in pooling.
    """

    def between(left: str, right: str) -> Template:
        return (
            Piece(special="bos", pooled=True),
            Piece(left, pooled=True),
            Piece(slot=True, pooled=True),
            Piece(right, pooled=True),
        )

    return _both(between("[", "]"), between("{", "}"), pool=pool)


def instruct(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = "last"
) -> Method:
    """E5-Mistral (Wang et al. 2024): queries with an instruction, the end token pooled.

    Args:
        symmetric: documents are put as queries.
    """
    query = _said("Instruct: {instruction}\nQuery: {text}{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def qwen3(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = "last"
) -> Method:
    """Qwen3-Embedding: as `instruct`, without a space before the query."""
    query = _said("Instruct: {instruction}\nQuery:{text}{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def icl(
    *,
    instruction: str = SEARCH,
    examples: tuple[tuple[str, str], ...] = (),
    symmetric: bool = False,
    pool: str = "last",
) -> Method:
    """Queries after demonstrations of the task (bge-en-icl, Li et al. 2024).

    Args:
        examples: (query, response) of each, none for zero-shot.
        symmetric: documents are put as queries.
    """
    form = "<instruct>{instruction}\n<query>"
    for pair in examples:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"example {pair!r} is not a (query, response)")
    shown = "".join(
        f"{form}{escaped(query)}\n<response>{escaped(response)}\n\n"
        for query, response in examples
    )
    query = _said(shown + form + "{text}\n<response>{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def nv_embed(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = ""
) -> Method:
    """NV-Embed (Lee et al. 2024): the query and the end token are pooled.

    What comes before the query is not. Its code leaves the last token of the
    instruction in, as it does not count the one that opens a text; ours does not.

    Args:
        symmetric: documents are put as queries.
        pool: empty for the model's own, its latent attention.
    """
    query = _said("Instruct: {instruction}\nQuery: {text}{eos}", instruction, False)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def llm2vec(
    *, instruction: str = f"{SEARCH}:", symmetric: bool = False, pool: str = "mean"
) -> Method:
    """LLM2Vec (BehnamGhader et al. 2024): an instruction, and the text that is pooled.

    Args:
        instruction: empty for none.
        symmetric: documents are put as queries.
    """
    document = parse_template("{text}")
    if not instruction:
        return _both(document, pool=pool)
    query = _said("{instruction} {text}", instruction, False)
    return _both(query, query if symmetric else document, pool=pool)


def gritlm(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = "mean"
) -> Method:
    """GritLM's embedding mode (Muennighoff et al. 2024): only the text is pooled.

    Args:
        instruction: empty for none.
        symmetric: documents are put as queries.
    """
    document = parse_template("<|embed|>\n{text}")
    if not instruction:
        return _both(document, pool=pool)
    query = _said("<|user|>\n{instruction}\n<|embed|>\n{text}", instruction, False)
    return _both(query, query if symmetric else document, pool=pool)


def gemma(
    *,
    task: str = "search result",
    title: str = "none",
    symmetric: bool = False,
    pool: str = "mean",
) -> Method:
    """EmbeddingGemma (2025): a task or a title first, all of which is pooled.

    Args:
        task: such as "search result" or "sentence similarity".
        title: of the documents.
        symmetric: documents are put as queries.
    """
    query = _said("task: {instruction} | query: {text}{close}", task)
    document = _said("title: {instruction} | text: {text}{close}", title)
    return _both(query, query if symmetric else document, pool=pool)


def punctuated(text: str) -> str:
    """A sentence that ends in . ? " or ', without double quotes (PromptEOL)."""
    if text and text[-1] not in ".?\"'":
        text += "."
    return text.replace('"', "'")


def stated(text: str) -> str:
    """As `punctuated`, a last question mark a full stop (MetaEOL, token prepending)."""
    text = punctuated(text)
    return f"{text[:-1]}." if text.endswith("?") else text


def chosen(config: Mapping[str, Any]) -> Method | None:
    """The method that a section names; None for plain, which takes prompts instead.

    Raises:
        ValueError: there is no such method, or it has no such argument.
    """
    method = build(METHODS, config)
    return None if method == plain() else method


def _asking(
    prompts: Sequence[str],
    prepend: bool,
    pool: str,
    shown: str = "",
    rewrite: Callable[[str], str] = punctuated,
) -> Method:
    """Prompts that end in an open quote, each after the demonstration `shown`."""
    if prepend:
        place = '"{text}"'
        if lacking := [prompt for prompt in prompts if place not in prompt]:
            raise ValueError(f"{lacking[0]!r} has no {place} to put {PST} before")
        prompts = [prompt.replace(place, f"{PST} {place}") for prompt in prompts]
        rewrite = stated
    templates = tuple(parse_template(shown + p, whole=True) for p in prompts)
    return Method({"query": templates, "document": templates}, pool or None, rewrite)


def _said(form: str, instruction: str, whole: bool = True) -> Template:
    """The template of a line, with an instruction; `whole` as of `parse_template`."""
    if not instruction:
        raise ValueError(f"the template {form!r} needs an instruction")
    return parse_template(
        form.replace("{instruction}", escaped(instruction)), whole=whole
    )


def _both(query: Template, document: Template | None = None, pool: str = "") -> Method:
    """Queries and documents in a template each, or in the same."""
    document = query if document is None else document
    templates = {"query": (query,), "document": (document,)}
    return Method(templates, pool or None, unchanged)


DOCUMENT = parse_template("{text}{eos}", whole=True)
METHODS: dict[str, Callable[..., Method]] = {
    "plain": plain,
    "template": template,
    "echo": echo,
    "prompteol": prompteol,
    "cot": cot,
    "ke": ke,
    "metaeol": metaeol,
    "sgpt": sgpt,
    "instruct": instruct,
    "qwen3": qwen3,
    "icl": icl,
    "nv_embed": nv_embed,
    "llm2vec": llm2vec,
    "gritlm": gritlm,
    "gemma": gemma,
}

"""The prompts that turn a language model into an embedder, as published.

All bytes are the papers' or their code's unless a function says otherwise. Instructions
that are not given by a paper are those of its demonstration, or E5's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from research.config_sections import build
from research.text.one_word_prompts import cot, ke, metaeol, prompteol
from research.text.templates import Prompt, escape_braces, parse_template
from research.text.tokens import Piece, Template, fill_placeholders

# The instruction of E5-Mistral for web search (Wang et al. 2024, table 13).
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def plain() -> Prompt:
    """Texts as they are, with what the tokenizer puts around them."""
    template = (
        Piece(special="bos", pooled=True),
        Piece(is_text=True, pooled=True),
        Piece(special="close", pooled=True),
    )
    return _both(template)


def template(
    *, query: str, document: str = "", instruction: str = "", pool: str = ""
) -> Prompt:
    """A user's own templates, as `parse_template` reads them.

    Args:
        document: that of documents; that of queries if empty.
        instruction: what {instruction} of a template becomes.
        pool: a pooling that the templates are made for; empty for the model's.

    Raises:
        ValueError: as `parse_template`, or an instruction is wanted and not given.
    """
    query, document = (
        _with(parse_template(line), instruction) for line in (query, document or query)
    )
    return _both(query, document, pool=pool)


def echo(
    *,
    instruction: str = "Retrieve passages that answer the question",
    symmetric: bool = False,
    pool: str = "mean",
) -> Prompt:
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
            Piece(is_text=True),
            Piece(again),
            Piece(is_text=True, pooled=True),
            Piece(special="eos", pooled=True),
        )

    said = escape_braces(instruction) + ","
    query = twice("Instruct:", said, "\nQuery:", again="\nQuery again:")
    document = twice("Document:", again="\nDocument again:")
    return _both(query, query if symmetric else document, pool=pool)


def sgpt(*, pool: str = "weighted_mean") -> Prompt:
    """Queries in [ ] and documents in { } (SGPT specb, Muennighoff 2022).

    The brackets are tokens of their own, whatever the text begins and ends with, and
    have weights in pooling.
    """

    def between(left: str, right: str) -> Template:
        return (
            Piece(special="bos", pooled=True),
            Piece(left, pooled=True),
            Piece(is_text=True, pooled=True),
            Piece(right, pooled=True),
        )

    return _both(between("[", "]"), between("{", "}"), pool=pool)


def instruct(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = "last"
) -> Prompt:
    """E5-Mistral (Wang et al. 2024): queries with an instruction, the end token pooled.

    Args:
        symmetric: documents are put as queries.
    """
    query = _said("Instruct: {instruction}\nQuery: {text}{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def qwen3(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = "last"
) -> Prompt:
    """Qwen3-Embedding: as `instruct`, without a space before the query."""
    query = _said("Instruct: {instruction}\nQuery:{text}{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def icl(
    *,
    instruction: str = SEARCH,
    examples: tuple[tuple[str, str], ...] = (),
    symmetric: bool = False,
    pool: str = "last",
) -> Prompt:
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
        f"{form}{escape_braces(query)}\n<response>{escape_braces(response)}\n\n"
        for query, response in examples
    )
    query = _said(shown + form + "{text}\n<response>{eos}", instruction)
    return _both(query, query if symmetric else DOCUMENT, pool=pool)


def nv_embed(
    *, instruction: str = SEARCH, symmetric: bool = False, pool: str = ""
) -> Prompt:
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
) -> Prompt:
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
) -> Prompt:
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
) -> Prompt:
    """EmbeddingGemma (2025): a task or a title first, all of which is pooled.

    Args:
        task: such as "search result" or "sentence similarity".
        title: of the documents.
        symmetric: documents are put as queries.
    """
    query = _said("task: {instruction} | query: {text}{close}", task)
    document = _said("title: {instruction} | text: {text}{close}", title)
    return _both(query, query if symmetric else document, pool=pool)


def build_prompt(config: Mapping[str, Any]) -> Prompt | None:
    """The method that a section names; None for plain, which takes prompts instead.

    Raises:
        ValueError: there is no such method, or it has no such argument.
    """
    method = build(PROMPTS, config)
    return None if method == plain() else method


def _said(form: str, instruction: str, whole: bool = True) -> Template:
    """The template of a line, with an instruction; `whole` as of `parse_template`."""
    if not instruction:
        raise ValueError(f"the template {form!r} needs an instruction")
    return _with(parse_template(form, pool_all=whole), instruction)


def _with(template: Template, instruction: str) -> Template:
    """The template with its {instruction} filled in."""
    return tuple(
        piece._replace(
            literal=escape_braces(fill_placeholders(piece.literal, instruction))
        )
        for piece in template
    )


def _both(query: Template, document: Template | None = None, pool: str = "") -> Prompt:
    """Queries and documents in a template each, or in the same."""
    document = query if document is None else document
    templates = {"query": (query,), "document": (document,)}
    return Prompt(templates, pool or None)


DOCUMENT = parse_template("{text}{eos}", pool_all=True)
PROMPTS: dict[str, Callable[..., Prompt]] = {
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

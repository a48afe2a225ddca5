"""Published prompts that turn a language model into a text embedder.

The strings are those of the papers or of their code unless a docstring says otherwise.
Where a paper gives no default instruction, that of its example or of E5 is used.

Arguments that many prompts share:
    instruction: Description of the queries' task.
    symmetric: Whether documents get the same template as queries.
    pool: Name of the pooling that the prompt is made for; empty for the model's own.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from research.config_sections import Call, build, build_call, parse_call
from research.text.multi_vector_prompts import colbert, metaembed
from research.text.one_word_prompts import cot, ke, metaeol, prompteol
from research.text.templates import Prompt, escape_braces, parse_template
from research.text.tokens import Piece, Template, fill_placeholders

# The instruction of E5-Mistral for web search (Wang et al. 2024, table 13).
SEARCH_INSTRUCTION = (
    "Given a web search query, retrieve relevant passages that answer the query"
)
DOCUMENT_TEMPLATE = parse_template("{text}{eos}", pool_all=True)


def plain() -> Prompt:
    """Texts without a prompt, with the special tokens that the tokenizer adds."""
    template = (
        Piece(special="bos", pooled=True),
        Piece(is_text=True, pooled=True),
        Piece(special="close", pooled=True),
    )
    return _make_prompt(template)


def inference_free() -> Prompt:
    """Queries without special tokens, whose tokens are counted and not encoded.

    Documents have them. It is for `splade_doc`.
    """
    query = (Piece(is_text=True, pooled=True),)
    return _make_prompt(query, plain().templates["document"][0])


def template(
    *, query: str, document: str = "", instruction: str = "", pool: str = ""
) -> Prompt:
    """The user's own templates, as `parse_template` reads them.

    Args:
        query: Template for queries.
        document: Template for documents; empty for that of queries.
        instruction: Text that replaces {instruction}.

    Raises:
        ValueError: As in `parse_template`, or the instruction is missing.
    """
    query, document = (
        _fill_instruction(parse_template(line), instruction)
        for line in (query, document or query)
    )
    return _make_prompt(query, document, pool=pool)


def echo(
    *,
    instruction: str = "Retrieve passages that answer the question",
    symmetric: bool = False,
    pool: str = "mean",
) -> Prompt:
    """Echo embeddings (Springer et al. 2024): the text twice; the second one is pooled.

    Each piece of the template is tokenized separately. The end token is pooled, too.

    Args:
        pool: "mean" or "last"; the paper compares both.
    """
    if not instruction:
        raise ValueError("echo needs an instruction")

    def repeat_text(*before: str, between: str) -> Template:
        return (
            Piece(special="bos"),
            *map(Piece, before),
            Piece(is_text=True),
            Piece(between),
            Piece(is_text=True, pooled=True),
            Piece(special="eos", pooled=True),
        )

    # The comma is tokenized together with the instruction.
    task = escape_braces(instruction) + ","
    query = repeat_text("Instruct:", task, "\nQuery:", between="\nQuery again:")
    document = repeat_text("Document:", between="\nDocument again:")
    return _make_prompt(query, query if symmetric else document, pool=pool)


def sgpt(*, pool: str = "weighted_mean") -> Prompt:
    """SGPT with special brackets (Muennighoff 2022): [query] and {document}.

    The brackets are tokenized separately from the text, and are pooled.
    """

    def enclose(opening: str, closing: str) -> Template:
        return (
            Piece(special="bos", pooled=True),
            Piece(opening, pooled=True),
            Piece(is_text=True, pooled=True),
            Piece(closing, pooled=True),
        )

    return _make_prompt(enclose("[", "]"), enclose("{", "}"), pool=pool)


def instruct(
    *,
    instruction: str = SEARCH_INSTRUCTION,
    symmetric: bool = False,
    pool: str = "last",
) -> Prompt:
    """E5-Mistral (Wang et al. 2024): an instruction for queries; last-token pooling."""
    query = _instruct_template(
        "Instruct: {instruction}\nQuery: {text}{eos}", instruction
    )
    return _make_prompt(query, query if symmetric else DOCUMENT_TEMPLATE, pool=pool)


def qwen3(
    *,
    instruction: str = SEARCH_INSTRUCTION,
    symmetric: bool = False,
    pool: str = "last",
) -> Prompt:
    """Qwen3-Embedding: as `instruct`, without a space before the query."""
    query = _instruct_template(
        "Instruct: {instruction}\nQuery:{text}{eos}", instruction
    )
    return _make_prompt(query, query if symmetric else DOCUMENT_TEMPLATE, pool=pool)


def icl(
    *,
    instruction: str = SEARCH_INSTRUCTION,
    examples: tuple[tuple[str, str], ...] = (),
    symmetric: bool = False,
    pool: str = "last",
) -> Prompt:
    """bge-en-icl (Li et al. 2024): queries after demonstrations of the task.

    Args:
        examples: Pairs (query, response) as demonstrations; () for zero-shot.
    """
    prefix = "<instruct>{instruction}\n<query>"
    for pair in examples:
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"example {pair!r} is not a (query, response)")
    # Every demonstration has the form of the query, with its response filled in.
    demonstrations = "".join(
        f"{prefix}{escape_braces(query)}\n<response>{escape_braces(response)}\n\n"
        for query, response in examples
    )
    # The query itself, with an open response.
    line = demonstrations + prefix + "{text}\n<response>{eos}"
    query = _instruct_template(line, instruction)
    return _make_prompt(query, query if symmetric else DOCUMENT_TEMPLATE, pool=pool)


def nv_embed(
    *, instruction: str = SEARCH_INSTRUCTION, symmetric: bool = False, pool: str = ""
) -> Prompt:
    """NV-Embed (Lee et al. 2024): the query and the end token are pooled.

    The instruction is not pooled. The authors' code pools its last token as well,
    because it does not count the opening token; this is not reproduced here.

    Args:
        pool: Name of the pooling; empty for the model's own, which is latent attention.
    """
    line = "Instruct: {instruction}\nQuery: {text}{eos}"
    query = _instruct_template(line, instruction, pool_all=False)
    return _make_prompt(query, query if symmetric else DOCUMENT_TEMPLATE, pool=pool)


def llm2vec(
    *,
    instruction: str = f"{SEARCH_INSTRUCTION}:",
    symmetric: bool = False,
    pool: str = "mean",
) -> Prompt:
    """LLM2Vec (BehnamGhader et al. 2024): an instruction; only the text is pooled.

    Args:
        instruction: Description of the queries' task; empty for none.
    """
    document = parse_template("{text}")
    if not instruction:
        return _make_prompt(document, pool=pool)
    query = _instruct_template("{instruction} {text}", instruction, pool_all=False)
    return _make_prompt(query, query if symmetric else document, pool=pool)


def gritlm(
    *,
    instruction: str = SEARCH_INSTRUCTION,
    symmetric: bool = False,
    pool: str = "mean",
) -> Prompt:
    """GritLM's embedding mode (Muennighoff et al. 2024): only the text is pooled.

    Args:
        instruction: Description of the queries' task; empty for none.
    """
    # Documents never have an instruction.
    document = parse_template("<|embed|>\n{text}")
    if not instruction:
        return _make_prompt(document, pool=pool)
    line = "<|user|>\n{instruction}\n<|embed|>\n{text}"
    query = _instruct_template(line, instruction, pool_all=False)
    return _make_prompt(query, query if symmetric else document, pool=pool)


def gemma(
    *,
    task: str = "search result",
    title: str = "none",
    symmetric: bool = False,
    pool: str = "mean",
) -> Prompt:
    """EmbeddingGemma (2025): a task or a title before the text; all tokens are pooled.

    Args:
        task: Task of the queries, such as "search result" or "sentence similarity".
        title: Title of the documents.
    """
    query = _instruct_template("task: {instruction} | query: {text}{close}", task)
    document = _instruct_template("title: {instruction} | text: {text}{close}", title)
    return _make_prompt(query, query if symmetric else document, pool=pool)


def build_prompt(config: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a config section; None for "plain", which keeps the model's own.

    Raises:
        ValueError: There is no such prompt, or it has no such argument.
    """
    prompt = build(PROMPTS, config)
    return None if prompt == plain() else prompt


def parse_prompt(
    text: str, *, instruction: str = "", prepend: bool = False
) -> Prompt | None:
    """Reads a prompt such as 'echo(pool="last")'.

    Args:
        text: A call of one of PROMPTS.
        instruction: Overrides the prompt's argument of that name, unless empty.
        prepend: Whether <PST> comes before the text, for token prepending.

    Returns:
        The prompt; None for "plain", which keeps the model's own.

    Raises:
        ValueError: The text is not such a call, or the prompt does not take an
            instruction or <PST>.
    """
    call = parse_call(text)
    if call.name not in PROMPTS:
        raise ValueError(f"unknown prompt {call.name!r}; known: {', '.join(PROMPTS)}")
    # Arguments from other flags; not every prompt has them.
    kwargs = dict(call.kwargs)
    for argument, value in {"instruction": instruction, "prepend": prepend}.items():
        takers = [
            name
            for name, function in PROMPTS.items()
            if argument in inspect.signature(function).parameters
        ]
        if value and call.name not in takers:
            raise ValueError(f"{call.name} takes no {argument}; {', '.join(takers)} do")
        if value:
            kwargs[argument] = value
    # "plain" keeps the model's own prompts.
    prompt = build_call(PROMPTS, Call(call.name, call.args, kwargs))
    return None if call.name == "plain" else prompt


def _instruct_template(
    line: str, instruction: str, *, pool_all: bool = True
) -> Template:
    """Reads a template, and fills in its instruction, which must not be empty."""
    if not instruction:
        raise ValueError(f"the template {line!r} needs an instruction")
    return _fill_instruction(parse_template(line, pool_all=pool_all), instruction)


def _fill_instruction(template: Template, instruction: str) -> Template:
    """Replaces {instruction} in all pieces of a template."""
    return tuple(
        piece._replace(
            literal=escape_braces(fill_placeholders(piece.literal, instruction))
        )
        for piece in template
    )


def _make_prompt(
    query: Template, document: Template | None = None, pool: str = ""
) -> Prompt:
    """Makes a prompt with one template per role, or one for both."""
    document = query if document is None else document
    templates = {"query": (query,), "document": (document,)}
    return Prompt(templates, pool or None)


# {name in a call or a config: function that makes the prompt}
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
    "colbert": colbert,
    "inference_free": inference_free,
    "metaembed": metaembed,
}

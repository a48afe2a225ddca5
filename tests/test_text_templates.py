"""Prompts against strings written out here, on tokenizers of four kinds."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from research.text.one_word_prompts import punctuate
from research.text.prompts import (
    PROMPTS,
    SEARCH_INSTRUCTION,
    build_prompt,
    parse_prompt,
)
from research.text.templates import (
    parse_template,
    tokenize_with_prompt,
    tokenize_with_template,
)
from research.text.tokenization import enclosing_tokens, tokenize_texts, train_tokenizer
from research.text.tokens import PST, Piece, add_special_token, find_end_token

CORPUS = [
    'This sentence : "a red cat saw the dog." means in one word:"',
    'After thinking step by step , this sentence : "two birds." means in one word:"',
    "Instruct: Given a web search query, retrieve relevant passages\nQuery: again",
    "Document:the dog\nDocument again:[the dog] {a cat} <instruct> <response>",
    "<|user|> <|embed|> task: search result | title: none | text: café 🙂",
]
TEXTS = ["a red cat", "the dog saw two birds, a cat and a tree?", 'say "café" 🙂']
LONG = "the dog saw two birds and a red cat, then another unbelievable thing " * 5
KINDS = ["wordpiece", "bpe", "metaspace", "unigram"]
PROMPT = "Retrieve passages that answer the question"


def train_metaspace(kind):
    """As SentencePiece writes words: <s> first, nothing last, </s> known."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        tokenizer = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token="<unk>"
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def train(kind):
    if kind in ("wordpiece", "bpe"):
        return train_tokenizer(CORPUS * 3, 300, kind)
    return train_metaspace(kind)


TOKENIZERS = {kind: train(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def tokenize_one(prompt, tokenizer, text, role="query", length=400):
    """The ids and the pooled tokens of a text in the one template of a prompt."""
    (part,) = tokenize_with_prompt(prompt, tokenizer, [text], length, role)
    return part.token_ids[0].tolist(), part.pooling_mask[0].tolist()


def bos_ids(tokenizer):
    return enclosing_tokens(tokenizer)[0].tolist()


@pytest.mark.parametrize("length", [9, 400])
def test_plain_is_the_text_as_ever(tokenizer, length):
    texts = [*TEXTS[:2], LONG]  # no character of several tokens, which is never split
    for role in ("query", "document"):
        (part,) = tokenize_with_prompt(
            PROMPTS["plain"](), tokenizer, texts, length, role
        )
        for row, pooled, expected in zip(
            part.token_ids,
            part.pooling_mask,
            tokenize_texts(tokenizer, texts, length),
            strict=True,
        ):
            np.testing.assert_array_equal(row, expected)
            assert row.dtype == np.int32 and pooled.dtype == bool and pooled.all()
    assert part.pst_positions is None


# prompt, its arguments -> the strings of queries and of documents, cut at the text, and
# whether all tokens are pooled; E is the end token, C what the tokenizer puts last.
STRINGS = [
    ("prompteol", {}, ['This sentence : "', '" means in one word:"'], None, True),
    (
        "prompteol",
        {"example": "A jockey riding a horse.", "answer": "Equestrian"},
        [
            'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
            'This sentence : "',
            '" means in one word:"',
        ],
        None,
        True,
    ),
    (
        "cot",
        {},
        [
            'After thinking step by step , this sentence : "',
            '" means in one word:"',
        ],
        None,
        True,
    ),
    (
        "ke",
        {},
        [
            "The essence of a sentence is often captured by its main subjects and "
            "actions, while descriptive terms provide additional but less central "
            'details. With this in mind , this sentence : "',
            '" means in one word:"',
        ],
        None,
        True,
    ),
    (
        "instruct",
        {},
        [f"Instruct: {SEARCH_INSTRUCTION}\nQuery: ", "E"],
        ["", "E"],
        True,
    ),
    (
        "instruct",
        {"instruction": "Say {this} {{too}}", "symmetric": True},
        ["Instruct: Say {this} {{too}}\nQuery: ", "E"],
        None,
        True,
    ),
    ("qwen3", {}, [f"Instruct: {SEARCH_INSTRUCTION}\nQuery:", "E"], ["", "E"], True),
    (
        "icl",
        {"instruction": "Find"},
        ["<instruct>Find\n<query>", "\n<response>E"],
        ["", "E"],
        True,
    ),
    (
        "icl",
        {"instruction": "Find", "examples": (("f'{x}'", "{instruction}"), ["b", "c"])},
        [
            "<instruct>Find\n<query>f'{x}'\n<response>{instruction}\n\n"
            "<instruct>Find\n<query>b\n<response>c\n\n<instruct>Find\n<query>",
            "\n<response>E",
        ],
        ["", "E"],
        True,
    ),
    (
        "gemma",
        {},
        ["task: search result | query: ", "C"],
        ["title: none | text: ", "C"],
        True,
    ),
    (
        "nv_embed",
        {},
        [f"Instruct: {SEARCH_INSTRUCTION}\nQuery: ", "E"],
        ["", "E"],
        False,
    ),
    ("llm2vec", {}, [f"{SEARCH_INSTRUCTION}: ", ""], ["", ""], False),
    ("llm2vec", {"instruction": ""}, ["", ""], ["", ""], False),
    (
        "gritlm",
        {},
        [f"<|user|>\n{SEARCH_INSTRUCTION}\n<|embed|>\n", ""],
        ["<|embed|>\n", ""],
        False,
    ),
    ("gritlm", {"instruction": ""}, ["<|embed|>\n", ""], None, False),
    (
        "template",
        {"query": "Q: {text}\nAgain: {text!} ok", "document": "D: {text}{eos}"},
        None,
        ["D: ", "E"],
        False,
    ),
]


@pytest.mark.parametrize("name, arguments, query, document, pool_all", STRINGS)
def test_prompts_are_these_strings(
    tokenizer, name, arguments, query, document, pool_all
):
    prompt = PROMPTS[name](**arguments)
    end, close = [find_end_token(tokenizer)], enclosing_tokens(tokenizer)[1].tolist()
    for role, parts in (("query", query), ("document", document or query)):
        if parts is None:
            continue
        for text in TEXTS:
            before, after = parts
            rewritten = prompt.rewrite(text)
            last = {"E": end, "C": close}.get(after[-1:], [])
            after = after.rstrip("EC")
            expected = (
                bos_ids(tokenizer) + ids(tokenizer, before + rewritten + after) + last
            )
            row, pooled = tokenize_one(prompt, tokenizer, text, role)
            assert row == expected
            if pool_all or (name == "nv_embed" and role == "document"):
                assert all(pooled)
                continue
            # What is pooled says the text, and no more than a space besides.
            skipped = pooled.index(True)
            assert all(pooled[skipped:])
            stop = len(row) - len(last)
            decoded = tokenizer.decode(row[skipped:stop]).strip()
            full_text = tokenizer.decode(ids(tokenizer, rewritten)).strip()
            assert decoded.replace(" ", "") == full_text.replace(" ", "")


def test_every_method_is_tested():
    tested = {row[0] for row in STRINGS} | {"plain", "echo", "sgpt", "metaeol"}
    # In tests of late interaction and of folders of sparse models
    tested |= {"colbert", "metaembed", "inference_free"}
    assert tested == set(PROMPTS)
    for name, make in PROMPTS.items():
        arguments = {"query": "{text}"} if name == "template" else {}
        assert set(make(**arguments).templates) == {"query", "document"}


def test_echo_is_its_pieces_end_to_end(tokenizer):
    end = [find_end_token(tokenizer)]
    for text in TEXTS:
        for role, before, again in (
            ("query", ["Instruct:", f"{PROMPT},", "\nQuery:"], "\nQuery again:"),
            ("document", ["Document:"], "\nDocument again:"),
        ):
            first = bos_ids(tokenizer)
            for piece in (*before, text, again):
                first = first + ids(tokenizer, piece)
            copy = ids(tokenizer, text)
            row, pooled = tokenize_one(PROMPTS["echo"](), tokenizer, text, role)
            assert row == first + copy + end
            assert pooled == [False] * len(first) + [True] * (len(copy) + 1)
    both = PROMPTS["echo"](symmetric=True, pool="last")
    assert tokenize_one(both, tokenizer, "a cat", "document") == tokenize_one(
        both, tokenizer, "a cat"
    )
    assert (both.pool, PROMPTS["echo"]().pool) == ("last", "mean")


@pytest.mark.parametrize("length", [60, 61, 62, 75])
def test_echo_halves_what_the_template_leaves(tokenizer, length):
    prompt = PROMPTS["echo"](instruction="Find")
    text = ids(tokenizer, LONG)
    bare, pooled = tokenize_one(prompt, tokenizer, "a cat")
    template = len(bare) - 2 * len(ids(tokenizer, "a cat"))
    budget = (length - template) // 2
    row, pooled = tokenize_one(prompt, tokenizer, LONG, length=length)
    assert row[-1] == find_end_token(tokenizer)
    assert row[-1 - budget : -1] == text[:budget]
    assert sum(pooled) == budget + 1
    assert len(row) == template + 2 * budget
    again = ids(tokenizer, "\nQuery again:")
    middle = len(row) - 1 - budget - len(again)
    assert row[middle : middle + len(again)] == again
    assert row[middle - budget : middle] == text[:budget]


@pytest.mark.parametrize("name", ["instruct", "icl", "nv_embed", "prompteol", "gritlm"])
def test_a_long_text_is_cut_and_its_template_never(tokenizer, name):
    prompt = PROMPTS[name](**({} if name == "prompteol" else {"instruction": "Find"}))
    least = len(tokenize_one(prompt, tokenizer, "the dog")[0])
    for length in range(least, least + 12):
        row, _ = tokenize_one(prompt, tokenizer, LONG, length=length)
        assert len(row) <= length
        assert len(row) >= length - 2  # a token that merges over the cut
        # The row is that of some shorter text, in full.
        rows = {
            tuple(tokenize_one(prompt._replace(rewrite=str), tokenizer, LONG[:cut])[0])
            for cut in range(1, 60)
        }
        assert tuple(row) in rows
        if name in ("instruct", "icl", "nv_embed"):
            assert row[-1] == find_end_token(tokenizer)


def test_a_character_of_several_tokens_is_never_split():
    tokenizer = TOKENIZERS["bpe"]
    prompt = PROMPTS["template"](query="{text}{eos}")
    for length in range(8, 24):
        row, _ = tokenize_one(prompt, tokenizer, "🙂" * 20, length=length)
        assert set(tokenizer.decode(row[1:-1])) == {"🙂"}
        assert length - 4 < len(row) <= length


def test_the_last_token_of_one_word_prompts_is_the_open_quote(tokenizer):
    for name in ("prompteol", "cot", "ke", "metaeol"):
        for part in tokenize_with_prompt(
            PROMPTS[name](), tokenizer, TEXTS, 400, "document"
        ):
            for row, pooled in zip(part.token_ids, part.pooling_mask, strict=True):
                last = row[np.flatnonzero(pooled)[-1]]
                assert last == row[-1]
                assert tokenizer.decode([last], skip_special_tokens=False)[-1] == '"'
    merged = tokenize_one(PROMPTS["prompteol"](), TOKENIZERS["bpe"], "a cat")[0][-1]
    assert TOKENIZERS["bpe"].id_to_token(merged) == ':"'


def test_one_word_prompts_rewrite_their_sentences():
    assert punctuate("a cat") == "a cat."
    assert punctuate('he said "no"') == "he said 'no'"
    # As all four releases do: a question ends in a period
    assert punctuate("why?") == "why." and punctuate("so!") == "so!."
    assert punctuate("why??") == "why?." and punctuate('why?"') == "why?'"
    assert punctuate("it's'") == "it's'" and punctuate("done.") == "done."
    assert punctuate("") == "" and punctuate(" ") == " "
    for name in ("prompteol", "cot", "ke", "metaeol"):
        assert PROMPTS[name]().rewrite is PROMPTS[name](prepend=True).rewrite
        assert PROMPTS[name]().rewrite is punctuate


def test_metaeol_is_eight_prompts_that_end_in_a_quote(tokenizer):
    prompt = PROMPTS["metaeol"]()
    parts = tokenize_with_prompt(prompt, tokenizer, ["a cat"], 400, "query")
    assert len(parts) == 8
    assert len({tuple(part.token_ids[0]) for part in parts}) == 8
    custom = PROMPTS["metaeol"](prompts=('One : "{text}" word:"',))
    expected = bos_ids(tokenizer) + ids(tokenizer, 'One : "a cat." word:"')
    assert tokenize_one(custom, tokenizer, "a cat")[0] == expected


def test_sgpt_puts_brackets_as_tokens_around_the_text(tokenizer):
    for role, left, right in (("query", "[", "]"), ("document", "{", "}")):
        row, pooled = tokenize_one(PROMPTS["sgpt"](), tokenizer, TEXTS[1], role)
        expected = bos_ids(tokenizer)
        for piece in (left, TEXTS[1], right):
            expected = expected + ids(tokenizer, piece)
        assert row == expected and all(pooled)
        short, _ = tokenize_one(PROMPTS["sgpt"](), tokenizer, LONG, role, length=12)
        right = ids(tokenizer, right)
        assert len(short) == 12 and short[-len(right) :] == right


def test_no_examples_is_the_plain_instruction(tokenizer):
    none = PROMPTS["icl"](instruction="Find", examples=())
    line = "<instruct>{instruction}\n<query>{text}\n<response>{eos}"
    expected = tokenize_with_template(
        parse_template(line), tokenizer, TEXTS, 400, instruction="Find"
    )
    for row, text in zip(expected.token_ids, TEXTS, strict=True):
        assert tokenize_one(none, tokenizer, text)[0] == row.tolist()


@pytest.mark.parametrize("name", ["prompteol", "cot", "ke", "metaeol"])
def test_the_prepended_token_has_its_place(tokenizer, name):
    known, number = add_special_token(tokenizer)
    assert number == tokenizer.get_vocab_size() == known.get_vocab_size() - 1
    assert tokenizer.token_to_id(PST) is None
    prompt = PROMPTS[name](prepend=True)
    texts = ["a cat", f"why {PST} two?", LONG]
    parts = tokenize_with_prompt(prompt, known, texts, 260, "query")
    for template, part in zip(prompt.templates["query"], parts, strict=True):
        assert part.pst_positions.dtype == np.int32
        for row, place in zip(part.token_ids, part.pst_positions, strict=True):
            assert row[place] == number
            before = bos_ids(known) + ids(known, template[1].literal)
            assert row[:place].tolist() == before
        line = "".join(
            "a cat." if p.is_text else p.special * (p.special == PST) + p.literal
            for p in template
        )
        assert f' : {PST} "a cat."' in line
        assert part.token_ids[0].tolist() == bos_ids(known) + ids(known, line)
    with pytest.raises(ValueError, match="has no added token '<PST>'; it has"):
        tokenize_with_prompt(prompt, tokenizer, texts, 260, "query")


def test_a_line_is_a_template():
    def flags(line, **options):
        pieces = parse_template(line, **options)
        assert pieces[0] == Piece(special="bos", pooled=options.get("pool_all", False))
        return [(p.literal or p.special or "slot", p.pooled) for p in pieces[1:]]

    assert flags("Query: {text}\nAgain: {text!}") == [
        ("Query: ", False),
        ("slot", False),
        ("\nAgain: ", False),
        ("slot", True),
    ]
    assert flags("{text} or {text}") == [
        ("slot", True),
        (" or ", False),
        ("slot", True),
    ]
    assert flags('a "{text}" is:"') == [
        ('a "', False),
        ("slot", True),
        ('" is:"', True),
    ]
    assert flags("{text!}x{eos}") == [("slot", True), ("x", True), ("eos", True)]
    assert flags("{instruction} {text}", pool_all=True)[0] == ("{instruction} ", True)
    tokenizer = TOKENIZERS["bpe"]
    prompt = PROMPTS["template"](query='{{"a": {text}}} {')
    row, _ = tokenize_one(prompt, tokenizer, "{text}")
    assert row == bos_ids(tokenizer) + ids(tokenizer, '{"a": {text}} {')


def test_two_copies_in_a_line_share_the_room(tokenizer):
    prompt = PROMPTS["template"](query="Query: {text}\nAgain: {text!}")
    for length in (30, 31, 44):
        row, pooled = tokenize_one(prompt, tokenizer, LONG, length=length)
        assert length - 4 < len(row) <= length
        decoded = tokenizer.decode(np.array(row)[pooled].tolist())
        assert LONG.startswith(decoded.strip())


def test_what_a_section_names():
    assert build_prompt({"name": "plain"}) is None
    assert build_prompt({"name": "echo", "pool": "last"}) == PROMPTS["echo"](
        pool="last"
    )
    with pytest.raises(
        ValueError, match="unknown name 'eco'; known: colbert, cot, echo"
    ):
        build_prompt({"name": "eco"})
    with pytest.raises(ValueError, match="ke has no argument example; it has prepend"):
        build_prompt({"name": "ke", "example": "a"})


def test_end_tokens():
    assert find_end_token(TOKENIZERS["wordpiece"]) == 3
    assert find_end_token(TOKENIZERS["unigram"]) == 2
    bare = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="no end token; looked for </s>.* none"):
        find_end_token(bare)
    bare.add_special_tokens(["<|im_end|>", "<|endoftext|>"])
    assert bare.id_to_token(find_end_token(bare)) == "<|endoftext|>"


@pytest.mark.parametrize(
    "template, message",
    [
        ((Piece("Query:"),), "template 'Query:' has no place for a text"),
        (
            (Piece("a {x}"), Piece(is_text=True)),
            r"\{x\} in the template 'a \{x\}' would",
        ),
        ((Piece("a {text}"), Piece(is_text=True)), r"\{text\} in the template"),
        ((Piece("{instruction}"), Piece(is_text=True)), "needs an instruction"),
        (
            (Piece(is_text=True), Piece(special="<b>")),
            "no added token '<b>'; it has <unk>",
        ),
        ((Piece(is_text=True),), r"text 1 has no tokens to pool"),
        (
            (Piece("a red cat saw the dog " * 9), Piece(is_text=True, pooled=True)),
            r"has \d+ tokens, which leaves no room for a text in max_length 32",
        ),
        ((Piece(is_text=True, pooled=True),), "text 2 has no tokens: ' '"),
    ],
)
def test_a_template_that_cannot_be_is_one_sentence(template, message):
    texts = ["a cat", " "]
    if "to pool" in message:
        texts = ["a cat"]
        message = message.replace("text 1", "text 0")
    else:
        texts = ["a", "a cat", " "]
    with pytest.raises(ValueError, match=message):
        tokenize_with_template(template, TOKENIZERS["metaspace"], texts, 32)


def test_other_mistakes_are_one_sentence():
    tokenizer = TOKENIZERS["bpe"]
    with pytest.raises(ValueError, match=r"the template 'a cat' has no \{text\}"):
        parse_template("a cat")
    with pytest.raises(ValueError, match=r"\{txt\} in the template .* would be embed"):
        parse_template("a {txt} {text}")
    with pytest.raises(ValueError, match="echo needs an instruction"):
        PROMPTS["echo"](instruction="")
    with pytest.raises(ValueError, match="needs an instruction"):
        PROMPTS["instruct"](instruction="")
    with pytest.raises(ValueError, match="example 'a' and answer '' go together"):
        PROMPTS["prompteol"](example="a")
    with pytest.raises(ValueError, match=r"example 'ab' is not a \(query, response\)"):
        PROMPTS["icl"](examples=("ab",))
    with pytest.raises(ValueError, match='has no "{text}" to put <PST> before'):
        PROMPTS["metaeol"](prompts=("{text}:",), prepend=True)
    with pytest.raises(ValueError, match="no template for the role 'title'; it has"):
        tokenize_with_prompt(PROMPTS["echo"](), tokenizer, ["a"], 99, "title")
    (rows,) = tokenize_with_prompt(
        PROMPTS["prompteol"](), tokenizer, [""], 99, "query", allow_empty=True
    )
    assert tokenizer.decode(rows.token_ids[0]).startswith('This sentence : "" means')
    with pytest.raises(ValueError, match="row 7 has no tokens: ' '"):
        tokenize_with_prompt(
            PROMPTS["prompteol"](), tokenizer, [" "], 99, "query", label="row 7".format
        )
    with pytest.raises(ValueError, match="first token of '🙂' has no room"):
        tokenize_with_template(
            PROMPTS["plain"]().templates["query"][0], tokenizer, ["🙂"], 3
        )


@pytest.mark.parametrize(
    "line",
    [
        "Represent this, please: {text}",
        "Is it; or not? {text}",
        "a+b | c {text}",
        'say="yes", it\'s: {text}',
        "name:query=1,2;3+x\n{text}",
    ],
)
def test_a_prompt_on_the_command_line_may_hold_any_character(line):
    expected = PROMPTS["template"](query=line, document=line)
    assert parse_prompt(f"template(query={line!r})") == expected
    instruct = PROMPTS["instruct"](instruction=line.replace("{text}", ""))
    instruction = line.replace("{text}", "")
    assert parse_prompt("instruct", instruction=instruction) == instruct


def test_a_prompt_is_written_as_a_call():
    assert parse_prompt("plain") is None
    assert parse_prompt("echo(pool='last')") == PROMPTS["echo"](pool="last")
    prompt = parse_prompt("icl(examples=(('a', 'b'),), symmetric=True)")
    assert prompt == PROMPTS["icl"](examples=(("a", "b"),), symmetric=True)
    assert parse_prompt("ke", prepend=True) == PROMPTS["ke"](prepend=True)
    for text, message in (
        ("template(query=0)", "template's query is 0; it takes quoted text"),
        ("template", "template needs a value for query"),
        ("template(query={text})", "the arguments of template are not all .* quoted"),
        ("echo:pool=last", "'echo:pool=last' is no call"),
        ("eco", "unknown prompt 'eco'; known: plain, template, echo"),
        ("echo | ke", r"holds 2 calls \(echo, ke\); write one"),
        ("echo(loud=True)", "echo has no argument loud; it has instruction"),
        ("metaeol(prompts='a')", "metaeol's prompts is 'a'; it takes tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_prompt(text)
    with pytest.raises(ValueError, match="ke takes no instruction; template, echo, in"):
        parse_prompt("ke", instruction="Find")
    with pytest.raises(ValueError, match="echo takes no prepend; prompteol, cot, ke, "):
        parse_prompt("echo", prepend=True)

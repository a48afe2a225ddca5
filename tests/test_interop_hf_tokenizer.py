"""Tokenizers of model folders, as `transformers` reads the same files."""

import json
from pathlib import Path

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from research.interop.hf.tokenizer import read_tokenizer

TEXTS = [
    "The Old house, büt café",
    "a 水water [MASK] covidine <s>",
    " two  spaces and\ttabs don't",
    "x",
]
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéü水,'.?")
WORDS = ["the", "old", "house", "but", "büt", "cafe", "café", "water", "The", "Old"]
PIECES = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
ROBERTA = ["<s>", "<pad>", "</s>", "[UNK]", *PIECES, "<mask>"]


def write(folder: Path, name: str, fields: dict):
    (folder / name).write_text(json.dumps(fields))


def make_wordpiece(folder: Path, words: list[str], *, only_vocab: bool, **options):
    """A folder with vocab.txt or a tokenizer.json of BERT's rules."""
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    if only_vocab:
        return
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


def make_bytes(folder: Path, *special: str):
    """A folder with a tokenizer.json of bytes, with spaces in front of words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))


def assert_as_transformers(folder: Path, model_type: str, fields: dict, **overrides):
    auto = pytest.importorskip("transformers").AutoTokenizer
    write(folder, "config.json", {"model_type": model_type, "vocab_size": 300})
    if fields:
        write(folder, "tokenizer_config.json", fields)
    theirs = auto.from_pretrained(folder, **overrides)
    ours = read_tokenizer(folder, {"model_type": model_type}, overrides)
    expected = theirs(TEXTS)["input_ids"]
    assert [ours.tokenizer.encode(text).ids for text in TEXTS] == expected
    for name, token in ours.special_tokens.items():
        assert str(getattr(theirs, name)) == token
    return ours


BERT_FIELDS = [
    {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    {"tokenizer_class": "BertTokenizer", "strip_accents": False},
    {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True},
    {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False},
    {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False},
    {"do_lower_case": False, "cls_token": "[SEP]", "sep_token": "[CLS]"},
    {},
]


@pytest.mark.parametrize("only_vocab", [True, False])
@pytest.mark.parametrize("fields", BERT_FIELDS, ids=str)
def test_rules_of_bert(fields, only_vocab, tmp_path):
    make_wordpiece(tmp_path, BERT, only_vocab=only_vocab, lowercase=False)
    assert_as_transformers(tmp_path, "bert", fields)


def test_other_classes_have_the_rules_of_tokenizer_json(tmp_path):
    make_wordpiece(tmp_path, BERT, only_vocab=False, lowercase=False)
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    ours = assert_as_transformers(tmp_path, "bert", fields)
    assert ours.tokenizer.encode("The").ids[1] == BERT.index("The")


def test_sentence_transformers_may_replace_fields(tmp_path):
    make_wordpiece(tmp_path, BERT, only_vocab=True)
    fields = {"tokenizer_class": "BertTokenizer", "model_max_length": 9}
    overrides = {"do_lower_case": False, "model_max_length": 7}
    ours = assert_as_transformers(tmp_path, "bert", fields, **overrides)
    assert ours.max_length == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"covidine": len(BERT)}),
        ("special_tokens_map.json", {"additional_special_tokens": ["covidine"]}),
        ("special_tokens_map.json", {"cls_token": {"content": "[MASK]"}}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {str(len(BERT)): {"content": "covidine"}}},
        ),
    ],
)
def test_tokens_beside_the_vocabulary(name, content, tmp_path):
    make_wordpiece(tmp_path, BERT, only_vocab=True)
    write(tmp_path, name, content)
    ours = assert_as_transformers(tmp_path, "bert", {})
    assert ("covidine" in ours.tokenizer.get_vocab()) == ("covidine" in str(content))


def test_mpnet_with_only_a_vocabulary(tmp_path):
    make_wordpiece(tmp_path, ROBERTA, only_vocab=True)
    ours = assert_as_transformers(tmp_path, "mpnet", {})
    assert ours.tokenizer.encode("x").ids == [0, ROBERTA.index("x"), 2]
    assert ours.special_tokens["pad_token"] == "<pad>"


@pytest.mark.parametrize(
    ("family", "fields", "special"),
    [
        ("roberta", {}, ("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
        ("roberta", {"add_prefix_space": True}, ("<s>", "<pad>", "</s>", "<unk>")),
        ("gpt2", {"tokenizer_class": "GPT2Tokenizer"}, ("<|endoftext|>",)),
        ("gpt_neox", {}, ("<|endoftext|>", "<|padding|>")),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, ("<|endoftext|>",)),
        ("qwen3", {"tokenizer_class": "PreTrainedTokenizerFast"}, ("<|endoftext|>",)),
        ("llama", {"tokenizer_class": "LlamaTokenizer"}, ("<s>", "</s>")),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, ("<s>", "</s>")),
        ("modernbert", {"pad_token": "<p>"}, ("<p>",)),
    ],
    ids=str,
)
def test_rules_of_vocabularies_of_bytes(family, fields, special, tmp_path):
    make_bytes(tmp_path, *special)
    assert_as_transformers(tmp_path, family, fields)


@pytest.mark.parametrize("fields", [{}, {"legacy": True}, {"add_prefix_space": False}])
def test_rules_of_llama(fields, tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    fields = {"tokenizer_class": "LlamaTokenizer", **fields}
    assert_as_transformers(tmp_path, "llama", fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncation_side": "left"}, "truncation_side 'left'"),
        ({"split_special_tokens": True}, "split_special_tokens True"),
        ({"model_input_names": ["input_ids"]}, r"model_input_names \['input_ids'\]"),
        ({"model_input_names": ""}, "model_input_names ''"),
        ({"unk_token": [1]}, "a token that is neither a text nor an object"),
        ({"auto_map": {"AutoTokenizer": ["my.Tokenizer", None]}}, "auto_map.*my.Tok"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer; we"),
        ({"model_max_length": "512"}, "model_max_length '512', but it should be a num"),
        ({"do_lower_case": "no"}, "a value of another type"),
        ({"cls_token": "[START]", "sep_token": None}, r"vocabulary lacks sep_token"),
    ],
)
def test_what_we_do_not_do_is_refused(fields, message, tmp_path):
    make_wordpiece(tmp_path, BERT[:3] + BERT[4:], only_vocab=True)
    write(tmp_path, "tokenizer_config.json", fields)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(tmp_path, {"model_type": "bert"})


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json and no vocab"):
        read_tokenizer(tmp_path, {"model_type": "bert"})
    (tmp_path / "vocab.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"vocab\.txt is not a list of tokens"):
        read_tokenizer(tmp_path, {"model_type": "bert"})
    (tmp_path / "tokenizer_config.json").write_text("{bad")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        read_tokenizer(tmp_path, {"model_type": "bert"})
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(
        ValueError, match="holds a JSON list; it should hold a JSON object"
    ):
        read_tokenizer(tmp_path, {"model_type": "bert"})

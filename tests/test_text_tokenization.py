import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from research.text.tokenization import (
    SPECIAL_TOKENS,
    hash_texts,
    load_tokenizer,
    num_token_ids,
    tokenize_texts,
    train_tokenizer,
)

TEXTS = [
    "A man with a hard hat is dancing.",
    "The quick brown fox jumps over the lazy dog.",
    "Café naïve: größer, 漢字 and numbers 123.",
] * 3


@pytest.fixture(params=["wordpiece", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS, 400, request.param)


def test_training(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.get_vocab_size() <= 400
    ids = tokenize_texts(tokenizer, TEXTS, 64)
    for text, row in zip(TEXTS, ids, strict=True):
        assert row.dtype == np.int32
        assert (row[0], row[-1]) == (2, 3)
        assert 1 not in row
        decoded = tokenizer.decode(row.tolist())
        assert decoded.lower()[:5].replace("é", "e") == text.lower()[:5].replace(
            "é", "e"
        )


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_reproducible(kind):
    first, second = (train_tokenizer(TEXTS, 400, kind) for _ in range(2))
    assert first.to_str() == second.to_str()


def test_training_errors():
    with pytest.raises(ValueError, match="unknown tokenizer 'char'"):
        train_tokenizer(TEXTS, 400, "char")
    with pytest.raises(ValueError, match="no text to train"):
        train_tokenizer([" "], 400)


def test_loading_a_file_or_a_folder(tmp_path, tokenizer):
    tokenizer.enable_padding()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(path).to_str() == tokenizer.to_str()


def test_loading_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizers file"):
        load_tokenizer(tmp_path)


def test_truncation_keeps_the_closing_token(tokenizer):
    full = tokenize_texts(tokenizer, TEXTS[:1], 64)[0]
    truncated = tokenize_texts(tokenizer, TEXTS[:1], 5)[0]
    np.testing.assert_array_equal(truncated, [*full[:4], full[-1]])
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        tokenize_texts(tokenizer, TEXTS, 2)


def test_prompts(tokenizer):
    ids = tokenize_texts(tokenizer, ["hat"], 64, prompt="a man:")[0]
    np.testing.assert_array_equal(ids, tokenize_texts(tokenizer, ["a man:hat"], 64)[0])


def test_a_text_without_tokens(tokenizer):
    with pytest.raises(ValueError, match="text 1 has no tokens: ' '"):
        tokenize_texts(tokenizer, ["a", " "], 8)
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        tokenize_texts(tokenizer, ["a", ""], 8, prompt="p", label="row {}".format)
    assert tokenize_texts(tokenizer, [""], 8, allow_empty=True)[0].tolist() == [2, 3]


def test_hashes():
    hashes = hash_texts(["a", "b", "a", "é"])
    assert hashes.shape == (4, 2)
    assert hashes.dtype == np.uint32
    np.testing.assert_array_equal(hashes[0], hashes[2])
    assert len({tuple(row) for row in hashes.tolist()}) == 3
    assert hash_texts([]).shape == (0, 2)


def test_tokens_around_a_text_count_beside_the_vocabulary(tokenizer):
    size = num_token_ids(tokenizer)
    assert size == tokenizer.get_vocab_size()
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", size + 6)]
    )
    assert num_token_ids(tokenizer) == size + 7

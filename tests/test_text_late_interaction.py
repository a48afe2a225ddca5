"""ColBERT's tokens: markers, longer queries, punctuation that is not scored."""

import numpy as np
import pytest

from research.text.multi_vector_prompts import colbert, metaembed
from research.text.prompts import build_prompt, parse_prompt
from research.text.templates import tokenize_with_prompt
from research.text.tokenization import train_tokenizer

TEXTS = ["a tall tree, in the light.", "roots! " * 9]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 60)


def tokenize(tokenizer, role, texts=TEXTS, max_length=64, **options):
    prompt = colbert(**{"query_marker": "t", "document_marker": "r", **options})
    (rows,) = tokenize_with_prompt(prompt, tokenizer, texts, max_length, role)
    return rows


def test_queries_have_a_marker_and_are_lengthened(tokenizer):
    rows = tokenize(tokenizer, "query", query_length=24)
    plain = tokenizer.encode(TEXTS[0]).ids
    marker, mask = map(tokenizer.token_to_id, ("t", "[MASK]"))
    want = [plain[0], marker, *plain[1:]]
    assert rows.token_ids[0].tolist() == want + [mask] * (24 - len(want))
    assert {len(row) for row in rows.token_ids} == {24}
    assert all(mask.all() for mask in rows.pooling_mask)


def test_longer_queries_are_cut_and_keep_their_last_token(tokenizer):
    rows = tokenize(tokenizer, "query", query_length=8)
    assert [len(row) for row in rows.token_ids] == [8, 8]
    assert rows.token_ids[1][-1] == tokenizer.token_to_id("[SEP]")
    # The model's own maximum is the smaller one
    assert len(tokenize(tokenizer, "query", max_length=6).token_ids[0]) == 6


def test_punctuation_of_documents_is_not_scored(tokenizer):
    rows = tokenize(tokenizer, "document")
    skipped = [tokenizer.token_to_id(token) for token in ",.!"]
    for ids, mask in zip(rows.token_ids, rows.pooling_mask, strict=True):
        np.testing.assert_array_equal(mask, ~np.isin(ids, skipped))
    assert (~rows.pooling_mask[0]).sum() == 2
    every = tokenize(tokenizer, "document", skiplist=())
    assert all(mask.all() for mask in every.pooling_mask)
    # Opening token, marker and closing token are scored
    rows = tokenize(tokenizer, "document", texts=["!,."])
    assert rows.pooling_mask[0].tolist() == [True, True, False, False, False, True]


def test_without_markers_and_masks_texts_stay_as_they_are(tokenizer):
    options = {"query_marker": "", "expansion": "", "query_length": 0}
    rows = tokenize(tokenizer, "query", **options)
    assert rows.token_ids[0].tolist() == tokenizer.encode(TEXTS[0]).ids


def test_the_prompt_is_a_call():
    text = 'colbert(query_length=16, skiplist=(",", "\\""), attends=True)'
    prompt = parse_prompt(text)
    assert prompt == colbert(query_length=16, skiplist=(",", '"'), attends=True)
    assert build_prompt({"name": "colbert"}) == colbert()


def test_what_no_token_attends_to(tokenizer):
    late = colbert().late_interaction
    assert late.find_unattended(tokenizer) == tokenizer.token_to_id("[MASK]")
    assert colbert(attends=True).late_interaction.find_unattended(tokenizer) == -1
    without = colbert(expansion="").late_interaction
    assert without.find_unattended(tokenizer) == -1


def test_missing_tokens_and_lengths_are_named(tokenizer):
    with pytest.raises(ValueError, match=r"no added token '\[unused7\]'"):
        tokenize(tokenizer, "query", query_marker="[unused7]")
    with pytest.raises(ValueError, match=r"no token '<m>' of the prompt"):
        tokenize(tokenizer, "query", expansion="<m>")
    with pytest.raises(ValueError, match="needs a query_length"):
        colbert(query_length=0)


def test_meta_tokens_come_last_and_are_scored_alone(tokenizer):
    prompt = metaembed(queries=2, documents=3, token="[MASK]")
    for role, count in (("query", 2), ("document", 3)):
        (rows,) = tokenize_with_prompt(prompt, tokenizer, TEXTS, 20, role)
        for ids, mask in zip(rows.token_ids, rows.pooling_mask, strict=True):
            assert len(ids) <= 20
            assert mask.tolist() == [False] * (len(ids) - count) + [True] * count
            assert set(ids[mask]) == {tokenizer.token_to_id("[MASK]")}
    # Each has its own number
    numbers = [
        piece.special for piece in metaembed().templates["document"][0] if piece.pooled
    ]
    assert numbers[0] == "[unused26]" and len(set(numbers)) == 64

"""What pre-training learns of a tokenizer and its texts."""

import numpy as np
import pytest

from research.data.document_table import DocumentTable
from research.data.text import train_tokenizer
from research.data.vocabulary import text_info


@pytest.mark.parametrize("kind, vocab", [("wordpiece", 40), ("bpe", 300)])
def test_ids_and_counts(kind, vocab):
    tokenizer = train_tokenizer(["a cat and a dog"] * 3, vocab, kind)
    ids = np.array([10, 11, 10, 4], np.uint16)
    tables = [DocumentTable(ids, None, None), DocumentTable(ids[:1], None, None)]
    found = text_info(tokenizer, tables)
    assert found.vocab == tokenizer.get_vocab_size()
    assert found.mask_id == tokenizer.token_to_id("[MASK]")
    assert {tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")} < set(
        found.special
    )
    assert found.mask_id in found.special
    counted = np.flatnonzero(found.counts)
    assert counted.tolist() == [4, 10, 11]
    assert found.counts[counted].tolist() == [1, 3, 1]

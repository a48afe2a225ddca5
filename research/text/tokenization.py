"""Tokenization: loads and trains tokenizers; texts to token ids and hashes."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as tokenizer_trainers

from research.progress import show_progress

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CAUSAL_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
ENCODE_BATCH_SIZE = 2048  # texts encoded at once; bounds the memory of the encodings


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """Loads a tokenizer.json, or that of a folder, without padding and truncation.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a tokenizer, or cuts texts at their beginning.
    """
    path = Path(path).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {file.name}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{file} is not a tokenizers file: {error}") from error
    truncation = tokenizer.truncation or {}
    if truncation.get("direction", "right").lower() != "right":
        raise ValueError(
            f"{file} cuts long texts at their beginning (truncation.direction), we cut "
            "them at their end"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: str = "wordpiece"
) -> tokenizers.Tokenizer:
    """Trains a tokenizer of at most `vocab_size` tokens.

    Args:
        texts: Training texts.
        vocab_size: Maximum size of the vocabulary.
        kind: "wordpiece", BERT's, which lowercases; "bpe", which works on bytes and
            keeps case; or "causal", which is "bpe" for a decoder. The ids 0 to 4 of the
            first two are [PAD] [UNK] [CLS] [SEP] [MASK], and a text becomes [CLS] ...
            [SEP]; the ids 0 to 3 of "causal" are <pad> <s> </s> <unk>, and a text
            becomes <s> ...

    Raises:
        ValueError: The kind is unknown, or there is no text to train on.
    """
    texts = list(texts)
    with show_progress(f"training a tokenizer on {len(texts):,} texts"):
        if kind == "wordpiece":
            tokenizer = _train_wordpiece(texts, vocab_size)
        elif kind in ("bpe", "causal"):
            special = CAUSAL_SPECIAL_TOKENS if kind == "causal" else SPECIAL_TOKENS
            tokenizer = _train_bpe(texts, vocab_size, special)
        else:
            raise ValueError(
                f"unknown tokenizer {kind!r}; known: wordpiece, bpe, causal"
            )
    if not any(text.strip() for text in texts):
        raise ValueError("there is no text to train the tokenizer on")
    # Special tokens around every text.
    if kind == "causal":
        _add_causal_special(tokenizer)
    else:
        _add_bert_special(tokenizer)
    return tokenizer


def tokenize_texts(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    max_length: int,
    *,
    prompt: str = "",
    allow_empty: bool = False,
    label: Callable[[int], str] = "text {}".format,
) -> list[np.ndarray]:
    """Tokenizes each text, with a prompt before it and special tokens, to [S] int32.

    Longer texts are truncated to max_length tokens, and keep their closing special
    tokens.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        texts: N texts.
        max_length: Maximum number of tokens, special tokens and the prompt included.
        prompt: Prefix of each text.
        allow_empty: Whether a text may have no tokens besides special tokens.
        label: Function from the index of a text to its name in error messages.

    Raises:
        ValueError: A text has no tokens, or max_length leaves no room for one.
    """
    special = tokenizer.num_special_tokens_to_add(False)
    if max_length <= special:
        raise ValueError(
            f"max_length {max_length} leaves no room beside {special} special tokens"
        )
    num_closing = len(enclosing_tokens(tokenizer)[1])
    token_ids = []
    for start in range(0, len(texts), ENCODE_BATCH_SIZE):
        batch = [prompt + text for text in texts[start : start + ENCODE_BATCH_SIZE]]
        for encoding in tokenizer.encode_batch_fast(batch):
            ids, index = encoding.ids, len(token_ids)
            # A text must have tokens besides the prompt and the special tokens.
            has_tokens = len(ids) > special and texts[index].strip()
            if not ids or not (allow_empty or has_tokens):
                raise ValueError(f"{label(index)} has no tokens: {texts[index]!r}")
            if len(ids) > max_length:
                ids = ids[: max_length - num_closing] + ids[len(ids) - num_closing :]
            token_ids.append(np.asarray(ids, np.int32))
    return token_ids


def num_token_ids(tokenizer: tokenizers.Tokenizer) -> int:
    """The largest token id + 1: the rows that a token table needs.

    The tokens around a text have ids of their own in a tokenizer's file, which need not
    be those of the vocabulary.
    """
    ids = (*tokenizer.get_vocab().values(), *tokenizer.encode("a").ids)
    return 1 + max(ids, default=-1)


def enclosing_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The special tokens before and after a text, each [n] int32."""
    # The special tokens around any text, such as "a".
    encoding = tokenizer.encode("a")
    ids, mask = np.array(encoding.ids, np.int32), encoding.special_tokens_mask
    if 0 not in mask:
        return ids, ids[:0]
    return ids[: mask.index(0)], ids[len(ids) - mask[::-1].index(0) :]


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """64-bit BLAKE2b hashes of texts, as [N, 2] uint32 halves."""
    # Lone surrogates, which UTF-8 cannot encode, are allowed.
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.uint32)


def _train_wordpiece(texts: list[str], vocab: int) -> tokenizers.Tokenizer:
    """Trains WordPiece such that the same texts always give the same tokenizer.

    The library numbers the ##characters in the order of a random hash and breaks ties
    by number. To fix their order, they are passed to it as if they were special tokens.
    """
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    _set_bert(tokenizer)
    # Characters that may occur inside a word.
    characters = " ".join(sorted(set().union(*texts)))
    inner = {
        character
        for character in tokenizer.normalizer.normalize_str(characters)
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{character}")) == 1
        and not character.isspace()
    }
    trainer = tokenizer_trainers.WordPieceTrainer(
        vocab_size=vocab,
        special_tokens=[
            *SPECIAL_TOKENS,
            *(f"##{character}" for character in sorted(inner)),
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A new tokenizer from the learned vocabulary, in which they are not special.
    learned = models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(learned)
    _set_bert(tokenizer)
    return tokenizer


def _train_bpe(
    texts: list[str], vocab: int, special: tuple[str, ...]
) -> tokenizers.Tokenizer:
    # All 256 bytes are in the vocabulary, so that no text is unknown.
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _set_bert(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")


def _add_bert_special(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[
            (token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")
        ],
    )


def _add_causal_special(tokenizer: tokenizers.Tokenizer) -> None:
    """Adds a decoder's special tokens, and <s> before every text."""
    tokenizer.add_special_tokens(list(CAUSAL_SPECIAL_TOKENS))
    opening = CAUSAL_SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{opening} $A",
        pair=f"{opening} $A $B:1",
        special_tokens=[(opening, tokenizer.token_to_id(opening))],
    )

"""The classes of tokenizers whose rules `transformers` 5 takes from its own code.

A class has the rules by which a text becomes tokens of a vocabulary: normalizer,
pre-tokenizer and the special tokens around a text. Fields of tokenizer_config.json are
their arguments. Classes that are not here keep the rules of tokenizer.json, from which
those of `transformers` do not differ for published models.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

Fields = Mapping[str, Any]


class Rules(NamedTuple):
    """The rules of a class of tokenizers.

    Attributes:
        model: The kind of vocabulary.
        set_rules: Function (tokenizer, fields of tokenizer_config.json) that sets the
            normalizer and the pre-tokenizer.
        special_tokens: {name: special token}, if the folder does not name another one.
        enclose: Function (first token, last token), each with its id, that makes the
            post-processor; None keeps that of tokenizer.json.
        by_characters: Whether a vocabulary of bytes is not one of this class.
    """

    model: type
    set_rules: Callable[[Tokenizer, Fields], None]
    special_tokens: dict[str, str] = {}
    enclose: Callable[..., processors.PostProcessor] | None = None
    by_characters: bool = False

    def fit(self, tokenizer: Tokenizer) -> bool:
        """Whether the tokenizer's vocabulary is of the kind of this class."""
        is_bytes = "ByteLevel" in repr(tokenizer.pre_tokenizer)
        return isinstance(tokenizer.model, self.model) and not (
            self.by_characters and is_bytes
        )

    def apply(
        self, tokenizer: Tokenizer, fields: Fields, special: Mapping[str, str]
    ) -> None:
        """Replaces the rules of a tokenizer.

        Args:
            tokenizer: The tokenizer, with its special tokens.
            fields: Fields of tokenizer_config.json.
            special: {name: special token}.

        Raises:
            ValueError: A field has a value of another type, or the vocabulary lacks a
                token that goes before or after a text.
        """
        try:
            self.set_rules(tokenizer, fields)
        except TypeError as error:
            raise ValueError(
                f"tokenizer_config.json has a value of another type: {error}"
            ) from None
        if self.enclose is None:
            return
        ends = [special.get(name, name) for name in ("cls_token", "sep_token")]
        ids = [tokenizer.token_to_id(token) for token in ends]
        if None in ids:
            raise ValueError(
                f"the vocabulary lacks {ends[ids.index(None)]}, which the tokenizer "
                "puts around a text"
            )
        tokenizer.post_processor = self.enclose(*zip(ends, ids, strict=True))


def _set_bert(tokenizer: Tokenizer, fields: Fields) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=fields.get("tokenize_chinese_chars", True),
        strip_accents=fields.get("strip_accents"),
        lowercase=fields.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")


def _set_byte_level(tokenizer: Tokenizer, fields: Fields) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=fields.get("add_prefix_space") or False
    )


def _set_gpt_neox(tokenizer: Tokenizer, fields: Fields) -> None:
    _set_byte_level(tokenizer, fields)
    tokenizer.normalizer = normalizers.NFC()
    # No special tokens around a text, whatever tokenizer.json has
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)


def _set_qwen2(tokenizer: Tokenizer, fields: Fields) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(
                add_prefix_space=fields.get("add_prefix_space") or False,
                use_regex=False,
            ),
        ]
    )


def _set_llama(tokenizer: Tokenizer, fields: Fields) -> None:
    scheme = "always" if fields.get("legacy", False) else "first"
    if fields.get("add_prefix_space") is False:
        scheme = "never"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=False
    )


def _enclose_bert(first: tuple, last: tuple) -> processors.PostProcessor:
    return processors.BertProcessing(last, first)


def _enclose_roberta(first: tuple, last: tuple) -> processors.PostProcessor:
    return processors.RobertaProcessing(last, first)


# The words that are split into tokens, from Qwen2's code.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
# {class in `transformers`: its rules}
RULES = {
    "BertTokenizer": Rules(models.WordPiece, _set_bert, BERT_TOKENS, _enclose_bert),
    "MPNetTokenizer": Rules(
        models.WordPiece,
        _set_bert,
        {**ROBERTA_TOKENS, "unk_token": "[UNK]"},
        _enclose_roberta,
    ),
    "RobertaTokenizer": Rules(
        models.BPE, _set_byte_level, ROBERTA_TOKENS, _enclose_roberta
    ),
    "GPT2Tokenizer": Rules(models.BPE, _set_byte_level),
    "GPTNeoXTokenizer": Rules(models.BPE, _set_gpt_neox, {"pad_token": "<|padding|>"}),
    "Qwen2Tokenizer": Rules(models.BPE, _set_qwen2, {"pad_token": "<|endoftext|>"}),
    "LlamaTokenizer": Rules(models.BPE, _set_llama, by_characters=True),
}

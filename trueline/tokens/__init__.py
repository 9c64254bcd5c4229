"""Clean text to ids: tokenizers, chat templates and their loss mask, packing. No torch."""

from trueline.tokens.encode import (
    EncodeStats,
    encode_comparison,
    encode_conversation,
    encode_document,
    encode_prompt,
    encode_rating,
)
from trueline.tokens.preview import preview
from trueline.tokens.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "EncodeStats",
    "Tokenizer",
    "encode_comparison",
    "encode_conversation",
    "encode_document",
    "encode_prompt",
    "encode_rating",
    "load_tokenizer",
    "preview",
    "train_tokenizer",
]

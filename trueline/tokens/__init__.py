"""Clean text to ids: tokenizers, chat templates and their loss mask, packing. No torch."""

from trueline.tokens.encode import EncodeStats, encode_document
from trueline.tokens.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = ["EncodeStats", "Tokenizer", "encode_document", "load_tokenizer", "train_tokenizer"]

"""A model small enough to train in a test, in a folder with its tokenizer: what several folders of tests begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def tiny_model(folder: Path, texts: Iterable[str], *, layers: int = 2, width: int = 32, context: int = 256) -> Path:
    """A random Qwen3 of about 320 tokens, learned from the texts, with two attention heads."""
    from trueline.models.config import DecoderConfig
    from trueline.models.files import new_model, save_model
    from trueline.tokens import train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size=320)
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2,
        "vocab_size": tokenizer.vocab_size, "max_position_embeddings": context, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    save_model(new_model(DecoderConfig.from_hf(shape), seed=0), folder)
    tokenizer.save(folder)
    return folder


def lines(rows: Iterable[object]) -> list[str]:
    """Rows as the texts of their JSON."""
    return [json.dumps(row) for row in rows]

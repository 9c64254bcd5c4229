"""Tokenizer and base model from nothing but the harvest, for `--from_scratch`; the shipped base model's recipe shares its text.

    functions -> pair_text, name_rows -> tokenizer -> ids -> windows -> next-token training

Left out: source code and documentation prose (the recipe has them, and an hour or two).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueline.models.config import DecoderConfig
from trueline.models.files import new_model
from trueline.objectives.next_token import NextToken
from trueline.quickstart.corpus_rows import name_rows
from trueline.quickstart.functions import Function
from trueline.quickstart.grounding import name_share
from trueline.quickstart.prompts import prompt_text
from trueline.records import Row
from trueline.tokens import load_tokenizer, train_tokenizer
from trueline.tokens.encode import documents_ids, row_key
from trueline.tokens.pack import flatten, windows
from trueline.train import train

BODY_TOKENS = (0, 24, 48, 96, 128)
"""A pair shows one of these amounts of its body, drawn at random: many functions per token, and the full prompt among them."""

GROUNDED = 0.5
"""Pairs whose summary speaks of at least this share of the name's words are kept."""


def shape(hidden_size: int, layers: int, vocab_size: int) -> dict[str, Any]:
    """A Qwen3 config, rather wide than deep, with tied embeddings."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": hidden_size,
        "intermediate_size": 128 * round(hidden_size * 8 / 3 / 128),
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": vocab_size,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
    }


def grounded(functions: Sequence[Function]) -> list[Function]:
    """Functions whose summary speaks of their name."""
    return [f for f in functions if name_share(f, f.summary) >= GROUNDED]


def pair_text(function: Function, body_tokens: int) -> str:
    """The quickstart's prompt and its answer as plain text."""
    return f"{prompt_text(function, body_tokens, None)}\nsummary:\n{function.summary}"


def window_rows(stream: np.ndarray, context: int) -> list[Row]:
    """Fixed windows, every token but each first one scored."""
    scored = np.arange(context) > 0
    pieces = [np.ascontiguousarray(ids) for ids in windows(stream, context)]
    return [Row(ids=(ids,), scored=(scored,), key=row_key((ids,), (scored,))) for ids in pieces]


def train_base(functions: Sequence[Function], out: Path, steps: int, seed: int) -> Path:
    """Tokenizer and a 3M-parameter model in `out`; resumes. Expect fluent English about the wrong function."""
    rng = random.Random(seed)
    texts = [
        text for f in grounded(functions) for text in (pair_text(f, rng.choice(BODY_TOKENS)), rng.choice(name_rows(f)))
    ]
    rng.shuffle(texts)
    folder = out.with_name("tokenizer")
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(texts, vocab_size=2048).save(folder)
    tokenizer = load_tokenizer(folder)
    context, per_step = 256, 16
    rows = window_rows(flatten(documents_ids(texts, tokenizer)), context)
    model = new_model(DecoderConfig.from_hf(shape(256, 3, 2048)), seed)
    return train(
        NextToken(), model, rows, out=out, tokenizer=tokenizer, max_steps=steps, per_device_train_batch_size=per_step, max_length=context,
        learning_rate=2e-3, weight_decay=0.1, adam_beta2=0.95, warmup_ratio=0.05, min_lr_ratio=0.05,
        save_steps=100, logging_steps=5, seed=seed,
    )  # fmt: skip

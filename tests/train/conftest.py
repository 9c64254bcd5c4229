"""A decoder of 20,000 parameters and rows that it can learn something from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trueline.models.config import DecoderConfig
from trueline.models.decoder import Decoder
from trueline.models.files import new_model, save_model
from trueline.records import Row
from trueline.tokens import Tokenizer, train_tokenizer

VOCAB = 64
SENTENCE = "the cat sat on a mat and saw one dog run to its red house while it was raining"


@pytest.fixture
def decoder() -> Callable[..., Decoder]:
    """decoder(seed=0, vocab_size=64): a new random model."""

    def make(seed: int = 0, vocab_size: int = VOCAB) -> Decoder:
        return new_model(
            DecoderConfig(
                model_type="qwen3", vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, num_key_value_heads=1, head_dim=16, qk_norm=True, tie_word_embeddings=True,
                pad_token_id=0, eos_token_id=1,
            ),
            seed,
        )  # fmt: skip

    return make


@pytest.fixture
def text_rows() -> Callable[..., list[Row]]:
    """text_rows(count): counting sequences of 5 to 24 tokens, all scored."""

    def make(count: int, seed: int = 0) -> list[Row]:
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(count):
            ids = (np.cumsum(rng.integers(0, 3, int(rng.integers(5, 25)))) % VOCAB).astype(np.int32)
            rows.append(Row(ids=(ids,), scored=(np.arange(len(ids)) > 0,), key=f"text-{number}"))
        return rows

    return make


@pytest.fixture
def pair_rows() -> Callable[..., list[Row]]:
    """pair_rows(count): a prompt of 3 to 8 tokens, one response that counts up (preferred) and one of noise."""

    def make(count: int, seed: int = 0) -> list[Row]:
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(count):
            prompt = rng.integers(2, VOCAB, int(rng.integers(3, 9)))
            good = (prompt[-1] + np.arange(1, int(rng.integers(3, 7)))) % VOCAB
            bad = rng.integers(2, VOCAB, int(rng.integers(2, 6)))
            ids = tuple(np.concatenate([prompt, answer, [1]]).astype(np.int32) for answer in (good, bad))
            scored = tuple(np.arange(len(x)) >= len(prompt) for x in ids)
            rows.append(Row(ids=ids, scored=scored, key=f"pair-{number}"))
        return rows

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    return train_tokenizer((" ".join(rng.choice(SENTENCE.split(), 12)) for _ in range(200)), vocab_size=300)


@pytest.fixture
def files(tmp_path: Path, decoder: Callable[..., Decoder], tokenizer: Tokenizer) -> Path:
    """A folder with a model and data: model/, text.jsonl, chat.jsonl, pairs.jsonl."""
    save_model(decoder(0, tokenizer.vocab_size), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    rng = np.random.default_rng(1)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(SENTENCE.split(), int(rng.integers(low, high))))

    texts = [{"text": words(8, 30)} for _ in range(60)]
    chats = [
        {"messages": [{"role": "user", "content": words(2, 6)}, {"role": "assistant", "content": words(2, 8)}]}
        for _ in range(60)
    ]
    pairs = [{"prompt": words(2, 6), "chosen": " " + words(2, 5), "rejected": " " + words(6, 9)} for _ in range(60)]
    for name, rows in (("text", texts), ("chat", chats), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path

"""A model that trains in a blink, and preferences for polite answers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from trueline.records import Comparison
from trueline.rows import read_rows

NOUNS = ("cat", "dog", "tree", "house", "river", "stone", "cloud", "star", "book", "door")
VERBS = ("see", "find", "hold", "want", "draw", "hide")
ROWS = [{"prompt": f"Do you {verb} the {noun}?", "chosen": f"yes {noun}", "rejected": f"no {verb}"} for verb in VERBS for noun in NOUNS]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 1 layer, 16 wide, with its tokenizer."""
    from trueline.models.config import DecoderConfig
    from trueline.models.files import new_model, save_model
    from trueline.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer([json.dumps(row) for row in ROWS] * 5, vocab_size=320)
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    save_model(new_model(DecoderConfig.from_hf(shape), seed=0), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = random.Random(0).sample(ROWS, len(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs(pairs_file: Path) -> list[Comparison]:
    return [record for record in read_rows(pairs_file, Comparison) if isinstance(record, Comparison)]

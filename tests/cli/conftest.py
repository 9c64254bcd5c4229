"""A model small enough to train in a test, and a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trueline.cli import main

PAIRS = [
    {"prompt": "What is 2 + 2?", "chosen": "It is 4.", "rejected": "Five, I think."},
    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Tuesday."},
    {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."},
    {"prompt": "Count.", "chosen": "One, two, three.", "rejected": "Seven."},
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 2 layers, 32 wide, with its tokenizer."""
    from trueline.models.config import DecoderConfig
    from trueline.models.files import new_model, save_model
    from trueline.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_tokenizer([json.dumps(pair) for pair in PAIRS] * 20, vocab_size=320)
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }  # fmt: skip
    save_model(new_model(DecoderConfig.from_hf(shape), seed=0), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file of preferences, one of them useless."""
    path = tmp_path / "pairs.jsonl"
    rows = [*PAIRS, {"prompt": "Same?", "chosen": "yes", "rejected": "yes"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Trueline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trueline(capsys: pytest.CaptureFixture[str]) -> Trueline:
    """Run a command in this process: its exit code, what it printed, what it complained."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run

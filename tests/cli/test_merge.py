"""Adapters through the command line: trained, used like any model, merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Trueline = Callable[..., tuple[int, str, str]]


def test_train_use_and_merge_an_adapter(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    out, plain = tmp_path / "adapter", tmp_path / "plain"
    words = ("sft", "--model", tiny, "--data", pairs, "--out", out, "--max_steps", 2, "--learning_rate", "1e-2")
    code, _, said = trueline(*words, "--lora_r", 4, "--lora_alpha", 16, "--lora_target_modules", "q_proj", "mlp.up_proj")
    assert code == 0 and "LoRA: a new adapter of rank 4, on 4 linear layers" in said
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()
    code, _, said = trueline("run", out)
    assert code == 0, said

    answers = []
    for model in (out, plain):
        if model is plain:
            code, printed, said = trueline("merge", "--model", out, "--out", plain)
            assert code == 0, said
            assert f"base: {tiny}" in printed and "logits on 64 probes: at most" in printed
        code, printed, said = trueline("generate", "Say hello.", "--model", model, "--max_new_tokens", 4, "--temperature", 0)
        assert code == 0, said
        answers.append(printed)
    assert answers[0] == answers[1]
    code, _, said = trueline("eval", "--model", out, "--data", pairs)
    assert code == 0, said
    for given, says in ((plain, "is no adapter: it has no adapter_config.json"), (out, "holds a model already")):
        code, _, said = trueline("merge", "--model", given, "--out", plain)
        assert code == 2 and says in said


@pytest.mark.parametrize("bf16", [False, True])
def test_merge_a_reward_model(bf16: bool, trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    code, _, said = trueline(
        "reward", "--model", tiny, "--data", pairs, "--out", out, "--max_steps", 2, "--learning_rate", "1e-2", "--lora_r", 2
    )
    assert code == 0, said
    code, printed, said = trueline("merge", "--model", out, "--out", tmp_path / "plain", *(["--bf16"] if bf16 else []))
    assert code == 0 and "scores on 64 probes" in printed
    rounding = float(printed.split("rounding by at most ")[1].split()[0])
    assert (rounding > 1e-5) == bf16
    code, printed, said = trueline("eval", "--model", tmp_path / "plain", "--data", pairs)
    assert code == 0 and "accuracy" in printed

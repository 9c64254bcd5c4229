"""Training an adapter: only it is trained and kept, runs go on bit for bit, and DPO's reference is the base itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trueline.models.adapters import adapters_of, attach, outputs, without_adapters
from trueline.models.files import load_model, load_scalar_model
from trueline.models.lora import LoRAConfig
from trueline.models.scorer import PolicyScorer
from trueline.objectives import discover
from trueline.objectives.dpo import DPO
from trueline.objectives.sft import SFT
from trueline.protocols import Crew
from trueline.run import read_json, read_lines
from trueline.tokens import load_tokenizer
from trueline.train import plan, train

OPTIONS: dict[str, Any] = {
    "max_steps": 10, "save_steps": 3, "logging_steps": 2, "eval_steps": 4, "eval_share": 0.2, "learning_rate": 1e-2,
    "per_device_train_batch_size": 4, "max_length": 64, "lora_r": 4, "lora_dropout": 0.1,
}  # fmt: skip
FAST = {"max_steps": 3, "save_steps": 0, "learning_rate": 1e-2, "logging_steps": 1}


class Killed(Exception):
    """What a test stops a run with."""


def stop_at(step: int) -> Any:
    def sink(now: int, metrics: Mapping[str, float]) -> None:
        if now >= step:
            raise Killed

    return sink


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics, the clock left out."""
    clock = ("time", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in read_lines(folder / "metrics.jsonl")]


def outcome(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """The adapter, the optimizer's state and the metrics."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return (folder / "adapter_model.safetensors").read_bytes(), (newest / "optimizer.safetensors").read_bytes(), metrics_of(folder)


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(verb: str, files: Path) -> None:
    data, base = files / f"{'chat' if verb == 'sft' else 'pairs'}.jsonl", files / "model"
    before = (base / "model.safetensors").read_bytes()
    whole = train(discover()[verb](), base, data, out=files / "whole", **OPTIONS)
    for step in (4, 8):  # after the checkpoint of step 3, then after that of step 6
        with pytest.raises(Killed):
            train(discover()[verb](), base, data, out=files / "stopped", sinks=[stop_at(step)], **OPTIONS)
    stopped = train(discover()[verb](), base, data, out=files / "stopped", **OPTIONS)
    assert any("goes on from checkpoint-6" in row["event"] for row in read_lines(stopped / "events.jsonl"))
    assert outcome(stopped) == outcome(whole)
    assert (base / "model.safetensors").read_bytes() == before

    checkpoint = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert not list(whole.rglob("model.safetensors"))  # the base is nowhere
    trained = {key.split("/", 1)[1] for key in load_file(checkpoint / "optimizer.safetensors")}
    assert all(".lora_" in name or name.startswith("score.copies.") for name in trained)
    assert len(trained) == 2 * 14 + (verb == "reward")
    assert load_tokenizer(whole).fingerprint == load_tokenizer(base).fingerprint
    config = read_json(whole / "adapter_config.json")
    assert config["task_type"] == ("SEQ_CLS" if verb == "reward" else "CAUSAL_LM") and config["r"] == 4
    (load_scalar_model if verb == "reward" else load_model)(whole)
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card and "the weights of its base have the sha256" in card


def test_the_reference_is_the_base_without_the_adapter(files: Path) -> None:
    sft = train(SFT(), files / "model", files / "chat.jsonl", out=files / "sft", lora_r=4, **FAST)
    base = load_model(files / "model")
    by_itself = Crew(reference=PolicyScorer(base))
    metrics = []
    for name, crew in (("dpo", None), ("given", by_itself)):
        out = train(DPO(), sft, files / "pairs.jsonl", out=files / name, crew=crew, reference_cache=str(files / f"cache-{name}"), **FAST)
        metrics.append(metrics_of(out))
    assert metrics[0] == metrics[1]  # to the last bit: the base in place is the base
    assert abs(metrics[0][0]["rewards/margins"]) > 1e-4  # the policy starts at the adapter, away from the reference
    said = [row["event"] for row in read_lines(files / "dpo" / "events.jsonl")]
    assert any("the reference is the base without the adapter" in event for event in said)
    assert any(event.startswith(f"LoRA: the adapter of {sft}, further, on 14") for event in said)

    fresh = train(DPO(), files / "model", files / "pairs.jsonl", out=files / "fresh", lora_r=4, **FAST)
    assert abs(read_lines(fresh / "metrics.jsonl")[0]["rewards/margins"]) < 1e-6


def test_no_second_model_is_made_for_the_reference(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trueline.train.reference as reference

    scored = []

    class Watched(PolicyScorer):
        def __init__(self, model: Any, **options: Any) -> None:
            super().__init__(model, **options)
            scored.append((model, adapters_of(model), sum(p.numel() for p in model.parameters())))

    monkeypatch.setattr(reference, "PolicyScorer", Watched)
    policy = load_model(files / "model")
    whole = sum(p.numel() for p in policy.parameters())
    train(DPO(), policy, files / "pairs.jsonl", out=files / "dpo", lora_r=4, tokenizer=load_tokenizer(files / "model"), **FAST)
    assert [(model is policy, on, size) for model, on, size in scored] == [(True, {}, whole)]
    assert adapters_of(policy).keys() == {"default"}


def test_a_model_in_memory_is_trained_in_place(files: Path) -> None:
    model, tokenizer = load_model(files / "model"), load_tokenizer(files / "model")
    attach(model, LoRAConfig(r=2, target_modules=("q_proj", "v_proj"), rank_pattern={"v_proj": 3}), "mine")
    out = train(SFT(), model, files / "chat.jsonl", out=files / "sft", tokenizer=tokenizer, **FAST)
    again = load_model(out)
    assert torch.equal(outputs(again), outputs(model))
    with without_adapters(model):
        assert torch.equal(outputs(model), outputs(load_model(files / "model")))
        assert not torch.equal(outputs(model), outputs(again))
    assert read_json(out / "adapter_config.json")["rank_pattern"] == {"v_proj": 3}
    train(SFT(), model, files / "chat.jsonl", out=files / "more", tokenizer=tokenizer, **FAST)


def test_a_reward_model_from_an_adapter(files: Path) -> None:
    sft = train(SFT(), files / "model", files / "chat.jsonl", out=files / "sft", lora_r=4, **FAST)
    out = train(discover()["reward"](), sft, files / "pairs.jsonl", out=files / "reward", **FAST)
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == str(files / "model")
    assert read_json(out / "adapter_config.json")["modules_to_save"] == ["score"]
    load_scalar_model(out)


def test_mistakes_are_answered_before_any_work(files: Path) -> None:
    model, chats = files / "model", files / "chat.jsonl"
    for options, says in (
        ({"lora_alpha": 8.0}, "lora_alpha is 8.0, and lora_r is 0: give lora_r"),
        ({"lora_r": -1}, "lora_r is -1"),
        ({"lora_r": 4, "lora_target_modules": ("q_prj",)}, "names q_prj, and the model has no such linear layer"),
        ({"lora_r": 4, "lora_dropout": 2.0}, "lora_dropout is 2.0"),
    ):
        with pytest.raises(ValueError, match=says):
            train(SFT(), model, chats, out=files / "x", **FAST, **options)
    sft = train(SFT(), model, chats, out=files / "sft", lora_r=4, lora_target_modules=("q_proj",), **FAST)
    with pytest.raises(ValueError, match="has the adapter default already: leave out lora_r"):
        train(SFT(), sft, chats, out=files / "x", lora_r=4, **FAST)
    with pytest.raises(ValueError, match="lora_r = 4"):
        train(SFT(), model, chats, out=files / "sft", lora_r=8, lora_target_modules=("q_proj",), **FAST)
    (files / "sft" / "run.json").unlink()
    with pytest.raises(ValueError, match="holds a model that no run of ours wrote"):
        train(SFT(), model, chats, out=files / "sft", lora_r=4, **FAST)
    assert not (files / "x").exists()
    planned = plan(SFT(), sft, chats)
    assert planned.settings["lora_r"] == 0 and planned.numbers["rows"] == 60

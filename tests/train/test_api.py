"""`train` and `plan` from files: what is read, cut, left out and written."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trueline.models.decoder import Decoder
from trueline.models.files import load_model, load_scalar_model
from trueline.objectives.dpo import DPO
from trueline.objectives.next_token import NextToken
from trueline.objectives.reward import Reward
from trueline.objectives.sft import SFT
from trueline.records import Comparison, Message, Ranking, Row
from trueline.rows import read_rows
from trueline.run import read_json, read_lines
from trueline.tokens import load_tokenizer
from trueline.train import TrainConfig, plan, train

FAST = {"max_steps": 3, "save_steps": 0, "learning_rate": 1e-3, "logging_steps": 1}


def test_sft_from_a_file(files: Path) -> None:
    with open(files / "chat.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}) + "\n")
        file.write(
            json.dumps(
                {"messages": [{"role": "user", "content": "the cat " * 60}, {"role": "assistant", "content": "ran"}]}
            )
            + "\n"
        )
    out = train(SFT(), files / "model", files / "chat.jsonl", out=files / "sft", eval_share=0.2, max_length=48, **FAST)
    rejects = read_lines(out / "rejects.jsonl")
    assert [row["line"] for row in rejects] == [61, 62] and all(row["reason"] for row in rejects)
    events = [row["event"] for row in read_lines(out / "events.jsonl")]
    assert any(event.startswith("60 rows from ") for event in events)
    assert any(event.startswith("2 rows were left out, kept in rejects.jsonl") for event in events)
    dry = plan(SFT(), files / "model", files / "chat.jsonl", max_length=48, **FAST).notes
    assert any(note.startswith("2 rows were left out: ") for note in dry), "a dry run keeps nothing, and does not say so"
    assert any("3 steps of 8 rows (8 x 1" in event for event in events)
    load_model(out)
    assert load_tokenizer(out).fingerprint == load_tokenizer(files / "model").fingerprint
    card = (out / "README.md").read_text()
    about = read_json(out / "run.json")["config"]
    for wanted in (
        "license: unknown",
        "- sft",
        "eval_loss",
        "Seed 0",
        "arxiv.org/abs/2203.02155",
        about["data"][0]["fingerprint"][:16],
    ):
        assert wanted in card
    assert "mean_token_accuracy" in read_lines(out / "metrics.jsonl")[0]


def test_reward_then_dpo_from_a_file(files: Path) -> None:
    out = train(Reward(), files / "model", files / "pairs.jsonl", out=files / "reward", eval_share=0.2, **FAST)
    load_scalar_model(out)
    assert "ForSequenceClassification" in read_json(out / "config.json")["architectures"][0]
    assert {"accuracy", "margin", "mean_reward"} <= set(read_lines(out / "metrics.jsonl")[0])
    out = train(DPO(), files / "model", files / "pairs.jsonl", out=files / "dpo", eval_share=0.2, **FAST)
    first = read_lines(out / "metrics.jsonl")[0]
    rewards = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    assert rewards | {"logps/chosen", "logps/rejected"} <= set(first)
    assert "eval_rewards/accuracies" in read_lines(out / "metrics.jsonl")[-1]


def test_documents_that_are_no_text_are_rejected_one_by_one(files: Path) -> None:
    with open(files / "text.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "half of a pair \\ud800"}\n')
    out = train(NextToken(), files / "model", files / "text.jsonl", out=files / "base", max_length=16, **FAST)
    (reject,) = read_lines(out / "rejects.jsonl")
    assert reject["line"] == 61 and "surrogate" in reject["reason"]
    assert any("1 rows were left out" in row["event"] for row in read_lines(out / "events.jsonl"))


def test_rows_read_once_and_trained_on_twice_keep_their_rejects_in_each_run(files: Path) -> None:
    with open(files / "chat.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}) + "\n")
    rows = read_rows(files / "chat.jsonl")
    for name in ("first", "second"):
        out = train(SFT(), files / "model", rows, out=files / name, max_length=48, **FAST)
        assert [row["line"] for row in read_lines(out / "rejects.jsonl")] == [61]
    assert not list(files.glob(".*.rejects.jsonl"))


def test_rejects_of_a_killed_run_are_not_kept(files: Path) -> None:
    """What SIGKILL left beside the folder is not added to."""
    (files / ".sft.rejects.jsonl").write_text('{"reason": "of a run that was killed"}\n')
    with open(files / "chat.jsonl", "a", encoding="utf-8") as file:
        turns = [{"role": "user", "content": "the cat " * 60}, {"role": "assistant", "content": "ran"}]
        file.write(json.dumps({"messages": turns}) + "\n")
    out = train(SFT(), files / "model", list(read_rows(files / "chat.jsonl")), out=files / "sft", max_length=48, **FAST)
    assert [row["line"] for row in read_lines(out / "rejects.jsonl")] == [61]


class Hub:
    """A hub with one model, `lab/base`: folders of what was asked for, and a list of it."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.fetched = source, cache, list[str]()

    def __call__(self, name: str, *, allow_patterns: list[str]) -> str:
        assert name == "lab/base"
        self.cache.mkdir(exist_ok=True)
        for path in self.source.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                self.fetched.append(path.name)
                shutil.copy(path, self.cache / path.name)
        return str(self.cache)


def test_a_dry_run_fetches_no_weights_and_names_them(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hub id, and of the hub id that a local adapter names as its base."""
    hub = Hub(files / "model", files / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    adapter = train(SFT(), files / "model", files / "chat.jsonl", out=files / "adapter", lora_r=2, **FAST)
    about = read_json(adapter / "adapter_config.json")
    (adapter / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": "lab/base"}))
    for model in ("lab/base", adapter):
        said = plan(SFT(), model, files / "chat.jsonl", **FAST).notes
        assert [note for note in said if "hub" in note] == [
            "the weights of lab/base are on the hub: training fetches them, unless that was done before"
        ]
    assert {"config.json", "tokenizer.json"} <= set(hub.fetched) and "model.safetensors" not in hub.fetched
    assert not any("hub" in note for note in plan(SFT(), files / "model", files / "chat.jsonl", **FAST).notes)
    load_model(adapter)
    assert "model.safetensors" in hub.fetched


def test_records_in_memory(files: Path) -> None:
    def say(role: str, text: str) -> tuple[Message, ...]:
        return (Message(role=role, content=text),)

    answers = (say("assistant", "sat"), say("assistant", "ran"))
    records = [
        Comparison(prompt=say("user", f"cat {n}"), responses=answers, judgement=Ranking((2, 1))) for n in range(8)
    ]
    train(DPO(), files / "model", records, out=files / "dpo", **FAST)
    with pytest.raises(ValueError, match="sft trains on Conversation records, and 8 of 8 are Comparison"):
        train(SFT(), files / "model", records, out=files / "sft", **FAST)


def test_plan_writes_nothing_and_says_what_would_happen(files: Path) -> None:
    before = sorted(files.rglob("*"))
    planned = plan(SFT(), files / "model", files / "chat.jsonl", eval_share=0.2, max_length=24, per_device_train_batch_size=2,
                   gradient_accumulation_steps=3, num_train_epochs=2.0)  # fmt: skip
    assert sorted(files.rglob("*")) == before
    numbers = planned.numbers
    assert numbers["rows"] + numbers["eval_rows"] <= 60 and numbers["rows_per_step"] == 6
    assert numbers["steps"] == -(-2 * numbers["rows"] // 6)
    assert any("were cut to max_length 24" in note for note in planned.notes)
    scored = "".join(text for text, trained in planned.samples[0][0] if trained)
    assert "<|im_start|>" not in scored and scored in str(planned)
    assert planned.settings["learning_rate"] == SFT.defaults["learning_rate"]
    assert plan(SFT(), files / "model", files / "chat.jsonl", config=TrainConfig()).settings["warmup_ratio"] == 0


def test_mistakes_are_answered_in_one_sentence(
    files: Path, decoder: Callable[..., Decoder], pair_rows: Callable[..., list[Row]]
) -> None:
    with pytest.raises(ValueError, match="did you mean 'max_steps'"):
        train(SFT(), files / "model", files / "chat.jsonl", out=files / "x", max_step=3)
    with pytest.raises(ValueError, match="reward trains a ScalarModel, not a Decoder"):
        train(Reward(), decoder(), pair_rows(4), out=files / "x", **FAST)
    with pytest.raises(ValueError, match=r"row pair-\d has \d+ tokens and max_length is 4"):
        train(DPO(), decoder(), pair_rows(4), out=files / "x", max_length=4, **FAST)
    with pytest.raises(ValueError, match="device is 'tpu', and this machine has cpu"):
        train(DPO(), decoder(), pair_rows(4), out=files / "x", device="tpu", **FAST)
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        train(SFT(), decoder(), files / "chat.jsonl", out=files / "x", **FAST)
    with pytest.raises(ValueError, match="holds a model that no run of ours wrote"):
        train(SFT(), files / "model", files / "chat.jsonl", out=files / "model", **FAST)
    with pytest.raises(ValueError, match="eval_steps is 5, and there is nothing to evaluate on: give eval_data"):
        train(DPO(), decoder(), pair_rows(4), out=files / "x", eval_steps=5, **FAST)
    with pytest.raises(ValueError, match=r"early_stopping_patience is 2, .*: give eval_steps"):
        train(
            DPO(), decoder(), pair_rows(4), out=files / "x", eval_rows=pair_rows(2), early_stopping_patience=2, **FAST
        )
    foreign, small = decoder(vocab_size=40), decoder()
    small.config = dataclasses.replace(small.config, max_position_embeddings=8)
    for model, says in (
        (foreign, "hold token id 6., and the model's vocabulary ends at 39"),
        (small, "give max_length = 8"),
    ):
        with pytest.raises(ValueError, match=says):
            train(DPO(), model, pair_rows(20), out=files / "x", **FAST)
        with pytest.raises(ValueError, match=says):
            plan(DPO(), model, pair_rows(20))
    assert not (files / "x").exists()

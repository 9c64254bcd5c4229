"""The same command after kill -9 ends where the uninterrupted run ends, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trueline.objectives import discover
from trueline.run import read_lines
from trueline.train import train

WORKER = """
import os, signal, sys
from trueline.objectives import discover
from trueline.train import train

verb, model, data, out, kill, fields, options = sys.argv[1:]

def killer(step, metrics):
    if step >= int(kill) > 0:
        os.kill(os.getpid(), signal.SIGKILL)

if int(kill) < 0:  # die in the middle of writing the third checkpoint
    import trueline.train.checkpoint as checkpoint
    whole, count = checkpoint.save_tensors, []
    def part(tensors, path):
        count.append(path)
        whole(tensors, path)
        if len(count) == 5:
            with open(path, "r+b") as file:
                file.truncate(100)
            os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save_tensors = part
train(discover()[verb](**eval(fields)), model, data, out=out, sinks=[killer], **eval(options))
"""
OPTIONS: dict[str, Any] = {
    "max_steps": 30, "save_steps": 4, "logging_steps": 3, "eval_steps": 8, "eval_share": 0.2, "learning_rate": 1e-3,
    "per_device_train_batch_size": 4, "max_length": 64,
}  # fmt: skip

FIELDS: dict[str, dict[str, Any]] = {"sft": {"neftune_noise_alpha": 5.0}}  # noise: the generators matter


def command(verb: str, files: Path, out: str, kill: int, options: dict[str, Any]) -> list[str]:
    data = {"pretrain": "text", "sft": "chat"}.get(verb, "pairs")
    paths = [str(files / "model"), str(files / f"{data}.jsonl"), str(files / out)]
    return [sys.executable, "-c", WORKER, verb, *paths, str(kill), repr(FIELDS.get(verb, {})), repr(options)]


def straight(verb: str, files: Path, options: dict[str, Any]) -> Path:
    """The uninterrupted run; also what every resumed run calls."""
    data = {"pretrain": "text", "sft": "chat"}.get(verb, "pairs")
    objective = discover()[verb](**FIELDS.get(verb, {}))
    return train(objective, files / "model", files / f"{data}.jsonl", out=files / "straight", **options)


def outcome(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """Weights, optimizer state and metrics, the clock left out."""
    metrics = read_lines(folder / "metrics.jsonl")
    kept = [
        {name: value for name, value in row.items() if name not in ("time", "tokens_per_second")} for row in metrics
    ]
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return (folder / "model.safetensors").read_bytes(), (newest / "optimizer.safetensors").read_bytes(), kept


@pytest.mark.slow
@pytest.mark.sample
def test_pretraining_after_kill_9(files: Path) -> None:
    expected = outcome(straight("pretrain", files, OPTIONS))
    step = random.choice([9, 15, 18, 21, 27])
    killed = subprocess.run(command("pretrain", files, "killed", step, OPTIONS), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (files / "killed" / "model.safetensors").exists()
    train(discover()["pretrain"](), files / "model", files / "text.jsonl", out=files / "killed", **OPTIONS)
    assert outcome(files / "killed") == expected, f"killed at step {step}"
    events = [row["event"] for row in read_lines(files / "killed" / "events.jsonl")]
    assert any(event.startswith("goes on from checkpoint-") for event in events)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["sft", "reward", pytest.param("dpo", marks=pytest.mark.sample)])
def test_other_methods_after_kill_9(verb: str, files: Path) -> None:
    options = OPTIONS | {"save_steps": 5}
    expected = outcome(straight(verb, files, options))
    for kill in (-1, 9, 21):  # in the middle of a checkpoint, then twice more
        killed = subprocess.run(command(verb, files, "killed", kill, options), capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert subprocess.run(command(verb, files, "killed", 0, options), capture_output=True).returncode == 0
    assert outcome(files / "killed") == expected


@pytest.mark.slow
def test_killed_at_random_times(files: Path) -> None:
    options = OPTIONS | {"max_steps": 400, "save_steps": 7}
    expected = outcome(straight("pretrain", files, options))
    events, kills, code = files / "killed" / "events.jsonl", 0, 1
    while code != 0:
        said = events.stat().st_size if events.exists() else 0
        process = subprocess.Popen(command("pretrain", files, "killed", 0, options), stderr=subprocess.DEVNULL)
        while kills < 5 and process.poll() is None and (not events.exists() or events.stat().st_size == said):
            time.sleep(0.01)  # until it says that it starts
        if kills < 5:
            time.sleep(random.uniform(0.05, 1.0))
            process.kill()
        code = process.wait()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
    assert kills >= 2
    assert outcome(files / "killed") == expected


def test_sigterm_saves_and_ends_cleanly(files: Path) -> None:
    options = OPTIONS | {"max_steps": 4000, "save_steps": 0, "lr_scheduler_type": "constant"}
    process = subprocess.Popen(command("pretrain", files, "stopped", 0, options), stderr=subprocess.PIPE)
    while process.poll() is None and not (files / "stopped" / "metrics.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    (saved,) = (files / "stopped").glob("checkpoint-*")
    events = [row["event"] for row in read_lines(files / "stopped" / "events.jsonl")]
    assert f"stopped by SIGTERM after step {saved.name.split('-')[1]} of 4000; the same command goes on" in events


def test_a_damaged_checkpoint_is_passed_over(files: Path) -> None:
    expected = outcome(straight("pretrain", files, OPTIONS))
    out = files / "damaged"
    train(discover()["pretrain"](), files / "model", files / "text.jsonl", out=out, **OPTIONS)
    newest = out / "checkpoint-30"
    with open(newest / "optimizer.safetensors", "r+b") as file:  # right size, wrong byte
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    (out / "finished.json").unlink()
    (out / "model.safetensors").unlink()
    train(discover()["pretrain"](), files / "model", files / "text.jsonl", out=out, **OPTIONS)
    events = [row["event"] for row in read_lines(out / "events.jsonl")]
    assert any("checkpoint-30 is incomplete or damaged" in event for event in events)
    assert outcome(out) == expected


def test_more_steps_extend_a_constant_schedule_only(files: Path) -> None:
    short = OPTIONS | {"lr_scheduler_type": "constant", "max_steps": 12}
    expected = outcome(straight("pretrain", files, short | {"max_steps": 20}))
    out = files / "extended"

    def go(**options: Any) -> Path:
        return train(discover()["pretrain"](), files / "model", files / "text.jsonl", out=out, **options)

    go(**short)
    before = (out / "model.safetensors").stat().st_mtime_ns
    go(**short)  # finished: nothing happens
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    go(**short | {"max_steps": 20})
    assert outcome(out)[:2] == expected[:2]
    with pytest.raises(ValueError, match="learning_rate"):
        go(**short | {"learning_rate": 2e-3})

    cosine = OPTIONS | {"max_steps": 8}
    out = files / "cosine"
    go(**cosine)
    with pytest.raises(ValueError, match="max_steps = 8"):
        go(**cosine | {"max_steps": 9})


def test_a_finished_run_without_a_checkpoint_is_not_begun_anew(files: Path) -> None:
    """More steps asked of it would be steps from 0: refused, nothing lost."""
    options = OPTIONS | {"lr_scheduler_type": "constant", "max_steps": 3, "save_steps": 0, "eval_steps": 0, "eval_share": 0.0}
    out = straight("pretrain", files, options)
    before = (out / "model.safetensors").read_bytes(), (out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds no whole checkpoint, so it cannot go on to step 5"):
        straight("pretrain", files, options | {"max_steps": 5})
    assert before == ((out / "model.safetensors").read_bytes(), (out / "metrics.jsonl").read_bytes())
    straight("pretrain", files, options)  # still finished


def test_no_pickle_in_a_run(files: Path) -> None:
    out = straight("pretrain", files, OPTIONS | {"max_steps": 4})
    allowed = {".json", ".jsonl", ".safetensors", ".jinja", ".md", ".lock"}
    assert {path.suffix for path in out.rglob("*") if path.is_file()} <= allowed
    json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())

"""`trueline plan` through the command line, and runs whose memory does not suffice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from trueline.cli import method

Trueline = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config(tiny: Path, pairs: Path, tmp_path: Path) -> Path:
    """A YAML file with a verb and its options."""
    path = tmp_path / "c.yaml"
    options = {"verb": "sft", "model": str(tiny), "data": [str(pairs)], "max_steps": 2, "per_device_train_batch_size": 2}
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.sample
def test_plan(trueline: Trueline, config: Path) -> None:
    """The parts, their sum, the time, whether it fits; the same with no room for anything."""
    code, said, _ = trueline("plan", config)
    assert code == 0 and "fits into" in said and "min 2 steps, " in said
    sizes = [int(size.replace(",", "")) for size in re.findall(r"^ +([\d,]+) MB  ", said, re.M)]
    assert len(sizes) == 6 and abs(sum(sizes[:-1]) - sizes[-1]) <= 2 and sizes[-1] > 100
    assert sorted(path.name for path in config.parent.iterdir()) == ["c.yaml", "pairs.jsonl"]
    code, said, _ = trueline("plan", config, "--memory_gb", "0.01")
    assert code == 0 and "does not fit into 0.0 GB" in said and "take a smaller model" in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: base\n", "c.yaml does not name a training verb: begin it with `verb: sft`, or another of pretrain, sft"),
        ("verb: generate\n", "c.yaml says verb: generate: begin it with `verb: sft`, or another of"),
        ("- 1\n", "c.yaml does not name a training verb"),
        ("a: [\n", "c.yaml is not YAML: "),
        ("verb: sft\nlearning_rat: 1\n", "c.yaml:2 has the unknown key 'learning_rat'; did you mean learning_rate?"),
        ("verb: sft\nmodel: base\n", "trueline sft needs --data FILE_OR_HUB_ID ..."),
    ],
)
def test_configs_that_cannot_be_planned(text: str, sentence: str, trueline: Trueline, config: Path) -> None:
    config.write_text(text, encoding="utf-8")
    code, _, said = trueline("plan", config)
    assert code == 2 and sentence in said and said.startswith("error: ") and said.count("\n") == 1


def test_places_that_cannot_be_planned(trueline: Trueline, config: Path, tmp_path: Path) -> None:
    assert trueline("plan", tmp_path)[2] == f"error: {tmp_path} is not a run of a training verb: it has no command.yaml\n"
    assert "none.yaml: No such file" in trueline("plan", "none.yaml")[2]
    assert trueline("plan")[0] == 2
    assert "--memory_gb is -1.0: write how much there is" in trueline("plan", config, "--memory_gb", -1)[2]


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."), torch.OutOfMemoryError("CUDA out of memory.")],
)
def test_full_memory_is_a_sentence_with_advice(
    error: Exception, trueline: Trueline, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever says so, wherever the training is: what the run takes and what to change, exit code 2."""

    def full(*words: object, **more: object) -> None:
        (tmp_path / "out" / "checkpoint-7").mkdir()
        raise error

    monkeypatch.setattr(method, "train", full)
    monkeypatch.setattr("trueline.train.forecast.UNSEEN", 0)
    code, _, said = trueline("sft", "--config", config, "--out", tmp_path / "out")
    assert code == 2 and re.match(r"error: out of memory: this run takes [\d,]+ MB, and [\d,]+ MB were had: ", said), said
    assert "checkpoint-7 is kept, and the same command goes on from it" in said and said.count("\n") == 1


LIMITED = """
import mmap, resource, sys
import trueline.cli.method
import trueline.objectives.sft
for size in range(64 << 20, 1 << 40, 16 << 20):  # from what the process has mapped now on, 48 MB more
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    try:
        mmap.mmap(-1, 48 << 20).close()
        break
    except (OSError, MemoryError):
        pass
sys.exit(trueline.cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_a_process_that_gets_no_more(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    """A step that needs more than the system gives: one sentence, the checkpoint whole, and with the change the run goes on."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "Count.", "completion": " One, two, three."}\n' * 4000, encoding="utf-8")
    words = ["sft", "--model", str(tiny), "--data", str(data), "--out", str(tmp_path / "out"), "--lr_scheduler_type", "constant"]
    words += ["--max_tokens_per_batch", "60000", "--save_steps", "1"]
    assert trueline(*words, "--per_device_train_batch_size", 2000, "--max_steps", 1, "--max_tokens_per_batch", 2000)[0] == 0
    words += ["--per_device_train_batch_size", "2000", "--max_steps", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, env=environment)
        if done.returncode >= 0:  # native code that is refused a small block may die where nothing can catch it
            break
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: out of memory: ") and "Traceback" not in done.stderr
    assert "checkpoint-1 is kept, and the same command goes on from it" in last
    code, _, said = trueline(*words, "--max_tokens_per_batch", 2000)
    assert code == 0 and "goes on from checkpoint-1" in said

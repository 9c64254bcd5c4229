"""docs/extending/new_pair_loss.md, followed to the letter: its file, its test, its command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trueline
from trueline.models.config import DecoderConfig
from trueline.models.files import new_model, save_model
from trueline.tokens import train_tokenizer

PACKAGE = Path(trueline.__file__).parent
PAGE = PACKAGE.parent / "docs" / "extending" / "new_pair_loss.md"
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No."} for n in range(6)]


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A copy of the package to which the page's files were added."""
    shutil.copytree(PACKAGE, tmp_path / "trueline", ignore=shutil.ignore_patterns("__pycache__", "base"))
    files = re.findall(r'```python title="([\w/.]+)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.S)
    assert [name for name, _ in files] == ["trueline/objectives/gpo.py", "tests/objectives/test_gpo.py"]
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.sample
def test_the_tutorials_file_is_a_method(newcomer: Path) -> None:
    tests = run(newcomer, "pytest", "-q", "-p", "no:cacheprovider", "tests/objectives/test_gpo.py")
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "3 passed" in tests.stdout
    assert "generalised preference optimisation" in run(newcomer, "trueline", "--help").stdout.lower()

    data = newcomer / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    tokenizer = train_tokenizer([json.dumps(row) for row in PAIRS] * 20, vocab_size=300)
    config = DecoderConfig(
        model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    save_model(new_model(config), newcomer / "model")
    tokenizer.save(newcomer / "model")
    command = ("trueline", "gpo", "--model", "model", "--data", "pairs.jsonl", "--out", "out")
    trained = run(newcomer, *command, "--objective.beta", "0.5", "--max_steps", "2", "--logging_steps", "1")
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in (newcomer / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["loss"] == pytest.approx(1.0), "every margin starts at 0"
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen"} <= lines[0].keys()
    refused = run(newcomer, *command, "--objective.beta", "-1")
    assert refused.returncode == 2 and "beta is -1.0: it must be above 0" in refused.stderr

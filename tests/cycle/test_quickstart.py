"""The whole loop at its smallest, from the command line: it ends in a report, and a kill in the middle changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "trueline", "quickstart", "--minutes", "0.5", "--out", str(out)]


def kill_when(out: Path, pattern: str, count: int = 1) -> None:
    """Run, and SIGKILL it once so many files of the pattern are there."""
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while len(list(out.glob(pattern))) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()


def test_killed_quickstart_ends_where_the_uninterrupted_one_does(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, text=True)
    results = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    assert set(results["models"]) == {"human", "sft", "best-of-n", "dpo", "rso", "ppo", "online-dpo"}
    assert {arm["name"]: arm["updates"] for arm in results["study"]["arms"]}["RSO"] == 2
    assert results["models"]["human"]["grounding"] > 0.5 > results["models"]["human"]["grounding_other"]
    assert "Side by side" in (whole / "report.html").read_text(encoding="utf-8")

    killed.mkdir()  # the plan holds what the probe measured: the same plan is the same work
    shutil.copy(whole / "plan.json", killed)
    shutil.copytree(whole / "harvest", killed / "harvest")
    kill_when(killed, "sft/run.json")
    kill_when(killed, "study/cells/policy-*/run/metrics.jsonl", 2)  # the second method is being trained
    assert not (killed / "report.html").exists()
    subprocess.run(command(killed), check=True, capture_output=True, text=True)
    models = [f"{name}/model.safetensors" for name in ("sft", "reward", "dpo", "rso", "ppo", "online-dpo")]
    for name in (*models, "preferences/train.jsonl", "preferences/report.jsonl", "study/results.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"
    again = json.loads((killed / "results.json").read_text(encoding="utf-8"))
    assert again["models"] == results["models"]


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text(
        json.dumps(
            dict(
                minutes=13.0, seed=0, from_scratch=False, base_steps=0, sft_steps=9, preference_prompts=9, reward_steps=9, method_updates=9,
                test_prompts=9, training_tokens_per_second=1.0, responses_per_second=1.0,
            )
        )
    )  # fmt: skip
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2 and "minutes" in done.stderr and "Traceback" not in done.stderr

"""The reward model that judges a study starts from a random head of its own: models that start from one head err alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trueline.records import Comparison
from trueline.study.arms import read_arms
from trueline.study.job import run_study
from trueline.study.settings import OWN_SEED, Budget, Settings


@pytest.mark.slow
def test_who_judges_and_who_drives_have_different_seeds(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    settings = Settings(
        seeds=(0,), learning_rates=(1e-3,), checkpoints=1, report_prompts=4, tuning_prompts=2, samples=1, max_new_tokens=4,
        per_device_train_batch_size=8,
    )  # fmt: skip
    arms = read_arms(("best_of_n:n=2",), settings.learning_rates)
    run_study(tiny, pairs, arms, out=tmp_path / "study", settings=settings, budget=Budget(updates=1))
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "study/cells").glob("reward-*/run/run.json")]
    assert sorted(run["config"]["config"]["seed"] for run in runs) == [0, OWN_SEED]

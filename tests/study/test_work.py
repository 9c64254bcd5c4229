"""Work of a study: which steps of several seeds are one policy, and that a kill breaks no folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trueline.records import Comparison, Ranking
from trueline.study import rewards, work
from trueline.study.arms import read_arms
from trueline.study.budget import Share
from trueline.study.cells import Cell, Cells
from trueline.study.settings import Settings
from trueline.study.training import Bench, Material, trained
from trueline.study.work import Runs, Tuned, at_marks, forget, run_arm
from trueline.tokens import load_tokenizer


def runs_that_keep(steps: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> Runs:
    """An arm of which every seed kept these steps."""
    settings = Settings(seeds=tuple(steps), checkpoints=4)
    job: Any = type("Job", (), {"settings": settings})()
    cell: Any = lambda seed: Cell(Path("nowhere"), str(seed))  # noqa: E731
    monkeypatch.setattr(work, "train_setting", lambda job, arm, setting, rate, share, seed, tell: cell(seed))
    monkeypatch.setattr(work, "steps_of", lambda cell: steps[int(cell.key)])
    found: Any = lambda job, cell, step, seed, part: {"": {"seed": seed, "step": step}, "drawn": {"step": step}}  # noqa: E731
    monkeypatch.setattr(work, "measure_policy", found)
    monkeypatch.setattr(work, "forget_checkpoints", lambda cell: None)
    (arm,) = read_arms(["ppo"], (1e-3,))
    return run_arm(job, arm, Share(updates=8, how=""), Tuned(learning_rate=1e-3, trials=[]), lambda name, step: None)


def test_seeds_that_keep_different_steps_are_grouped_by_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks 2, 4, 6 and 8. Rounds of the second seed end early."""
    runs = runs_that_keep({0: [4, 8], 1: [3, 5, 6, 8]}, monkeypatch)
    kept = [(one.step, one.last, [by["step"] for by in one.found]) for one in runs.measured]
    assert kept == [(2, False, [4, 3]), (4, False, [4, 5]), (6, False, [8, 6]), (8, True, [8, 8])]
    assert all([by["seed"] for by in one.found] == [0, 1] for one in runs.measured)
    assert [one["step"] for one in runs.drawn] == [8, 8]


def test_marks() -> None:
    def steps(marks: list[int], *kept: list[int]) -> dict[int, list[Any]]:
        return {name: [one["step"] for one in by] for name, by in at_marks(marks, [{k: {"step": k} for k in one} for one in kept]).items()}

    assert steps([1, 2], [1, 2], [1, 2]) == {1: [1, 1], 2: [2, 2]}
    assert steps([1, 2, 4], [2, 4], [2, 4]) == {2: [2, 2], 4: [4, 4]}, "a round of two steps is one entry"
    assert steps([2, 3, 9], [4, 9], [5, 9]) == {3: [4, 5], 9: [9, 9]}
    assert steps([5, 10], [5, 9], [5, 8]) == {5: [5, 5], 10: [9, 8]}, "runs that ended before the last mark"


def test_a_reward_model_is_checked_by_prompts(tiny: Path, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts of six pairs each are four, and not 24, also where they lie in several rows."""
    rows = [replace(pair, responses=(*pair.responses, *other.responses)[:4]) for pair, other in zip(pairs[:4], pairs[4:8], strict=True)]
    ranked = [replace(row, judgement=Ranking((1, 2, 3, 4))) for row in rows]

    class Scorer:
        def score(self, rows: list[Any]) -> list[np.ndarray]:
            return [np.array([4.0, 3.0, 2.0, 1.0]) for _ in rows]

    monkeypatch.setattr(rewards, "scorer_of", lambda bench, cell: Scorer())
    bench = Bench(start=tiny, start_key="tiny", tokenizer=load_tokenizer(tiny), settings=Settings(), cells=Cells(tmp_path))
    found = rewards.calibration(bench, bench.cells.of("reward", {}), ranked + ranked[:2])
    assert found["pairs"] == 36 and found["accuracy"]["n"] == 4 and found["accuracy"]["low"] < 0.6


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_while_a_cell_is_forgotten(tiny: Path, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it strikes, the same training gives the same policies again."""
    settings = Settings(per_device_train_batch_size=8, checkpoints=2)
    bench = Bench(start=tiny, start_key="tiny", tokenizer=load_tokenizer(tiny), settings=settings, cells=Cells(tmp_path / "cells"))
    objective, material = read_arms(["dpo"], (1e-3,))[0].main.objective, Material(bench, pairs[:16])
    assert objective is not None

    def once() -> Cell:
        return trained(bench, objective, material, learning_rate=1e-3, updates=2, seed=0)

    def die(*arguments: object, **options: object) -> None:
        raise Killed

    def half(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "run.json").unlink()
            raise Killed

    weights = (once().folder / "run" / "model.safetensors").read_bytes()
    for place, patch in ((Path, "unlink"), (Path, "rename"), (shutil, "rmtree")):
        cell = once()
        for path in (cell.folder / "run").glob("checkpoint-*"):
            shutil.rmtree(path)
        with monkeypatch.context() as patched:
            patched.setattr(place, patch, half if patch == "rmtree" else die)
            with suppress(Killed):
                forget(cell)
        again = once()
        if patch == "unlink":
            forget(again)  # nothing was forgotten yet, and the rerun misses the same policy
            again = once()
        assert (again.folder / "run" / "model.safetensors").read_bytes() == weights
        assert (again.folder / "run" / "checkpoint-1" / "config.json").exists(), patch

"""A whole study of a tiny model: stopped and gone on with, it gives the same bytes; budgets and trials are equal; prompts are apart."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trueline.align.group import prompt_key
from trueline.records import Comparison, Messages
from trueline.study import job as job_module
from trueline.study.arms import read_arms
from trueline.study.job import run_study
from trueline.study.settings import Budget, Settings

RESULTS = ("results.json", "answers.jsonl", "frontier.csv", "matrix.csv", "differences.csv", "arms.csv", "plan.json")
METHODS = ("dpo:beta=0.1/1", "best_of_n:n=2")


class Judge:
    """Likes short answers; dies at its n-th call, if that is asked for."""

    name = "short"

    def __init__(self, dies_at: int = 0) -> None:
        self.calls, self.dies_at = 0, dies_at

    def judge(self, prompt: Messages, responses: list[Messages]) -> list[float]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return [-float(len(response[0].content)) for response in responses]


def study(
    tiny: Path, pairs: list[Comparison], out: Path, judge: Judge | None, methods: tuple[str, ...] = METHODS,
    settings: dict[str, int] | None = None, **more: object,
) -> Path:  # fmt: skip
    chosen: dict[str, object] = {
        "seeds": (0, 1), "learning_rates": (1e-3, 1e-2), "checkpoints": 2, "report_prompts": 5, "tuning_prompts": 3, "samples": 1,
        "max_new_tokens": 4, "per_device_train_batch_size": 8,
    }  # fmt: skip
    settled = Settings(**(chosen | (settings or {})))  # type: ignore[arg-type]
    options: dict[str, object] = {"budget": Budget(updates=2)} | more
    return run_study(
        tiny, pairs, read_arms(methods, settled.learning_rates), out=out, settings=settled, judge=judge,
        judge_key="short" if judge else "", **options,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture(scope="module")
def straight(tiny: Path, pairs: list[Comparison], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nobody stopped."""
    return study(tiny, pairs, tmp_path_factory.mktemp("straight"), Judge()).parent


@pytest.mark.slow
@pytest.mark.sample
def test_stopped_study_gives_the_same_bytes(
    straight: Path, tiny: Path, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it trains, while it judges, and when nothing is left but the report."""
    out = tmp_path / "stopped"
    import trueline.train.keeper as keeper

    saves, whole = [], keeper.save_checkpoint
    monkeypatch.setattr(job_module, "write_report", lambda *arguments: None)  # it is drawn once, in `straight`

    def dying_save(*arguments: object) -> object:
        saves.append(1)
        if len(saves) == 5:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "save_checkpoint", dying_save)
        with pytest.raises(KeyboardInterrupt):
            study(tiny, pairs, out, Judge())
    assert not (out / "results.json").exists()
    with pytest.raises(KeyboardInterrupt):
        study(tiny, pairs, out, Judge(dies_at=12))
    assert not (out / "results.json").exists()
    study(tiny, pairs, out, Judge())
    for name in RESULTS:
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name


def test_finished_cells_are_not_computed_again(
    straight: Path, tiny: Path, pairs: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command judges and trains nothing; the report is written anew."""
    import trueline.study.training as training

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", refuse)
    monkeypatch.setattr(job_module, "write_report", lambda *arguments: None)
    before = (straight / "results.json").read_bytes()
    judge = Judge()
    study(tiny, pairs, straight, judge)
    assert judge.calls == 0
    assert (straight / "results.json").read_bytes() == before


def test_equal_updates_and_equal_trials(straight: Path) -> None:
    results = json.loads((straight / "results.json").read_text(encoding="utf-8"))
    trained = [json.loads(path.read_text(encoding="utf-8")) for path in straight.glob("cells/policy-*/trained.json")]
    assert len(trained) == 1 + 2 * 2, "a losing trial, and two settings with two seeds"
    assert {one["updates"] for one in trained} == {2}
    assert {len(arm["trials"]) for arm in results["arms"][1:]} == {2}
    assert {arm["updates"] for arm in results["arms"] if arm["verb"] == "dpo"} == {2}


def test_report_prompts_are_nobody_elses(pairs: list[Comparison]) -> None:
    """Training, judging, tuning and report have no prompt in common, and a prompt keeps its side when others come."""
    for needs_judge in (False, True):
        parts = job_module.split(pairs, needs_judge=needs_judge)
        keys = {side: {prompt_key(pair.prompt) for pair in parts.of(side)} for side in ("train", "judge", "tuning", "report")}
        assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == len(pairs)
        assert bool(keys["judge"]) == needs_judge
        fewer = job_module.split(pairs[:-3], needs_judge=needs_judge)
        assert all({prompt_key(pair.prompt) for pair in fewer.of(side)} <= keys[side] for side in keys)


def test_report_says_what_was_found(straight: Path) -> None:
    results = json.loads((straight / "results.json").read_text(encoding="utf-8"))
    text = (straight / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert "<script" not in text and text.count("<svg") >= 4
    assert [one["label"] for one in results["points"]] == ["start"] + ["dpo:beta=0.1"] * 2 + ["dpo:beta=1"] * 2 + ["best_of_n:n=2"]
    assert {one["step"] for one in results["points"] if one["arm"].startswith("dpo")} == {1, 2}
    matrix = results["matrix"]
    assert matrix[0][1]["estimate"] == pytest.approx(1 - matrix[1][0]["estimate"])
    arms = {arm["verb"]: arm for arm in results["arms"]}
    assert arms["best_of_n"]["cost"]["per_answer"]["draws"] == 2 and arms["best_of_n"]["cost"]["reward_model"] > 0
    for one in results["differences"]:
        if one["a"] == "start":  # the table's gain is the verdict's difference, and so is the plot's and the CSV's
            gain = next(arm["main"]["gain"] for arm in results["arms"] if arm["name"] == one["b"])
            assert (gain["low"], gain["high"]) == pytest.approx((-one["difference"]["high"], -one["difference"]["low"]))
    assert arms["dpo"]["cost"]["reward_model"] == 0 and arms["dpo"]["cost"]["reference"] > 0
    assert all((straight / model / "config.json").exists() for arm in arms.values() for model in arm["models"])
    assert [len(arm["models"]) for arm in results["arms"]] == [0, 2, 0], "a policy per seed at the main setting"
    answers = [json.loads(line) for line in (straight / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == results["answered"]
    for row, sample in zip(answers, results["samples"], strict=False):
        assert row["prompt"] == sample["prompt"] and {name: first for name, (first, *_) in row["answers"].items()} == sample["answers"]
    assert arms["start"]["main"]["kl"]["estimate"] == 0 < arms["dpo"]["main"]["kl"]["estimate"]


@pytest.mark.slow
def test_a_reward_model_that_is_there_is_not_trained_again(straight: Path, tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """It chooses as it did where it was learned, and is charged for what it trained on."""
    model = next(straight.glob("cells/reward-*/run"))
    given = study(tiny, pairs, tmp_path, Judge(), ("best_of_n:n=2",), settings={"seeds": (0,)}, reward=model)  # type: ignore[dict-item]
    arm = json.loads((given.parent / "results.json").read_text(encoding="utf-8"))["arms"][1]
    assert arm["cost"]["reward_model"] == json.loads((model.parent / "trained.json").read_text(encoding="utf-8"))["trained"] > 0
    assert len(list(given.parent.glob("cells/reward-*/run/metrics.jsonl"))) == 1 and not arm["trials"]
    with pytest.raises(ValueError, match="--reward learnt: no such directory"):
        study(tiny, pairs, tmp_path / "other", Judge(), ("best_of_n:n=2",), reward="learnt")


@pytest.mark.slow
def test_other_prompts_train_again(straight: Path, tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    """Policies on the way are cleared away once they are measured; another study that needs them repeats their runs, to the same end."""
    import shutil

    out = tmp_path / "again"
    shutil.copytree(straight, out)
    weights = {path: path.read_bytes() for path in out.glob("cells/policy-*/run/model.safetensors")}
    study(tiny, pairs, out, Judge(), settings={"report_prompts": 7})
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["answered"] == 7 and {one["step"] for one in results["points"]} == {0, 1, 2}
    assert {path: path.read_bytes() for path in weights} == weights


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"tokens": 2000}, {"minutes": 0.2}])
def test_methods_that_draw_and_other_budgets(tiny: Path, pairs: list[Comparison], tmp_path: Path, budget: dict[str, float]) -> None:
    """A held-out reward model judges; an on-policy method is charged for what it draws; budgets become updates once."""
    out = tmp_path / "study"
    methods = ("sft", "kto", "online-dpo")
    study(tiny, pairs, out, None, methods, budget=Budget(**budget))  # type: ignore[arg-type]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    arms = {arm["verb"]: arm for arm in results["arms"]}
    assert results["judge"]["learned"] and len(results["calibration"]) == 3
    assert arms["online-dpo"]["cost"]["sampled"] > 0 == arms["kto"]["cost"]["sampled"]
    assert all(arm["updates"] >= 1 for verb, arm in arms.items() if verb != "start")
    plan = (out / "plan.json").read_bytes()
    study(tiny, pairs, out, None, methods, budget=Budget(**budget))  # type: ignore[arg-type]
    assert (out / "plan.json").read_bytes() == plan


@pytest.mark.slow
def test_killed_again_and_again(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    """SIGKILL, six times, at moments that chance chooses; then the same bytes as the straight run's."""
    rule = tmp_path / "rule.py"
    rule.write_text("def short(prompt, response):\n    return -len(response)\n", encoding="utf-8")

    def command(out: Path) -> list[str]:
        words = f"study --model {tiny} --data {pairs_file} --out {out} --methods dpo sft --updates 6 --seeds 0 1 --judge {rule}:short"
        return [sys.executable, "-m", "trueline", *f"{words} --learning_rates 1e-2 --report_prompts 5 --max_new_tokens 4".split()]

    began = time.monotonic()
    assert subprocess.run(command(tmp_path / "straight"), capture_output=True).returncode == 0
    whole, killed, chance = time.monotonic() - began, 0, random.Random(0)
    for _ in range(6):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(whole * chance.uniform(0.3, 0.7))  # starting up takes a good part of it
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed >= 2
    assert subprocess.run(command(tmp_path / "killed"), capture_output=True).returncode == 0
    for name in RESULTS:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name

"""What a study is given from outside, and what its kept work depends on: another reward, other data, another set of seeds."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trueline.align.judges import RuleJudge
from trueline.records import Comparison
from trueline.run import read_lines
from trueline.study import job as study_job
from trueline.study.arms import read_arms
from trueline.study.budget import Share
from trueline.study.cells import Cells
from trueline.study.contest import Bill
from trueline.study.job import GIVEN_REWARD, prepared, run_study, settle
from trueline.study.rewards import Rewards
from trueline.study.rows import Parts, records_of, split
from trueline.study.settings import OWN_SEED, Budget, Settings
from trueline.study.training import Bench, Material
from trueline.study.work import Job
from trueline.tokens import load_tokenizer

SETTINGS = Settings(seeds=(0, 1), learning_rates=(1e-3,), report_prompts=4, tuning_prompts=2, max_new_tokens=4)


def bench(tiny: Path, root: Path, settings: Settings = SETTINGS) -> Bench:
    return Bench(start=tiny, start_key="start", tokenizer=load_tokenizer(tiny), settings=settings, cells=Cells(root))


def job(tiny: Path, parts: Parts, root: Path, truth: str, method: str = "ppo") -> Job:
    """PPO, driven by the judge."""
    (arm,) = read_arms([method], SETTINGS.learning_rates)
    assert arm.main.objective is not None
    here = bench(tiny, root)
    return Job(
        bench=here, arms=(replace(arm, name="method"),), parts=parts, rewards=None, judge=RuleJudge(lambda prompt, response: 0.0),
        judging=None, truth_key=truth, material={"method": Material(here, records_of(arm.main.objective, parts))},
    )  # fmt: skip


def test_updates_are_kept_for_one_reward_and_one_set_of_rows(
    tiny: Path, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many rows and by the same name, yet another reward, other rows, other options: probed anew; the same: not."""
    probed: list[int] = []

    def share(*words: Any) -> Share:
        probed.append(1)
        return Share(updates=len(probed), how="probed")

    monkeypatch.setattr(study_job, "share_of", share)
    parts, budget = split(pairs, needs_judge=False), Budget(minutes=1)
    other = replace(parts, train=(*parts.train[1:], parts.report[0]))

    def updates(parts: Parts, truth: str, method: str = "ppo") -> int:
        found = job(tiny, parts, tmp_path, truth, method)
        return settle(found, found.arms[0], budget).updates

    assert [updates(parts, "judge 1"), updates(parts, "judge 1")] == [1, 1]
    assert updates(parts, "judge 2") == 2, "another judge drives"
    assert updates(other, "judge 1") == 3, "another prompt"
    assert updates(parts, "judge 1", "ppo:kl_coef=0.5") == 4 and updates(parts, "judge 1") == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_one_more_seed_leaves_the_judge(
    seeds: tuple[int, ...], tiny: Path, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model that judges has a seed that no number of seeds changes."""
    asked = []

    def rewards(here: Bench, pairs: Any, tuning: Any, seeds: Any, run: Any) -> Rewards:
        asked.append(list(seeds))
        return Rewards(cells={seed: here.cells.of("reward", {"seed": seed}) for seed in seeds}, learning_rate=0.0, trials=[])

    class Silent:
        def event(self, text: str) -> None: ...

    monkeypatch.setattr(study_job, "trained_rewards", rewards)
    here = bench(tiny, tmp_path, replace(SETTINGS, seeds=seeds))
    arms, run = read_arms(["sft"], SETTINGS.learning_rates), Silent()
    found = prepared(here, arms, split(pairs, needs_judge=True), None, "", "learned", run, None, Bill())  # type: ignore[arg-type]
    assert asked == [[OWN_SEED]] and found.judging == here.cells.of("reward", {"seed": OWN_SEED})
    with pytest.raises(ValueError, match="is that of the reward model that judges"):
        Settings(seeds=(0, OWN_SEED))


@pytest.mark.parametrize(
    ("methods", "dealt", "warned"), [(("best_of_n:n=2",), False, True), (("best_of_n:n=2",), True, False), (("sft",), False, False)]
)
def test_a_given_reward_may_know_the_report(
    methods: tuple[str, ...], dealt: bool, warned: bool, tiny: Path, pairs: list[Comparison], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Said at once, before anything is computed; not where who calls has dealt the prompts out, nor where nothing is driven by it."""

    def stop(*words: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(study_job, "bench_of", stop)
    given: Any = split(pairs, needs_judge=False) if dealt else pairs
    with pytest.raises(InterruptedError):
        run_study(tiny, given, read_arms(methods, (1e-3,)), out=tmp_path / "study", settings=SETTINGS, reward=tiny,
                  judge=RuleJudge(lambda prompt, response: 0.0), judge_key="nought")  # fmt: skip
    said = [row for row in read_lines(tmp_path / "study" / "events.jsonl") if "warning" in row]
    assert [row["event"] for row in said] == ([GIVEN_REWARD] if warned else [])


@pytest.mark.slow
def test_the_report_says_so_too(tiny: Path, pairs: list[Comparison], tmp_path: Path) -> None:
    from trueline.models.files import load_scalar_model, save_model

    save_model(load_scalar_model(tiny, seed=1, pad_token_id=0), tmp_path / "reward")
    load_tokenizer(tiny).save(tmp_path / "reward")
    arms = read_arms(("best_of_n:n=2",), (1e-3,))
    report = run_study(tiny, pairs, arms, out=tmp_path / "study", settings=replace(SETTINGS, samples=1), reward=tmp_path / "reward",
                       judge=RuleJudge(lambda prompt, response: float(len(response[0].content))), judge_key="length")  # fmt: skip
    assert html.escape(GIVEN_REWARD) in report.read_text(encoding="utf-8")

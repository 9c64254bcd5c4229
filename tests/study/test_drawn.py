"""Prompts and a judge, but no comparisons: the start's own responses are compared, and charged for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueline.align.judges import RuleJudge
from trueline.records import Comparison, Conversation, Ranking
from trueline.study.arms import read_arms
from trueline.study.drawn import drawn_pairs
from trueline.study.job import bench_of, run_study
from trueline.study.settings import Budget, Settings

SHORT = RuleJudge(lambda prompt, response: -float(len(response[0].content)), "short")


@pytest.fixture
def prompts(pairs: list[Comparison]) -> list[Conversation]:
    return [Conversation(messages=pair.prompt) for pair in pairs]


def test_the_judges_best_and_worst(tiny: Path, prompts: list[Conversation], tmp_path: Path) -> None:
    """One pair per different prompt, drawn once; where all are equally good it is a tie."""
    bench = bench_of(tiny, Settings(max_new_tokens=4, num_generations=3), tmp_path)
    pairs, drawn = drawn_pairs(bench, [*prompts[:5], prompts[0]], SHORT, "short")
    assert [pair.prompt for pair in pairs] == [prompt.messages for prompt in prompts[:5]]
    for pair in pairs:
        better, worse = (len(response[0].content) for response in pair.responses)
        assert better <= worse and pair.judgement == (Ranking((1, 2)) if better < worse else Ranking((1, 1)))
    prompt_tokens = len(bench.tokenizer.encode(prompts[0].messages[0].content))
    assert prompt_tokens < drawn.positions < prompt_tokens + 2 + 3 * 5
    never = RuleJudge(lambda prompt, response: float("nan"), "never")
    assert drawn_pairs(bench, prompts[:5], never, "short")[0] == pairs, "judged once"
    ties = drawn_pairs(bench, prompts[:5], RuleJudge(lambda prompt, response: 1.0, "equal"), "equal")[0]
    assert {pair.judgement for pair in ties} == {Ranking((1, 1))}


def test_prompts_need_a_judge(tiny: Path, prompts: list[Conversation], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data has prompts and no comparisons: name a --judge"):
        run_study(tiny, prompts, read_arms(["dpo"], (1e-3,)), out=tmp_path / "study")


@pytest.mark.slow
def test_a_study_of_prompts(tiny: Path, prompts: list[Conversation], tmp_path: Path) -> None:
    """Driven by the judge itself, a method that draws pays for its own responses only; one that learns from pairs pays for theirs."""
    import json

    settings = Settings(seeds=(0,), learning_rates=(1e-2,), checkpoints=1, report_prompts=5, samples=1, max_new_tokens=4)
    arms = read_arms(["dpo", "rloo", "best_of_n:n=2"], settings.learning_rates)
    report = run_study(
        tiny, prompts, arms, out=tmp_path / "study", budget=Budget(updates=2), settings=settings, judge=SHORT, judge_key="short",
        reward="judge",
    )  # fmt: skip
    results = json.loads(report.with_name("results.json").read_text(encoding="utf-8"))
    found = {arm["verb"]: arm["cost"] for arm in results["arms"]}
    assert found["dpo"]["sampled"] > found["dpo"]["scored"] == 0
    assert found["rloo"]["sampled"] == pytest.approx(found["rloo"]["scored"]) and found["rloo"]["reward_model"] == 0

"""One round as training draws it: responses, scores with their penalty, rows with the numbers of the drawing, and what is logged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.protocols import Drawn
from trueline.records import TEXT, Message, Messages, RolloutConfig, Row, Sample, Sampling


@dataclass
class Counting:
    """Response k of a prompt has k + 1 tokens; those of three and more are cut."""

    asked: list[Sampling] = field(default_factory=list)
    agreement: object = "in agreement"

    def sample(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Sample]]:
        self.asked.append(sampling)
        return [[self._one(np.asarray(prompt, np.int32), k + 1, sampling) for k in range(sampling.n)] for prompt in prompts]

    def _one(self, prompt: np.ndarray, size: int, sampling: Sampling) -> Sample:
        return Sample(prompt_ids=prompt, ids=np.arange(size, dtype=np.int32), logps=-np.arange(size, dtype=np.float32) - 1,
                      mask=np.arange(size) != 1, finish_reason="length" if size >= 3 else "stop",
                      temperature=sampling.temperature)  # fmt: skip

    def load(self, weights: Any, version: str) -> None: ...


def length(prompt: Messages, response: Messages) -> float:
    return float(len(response[0].content))


def draw(rollouts: Rollouts, config: RolloutConfig, select: str, **options: Any) -> Drawn:
    prompts = [((Message(role=TEXT, content=text, train=False),), np.array([5, number])) for number, text in enumerate("ab")]
    return rollouts.draw(prompts, rollouts.sampler(None, None), config, decode=lambda ids: "x" * len(ids), select=select,
                         options=options, seed=7)  # fmt: skip


def test_a_round_by_hand() -> None:
    """Lengths 1, 2, 3 are rewards; the third is cut and loses 2.5: rewards 1, 2, 0.5."""
    sampler = Counting()
    rollouts = Rollouts(lambda model, tokenizer: sampler, judge=RuleJudge(length, "length"))
    config = RolloutConfig(num_generations=3, max_completion_length=9, temperature=0.5, missing_eos_penalty=2.5)
    drawn = draw(rollouts, config, "best_vs_worst")
    assert sampler.asked == [Sampling(n=3, max_new_tokens=9, temperature=0.5, seed=7)] and not sampler.asked[0].truncates
    assert [row.ids[0].tolist() for row in drawn.rows] == [[5, 0, 0, 1], [5, 1, 0, 1]]  # the second response is the best
    row = drawn.rows[0]
    assert row.numbers["reward"].tolist() == [2.0, 0.5] and row.numbers["finished"].tolist() == [1.0, 0.0]
    assert row.numbers["temperature"].tolist() == [0.5, 0.5]
    assert [logps.tolist() for logps in row.tokens["logps"]] == [[-1.0], [-1.0, -3.0]]  # a token that was not chosen has none
    assert [flags.sum() for flags in row.scored] == [1, 2]
    means = {name: total / count for name, (total, count) in drawn.metrics.items()}
    assert means == {
        "reward": pytest.approx(3.5 / 3), "reward_std": pytest.approx(np.std([1, 2, 0.5])), "frac_reward_zero_std": 0.0,
        "completions/mean_length": 2.0, "completions/clipped_ratio": pytest.approx(1 / 3),
    }  # fmt: skip
    assert drawn.metrics["reward"][1] == 6 and drawn.metrics["reward_std"][1] == 2
    assert drawn.samples[0] == {"prompt": "a", "response": "x", "reward": 1.0, "finish_reason": "stop"}
    assert drawn.remark == "in agreement" and drawn.seconds.keys() == {"sampling", "scoring"}


def test_equal_rewards_give_no_pair_and_are_counted() -> None:
    rollouts = Rollouts(lambda model, tokenizer: Counting(), judge=RuleJudge(lambda prompt, response: 1.0))
    drawn = draw(rollouts, RolloutConfig(num_generations=2), "best_vs_worst")
    assert drawn.rows == [] and drawn.metrics["frac_reward_zero_std"] == (2.0, 2.0)
    assert len(draw(rollouts, RolloutConfig(num_generations=2), "all_responses").rows) == 4
    tenths = Rollouts(lambda model, tokenizer: Counting(), judge=RuleJudge(lambda prompt, response: 0.1))
    drawn = draw(tenths, RolloutConfig(num_generations=3), "best_vs_worst")  # the mean of three times 0.1 is not 0.1
    assert drawn.metrics["frac_reward_zero_std"] == (2.0, 2.0) and drawn.metrics["reward_std"] == (0.0, 2.0)


def test_options_reach_the_selector() -> None:
    rollouts = Rollouts(lambda model, tokenizer: Counting(), judge=RuleJudge(length))
    config = RolloutConfig(num_generations=3)
    assert len(draw(rollouts, config, "best_vs_worst", margin=1.5).rows) == 2
    assert draw(rollouts, config, "best_vs_worst", margin=2.0).rows == []


def test_a_reward_model_sees_the_drawn_ids() -> None:
    seen: list[Row] = []

    class Sums:
        fingerprint = "sums"

        def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
            seen.extend(rows)
            return [np.array([ids.sum() for ids in row.ids], np.float32) for row in rows]

    rollouts = Rollouts(lambda model, tokenizer: Counting(), reward=Sums())
    drawn = draw(rollouts, RolloutConfig(num_generations=3), "best_of_n")
    assert [row.numbers["reward"].tolist() for row in drawn.rows] == [[8.0], [9.0]]
    assert [ids.tolist() for ids in seen[1].ids] == [[5, 1, 0], [5, 1, 0, 1], [5, 1, 0, 1, 2]]
    assert rollouts.identity == {"reward": "sums"}


def test_prompts_are_judged_side_by_side_in_order() -> None:
    """Both must be under way at once, or the barrier breaks."""
    barrier = threading.Barrier(2)

    def slow(prompt: Messages, response: Messages) -> float:
        barrier.wait(timeout=10)
        return float(ord(prompt[0].content))

    rollouts = Rollouts(lambda model, tokenizer: Counting(), judge=RuleJudge(slow), workers=2)
    rows = draw(rollouts, RolloutConfig(num_generations=1), "all_responses").rows
    assert [row.numbers["reward"].tolist() for row in rows] == [[97.0], [98.0]]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_judge_that_fails_is_named(workers: int) -> None:
    rollouts = Rollouts(lambda model, tokenizer: Counting(), judge=RuleJudge(lambda prompt, response: 1 / 0, "mine"), workers=workers)
    with pytest.raises(ValueError, match=r"judge mine failed .*ZeroDivisionError: division by zero"):
        draw(rollouts, RolloutConfig(), "all_responses")


def test_one_judges() -> None:
    for both in ({}, {"judge": RuleJudge(length), "reward": object()}):
        with pytest.raises(ValueError, match="give judge= or reward=, one of the two"):
            Rollouts(lambda model, tokenizer: Counting(), **both)  # type: ignore[arg-type]

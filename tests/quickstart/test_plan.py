"""Minutes become counts once; a resumed quickstart reads them back, and a different command is refused."""

from __future__ import annotations

import numpy as np
import pytest

from trueline.quickstart import plan as plan_module
from trueline.quickstart.methods import COSTS
from trueline.quickstart.plan import (
    LEAST,
    MOST,
    ROWS_PER_STEP,
    SUMMARY_TOKENS,
    Cost,
    Plan,
    fit,
    load_or_make,
    make_plan,
)
from trueline.records import Row


def plan(**changed) -> Plan:
    fields = dict(
        minutes=13.0, seed=0, from_scratch=False, base_steps=0, sft_steps=100, preference_prompts=500, reward_steps=20, method_updates=30,
        test_prompts=300, training_tokens_per_second=3000.0, responses_per_second=90.0,
    )  # fmt: skip
    return Plan(**(fields | changed))


def test_counts_stay_within_bounds():
    assert fit("sft", 0.2) == LEAST["sft"]
    assert fit("evaluate", 1e9) == MOST["evaluate"]
    assert fit("sft", 123.9) == 123


def test_kept_plan_wins_over_a_new_probe(tmp_path):
    path = tmp_path / "plan.json"
    first = load_or_make(path, 13.0, 0, False, plan())
    assert load_or_make(path, 13.0, 0, False, plan(sft_steps=7)) == first


def test_cost_of_a_method_by_hand():
    cost = Cost(draws=2, learned=(1, 4), read=(3, 0))
    assert cost.seconds(row_tokens=100 + 20, train_speed=1000.0, sample_speed=100.0) == pytest.approx(0.02 + 0.18 + 0.1)


def test_a_plan_of_another_version_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text('{"minutes": 13.0, "dpo_steps": 29}')
    with pytest.raises(ValueError, match="another version"):
        load_or_make(tmp_path / "plan.json", 13.0, 0, False, None)


@pytest.mark.parametrize("minutes", [6.0, 18.0, 40.0])
def test_counts_fill_the_minutes_and_no_more(monkeypatch, minutes):
    """Every method of an 18 minutes' run sees 500 prompts on two older cores; what the methods leave, the other stages take."""
    train_speed, sample_speed, tokens = 2300.0, 95.0, 112
    monkeypatch.setattr(plan_module, "training_speed", lambda model, rows: train_speed)
    monkeypatch.setattr(plan_module, "sampling_speed", lambda model, tokenizer, prompts: sample_speed)
    row = Row(ids=(np.arange(tokens),), scored=(np.arange(tokens) > 90,), key="")
    made = make_plan(minutes, 0, False, 90.0, None, None, [row], [], COSTS)
    seconds = {
        "sft": made.sft_steps * ROWS_PER_STEP["sft"] * tokens / train_speed,
        "sample": made.preference_prompts * 8 / sample_speed,
        "reward": made.reward_steps * ROWS_PER_STEP["reward"] * (tokens + 7 * SUMMARY_TOKENS) / train_speed,
        "methods": made.method_updates * ROWS_PER_STEP["methods"] * sum(c.seconds(tokens, train_speed, sample_speed) for c in COSTS),
        "evaluate": made.test_prompts * plan_module.ANSWERS_PER_TEST_PROMPT / sample_speed,
    }
    assert made.method_updates % 2 == 0
    if minutes >= 18:
        assert made.method_updates * ROWS_PER_STEP["methods"] >= 500
    left = 60 * minutes - 90
    assert (0.75 if minutes == 40 else 0.85) * left < sum(seconds.values()) < 0.98 * left, seconds


@pytest.mark.parametrize(
    ("minutes", "seed", "scratch", "field"),
    [(5.0, 0, False, "minutes"), (13.0, 1, False, "seed"), (13.0, 0, True, "from_scratch")],
)
def test_another_command_is_refused_by_field(tmp_path, minutes, seed, scratch, field):
    path = tmp_path / "plan.json"
    load_or_make(path, 13.0, 0, False, plan())
    with pytest.raises(ValueError, match=field):
        load_or_make(path, minutes, seed, scratch, None)

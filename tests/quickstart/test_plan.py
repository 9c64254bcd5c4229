"""Minutes become counts once; a resumed quickstart reads them back, and a different command is refused."""

from __future__ import annotations

import pytest

from trueline.quickstart.plan import LEAST, MOST, Cost, Plan, fit, load_or_make


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


@pytest.mark.parametrize(
    ("minutes", "seed", "scratch", "field"),
    [(5.0, 0, False, "minutes"), (13.0, 1, False, "seed"), (13.0, 0, True, "from_scratch")],
)
def test_another_command_is_refused_by_field(tmp_path, minutes, seed, scratch, field):
    path = tmp_path / "plan.json"
    load_or_make(path, 13.0, 0, False, plan())
    with pytest.raises(ValueError, match=field):
        load_or_make(path, minutes, seed, scratch, None)

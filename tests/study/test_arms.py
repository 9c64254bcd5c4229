"""What --methods says, and what it cannot mean."""

from __future__ import annotations

import pytest

from trueline.objectives.dpo import DPO
from trueline.objectives.sft import SFT
from trueline.study.arms import choosers, read_arms

RATES = (1e-5, 1e-4)


def test_verbs_options_and_grids() -> None:
    sft, dpo, best = read_arms(["sft", "dpo:loss_type=ipo,beta=0.2/0.4,learning_rate=1e-3/2e-3", "best_of_n:n=8/2"], RATES)
    assert sft.main.objective == SFT() and sft.learning_rates == RATES
    assert [setting.objective for setting in dpo.settings] == [DPO(loss_type="ipo", beta=0.2), DPO(loss_type="ipo", beta=0.4)]
    assert dpo.learning_rates == (1e-3, 2e-3) and dpo.name == "dpo:loss_type=ipo,beta=0.2/0.4"
    assert [setting.label for setting in dpo.settings] == ["dpo:loss_type=ipo,beta=0.2", "dpo:loss_type=ipo,beta=0.4"]
    assert not best.trains and [setting.n for setting in best.settings] == [8, 2] and best.learning_rates == RATES


def test_fields_inside_fields() -> None:
    """An option of a part of an objective is found by its last name, or by its whole path."""
    (arm, other) = read_arms(["ppo:vf_coef=0.3", "ppo:values.vf_coef=0.4"], RATES)
    assert arm.main.objective.values.vf_coef == 0.3 and other.main.objective.values.vf_coef == 0.4  # type: ignore[union-attr]


def test_responses_drawn_per_prompt_belong_to_a_setting() -> None:
    (rso, dpo) = read_arms(["rso:num_generations=16,beta=1", "dpo"], RATES)
    assert rso.main.generations == 16 and rso.main.objective.beta == 1 and dpo.main.generations == 0  # type: ignore[union-attr]


def test_only_single_picks_can_answer() -> None:
    """A selector that gives several responses, or a pair, is nothing to answer with."""
    assert "best_of_n" in choosers()
    assert not {"all_responses", "best_vs_worst"} & set(choosers())


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("dpoo", "there is no method 'dpoo'; did you mean dpo?"),
        ("sft,dpo", "write methods with spaces between them: sft dpo"),
        ("xyzzy", "there is no method 'xyzzy'; use some of "),
        ("dpo:betta=1", "there is no option 'betta'; did you mean beta?"),
        ("dpo:beta=big", "beta is 'big': write a number"),
        ("dpo:beta=-1", "beta is -1.0: it must be above 0"),
        ("dpo:loss_type=square", "use sigmoid, ipo, hinge or robust"),
        ("dpo:beta", "'beta' is no option: write name=value"),
        ("dpo:learning_rate=1e-5", "give 2 learning rates, as many as the others"),
        ("dpo:learning_rate=0/1e-5", "'0' is no learning rate"),
        ("reward", "trains a score and no policy"),
        ("dpo:num_generations=4", "there is no option 'num_generations'"),
        ("rso:num_generations=0", "draw at least 1 response"),
        ("best_of_n", "at least 2: best_of_n:n=8"),
    ],
)
def test_mistakes_are_one_sentence(word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"--methods") as caught:
        read_arms([word], RATES)
    assert sentence in str(caught.value)


def test_only_what_can_take_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"use some of (?!.*\b(reward|pretrain)\b).*\bdpo\b.*\bbest_of_n"):
        read_arms(["xyzzy"], RATES)


def test_one_setting_twice() -> None:
    with pytest.raises(ValueError, match=r"names dpo:beta=0\.1 twice"):
        read_arms(["dpo:beta=0.1", "dpo:beta=0.2/0.1"], RATES)

"""Warnings: each fires on what it is about, on nothing else, once, and again at the end."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from trueline.models.layout import Layout
from trueline.objectives.base import Batch
from trueline.records import Row
from trueline.run import Run, read_json, read_lines
from trueline.train import watch

FALLING = {"rewards/chosen": -0.1, "rewards/rejected": -0.5, "rewards/margins": 0.4}
DEEPER = {"rewards/chosen": -0.2, "rewards/rejected": -0.9, "rewards/margins": 0.7}
HEALTHY = {"rewards/chosen": 0.1, "rewards/rejected": -0.5, "rewards/margins": 0.6}


def row(*sequences: list[int], prompt: int = 2) -> Row:
    ids = tuple(np.array(ids, dtype=np.int32) for ids in sequences)
    return Row(ids=ids, scored=tuple(np.arange(len(x)) >= prompt for x in ids), key="r")


@pytest.mark.parametrize(
    ("lines", "fires"),
    [
        ([FALLING, FALLING, DEEPER], True),
        ([FALLING, DEEPER], False),  # too few lines to be a trend
        ([FALLING, FALLING, HEALTHY], False),
        ([HEALTHY] * 3, False),
        ([DEEPER, DEEPER, FALLING], False),  # it recovers
        ([{"loss": 1.0}] * 3, False),
    ],
)
def test_margin_won_by_losing_both(lines: list[dict[str, float]], fires: bool) -> None:
    assert bool(watch.displaced(lines)) is fires


def test_rewards_without_a_reference_are_no_fall() -> None:
    """SimPO's are 2 x the mean log-prob: negative from the first step on."""
    means = [(-1.5, -1.6), (-1.4, -1.6), (-1.6, -1.9)]
    lines = [
        {"rewards/chosen": 2 * c, "rewards/rejected": 2 * r, "rewards/margins": 2 * (c - r), "logps/chosen": c, "logps/rejected": r}
        for c, r in means
    ]
    assert watch.displaced(lines) == ""
    assert watch.displaced([{**line, "logps/chosen": -30.0} for line in lines])  # against a reference


def test_stop_tokens() -> None:
    trained, untrained = row([5, 6, 7, 1]), row([1, 1, 7, 8])  # one stands in the prompt only
    assert watch.never_stops([untrained, trained], [1]) == ""
    assert "will not learn to end" in watch.never_stops([untrained], [1])
    assert watch.never_stops([untrained], [8]) == ""


def test_responses_without_an_end() -> None:
    cut, ended = {"response": "a", "finish_reason": "length"}, {"response": "a", "finish_reason": "stop"}
    assert "none of the 2 responses" in watch.endless([cut, cut])
    assert watch.endless([cut, ended]) == watch.endless([]) == watch.endless([{"response": "a"}]) == ""
    said: list[str] = []
    watcher = watch.Watch(lambda name, text: said.append(name))
    watcher.samples([cut], 0.2)
    assert not said
    watcher.samples([cut], 0.6)
    assert said == ["responses-never-end"]


def drawn(reward: float = 0.5, **more: float) -> dict[str, float]:
    line = {"frac_reward_zero_std": 0.2, "completions/clipped_ratio": 0.1, "completions/mean_length": 10.0, "objective/kl": 1.0}
    return {"reward": reward, **line, **{name.replace("_of_", "/"): value for name, value in more.items()}}


def warned(lines: list[dict[str, float]]) -> set[str]:
    said: set[str] = set()
    watcher = watch.Watch(lambda name, text: said.add(name))
    for line in lines:
        watcher.metrics(line)
    return said


@pytest.mark.parametrize(
    ("lines", "fires"),
    [
        ([drawn(frac_reward_zero_std=1.0)] * 3, {"rewards-all-equal"}),
        ([drawn(frac_reward_zero_std=1.0)] * 2 + [drawn()], set()),
        ([drawn(completions_of_clipped_ratio=0.97)] * 3, {"responses-cut"}),
        ([drawn(completions_of_clipped_ratio=0.97), {"loss": 1.0}] * 3, {"responses-cut"}),  # lines within a round are passed over
        ([drawn(completions_of_clipped_ratio=0.9)] * 3, set()),
        ([drawn(objective_of_kl=kl) for kl in (11.0, 14.0, 20.0)], {"kl-runs-away"}),
        ([drawn(objective_of_kl=kl) for kl in (11.0, 20.0, 14.0)], set()),  # it comes back
        ([drawn(objective_of_kl=kl) for kl in (5.0, 7.0, 9.0)], set()),  # less than a nat per token
        ([drawn(), *[drawn(0.9, completions_of_mean_length=21.0)] * 3], {"responses-lengthen"}),
        ([drawn(), *[drawn(0.4, completions_of_mean_length=21.0)] * 3], set()),  # longer, and not better paid
        ([drawn(policy_of_entropy_avg=2.0), *[drawn(policy_of_entropy_avg=0.1)] * 3], {"policy-collapses"}),
        ([drawn(policy_of_entropy_avg=2.0), *[drawn(policy_of_entropy_avg=0.1)] * 2], set()),  # too few lines
        ([drawn(policy_of_entropy_avg=2.0), *[drawn(policy_of_entropy_avg=0.3)] * 3], set()),  # not a tenth yet
        ([drawn(policy_of_entropy_avg=2.0), *[drawn(0.9, policy_of_entropy_avg=0.1)] * 3], set()),  # certain, and right
        ([drawn(objective_of_kl_k3=0.1, objective_of_rlhf_reward=0.4)], {"kl-in-reward"}),  # at once: no trend has to show
        ([drawn(objective_of_kl_k1=0.1, objective_of_rlhf_reward=0.4)] * 9, set()),
        ([drawn(objective_of_kl_k3=0.1)] * 9, set()),  # a loss of its own
        ([drawn(completions_of_mean_length=1.1)] * 3, {"responses-empty"}),
        ([drawn(completions_of_mean_length=1.0, completions_of_clipped_ratio=1.0)] * 3, {"responses-cut"}),  # one token is the limit
        ([drawn(completions_of_mean_length=2.0)] * 3, set()),  # an answer of one token, and its end
        ([drawn()] * 9, set()),
    ],
)
def test_drawn_responses_that_go_wrong(lines: list[dict[str, float]], fires: set[str]) -> None:
    assert warned(lines) == fires


def test_what_to_go_back_to_is_from_before_the_trend() -> None:
    """The lines of steps 30, 40, 50 agree: a checkpoint of step 40 is ill, too."""
    said: list[str] = []
    watcher = watch.Watch(lambda name, text: said.append(text), lambda step: f"checkpoint-{step // 20 * 20} is from before it")
    for number, kl in enumerate((1.0, 2.0, 11.0, 14.0, 20.0), 1):
        watcher.metrics(drawn(objective_of_kl=kl), 10 * number)
    assert len(said) == 1 and "; checkpoint-20 is from before it (documentation: " in said[0]


def test_facts_of_a_step_are_counted() -> None:
    """Two responses share a prompt of two tokens; the padding comes from the layout that is computed."""
    rows = [row([5, 6, 7, 1], [5, 6, 8]), row([9, 9, 1], [9, 9, 2, 1])]
    said = watch.step_facts([Batch(rows=rows, layout=Layout.tree(rows), weights={"loss": 2.0})])
    assert "2 rows, 4 sequences, 1 microbatch, 14 tokens in 10 positions (4 of shared prompts computed once)" in said
    assert "padding 0.0%, trained on 42.9% of the tokens" in said  # 6 of 14


def test_said_once_and_again_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for time in range(2):  # the second opening is a resume: it remembers
        with Run(tmp_path / "r", {"a": 1}, console=Console(stderr=True)) as run:
            watcher = watch.Watch(run.warn)
            for line in [FALLING, FALLING, DEEPER, DEEPER]:
                watcher.metrics(line)
            if time:
                run.finish({})
    assert capsys.readouterr().err.count("both-log-probs-fall") == 2  # once when seen, once at the end
    assert [row["warning"] for row in read_lines(tmp_path / "r" / "events.jsonl")] == ["both-log-probs-fall"]
    assert len(read_json(tmp_path / "r" / "finished.json")["warnings"]) == 1


def test_every_warning_has_its_place_on_the_page() -> None:
    """The page is named by its title and says more; the warning itself, which any installation prints, says what to do."""
    root = Path(watch.__file__).parents[2]
    page = (root / "docs" / "stages" / "warnings.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {watch.PAGE}\n") and f"- {watch.PAGE}: stages/warnings.md" in (root / "mkdocs.yml").read_text()
    source = Path(watch.__file__).read_text(encoding="utf-8")
    said = set(re.findall(r'_say\("([a-z-]+)"', source))
    assert said == watch.ADVICE.keys() and said <= set(re.findall(r"\{#([a-z-]+)\}", page))
    warned: list[str] = []
    watch.Watch(lambda name, text: warned.append(text)).rows([row([1, 1, 7, 8])], [1])
    assert "will not learn to end its responses; look at --dry_run" in warned[0] and "docs/" not in warned[0]

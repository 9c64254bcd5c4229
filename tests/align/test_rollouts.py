"""Rollouts with a scripted sampler and judges; rows of the drawn ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trueline.align.group import Group, judged, keep, prompt_key, sample_row, scored
from trueline.align.judges import RuleJudge, ScorerJudge
from trueline.align.rollouts import rollouts
from trueline.records import TEXT, Message, Messages, Row, Sample, Sampling

Make = Callable[..., Group]


class Echo:
    """A sampler whose n responses are the prompt's ids, shifted by 1, 2, ..."""

    def sample(self, prompts: Sequence[Any], sampling: Sampling) -> list[list[Sample]]:
        return [[self._one(np.asarray(p, dtype=np.int32), k) for k in range(1, sampling.n + 1)] for p in prompts]

    def load(self, weights: Any, version: str) -> None: ...

    def _one(self, prompt: np.ndarray, k: int) -> Sample:
        reason = "stop" if k < 3 else "length"
        size = len(prompt)
        return Sample(
            prompt_ids=prompt,
            ids=prompt + k,
            logps=np.zeros(size, np.float32),
            mask=np.arange(size) != 1,
            finish_reason=reason,
        )


def encode(messages: Messages) -> np.ndarray:
    return np.array([ord(c) for m in messages for c in m.content])


def decode(sample: Sample) -> str:
    return "".join(chr(i) for i in sample.ids)


def prompt(text: str, role: str = "user") -> Messages:
    return (Message(role=role, content=text),)


def test_rollouts_are_groups_in_order() -> None:
    judge = RuleJudge(lambda asked, response: float(ord(response[0].content[0]) - ord(asked[0].content[0])), "shift")
    groups = rollouts([prompt("abc"), prompt("xy", TEXT)], Echo(), judge, Sampling(n=3), encode=encode, decode=decode)
    assert [g.scores for g in groups] == [(1, 2, 3), (1, 2, 3)]
    assert groups[0].responses[0] == (Message(role="assistant", content="bcd"),)
    assert groups[1].responses[0] == (Message(role=TEXT, content="yz"),)
    assert [s.reward for s in groups[0].samples] == [1, 2, 3]
    assert {s.group for s in groups[0].samples} == {groups[0].key} == {prompt_key(prompt("abc"))}
    unscored = rollouts([prompt("abc")], Echo(), None, Sampling(n=2), encode=encode, decode=decode)
    assert unscored[0].scores == () and len(unscored[0]) == 2


def test_keys_name_prompts() -> None:
    assert prompt_key(prompt("a")) == prompt_key(prompt("a")) != prompt_key(prompt("a", "system"))


def test_rows_hold_the_drawn_ids() -> None:
    (group,) = rollouts([prompt("ab")], Echo(), None, Sampling(n=2), encode=encode, decode=decode)
    row = sample_row(replace(group, scores=(0.5, 2.0)), [1, 0])
    assert [x.tolist() for x in row.ids] == [[97, 98, 99, 100], [97, 98, 98, 99]]
    assert [m.tolist() for m in row.scored] == [[False, False, True, False]] * 2  # the policy did not choose token 1
    assert row.numbers["reward"].tolist() == [2.0, 0.5] and row.numbers["rank"].tolist() == [1, 2]
    assert row.key == sample_row(group, [1, 0]).key != sample_row(group, [0, 1]).key


def test_a_scorer_scores_all_groups_in_one_call(make_group: Make) -> None:
    calls = []

    class Sum:
        fingerprint = "sum"

        def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
            calls.append(len(rows))
            return [np.array([ids.sum() for ids in row.ids], dtype=np.float32) for row in rows]

    groups = scored([make_group([0, 0], "a"), make_group([0], "b")], Sum())
    assert [g.scores for g in groups] == [(24, 25), (24,)] and calls == [2]
    places = {response: k for k, response in enumerate(groups[0].responses)}
    judge = ScorerJudge(Sum(), lambda asked, response: sample_row(groups[0], [places[response]]) if response in places else None)
    assert judge.judge(groups[0].prompt, groups[0].responses) == [24, 25] and judge.lines() == []
    asked = [(group.prompt, group.responses) for group in groups]
    calls.clear()
    assert judge.judge_all([asked[0], asked[0]]) == [[24, 25]] * 2 and calls == [2]
    strange = (Message(role=TEXT, content="unreadable"),)
    assert judge.judge(groups[0].prompt, [strange, groups[0].responses[1]]) == [25, 25]  # the middle of the others, and named
    assert judge.judge(groups[1].prompt, [strange]) == [0]
    assert judge.take_unjudged() == {prompt_key(groups[0].prompt), prompt_key(groups[1].prompt)} and judge.take_unjudged() == set()
    assert judge.lines() == ["2 of 9 responses could not be read by reward model"]
    assert scored([], Sum()) == []


def test_keep_drops_unfinished(make_group: Make) -> None:
    (group,) = rollouts([prompt("ab")], Echo(), None, Sampling(n=4), encode=encode, decode=decode)
    (kept,) = keep([group], lambda s: s.finish_reason == "stop")
    assert len(kept) == 2 == len(kept.samples) and kept.responses == group.responses[:2]
    assert keep([group], lambda s: False) == []


def test_bad_judges_are_named(make_group: Make) -> None:
    with pytest.raises(ValueError, match="judge short gave 1 scores for 2 responses"):

        class Short:
            name = "short"

            def judge(self, asked: Messages, responses: Sequence[Messages]) -> list[float]:
                return [1.0]

        judged([make_group([0, 0])], Short())
    with pytest.raises(ValueError, match="judge nan gave nan to response 1 to the prompt"):
        judged([make_group([0, 0])], RuleJudge(lambda asked, response: float("nan"), "nan"))
    with pytest.raises(ValueError, match="holds text only"):
        sample_row(replace(make_group([0]), samples=()), [0])

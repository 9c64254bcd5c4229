"""Rollouts: prompts in, groups of sampled and judged responses out.

    prompts --encode--> ids --sampler--> Samples --decode--> text --judge--> Group(prompt, responses, samples, scores)

    rollouts(prompts, sampler, judge, ...) -> groups       once
    Rollouts(Engine, judge=rule)                           for training, round after round: groups -> select -> rows

The sampler, the judge, and the two functions between text and ids are handed in. One call draws everything in one batch.
Left out: what becomes of the groups (`select`, `annotator`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from trueline.align import select as selectors
from trueline.align.group import Group, judged, prompt_key, scored
from trueline.align.select import Select, rows
from trueline.protocols import Drawn, Judge, KnownJudge, Sampler, Scorer, UnsureJudge
from trueline.records import TEXT, Message, Messages, RolloutConfig, Row, Sample, Sampling

SHOWN = 3
"""Responses of a round that are kept as text, of as many prompts."""


def rollouts(
    prompts: Sequence[Messages],
    sampler: Sampler,
    judge: Judge | None,
    sampling: Sampling,
    *,
    encode: Callable[[Messages], np.ndarray],
    decode: Callable[[Sample], str],
) -> list[Group]:
    """`sampling.n` responses per prompt, scored by the judge (None leaves them unscored), one group per prompt in order.

    `encode` is `encode_prompt` with its tokenizer, `decode` the engine's `text`. Change `sampling.seed` from round to round:
    the same seed, prompt and weights draw the same responses.
    """
    groups = grouped(prompts, sampler.sample([encode(prompt) for prompt in prompts], sampling), decode)
    return groups if judge is None else judged(groups, judge)


def grouped(
    prompts: Sequence[Messages], drawn: Sequence[Sequence[Sample]], decode: Callable[[Sample], str]
) -> list[Group]:
    """What was drawn, with its text."""
    groups = []
    for prompt, samples in zip(prompts, drawn, strict=True):
        role = TEXT if prompt and prompt[-1].role == TEXT else "assistant"
        key = prompt_key(prompt)
        groups.append(
            Group(
                key=key,
                prompt=prompt,
                responses=tuple((Message(role=role, content=decode(sample)),) for sample in samples),
                samples=tuple(replace(sample, group=key) for sample in samples),
            )
        )
    return groups


@dataclass(frozen=True)
class Rollouts:
    """What training draws its rows from: an engine for the live policy, and who says how good a response is (one of the two)."""

    engine: Callable[[Any, Any], Sampler]
    """Makes a sampler of a model and its tokenizer: `trueline.serve.Engine` itself."""
    judge: Judge | None = None
    """Sees text."""
    reward: Scorer | None = None
    """Sees the drawn ids: a reward model with the policy's own tokenizer."""
    workers: int = 1
    """Prompts whose responses are judged at once; more than 1 for a judge elsewhere that may be asked from several threads."""
    notes: tuple[str, ...] = ()
    """What people should know before the first round, in sentences."""

    def __post_init__(self) -> None:
        if (self.judge is None) == (self.reward is None):
            raise ValueError("Rollouts needs who says how good a response is: give judge= or reward=, one of the two")

    @property
    def identity(self) -> dict[str, Any]:
        """Who judges, and by what."""
        if self.judge is not None:
            known = self.judge.fingerprint if isinstance(self.judge, KnownJudge) else ""
            return {"judge": {"name": self.judge.name, "contents": known}}
        assert self.reward is not None
        return {"reward": self.reward.fingerprint}

    def sampler(self, model: Any, tokenizer: Any) -> Sampler:
        """One that draws from this model, live."""
        return self.engine(model, tokenizer)

    def draw(
        self, prompts: Sequence[tuple[Messages, np.ndarray]], sampler: Sampler, config: RolloutConfig, *,
        decode: Callable[[np.ndarray], str], select: str, options: Mapping[str, Any], seed: int,
    ) -> Drawn:  # fmt: skip
        """One round: responses to each prompt (messages, ids) drawn with this seed, judged, and selected from."""
        began = time.monotonic()
        drawn = sampler.sample([ids for _, ids in prompts], config.sampling(seed))
        groups = grouped([messages for messages, _ in prompts], drawn, lambda sample: decode(sample.ids))
        there = time.monotonic()
        if self.reward is not None:
            groups = scored(groups, self.reward)
        else:
            assert self.judge is not None
            groups = judged(groups, self.judge, self.workers)
        groups = [penalised(group, config.missing_eos_penalty) for group in groups]
        known, metrics = groups, {}
        if isinstance(self.judge, UnsureJudge):  # a score that says nothing is nothing to learn from
            unjudged = self.judge.take_unjudged()
            known = [group for group in groups if group.key not in unjudged]
            metrics = {"judge/unjudged_ratio": (float(len(groups) - len(known)), float(len(groups)))}
        seconds = {"sampling": there - began, "scoring": time.monotonic() - there}
        found = [limited(row, config.max_completion_length) for row in rows(known, selector(select, options), seed)]
        pictures = [shown(group) for group in (known or groups)[:SHOWN]]
        return Drawn(found, facts(groups, known) | metrics, seconds, pictures, str(sampler.agreement or ""))


def limited(row: Row, limit: int) -> Row:
    """The row with numbers["limit"]: tokens that each of its responses could have had."""
    return replace(row, numbers={**row.numbers, "limit": np.full(len(row.ids), limit, dtype=np.float32)})


def selector(name: str, options: Mapping[str, Any]) -> Select:
    """A function of `select` by its name, with keyword arguments."""
    known = vars(selectors)
    assert name in known, f"trueline.align.select has no {name}"
    return partial(known[name], **options)


def penalised(group: Group, penalty: float) -> Group:
    """The group with the penalty taken from the score of each response that was cut at its longest."""
    if not penalty:
        return group
    pairs = list(zip(group.scores, group.samples, strict=True))
    scores = tuple(score - penalty * (sample.finish_reason != "stop") for score, sample in pairs)
    samples = tuple(replace(sample, reward=score) for score, sample in zip(scores, group.samples, strict=True))
    return replace(group, scores=scores, samples=samples)


def facts(groups: Sequence[Group], known: Sequence[Group]) -> dict[str, tuple[float, float]]:
    """name -> (sum, count) over all that was drawn, and of rewards over what the judge knows, under TRL's names."""
    samples = [sample for group in groups for sample in group.samples]
    scores = np.array([score for group in known for score in group.scores], dtype=np.float64)
    several = [group.scores for group in known if len(group) > 1]  # of one response there is no spread
    spreads = np.array([np.std(one) if np.ptp(one) > 0 else 0.0 for one in several])  # np.std of three times 0.1 is not 0
    responses, prompts = float(len(samples)), float(len(spreads))
    return {
        "reward": (float(scores.sum()), float(len(scores))),
        "reward_std": (float(spreads.sum()), prompts),
        "frac_reward_zero_std": (float((spreads == 0).sum()), prompts),
        "completions/mean_length": (float(sum(len(sample.ids) for sample in samples)), responses),
        "completions/clipped_ratio": (float(sum(sample.finish_reason != "stop" for sample in samples)), responses),
    }


def shown(group: Group) -> dict[str, Any]:
    """The first response to a prompt, as people read it."""
    texts = ["\n".join(message.content for message in messages) for messages in (group.prompt, group.responses[0])]
    about = {"reward": group.scores[0], "finish_reason": group.samples[0].finish_reason}
    return {"prompt": texts[0], "response": texts[1], **about}

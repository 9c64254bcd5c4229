"""A prompt and several responses to it, with a score each: what is sampled, judged, and selected from.

    Group(prompt, responses, samples, scores)    --judged / scored-->  scores filled in     --select-->  rows

Text and ids travel together: `responses[k]` is the text of `samples[k]`, so a row for training is built from the very ids that
were drawn, never from text encoded again.
Left out: drawing (`rollouts`), choosing (`select`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from trueline.protocols import Judge, ManyJudge, Scorer
from trueline.records import Messages, Row, Sample
from trueline.store import fingerprint


@dataclass(frozen=True, kw_only=True)
class Group:
    """Responses to one prompt."""

    key: str
    """Names the prompt (a hash of its messages): equal prompts have equal keys in every run."""
    prompt: Messages
    responses: tuple[Messages, ...]
    samples: tuple[Sample, ...] = ()
    """One per response, or none (responses that came as text)."""
    scores: tuple[float, ...] = ()
    """One per response once judged; more is better."""

    def __len__(self) -> int:
        return len(self.responses)


def prompt_key(prompt: Messages) -> str:
    """Sixteen hex digits that name a prompt by its roles and texts."""
    return fingerprint([[message.role, message.content] for message in prompt])[:16]


def judged(groups: Sequence[Group], judge: Judge, workers: int = 1) -> list[Group]:
    """Groups with the judge's scores; `workers` of them at once, by a judge that may be asked from several threads.

    A judge that fails is named: it may be anybody's code, or a machine elsewhere.
    """
    if isinstance(judge, ManyJudge):
        found = judge.judge_all([(group.prompt, group.responses) for group in groups])
        return [_with_scores(group, scores, judge.name) for group, scores in zip(groups, found, strict=True)]
    if workers == 1:
        return [_with_scores(group, _asked(group, judge), judge.name) for group in groups]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            return list(pool.map(lambda group: judged([group], judge)[0], groups))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def scored(groups: Sequence[Group], scorer: Scorer) -> list[Group]:
    """Groups with a reward model's scores of the drawn ids, all in one call (it batches them)."""
    rows = [sample_row(group, range(len(group))) for group in groups]
    found = scorer.score(rows) if rows else []
    return [
        _with_scores(group, [float(score) for score in scores_K], scorer.fingerprint)
        for group, scores_K in zip(groups, found, strict=True)
    ]


def keep(groups: Sequence[Group], test: Callable[[Sample], bool]) -> list[Group]:
    """Groups without the samples that fail the test; a group left empty goes. `lambda s: s.finish_reason == "stop"` keeps
    finished responses only."""
    kept = []
    for group in groups:
        chosen = [k for k, sample in enumerate(group.samples) if test(sample)]
        if chosen:
            kept.append(part(group, chosen))
    return kept


def part(group: Group, numbers: Sequence[int]) -> Group:
    """The group with only these responses, in this order."""
    return replace(
        group,
        responses=tuple(group.responses[k] for k in numbers),
        samples=tuple(group.samples[k] for k in numbers) if group.samples else (),
        scores=tuple(group.scores[k] for k in numbers) if group.scores else (),
    )


def sample_row(group: Group, numbers: Sequence[int]) -> Row:
    """One row of the drawn ids of these responses: prompt then response, scored where the policy chose the token.

    numbers["reward"] holds their scores once judged; numbers["rank"] their places in `numbers` (1, 2, ...) where there are
    several: the preferred one first in a pair, the order drawn in a whole group, which is no order of merit;
    numbers["finished"] is 0 for a response cut at its longest; tokens["logps"] are those it was drawn with, at
    numbers["temperature"].
    """
    if not group.samples:
        raise ValueError(f"group {group.key} holds text only: encode its comparisons with trueline.tokens instead")
    ids, masks = [], []
    drawn = [group.samples[k] for k in numbers]
    for sample in drawn:
        ids.append(np.concatenate([sample.prompt_ids, sample.ids]).astype(np.int32))
        masks.append(np.concatenate([np.zeros(len(sample.prompt_ids), dtype=bool), sample.mask]))
    row_numbers = {
        "temperature": np.array([sample.temperature or 1.0 for sample in drawn], dtype=np.float32),  # greedy: logps are at 1
        "finished": np.array([sample.finish_reason == "stop" for sample in drawn], dtype=np.float32),
    }
    if group.scores:
        row_numbers["reward"] = np.array([group.scores[k] for k in numbers], dtype=np.float32)
    if len(ids) > 1:
        row_numbers["rank"] = np.arange(1, len(ids) + 1, dtype=np.float32)
    key = fingerprint([group.key, [x.tolist() for x in ids]])[:16]
    logps = tuple(sample.logps[sample.mask].astype(np.float32) for sample in drawn)
    return Row(ids=tuple(ids), scored=tuple(masks), key=key, numbers=row_numbers, tokens={"logps": logps})


def _asked(group: Group, judge: Judge) -> Sequence[float]:
    try:
        return judge.judge(group.prompt, group.responses)
    except ValueError:  # its own sentence for people
        raise
    except Exception as error:
        said = "\n".join(message.content for message in group.prompt)
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"judge {judge.name} failed on the responses to the prompt {said[:60]!r}: {what}") from error


def _with_scores(group: Group, scores: Sequence[float], judge: str) -> Group:
    if len(scores) != len(group):
        raise ValueError(f"judge {judge} gave {len(scores)} scores for {len(group)} responses: it must give one each")
    if not np.isfinite(scores).all():
        worst = int(np.flatnonzero(~np.isfinite(scores))[0])
        said = "\n".join(message.content for message in group.prompt)
        raise ValueError(
            f"judge {judge} gave {scores[worst]} to response {worst + 1} to the prompt {said[:60]!r}: scores must be finite"
        )
    samples = tuple(replace(s, reward=float(score)) for s, score in zip(group.samples, scores, strict=False))
    return replace(group, scores=tuple(float(score) for score in scores), samples=samples)

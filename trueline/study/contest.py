"""A judge that compares, or that has to be paid, as the judge of a study: who wins, and what asking costs.

    contest.verdicts(prompts, ours, theirs)    who is better, answer by answer
    rated(groups, judge)                       groups with scores; NaN where the judge said nothing
    bill(...)                                  how often a study asks it, at most

The score of an answer is then whether it beats the start's answer to the same prompt, so that a policy's reward is its win rate against
the start. The compared policies also meet one another, where `max_requests` has room for all of them. Equal answers are a tie without a
question. Left out: asking (align.llm_judge, align.votes), and strengths by a model of all verdicts (Bradley-Terry): win rates against one
opponent are what was seen.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from trueline.align.combination import WeightedJudge, called
from trueline.align.group import Group, judged, prompt_key
from trueline.align.llm_judge import LLMJudge
from trueline.align.verifiers import Verifier
from trueline.align.votes import StoredVotes
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Judge, UnsureJudge
from trueline.records import Message, Messages
from trueline.store import fingerprint, write_atomic
from trueline.study.arms import Arm
from trueline.study.cells import Cells
from trueline.study.settings import Budget, Settings
from trueline.study.training import generations

Comparing = LLMJudge | StoredVotes
Pair = tuple[str, str]
"""Names of two arms."""
UNCOUNTED = "a probe decides how much is drawn"
Texts = Sequence[Sequence[str]]
"""[P][A]."""


def compares(judge: Judge | None) -> bool:
    """Whether a judge says nothing of a response by itself."""
    return isinstance(judge, StoredVotes) or (isinstance(judge, LLMJudge) and judge.form == "pairs")


def shown_as(judge: Judge) -> str:
    """Its name as people read it: of a file or folder the last part, of a sum every weight, of a check the whole rule."""
    if isinstance(judge, WeightedJudge):
        return called(tuple((Path(name).name, weight) for name, weight in judge.parts))
    return judge.name if isinstance(judge, Verifier) else Path(judge.name).name


def rated(groups: Sequence[Group], judge: Judge) -> list[Group]:
    """With scores; a prompt with a response that the judge said nothing of has NaN for all."""
    found = judged(groups, judge, workers=judge.workers if isinstance(judge, LLMJudge) else 1)
    lost = judge.take_unjudged() if isinstance(judge, UnsureJudge) else set()
    return [replace(group, scores=(math.nan,) * len(group)) if group.key in lost else group for group in found]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A judge that compares."""

    judge: Comparing
    key: str
    """Names it in fingerprints."""
    cells: Cells
    between: bool
    """Whether the compared policies meet one another, too."""

    def verdicts(self, prompts: Sequence[Messages], ours: Texts, theirs: Texts) -> dict[str, Any]:
        """On ours[p][a] against theirs[p][a], asked once: "shares" [P][A], 1 where ours is better, 0.5, 0, a share of the votes, or None
        where the judge said nothing; "tally": how many "pairs", "equal" ones, without a verdict ("none"), "consistent" under swap."""
        about = {"truth": self.key, "prompts": [prompt_key(one) for one in prompts], "ours": ours, "theirs": theirs}
        cell = self.cells.of("verdicts", {"of": fingerprint(about)})
        found: dict[str, Any] = cell.once("verdicts.json", lambda: self._asked(prompts, ours, theirs))
        return found

    def _asked(self, prompts: Sequence[Messages], ours: Texts, theirs: Texts) -> dict[str, Any]:
        shares: list[list[float | None]] = [[0.5] * len(row) for row in ours]
        before, tally = Counter(self.judge.tally), Counter[str]()
        for a in range(len(ours[0])):
            differ = [p for p in range(len(prompts)) if ours[p][a] != theirs[p][a]]
            asked = rated([pair_of(prompts[p], ours[p][a], theirs[p][a]) for p in differ], self.judge)
            for p, group in zip(differ, asked, strict=True):
                shares[p][a] = None if math.isnan(group.scores[0]) else group.scores[0]
            tally.update({"pairs": len(prompts), "equal": len(prompts) - len(differ)})
        tally["none"] = sum(share is None for row in shares for share in row)
        tally["consistent"] = (Counter(self.judge.tally) - before)["consistent"]
        return {"shares": shares, "tally": dict(tally)}


def pair_of(prompt: Messages, ours: str, theirs: str) -> Group:
    """Two answers side by side."""
    responses = tuple((Message(role="assistant", content=text),) for text in (ours, theirs))
    return Group(key=prompt_key(prompt), prompt=prompt, responses=responses)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a study asks a judge, at most."""

    preferences: int = 0
    """Verdicts or ratings on the start's own responses, where --data has prompts alone."""
    tuning: int = 0
    training: int = 0
    """Ratings of what methods draw in training, where the judge drives them. A round that gives nothing to learn from is drawn again, and
    comes on top."""
    uncounted: bool = False
    """Whether a budget in tokens or minutes leaves those of training open."""
    report: int = 0
    """Against the start, or ratings; those of the draws that a judge chooses among included."""
    between: int = 0
    """Of the compared policies against one another."""
    requests_each: int = 0
    bound: int = 0
    """Requests; 0: none."""

    @property
    def needed(self) -> int:
        """Requests without those between policies."""
        return self.requests_each * (self.preferences + self.tuning + self.training + self.report)

    @property
    def asks_between(self) -> bool:
        """Whether there is room for them."""
        return not self.bound or self.needed + self.requests_each * self.between <= self.bound

    def checked(self) -> Bill:
        """Itself, where it can be paid."""
        if 0 < self.bound < self.needed:
            raise ValueError(
                f"the judge would be asked up to {self.needed:,} times, and --max_requests is {self.bound:,}: raise it (0 is without "
                "bound), or lower --report_prompts, --tuning_prompts, --samples, --checkpoints, or take fewer seeds, methods or rates"
                + (", or lower --updates or --num_generations" if self.training else "")
            )
        return self

    def table(self) -> list[dict[str, Any]]:
        """For a dry run."""
        rows = [
            ("preferences of the training data", self.preferences, ""), ("tuning", self.tuning, ""),
            ("training", self.training, "more where a round gives nothing to learn from"), ("report, against the start", self.report, ""),
            ("report, between methods", self.between, "" if self.asks_between else f"left out: --max_requests is {self.bound:,}"),
        ]  # fmt: skip
        found = [
            {"asked of the judge, at most": what, "verdicts": f"{count:,}", "requests": f"{count * self.requests_each:,}", "remark": remark}
            for what, count, remark in rows
            if count
        ]
        open_ = {"asked of the judge, at most": "training", "verdicts": "?", "requests": "?", "remark": f"on top: {UNCOUNTED}"}
        return [*found, *([open_] if self.uncounted else [])]

    def sentence(self) -> str:
        """For the log."""
        count = self.preferences + self.tuning + self.training + self.report + (self.between if self.asks_between else 0)
        left = "" if self.asks_between else "; methods are not compared with one another, which would exceed --max_requests"
        left += "; rounds of training that give nothing to learn from come on top" if self.training else ""
        left += f"; training comes on top: {UNCOUNTED}" if self.uncounted else ""
        return f"the judge is asked for at most {count:,} verdicts, {count * self.requests_each:,} requests{left}"


def bill(
    arms: Sequence[Arm], settings: Settings, *, form: str, answered: int, tuned: int, prompts: int = 0, responses: int = 0, bound: int = 0,
    driven: Budget | None = None,
) -> Bill:
    """`form`: "pairs", "rating" or "votes"; `answered`, `tuned`: prompts to report and to tune on; `prompts`: whose preferences are drawn,
    from so many `responses` each; `driven`: the budget, where the judge also says which draws are better (--reward judge)."""
    seeds, K = len(settings.seeds), responses
    measured = sum(
        seeds * settings.checkpoints * len(arm.settings) if arm.trains
        else seeds * (len(arm.settings) if driven is None else 1 + max(setting.n for setting in arm.settings))  # study.measure.draws_of
        for arm in arms
    )  # fmt: skip
    drawing = driven is not None and any(isinstance(arm.main.objective, OnPolicy) for arm in arms)
    updates = driven.updates if driven is not None else 0
    trials = sum(len(arm.learning_rates) for arm in arms if arm.trains)
    pairs = form != "rating"
    return Bill(
        preferences=prompts * (K * (K - 1) // 2 if pairs else K), tuning=tuned * settings.samples * trials,
        training=drawn_in_training(arms, settings, updates), uncounted=drawing and not updates,
        report=answered * settings.samples * (measured + (0 if pairs else seeds)),
        between=answered * settings.samples * seeds * len(list(combinations(arms, 2))) if pairs else 0,
        requests_each={"pairs": 2, "rating": 1, "votes": 0}[form], bound=bound,
    )  # fmt: skip


def drawn_in_training(arms: Sequence[Arm], settings: Settings, updates: int) -> int:
    """Responses that all policies, those of trials included, draw in so many updates each."""
    total = 0
    for arm in arms:
        for setting in arm.settings:
            if isinstance(setting.objective, OnPolicy):
                rounds = setting.objective.rounds
                trainings = len(settings.seeds) + (len(arm.learning_rates) - 1 if setting is arm.main else 0)
                prompts = -(-updates // rounds.steps) * rounds.batches * settings.per_device_train_batch_size
                total += trainings * prompts * (setting.generations or generations(setting.objective, settings))
    return total


def form_of(judge: Judge | None) -> str:
    """As `bill` has it; empty where asking costs nothing that is counted."""
    return judge.form if isinstance(judge, LLMJudge) else "votes" if isinstance(judge, StoredVotes) else ""


@contextmanager
def spending(judge: Judge | None, path: Path) -> Iterator[None]:
    """Keep what asking costs: requests, tokens, answers from the cache, added up over resumes, but for what a kill cut off."""
    try:
        yield
    finally:
        if isinstance(judge, LLMJudge):
            write_atomic(path, json.dumps(spent(path, judge)))


def spent(path: Path, judge: LLMJudge) -> dict[str, int]:
    """What was kept, and what this process has asked since."""
    before: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    client = judge.client
    now = {"requests": client.requests, "tokens": client.tokens, "from_cache": client.from_cache}
    return {name: before.get(name, 0) + count for name, count in now.items()}

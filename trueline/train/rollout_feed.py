"""A feed of fresh rollouts: every round its prompts are answered by the policy as it is, judged, and selected from.

    prompts of the round --Rollouts.draw--> rows          protocols.Rollouts; train knows neither engine nor judge

The order of prompts is that of StoredFeed, and what a round draws depends on (seed, prompts handed out) and on the weights, so the
whole state is one integer here, too: a run that goes on draws the very same responses.

Several processes answer a share of the prompts each (shared_rounds). Left out: drawing the next round while this one is learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueline.objectives.rounds import Rounds
from trueline.protocols import Drawn, Rollouts, Sampler
from trueline.records import Messages, RolloutConfig, Row
from trueline.train.feed import Report, StoredFeed
from trueline.train.ranks import ALONE, Ranks
from trueline.train.shared_rounds import share, together
from trueline.train.two_players import TwoPlayers

EMPTY = 20
"""So many rounds in a row without a single row end the run."""
EVALUATED = 256
"""Held-out prompts that are answered at a time."""


class RolloutFeed:
    """Endless rounds; the run ends by its number of steps."""

    def __init__(
        self, prompts: Sequence[Row], texts: Mapping[str, Messages], prompts_per_round: int, seed: int, *, rollouts: Rollouts,
        sampler: Sampler, config: RolloutConfig, rounds: Rounds, decode: Callable[[Sequence[int]], str],
        say: Callable[[str], None] = lambda text: None, drawer: Sampler | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        """`sampler` draws from the live policy; `drawer`, the reference's, all or half of the rounds where they say so."""
        self.drawer = drawer or sampler
        if rounds.second is not None:
            self.drawer = TwoPlayers(sampler, self.drawer, rounds.second.temperature)
        self.order = StoredFeed(prompts, prompts_per_round, seed)
        self.texts, self.seed, self.rollouts, self.sampler = texts, seed, rollouts, sampler
        self.config, self.rounds, self.decode, self.say, self.ranks = config, rounds, decode, say, ranks
        self.last: Drawn | None = None
        self._sums: dict[str, tuple[float, float]] = {}
        self._seconds: Counter[str] = Counter()
        self._unsure = False
        """Whether it was said that the judge has no verdict on some prompts."""

    def __iter__(self) -> Iterator[list[Row]]:
        empty = 0
        for prompts in self.order:
            drawn = self._draw(prompts, self.config, self.order.given)
            if self.last is None and drawn.remark:
                self.say(drawn.remark)
            if not self._unsure and drawn.metrics.get(UNJUDGED, (0.0, 0.0))[0]:
                self._unsure = True
                self.say(
                    f"{drawn.metrics[UNJUDGED][0]:.0f} of {drawn.metrics[UNJUDGED][1]:.0f} prompts of a round are left out: the judge "
                    f"has no verdict on one of their responses ({UNJUDGED} counts them from here on)"
                )
            self.last = drawn
            for name, (total, count) in drawn.metrics.items():
                before = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (before[0] + total, before[1] + count)
            self._seconds.update(drawn.seconds)
            if drawn.rows:
                empty = 0
                yield list(drawn.rows)
            elif (empty := empty + 1) >= EMPTY:
                raise ValueError(nothing_learned(empty, drawn))

    def report(self) -> Report:
        """Metrics and seconds of the rounds since the last call."""
        note = f"reward {_mean(self._sums, 'reward'):.4g}" if self._sums else ""
        found = Report(self._sums, dict(self._seconds), note)
        self._sums, self._seconds = {}, Counter()
        return found

    def samples(self, model: Any) -> Sequence[Mapping[str, Any]]:
        """A few responses of the last round."""
        return self.last.samples if self.last is not None else ()

    def evaluate(self, held: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
        """{"eval_reward": ...}: one response to every held-out prompt, the same draw of chance each time; and the counts."""
        sums: dict[str, tuple[float, float]] = {}
        once = RolloutConfig(
            num_generations=1,
            max_completion_length=self.config.max_completion_length,
            temperature=self.config.temperature,
            missing_eos_penalty=self.config.missing_eos_penalty,
        )
        for start in range(0, len(held), EVALUATED):
            drawn = self._draw(held[start : start + EVALUATED], once, -1 - start, select="all_responses")
            for name in EVALUATIONS:
                before, (total, count) = sums.get(name, (0.0, 0.0)), drawn.metrics[name]
                sums[name] = (before[0] + total, before[1] + count)
        if not sums["reward"][1]:
            raise ValueError("the judge has no verdict on any response to a held-out prompt: leave out eval_data and eval_share")
        means = {f"eval_{name}": total / count for name, (total, count) in sums.items()}
        return means, {f"eval_{name}": count for name, (_, count) in sums.items()}

    def state(self) -> dict[str, Any]:
        return self.order.state()

    def load(self, state: dict[str, Any]) -> None:
        self.order.load(state)

    @property
    def epoch(self) -> float:
        return self.order.epoch

    def _draw(self, prompts: Sequence[Row], config: RolloutConfig, number: int, select: str = "") -> Drawn:
        """What round `number` (prompts handed out with it; below 0 for evaluations) gives."""
        (seed,) = np.random.SeedSequence([self.seed, number % 2**63]).generate_state(1).tolist()
        asked = [(self.texts[row.key], row.ids[0]) for row in share(prompts, self.ranks)]
        drawn = self.rollouts.draw(
            asked, self.sampler if select else self.drawer, config, decode=lambda ids: self.decode(ids.tolist()), seed=seed,
            select=select or self.rounds.select, options={} if select else self.rounds.options,
        )  # fmt: skip
        return together(drawn, self.ranks)


EVALUATIONS = ("reward", "completions/mean_length", "completions/clipped_ratio")
"""What an evaluation gives, each with eval_ in front."""
UNJUDGED = "judge/unjudged_ratio"
"""Share of prompts that are left out, since the judge has no verdict on one of their responses."""


def nothing_learned(rounds: int, drawn: Drawn) -> str:
    """Why so many rounds gave no row, and what to do, in a sentence."""
    if _mean(drawn.metrics, UNJUDGED) == 1:
        return (
            f"{rounds} rounds in a row gave nothing to learn from: the judge has no verdict on any of the responses; stored votes know "
            "only what was voted on, so train on the votes (trueline reward, trueline dpo), or look at what the judge answers"
        )
    equal, cut = (_mean(drawn.metrics, name) for name in ("frac_reward_zero_std", "completions/clipped_ratio"))
    shown = [f"{str(one.get('response'))[:40]!r} has {one.get('reward')}" for one in drawn.samples[:2]]
    return (
        f"{rounds} rounds in a row gave nothing to learn from: {equal:.0%} of the prompts have responses of one and the same reward, and "
        f"{cut:.0%} of the responses are cut{' (' + '; '.join(shown) + ')' if shown else ''}: try the judge on two responses by hand, or "
        "raise num_generations or temperature"
    )


def _mean(metrics: Mapping[str, tuple[float, float]], name: str) -> float:
    total, count = metrics.get(name, (0.0, 1.0))
    return total / count if count else 0.0

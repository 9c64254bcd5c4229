"""What a person should hear about a run before it costs them a night: facts of its steps, and warnings.

    steps of rows -> step_facts                                          said once, computed from the first step
    rows          -> never_stops(rows, stop_ids)                         before training
    metrics       -> displaced(lines)          log lines, newest last    while training
                     flat, cut_off, runs_away, lengthened, collapsed     of drawn responses (rollouts)
    samples       -> endless(samples)          drawn on the way

All are pure functions of names and numbers: no method is known here, a metric is judged by what its name means everywhere.
Each warning says what to do first, and the page that explains it by its name: an installed package holds no pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from trueline.models.attention import tree_tokens
from trueline.objectives.base import Batch
from trueline.records import Row

PAGE = "Warnings of a run"
"""Title of the documentation's page."""
ADVICE = {
    "stop-token-never-trained": "look at --dry_run and trueline tokenizer lint, and raise max_length where rows are cut",
    "both-log-probs-fall": "lower learning_rate or the epochs, raise objective.beta, or train on the chosen responses first",
    "kl-in-reward": "give --objective.kl_estimator k1, or take a method with the KL as a loss (grpo)",
    "responses-never-end": "look at samples.jsonl, and see whether rows are cut or end without a stop token",
    "responses-empty": "see what the judge gives an empty response, and lower learning_rate",
    "rewards-all-equal": "try the judge on two responses by hand (--sample_steps 1 shows some), raise num_generations or "
    "temperature, or start from a better model",
    "responses-cut": "raise max_completion_length, or tune the model on responses that end first (trueline sft)",
    "kl-runs-away": "lower learning_rate or the steps per round, or raise objective.kl_coef",
    "policy-collapses": "lower learning_rate (by ten, to begin with)",
    "responses-lengthen": "read some (--sample_steps 1): if the judge likes length, raise objective.kl_coef or judge by another rule",
}
LINES = 3
"""Log lines in a row that must agree before a trend is one."""


class Watch:
    """Hands each warning to `warn` (which says it once)."""

    def __init__(self, warn: Callable[[str, str], None], before: Callable[[int], str] = lambda step: ""):
        """`before` names the newest checkpoint that is no later than a step."""
        self.warn, self.before = warn, before
        self.lines: deque[Mapping[str, float]] = deque(maxlen=LINES)
        self.rounds: list[Mapping[str, float]] = []
        """The first line with rewards of drawn responses, and the last ones."""

    def rows(self, rows: Sequence[Row], stop_ids: Sequence[int]) -> None:
        self._say("stop-token-never-trained", never_stops(rows, stop_ids))

    def metrics(self, line: Mapping[str, float], step: int = 0) -> None:
        self.lines.append(line)
        self._say("both-log-probs-fall", displaced(list(self.lines)))
        self._say("kl-in-reward", pushes(line))
        if "reward" in line:
            self.rounds = [*self.rounds[:1], *self.rounds[1:][1 - LINES :], {**line, "step": step}]
            (first, *last), newest = self.rounds, self.rounds[-LINES:]
            since = int(newest[0]["step"])
            self._say("rewards-all-equal", flat(newest))
            self._say("responses-cut", cut_off(newest))
            self._say("responses-empty", empty(newest), since)
            self._say("kl-runs-away", runs_away(newest), since)
            self._say("responses-lengthen", lengthened(first, last), since)
            self._say("policy-collapses", collapsed(first, last), since)

    def samples(self, samples: Sequence[Mapping[str, Any]], done: float) -> None:
        """`done`: share of the run that is over; a model at its beginning may well ramble."""
        if done >= 0.5:
            self._say("responses-never-end", endless(samples))

    def _say(self, name: str, text: str, since: int | None = None) -> None:
        if text:
            good = self.before(since) if since is not None else ""
            self.warn(name, f"{text}; {ADVICE[name]}{f'; {good}' if good else ''} (documentation: {PAGE}, {name})")


def never_stops(rows: Sequence[Row], stop_ids: Sequence[int]) -> str:
    """Whether not a single token that ends a response is trained on."""
    for row in rows:
        for ids_L, scored_L in zip(row.ids, row.scored, strict=True):
            if np.isin(ids_L[scored_L], stop_ids).any():
                return ""
    return "no row trains a token that stops sampling, so the model will not learn to end its responses"


def displaced(lines: Sequence[Mapping[str, float]]) -> str:
    """Whether the margin is won by making rejected responses unlikely faster than chosen ones. Rewards are measured from the
    reference, so a negative one means a response that has become less likely, whatever rows a line is about."""
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    if len(lines) < LINES or any(name not in line for line in lines for name in names):
        return ""
    falling = all(line["rewards/chosen"] < 0 and line["rewards/rejected"] < 0 < line["rewards/margins"] for line in lines)
    if all(_without_reference(line) for line in lines):  # they are negative from the start, and differ from batch to batch
        return ""
    deeper = lines[-1]["rewards/chosen"] < lines[0]["rewards/chosen"]
    wider = lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    if not (falling and deeper and wider):
        return ""
    return (
        f"the margin grows ({lines[-1]['rewards/margins']:.3g}) while chosen and rejected responses both become less likely "
        f"than under the reference (rewards {lines[-1]['rewards/chosen']:.3g} and {lines[-1]['rewards/rejected']:.3g})"
    )


def _without_reference(line: Mapping[str, float]) -> bool:
    """Whether the rewards of a pair loss are multiples of its log-probs (ORPO, SimPO), so that no reference is in them."""
    names = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    if any(name not in line for name in names):
        return False
    chosen, rejected, of_chosen, of_rejected = (line[name] for name in names)
    return bool(np.isclose(chosen * of_rejected, rejected * of_chosen, rtol=1e-4, atol=0.0))


def pushes(line: Mapping[str, float]) -> str:
    """Whether the KL that is taken from the rewards is one whose optimum is not near the reference."""
    found = [name[-2:] for name in ("objective/kl_k2", "objective/kl_k3") if name in line and "objective/rlhf_reward" in line]
    if not found:
        return ""
    return f"kl_estimator {found[0]} in the reward does not pull to the reference: what has become less likely is made less likely still"


def flat(lines: Sequence[Mapping[str, float]]) -> str:
    """Whether no prompt had two responses of different reward: there is nothing to learn from."""
    if len(lines) < LINES or any(line.get("frac_reward_zero_std", 0.0) < 1 for line in lines):
        return ""
    return f"all responses to a prompt have the same reward, for every prompt of {LINES} log lines (mean reward {lines[-1]['reward']:.3g})"


def empty(lines: Sequence[Mapping[str, float]]) -> str:
    """Whether most responses are nothing but their end token, which is one token of their length."""
    names = ("completions/mean_length", "completions/clipped_ratio")
    if len(lines) < LINES or any(name not in line for line in lines for name in names):
        return ""
    if any(line[names[0]] >= 1.5 or line[names[1]] >= 0.5 for line in lines):
        return ""
    return f"most of the drawn responses are empty: {lines[-1][names[0]]:.2g} tokens on average, the end token included"


def cut_off(lines: Sequence[Mapping[str, float]]) -> str:
    """Whether nearly all drawn responses ran into the limit of their length."""
    if len(lines) < LINES or any(line.get("completions/clipped_ratio", 0.0) < 0.95 for line in lines):
        return ""
    share = lines[-1]["completions/clipped_ratio"]
    return f"{share:.0%} of the drawn responses are cut at max_completion_length: what is judged has no end"


def runs_away(lines: Sequence[Mapping[str, float]]) -> str:
    """Whether the policy is more than a nat per token from its reference, and moves on."""
    names = ("objective/kl", "completions/mean_length")
    if len(lines) < LINES or any(name not in line for line in lines for name in names):
        return ""
    kls = [line["objective/kl"] for line in lines]
    far = all(line["objective/kl"] > line["completions/mean_length"] for line in lines)
    if not far or any(later <= earlier for earlier, later in pairwise(kls)):
        return ""
    return f"the policy leaves its reference: the KL is {kls[-1]:.3g} nats per response, more than 1 per token, and grows"


def lengthened(first: Mapping[str, float], last: Sequence[Mapping[str, float]]) -> str:
    """Whether responses are twice as long as at first while the reward rose: it may be length that is rewarded."""
    name = "completions/mean_length"
    if len(last) < LINES or any(name not in line for line in (first, *last)):
        return ""
    if any(line[name] < 2 * first[name] or line["reward"] <= first["reward"] for line in last):
        return ""
    return (
        f"responses have become {last[-1][name] / first[name]:.1f} times as long ({last[-1][name]:.0f} tokens) while the reward rose "
        f"from {first['reward']:.3g} to {last[-1]['reward']:.3g}"
    )


def collapsed(first: Mapping[str, float], last: Sequence[Mapping[str, float]]) -> str:
    """Whether the policy always says the same and earns no more by it than at first: a step was too large for it. One that is
    certain because it is right earns more."""
    name = "policy/entropy_avg"
    if len(last) < LINES or any(name not in line for line in (first, *last)):
        return ""
    if any(line[name] > 0.1 * first[name] or line["reward"] > first["reward"] for line in last):
        return ""
    return (
        f"the policy has collapsed: its entropy per token fell from {first[name]:.3g} to {last[-1][name]:.3g} nats, and the reward "
        f"did not rise ({first['reward']:.3g} at first, {last[-1]['reward']:.3g} now)"
    )


def endless(samples: Sequence[Mapping[str, Any]]) -> str:
    """Whether every drawn response was cut off by the limit of its length."""
    reasons = [sample.get("finish_reason") for sample in samples]
    if not reasons or any(reason != "length" for reason in reasons):
        return ""
    return f"none of the {len(reasons)} responses drawn on the way ended by itself: all ran into the limit of their length"


def many(number: int, noun: str) -> str:
    """ "1 step", "2 steps", "1,024 steps"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")


def step_facts(step: Sequence[Batch]) -> str:
    """What one optimizer step computes, counted in its batches."""
    rows = [row for batch in step for row in batch.rows]
    positions = sum(batch.layout.num_tokens for batch in step)
    needed = sum(tree_tokens(row) for row in rows)
    sequences = sum(len(row.ids) for row in rows)
    scored = sum(int(scored_L.sum()) for row in rows for scored_L in row.scored)
    tokens = sum(row.num_tokens for row in rows)
    shared = f" ({tokens - needed:,} of shared prompts computed once)" if tokens > needed else ""
    return (
        f"first step: {many(len(rows), 'row')}, {many(sequences, 'sequence')}, {many(len(step), 'microbatch')}, {tokens:,} tokens in "
        f"{positions:,} positions{shared}; padding {1 - needed / positions:.1%}, trained on {scored / tokens:.1%} of the tokens"
    )

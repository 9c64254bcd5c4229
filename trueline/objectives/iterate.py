"""Iterative preference learning: large rounds of the policy's own pairs, several steps on each, the reference fixed.

    for each round:  x ~ many prompts;  y_1 ... y_K ~ pi(.|x) as it is now;  y_w, y_l = the best and the worst of them by reward
                     several steps and passes of DPO's pair loss over the round's pairs, against pi_0

Xiong et al. (GSHF), 2312.11456, algorithm 2 in its practical form; Dong et al. (RLHF workflow), 2405.07863. Rounds are this
file's alone: with batches and epochs 1 it is online DPO.

The paper's second agent, the enhancer, is to say what the main policy is least sure about, no further from it than that allows:
    pi_2 = argmax ||E phi(x, pi') - E phi(x, pi_1)||_{Sigma^-1}   with   eta KL(pi' || pi_1) at most that norm, times a constant
A language model has no such features of its own. By default best against worst of K responses of one policy stands for it, as in the
authors' code: their distance in reward stands for what the comparison can teach. With `enhancer` a second player draws half of the
responses, and a pair has one of each: the model at the start (whose responses cover what the main policy has left), or the policy
at another temperature.

Responses are drawn once per round, so all steps but the first of a round learn from a policy that has moved since. beta 0.1,
label_smoothing 0.1, 2 epochs and K = 8 are those of the authors' code and report. Their script takes the newest model as the reference of
each round, their report the one at the start; ours stays at the start, so the pull back to it does not weaken.
Left out: the norm above (recipes/gshf.py has it, where features are known), multi-step rejection sampling, pairs kept from earlier
rounds. Pessimism, for rewards learned offline, is a reward's: `spread` in trueline.align.combination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import nn

from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.online_dpo import OnlineDPO
from trueline.objectives.pairs import pair_weights
from trueline.objectives.rounds import Rounds, Second, round_steps
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """Who the policy in training plays against, and which two responses make a pair."""

    enhancer: Literal["none", "reference", "policy"] = "none"
    """Who draws half of the responses, one of which is in every pair: the model at the start, or the policy itself, at another
    temperature. none: best and worst are among all that the policy draws."""
    enhancer_temperature: float = 0.0
    """Of its drawing; 0 takes that of the run."""
    margin: float = 0.0
    """A best and a worst response whose rewards differ by no more than this make no pair."""

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"margin is {self.margin}: it must be at least 0")
        if self.enhancer not in ("none", "reference", "policy"):
            raise ValueError(f"enhancer is {self.enhancer!r}: use none, reference or policy")
        if self.enhancer_temperature < 0 or (self.enhancer == "none" and self.enhancer_temperature):
            raise ValueError(
                f"enhancer_temperature is {self.enhancer_temperature} with enhancer {self.enhancer}: it must be at least 0, and without "
                "an enhancer nobody draws at it"
            )

    @property
    def second(self) -> Second | None:
        """As rounds say it."""
        return None if self.enhancer == "none" else Second(self.enhancer, self.enhancer_temperature)


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """Rounds of the policy's own best and worst responses, learned from by DPO's loss."""

    beta: float = 0.1
    """Strength of the pull to the reference: the beta of reward - beta KL."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Which loss of a pair; docs/methods/dpo.md."""
    label_smoothing: float = 0.1
    """Share of the judge's choices taken to be wrong, below 1/2."""
    batches: int = 16
    """Steps that the prompts of a round suffice for, once each: a round draws for this many times the prompts of a step."""
    epochs: int = 2
    """Passes over the pairs of a round."""
    exploration: Exploration = field(default_factory=Exploration)
    """The enhancer, and what makes a pair."""

    verb: ClassVar[str] = "iterate"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ("reference",)
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 5e-7, "warmup_ratio": 0.03, "num_generations": 8}
    citation: ClassVar[str] = (
        "Xiong et al. Iterative preference learning from human feedback: bridging theory and practice for RLHF under KL-constraint. "
        "https://arxiv.org/abs/2312.11456"
    )

    def __post_init__(self) -> None:
        _ = self.online  # it checks the fields of the loss
        if self.batches < 1 or self.epochs < 1:
            raise ValueError(f"batches is {self.batches}, epochs {self.epochs}: they must be at least 1")

    @property
    def online(self) -> OnlineDPO:
        """The loss, and what is logged."""
        return OnlineDPO(beta=self.beta, loss_type=self.loss_type, label_smoothing=self.label_smoothing)

    @property
    def rounds(self) -> Rounds:
        second = self.exploration.second
        return Rounds(
            select="main_vs_enhancer" if second else "best_vs_worst", options={"margin": self.exploration.margin}, responses=2,
            batches=self.batches, epochs=self.epochs, second=second,
        )  # fmt: skip

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return self.online.annotate(rows, crew)

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield from round_steps(rows, budget, pair_weights, self.rounds)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        one = self.online if self.exploration.second is None else self.online.dpo  # objective/kl is of the policy's own draws
        return one.loss(model, batch, crew)

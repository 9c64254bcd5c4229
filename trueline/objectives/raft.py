"""RAFT: supervised tuning on the best of several responses of its own, round after round.

    round t:  draw K = num_generations responses to each prompt by pi_(t-1), keep the one with the highest reward
    L = - sum_(t in kept) log pi(y_t | x, y_<t) / (number of kept tokens of the step)

Dong et al., 2304.06767, algorithm 1; "rejection-sampling fine-tuning" of Llama 2 (2307.09288) is the same with one round. Before it
learns anything a round's target is best-of-K of pi_(t-1), at most log K - (K - 1) / K nats away from it (`trueline.align.best_of_n`);
rounds add up, and nothing pulls back to the start. Equally good responses are chosen from by chance.
Simplified: all prompts' best ones are kept, where the paper may also rank prompts against one another; no KL term in the reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from trueline.objectives.base import Batch, Budget, Losses, cross_entropy, scored_tokens
from trueline.objectives.pairs import numbers_of
from trueline.objectives.rounds import Rounds, round_steps
from trueline.protocols import Crew
from trueline.records import Conversation, Row


@dataclass(frozen=True, kw_only=True)
class RAFT:
    """The best of several own responses, imitated."""

    num_mini_batches: int = 8
    """Optimizer steps that a round's kept responses are dealt out to."""
    num_iterations: int = 1
    """Passes over a round's kept responses."""

    verb: ClassVar[str] = "raft"
    record: ClassVar[type[Conversation]] = Conversation
    head: ClassVar[str] = "tokens"
    needs: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[dict[str, object]] = {"learning_rate": 2e-5, "warmup_ratio": 0.03, "num_generations": 8}
    citation: ClassVar[str] = (
        "Dong et al. RAFT: reward ranked finetuning for generative foundation model alignment. https://arxiv.org/abs/2304.06767"
    )

    def __post_init__(self) -> None:
        for name, value in (("num_mini_batches", self.num_mini_batches), ("num_iterations", self.num_iterations)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    @property
    def rounds(self) -> Rounds:
        """The best one of each prompt."""
        return Rounds(select="best_of_n", responses=1, batches=self.num_mini_batches, epochs=self.num_iterations)

    def annotate(self, rows: Sequence[Row], crew: Crew) -> Sequence[Row]:
        return rows

    def steps(self, rows: Sequence[Row], budget: Budget) -> Iterator[list[Batch]]:
        yield from round_steps(rows, budget, scored_tokens, self.rounds)

    def prepare(self, model: nn.Module, step: list[Batch]) -> list[Batch]:
        return step

    def loss(self, model: Any, batch: Batch, crew: Crew) -> Losses:
        losses = cross_entropy(model, batch)
        kept_S = numbers_of(batch.rows, "reward", batch.layout.ids_T.device)
        return losses._replace(metrics=losses.metrics | {"rewards/chosen": (kept_S.sum(), float(len(kept_S)))})

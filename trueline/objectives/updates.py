"""How a round's responses are learned from: passes, minibatches, and the policy's part of the loss of a microbatch.

    round --steps--> num_iterations passes x num_mini_batches optimizer steps --policy_losses--> policy [- entropy] [+ KL]

What differs between methods is in the rows (tokens["advantages"]) and in what the loss is averaged over (policy_gradient).
The round ends early once a step's policy/approxkl_avg exceeds target_kl: the step that found it is taken, the rest is not.
numbers["weight"] 0 keeps a response out of the loss.

Legend: N scored tokens of a microbatch, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueline.models.head import TokenScores
from trueline.models.value import scores_of
from trueline.objectives.base import Batch, Budget, Losses
from trueline.objectives.kl import Estimator, kl_terms
from trueline.objectives.pairs import numbers_of
from trueline.objectives.policy_gradient import Averaged, Level, clipped_loss, ratios, token_weights
from trueline.objectives.ptx import apart, mixed
from trueline.objectives.rounds import Rounds, round_steps, tokens_of
from trueline.records import Row

Measured = Mapping[str, tuple[float, float]] | None
"""What an optimizer step measured, name -> (sum, count); None where no step was taken."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How a round's responses are learned from."""

    num_iterations: int = 1
    """Passes over a round's responses (num_ppo_epochs)."""
    num_mini_batches: int = 1
    """Optimizer steps per pass. A round draws for so many times the prompts of a step."""
    epsilon: float = 0.2
    """Clip the ratio at 1 - epsilon and 1 + epsilon (cliprange)."""
    epsilon_high: float = 0.0
    """Clip at 1 + epsilon_high above, as DAPO does with 0.28; 0 takes epsilon."""
    entropy_coef: float = 0.0
    """Weight of the entropy of the predicted distributions, per token in nats; it costs the output head's products once more."""
    target_kl: float = 0.0
    """End a round early once the policy has moved this far (policy/approxkl_avg, nats per token); 0 never does."""

    def __post_init__(self) -> None:
        if self.num_iterations < 1 or self.num_mini_batches < 1:
            raise ValueError(
                f"num_iterations is {self.num_iterations} and num_mini_batches {self.num_mini_batches}: each must be at least 1"
            )
        if self.epsilon <= 0 or self.epsilon_high < 0 or self.target_kl < 0:
            raise ValueError(
                f"epsilon is {self.epsilon}, epsilon_high {self.epsilon_high}, target_kl {self.target_kl}: epsilon must be above 0, "
                "the others at least 0"
            )

    def rounds(self, *, fewest: int = 1, **options: Any) -> Rounds:
        """What a method with this update says of its rounds: all responses to a prompt are one row."""
        return Rounds(
            select="whole_group", options=options, fewest=fewest, batches=self.num_mini_batches, epochs=self.num_iterations
        )

    def steps(
        self, rows: Sequence[Row], budget: Budget, weights_of: Callable[[Sequence[Row]], Mapping[str, float]]
    ) -> Generator[list[Batch], Measured, None]:
        """The optimizer steps of a round; each is told what the step before it measured."""
        responses, windows = apart(rows)
        rounds = self.rounds()
        for number, step in enumerate(round_steps(responses, budget, weights_of, rounds)):
            measured = yield mixed(step, windows[number :: rounds.steps], budget)
            total, count = (measured or {}).get("policy/approxkl_avg", (0.0, 1.0))
            if self.target_kl and total / count > self.target_kl:
                return


class Averaging(NamedTuple):
    """What the policy's loss is averaged over, and whose ratio is clipped."""

    over: Averaged
    level: Level = "token"

    def weight(self, rows: Sequence[Row]) -> float:
        """W of some rows."""
        owners = [int(scored_L.sum()) for row in rows for scored_L in row.scored]
        sequence_of_N = torch.repeat_interleave(torch.tensor(owners))
        return float(token_weights(weights_of(rows), sequence_of_N, self.over)[1])


def weights_of(rows: Sequence[Row], device: torch.device | str = "cpu") -> Tensor:
    """The weight of every response [S]."""
    return numbers_of(rows, "weight", device, missing=1.0)


def policy_scores(model: Any, batch: Batch, update: Update) -> TokenScores:
    """Of a decoder, at the temperature that the rows were drawn at: the ratio starts at 1."""
    temperature = temperature_of(batch)
    if update.entropy_coef:
        hidden_ND = model(batch.layout, wanted_N=batch.layout.predicted_by_N)
        return scores_of(model, hidden_ND, batch.layout, temperature, True)
    return model.token_logps(batch.layout, temperature=temperature)


def temperature_of(batch: Batch) -> float:
    """At which the rows were drawn."""
    return float(batch.rows[0].numbers["temperature"][0])


def policy_losses(
    scores: TokenScores, batch: Batch, update: Update, averaging: Averaging, kl: tuple[float, Estimator] = (0.0, "k3")
) -> Losses:
    """The clipped surrogate, less the entropy bonus, plus `kl` = (coefficient, estimator) as a loss on the drawn tokens."""
    rows, layout, logps_N = batch.rows, batch.layout, scores.logps_N
    old_N, advantages_N = (tokens_of(rows, name, logps_N.device) for name in ("logps", "advantages"))
    ratio_N = ratios(logps_N, old_N, layout.sequence_of_N, layout.num_sequences, averaging.level)
    clipped = clipped_loss(ratio_N, advantages_N, update.epsilon, update.epsilon_high or update.epsilon)
    weights_S = weights_of(rows, logps_N.device)
    longest = float(rows[0].numbers["limit"][0]) if averaging.over == "constant" else 1.0
    weight_N, _ = token_weights(weights_S, layout.sequence_of_N, averaging.over, longest)
    terms = {"policy": (weight_N * clipped.loss_N).sum()}
    if update.entropy_coef:
        terms["entropy"] = -update.entropy_coef * (weight_N * scores.entropy_N).sum()
    metrics = {"loss/policy_avg": (terms["policy"].detach(), batch.weights["policy"])}
    if kl[0]:
        kl_N = kl_terms(logps_N, tokens_of(rows, "reference_logps", logps_N.device), kl[1])
        terms["kl"] = kl[0] * (weight_N * kl_N).sum()
        metrics[f"kl/{kl[1]}"] = ((weight_N * kl_N.detach()).sum(), batch.weights["policy"])
    count = float(len(logps_N))
    per_token = {
        "policy/approxkl_avg": (logps_N.detach() - old_N).square() / 2,
        "policy/clipfrac_avg": clipped.clipped_N.float(),
        "policy/entropy_avg": scores.entropy_N.detach(),
        "val/ratio": clipped.ratio_N,
    }
    return Losses(terms, metrics | {name: (values_N.sum(), count) for name, values_N in per_token.items()})


def policy_weights(rows: Sequence[Row], update: Update, averaging: Averaging, kl_coef: float = 0.0) -> dict[str, float]:
    """What each term of `policy_losses` is averaged over."""
    terms = ["policy", *(["entropy"] if update.entropy_coef else []), *(["kl"] if kl_coef else [])]
    return dict.fromkeys(terms, averaging.weight(rows))

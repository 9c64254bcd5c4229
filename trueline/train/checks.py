"""What is refused before any work is done: a device that is not there, rows that the model cannot read, rounds nobody can draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trueline.models.config import DecoderConfig
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.protocols import Rollouts
from trueline.records import RolloutConfig, Row
from trueline.tokens import Tokenizer
from trueline.train.rollout_feed import EVALUATIONS


def check_device(name: str) -> None:
    """Refuse a device that is not there before any work is done."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name.split(":")[0]):
        raise ValueError(
            f"device is {name!r}, and this machine has {', '.join(kind for kind, ok in there.items() if ok)}"
        )


def refuse_misfit(config: DecoderConfig, rows: Sequence[Row], tokenizer: Tokenizer | None = None, drawn: int = 0) -> None:
    """A foreign tokenizer, or rows that the model cannot read: foreign ids, or more tokens than it knows positions, with those
    that are `drawn` behind them."""
    if tokenizer is not None:
        config.refuse_tokenizer(tokenizer.vocab_size)
    largest = max(int(ids.max()) for row in rows for ids in row.ids)
    if largest >= config.vocab_size:
        raise ValueError(
            f"the rows hold token id {largest}, and the model's vocabulary ends at {config.vocab_size - 1}: "
            "use the model's own tokenizer"
        )
    longest = max(len(ids) for row in rows for ids in row.ids) + drawn
    if longest > config.max_length:
        raise ValueError(
            f"the longest sequence {'may have' if drawn else 'has'} {longest} tokens, and the model's context is {config.max_length}: "
            f"give max_length = {config.max_length}"
        )


def check_rounds(objective: Objective, drawing: RolloutConfig | None, rollouts: Rollouts | None, metric: str = "") -> None:
    """Refuse what cannot draw, and a metric that no evaluation of it gives."""
    if not isinstance(objective, OnPolicy):
        if rollouts is not None:
            raise ValueError(f"{objective.verb} trains on stored rows and draws none: leave out rollouts")
        return
    if rollouts is None:
        raise ValueError(
            f"{objective.verb} learns from its own responses: pass rollouts=Rollouts(Engine, judge=...) (trueline.align.rollouts)"
        )
    given = [f"eval_{name}" for name in EVALUATIONS]
    if metric and "eval_" + metric.removeprefix("eval_") not in given:
        raise ValueError(f"metric_for_best_model is {metric!r}, and an evaluation of {objective.verb} gives {', '.join(given)}")
    fewest = max(objective.rounds.responses, objective.rounds.fewest)
    if drawing is not None and drawing.num_generations < fewest:
        raise ValueError(f"num_generations is {drawing.num_generations}, and {objective.verb} needs at least {fewest} responses per prompt")

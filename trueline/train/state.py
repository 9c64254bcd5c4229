"""What changes while a run goes on, beside weights and optimizer: plain JSON, part of every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trueline.train.config import EvalConfig

Sums = Mapping[str, tuple[float, float]]
"""{metric: (sum, count)}."""


@dataclass
class TrainState:
    """Where a run is."""

    step: int = 0
    total_steps: int = 0
    warmup_steps: int = 0
    num_tokens: int = 0
    """Positions computed so far."""
    window: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sums and counts since the last log."""
    best_metric: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    last_eval: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False
    inside_round: bool = False
    """Whether it ended before the last step of a round: what was left of it is nowhere."""
    memory: dict[str, float] = field(default_factory=dict)
    """Crew.memory: what the objective remembers from round to round."""

    @property
    def ended(self) -> bool:
        return self.stopped_early or self.step >= self.total_steps

    def advance(self, sums: Sums, tokens: int) -> None:
        """One step is done."""
        self.step, self.num_tokens = self.step + 1, self.num_tokens + tokens
        self.note(sums)

    def note(self, sums: Sums) -> None:
        """Metrics for the next line."""
        for name, (total, count) in sums.items():
            before = self.window.get(name, (0.0, 0.0))
            self.window[name] = (before[0] + total, before[1] + count)

    def counts(self) -> dict[str, float]:
        """Over how many tokens, pairs or steps each of the next means is taken."""
        return {name: count for name, (_, count) in self.window.items() if count}

    def take_means(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: total / count for name, (total, count) in self.window.items() if count}
        self.window = {}
        return means

    def note_evaluation(self, metrics: Mapping[str, float], config: EvalConfig) -> bool:
        """Whether it is the best so far. Stops the run early after too many that are not."""
        best = self.best_metric
        name = "eval_" + config.metric_for_best_model.removeprefix("eval_")
        if name not in metrics:
            raise ValueError(f"metric_for_best_model is {name!r}, and an evaluation gives {', '.join(metrics)}")
        value = metrics[name]
        better = best is None or (value > best if config.maximize else value < best)
        self.last_eval = dict(metrics)
        if better:
            self.best_metric, self.best_step, self.evaluations_without_gain = value, self.step, 0
        else:
            self.evaluations_without_gain += 1
            self.stopped_early = 0 < config.early_stopping_patience <= self.evaluations_without_gain
        return better

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> TrainState:
        window = {name: (total, count) for name, (total, count) in fields["window"].items()}
        return TrainState(**{**fields, "window": window})

"""How a run is trained: frozen dataclasses whose field names are Hugging Face's where they mean the same.

    TrainConfig
      optim   OptimConfig    learning rate, AdamW, schedule, clipping
      save    SaveConfig     checkpoints
      evals   EvalConfig     evaluation, best checkpoint, early stopping, samples
      lora    AdapterConfig  adapters instead of all weights

Field names are unique over all five, so the command line and `override` take them flat:
`override(config, learning_rate=1e-4)`.
What a method needs (beta, ...) is a field of its objective, not of these.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.records import RolloutConfig

SCHEDULES = ("cosine", "linear", "constant")
MOST_ROWS = 1 << 20
"""Rows of one step: beyond it nobody means what was typed, and the step's rows would fill the memory."""


def refuse_outside(config: Any, least: float, *names: str, most: float = math.inf, below: float = math.inf) -> None:
    """Refuse fields outside [least, most] or [least, below); not-a-number and infinity are outside everything."""
    for name in names:
        value = getattr(config, name)
        if not (least <= value <= most and value < below and math.isfinite(value)):
            said = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")
            said += f" and below {below}" if below < math.inf else ""
            raise ValueError(f"{name} is {value}: it must be {said}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    learning_rate: float = 2e-5
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay; on matrices only, never on norms and biases."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this global norm; 0 switches clipping off."""
    lr_scheduler_type: str = "cosine"
    """Decay after the warm-up: "cosine", "linear" or "constant"."""
    warmup_ratio: float = 0.0
    """Share of the steps spent warming up linearly from 0; not used when warmup_steps is given."""
    warmup_steps: int = 0
    """Warm-up steps; 0 takes warmup_ratio."""
    min_lr_ratio: float = 0.0
    """The decay ends at this share of learning_rate."""

    def __post_init__(self) -> None:
        if self.lr_scheduler_type not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type is {self.lr_scheduler_type!r}: use one of {', '.join(SCHEDULES)}")
        refuse_outside(self, 0, "learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps")
        refuse_outside(self, 0, "warmup_ratio", "min_lr_ratio", most=1)
        refuse_outside(self, 0, "adam_beta1", "adam_beta2", below=1)


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """Checkpoints."""

    save_steps: int = 500
    """A checkpoint every so many steps; 0 saves none but the best one, on SIGTERM and Ctrl-C, and when a round fails."""
    save_total_limit: int = 2
    """Checkpoints kept (the best one comes on top); 0 keeps all."""
    load_best_model_at_end: bool = False
    """Finish with the weights of the best checkpoint instead of the last ones."""
    reference_cache: str = ""
    """Folder of reference log-probs of stored rows, shared by runs; empty: `.reference` beside the run's folder. Methods that draw
    their own responses keep none: each is scored once."""

    def __post_init__(self) -> None:
        refuse_outside(self, 0, "save_steps", "save_total_limit")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out rows."""

    eval_steps: int = 0
    """Evaluate every so many steps; 0 evaluates once, at the end."""
    eval_share: float = 0.0
    """Share of the prompts held out for evaluation when no eval_data is given; a prompt is never split."""
    metric_for_best_model: str = "eval_loss"
    """The metric by which the best checkpoint is known; "eval_" in front may be left out."""
    greater_is_better: bool | None = None
    """Whether more of it is better; None: less for names ending in "loss", more for all others."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations without a better metric; 0 never stops early."""
    sample_steps: int = 0
    """Print and keep a few drawn responses every so many steps; 0 draws none."""

    def __post_init__(self) -> None:
        refuse_outside(self, 0, "eval_steps", "early_stopping_patience", "sample_steps")
        refuse_outside(self, 0, "eval_share", below=1)

    @property
    def maximize(self) -> bool:
        """`greater_is_better`, resolved."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.metric_for_best_model.endswith("loss")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA: low-rank differences of frozen weights are trained (docs/methods/lora.md)."""

    lora_r: int = 0
    """Rank of the adapters; 0 trains all weights, or the adapter that the model comes with."""
    lora_alpha: float = 32.0
    """Scale of the adapters: their output is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout on what the adapters read."""
    lora_target_modules: tuple[str, ...] = ("all-linear",)
    """Layers that get one: names such as q_proj v_proj, one regular expression, or all-linear: all but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead."""

    def __post_init__(self) -> None:
        if self.lora_r < 0:
            raise ValueError(f"lora_r is {self.lora_r}: it must be at least 0")
        for item in dataclasses.fields(self):
            if not self.lora_r and getattr(self, item.name) != item.default:
                raise ValueError(f"{item.name} is {getattr(self, item.name)}, and lora_r is 0: give lora_r, such as 16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    save: SaveConfig = field(default_factory=SaveConfig)
    """Checkpoints."""
    evals: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    """Adapters."""
    max_steps: int = 0
    """Optimizer steps; 0 takes num_train_epochs."""
    num_train_epochs: float = 1.0
    """Passes over the rows; not used when max_steps is given."""
    per_device_train_batch_size: int = 8
    """Most rows per microbatch. Rows per step = this times gradient_accumulation_steps times the number of processes. A row is a
    prompt with its num_generations responses where the method draws them."""
    gradient_accumulation_steps: int = 1
    """Multiplies the rows per step; the gradient is that of one batch of all of them."""
    max_tokens_per_batch: int = 8192
    """Most positions per microbatch, a shared prompt counted once; a step is cut into as many microbatches as it takes."""
    max_length: int = 1024
    """Longest sequence in tokens; what is cut is counted and shown."""
    logging_steps: int = 10
    """Log every so many steps the mean since the last time."""
    seed: int = 0
    """Seeds the order of rows, dropout and noise."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); weights and optimizer stay in float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        refuse_outside(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps")
        refuse_outside(self, 1, "max_tokens_per_batch", "max_length")
        refuse_outside(self, 0, "max_steps", "num_train_epochs", "seed")
        if self.rows_per_step > MOST_ROWS:
            raise ValueError(
                f"per_device_train_batch_size x gradient_accumulation_steps is {self.rows_per_step:,} rows per step: "
                f"use at most {MOST_ROWS:,}"
            )
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError("give max_steps or num_train_epochs a value above 0")

    @property
    def rows_per_step(self) -> int:
        """Rows (prompts) of one process behind one optimizer step; the effective batch is this times the processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def total_steps(self, num_rows: int, ranks: int = 1) -> int:
        """Steps of the whole run over `num_rows` rows, by so many processes."""
        rows = self.rows_per_step * ranks
        return self.max_steps if self.max_steps > 0 else max(1, -(-self.row_limit(num_rows) // rows))

    def row_limit(self, num_rows: int) -> int:
        """Rows handed out in num_train_epochs passes."""
        return max(1, round(self.num_train_epochs * num_rows))


PLACEMENT = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("max_tokens_per_batch", "gradient_checkpointing", "device", "logging_steps", "sample_steps"),
    *(item.name for item in dataclasses.fields(SaveConfig)),
)
"""Fields that may differ when a run goes on: they say where and how long, not what."""


def identity(config: TrainConfig, ranks: int = 1) -> dict[str, Any]:
    """What must be equal for a run to go on: flat, the placement left out, the effective batch in."""
    without = PLACEMENT if config.lora.lora_r else (*PLACEMENT, *(item.name for item in dataclasses.fields(AdapterConfig)))
    flat = {name: value for name, value in flatten(config).items() if name not in without}
    return flat | {"rows_per_step": config.rows_per_step * ranks}


def check_evaluation(config: TrainConfig, held: bool) -> None:
    """Refuse options that would do nothing."""
    evals = config.evals
    needs_best = {
        "load_best_model_at_end": config.save.load_best_model_at_end,
        "early_stopping_patience": evals.early_stopping_patience,
    }
    for name, value in ({"eval_steps": evals.eval_steps} | needs_best).items():
        if value and not held:
            raise ValueError(f"{name} is {value}, and there is nothing to evaluate on: give eval_data or eval_share")
    for name, value in needs_best.items():
        if value and evals.eval_steps <= 0:
            raise ValueError(f"{name} is {value}, and evaluation happens at the end only: give eval_steps")


def flatten(config: TrainConfig) -> dict[str, Any]:
    """All fields under their flat names."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        nested = isinstance(value, OptimConfig | SaveConfig | EvalConfig | AdapterConfig)
        flat |= dataclasses.asdict(value) if nested else {item.name: value}
    return flat


def override(config: TrainConfig, **flat: Any) -> TrainConfig:
    """The config with some fields replaced, nested or not, by their flat names."""
    groups = ("optim", "save", "evals", "lora")
    homes = {item.name: group for group in groups for item in dataclasses.fields(getattr(config, group))}
    valid = [item.name for item in dataclasses.fields(config)] + list(homes)
    nested: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for name, value in flat.items():
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            raise ValueError(f"there is no training option {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        (nested.setdefault(homes[name], {}) if name in homes else top)[name] = value
    for group, values in nested.items():
        top[group] = dataclasses.replace(top.get(group, getattr(config, group)), **values)
    return dataclasses.replace(config, **top)


def settle(
    objective: Objective, config: TrainConfig | None, drawing: RolloutConfig | None, flat: Mapping[str, Any]
) -> tuple[TrainConfig, RolloutConfig | None]:
    """The options of a run: the objective's defaults over those of the classes where none are given, `flat` over both.

    The second is None where rows are stored.
    """
    names = [item.name for item in dataclasses.fields(RolloutConfig)] if isinstance(objective, OnPolicy) else []
    usual = dict(objective.defaults)
    if isinstance(objective, OnPolicy):
        usual = {"metric_for_best_model": "eval_reward", **usual}
    of_train, of_drawing = ({k: v for k, v in usual.items() if (k in names) is drawn} for drawn in (False, True))
    config = override(config or override(TrainConfig(), **of_train), **{k: v for k, v in flat.items() if k not in names})
    if not names:
        return config, None
    drawing = drawing or RolloutConfig(**of_drawing)
    return config, dataclasses.replace(drawing, **{k: v for k, v in flat.items() if k in names})

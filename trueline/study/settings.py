"""What is the same for every arm: the budget, and how policies are trained and measured.

Field names are Hugging Face's or TRL's where they mean the same. Left out: the arms.
"""

from __future__ import annotations

from dataclasses import dataclass

from trueline.train.config import refuse_outside

DEFAULT_UPDATES = 100
OWN_SEED = 2**20
"""No seed of a study: of what is to share nothing with its policies."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much every arm may train; one of the three."""

    updates: int = 0
    """Optimizer steps of each policy, all of per_device_train_batch_size prompts (100 when no budget is given)."""
    tokens: int = 0
    """Token positions that each arm may train on, those of the reward model it uses included."""
    minutes: float = 0.0
    """Minutes of this machine that each arm may take: its reward model, reference log-probs, sampling, scoring and training. A probe
    turns them into updates before anything is trained, and the updates are kept."""

    def __post_init__(self) -> None:
        refuse_outside(self, 0, "updates", "tokens", "minutes")
        given = [name for name in ("updates", "tokens", "minutes") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"--{' and --'.join(given)} are {len(given)} budgets: give one")

    def resolved(self) -> Budget:
        """Itself, or the default where nothing is given."""
        return self if self.updates or self.tokens or self.minutes else Budget(updates=DEFAULT_UPDATES)

    def __str__(self) -> str:
        return f"{self.updates:,} updates" if self.updates else f"{self.tokens:,} tokens" if self.tokens else f"{self.minutes:g} minutes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training and measuring, the same for every arm."""

    seeds: tuple[int, ...] = (0, 1)
    """Every setting is trained once with each; two or more give intervals that speak of the method, not of one run."""
    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    """Tried for every arm on the tuning prompts, with the first seed; the best goes to the report."""
    per_device_train_batch_size: int = 16
    """Prompts of one optimizer step."""
    max_length: int = 512
    """Longest prompt and response in tokens to train on; what is longer is cut and counted."""
    max_tokens_per_batch: int = 8192
    """Most positions per microbatch."""
    num_generations: int = 0
    """Responses per prompt of methods that learn from their own; 0: each method's own default."""
    checkpoints: int = 4
    """Policies of each run that are measured: the last, and so many less one on the way."""
    report_prompts: int = 100
    """Most prompts of the report part that are answered; 0 takes all of it."""
    tuning_prompts: int = 50
    """Most prompts of the tuning part that are answered; 0 takes all of it."""
    samples: int = 2
    """Answers of every policy to every prompt."""
    temperature: float = 1.0
    """Of the answers, and of what methods draw themselves; KL is between the policies at this temperature."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    lora_r: int = 0
    """Rank of adapters to train instead of all weights; 0 trains all."""
    bf16: bool = False
    """Train in bfloat16 (autocast)."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def __post_init__(self) -> None:
        refuse_outside(self, 1, "per_device_train_batch_size", "max_length", "checkpoints", "samples", "max_new_tokens")
        refuse_outside(self, 0, "report_prompts", "tuning_prompts", "lora_r", "num_generations")
        refuse_outside(self, 1e-3, "temperature")
        if 0 < self.report_prompts < 4:
            raise ValueError(f"--report_prompts is {self.report_prompts}: it must be at least 4, or 0 for all")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("--seeds needs different numbers of at least 0, such as 0 1")
        if OWN_SEED in self.seeds:
            raise ValueError(f"--seeds {OWN_SEED} is that of the reward model that judges: take another, such as 0 or 1")

    def saved_steps(self, steps: int) -> list[int]:
        """The steps whose policies are measured, the last one included."""
        every = max(1, steps // self.checkpoints)
        return [*list(range(every, steps, every))[: self.checkpoints - 1], steps]

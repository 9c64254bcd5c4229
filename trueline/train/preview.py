"""What a call to `train` would do, looked at before anything is done.

    print(plan(SFT(), "runs/base", "pairs.jsonl", learning_rate=1e-4))

Left out: the memory and the time it takes (forecast).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trueline.models.attention import tree_tokens
from trueline.models.files import read_config
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.records import RolloutConfig
from trueline.store import adapter_base, local_folder
from trueline.tokens import Tokenizer, preview
from trueline.tokens.preview import Segments
from trueline.train.api import Model, decoder_of, resolve
from trueline.train.checks import refuse_misfit
from trueline.train.config import TrainConfig, flatten
from trueline.train.data import Data
from trueline.train.optim import warmup_of
from trueline.train.ranks import of_environment


@dataclass(frozen=True)
class Plan:
    """What a call to `train` would do."""

    verb: str
    settings: dict[str, Any]
    """The resolved configuration, flat, the objective's fields included."""
    numbers: dict[str, int | float]
    """rows, eval_rows, rows_per_step, steps, warmup_steps, tokens, scored_tokens, positions_per_step, ..."""
    notes: tuple[str, ...]
    samples: tuple[list[Segments], ...]
    """The first rows, decoded: per sequence its stretches of (text, trained on)."""

    def __str__(self) -> str:
        lines = [*self.notes, *(f"{name} = {value}" for name, value in {**self.settings, **self.numbers}.items())]
        for number, row in enumerate(self.samples, 1):
            for sequence in row:
                lines.append(
                    f"sample {number}: " + "".join(f"[{text}]" if scored else text for text, scored in sequence)
                )
        return "\n".join(lines)


def plan(
    objective: Objective,
    model: str | Path | Model,
    rows: Data,
    *,
    tokenizer: Tokenizer | None = None,
    eval_rows: Data | None = None,
    config: TrainConfig | None = None,
    drawing: RolloutConfig | None = None,
    samples: int = 3,
    **overrides: Any,
) -> Plan:
    """What `train` would do with the same arguments. It loads no weights and writes nothing; of a hub id it fetches the config
    and the tokenizer, and says what `train` would fetch."""
    job = resolve(objective, model, rows, eval_rows, tokenizer, config, overrides, None, drawing)
    job = replace(job, ranks=of_environment())
    notes = job.notes
    if isinstance(model, str | Path):
        folder = local_folder(model, "config")
        refuse_misfit(read_config(folder)[0], (*job.rows, *job.held), job.tokenizer, job.drawn_tokens)
        for name in (str(model), adapter_base(folder)):
            if name and not Path(name).is_dir():
                notes += (f"the weights of {name} are on the hub: training fetches them, unless that was done before",)
    else:
        refuse_misfit(decoder_of(model).config, (*job.rows, *job.held), job.tokenizer, job.drawn_tokens)
    sizes = [tree_tokens(row) for row in job.rows]
    numbers: dict[str, int | float] = {
        "rows": len(job.rows),
        "eval_rows": len(job.held),
        "rows_per_step": job.rows_per_step,
        "steps": job.total_steps,
        "warmup_steps": warmup_of(job.config.optim, job.total_steps),
        "tokens": sum(row.num_tokens for row in job.rows),
        "scored_tokens": sum(int(scored.sum()) for row in job.rows for scored in row.scored),
        "positions": sum(sizes),
        "longest_row": max(sizes),
        "positions_per_step": round(sum(sizes) / len(sizes) * job.rows_per_step),
    }
    shown = tuple(preview(row, job.tokenizer) for row in job.rows[:samples]) if job.tokenizer is not None else ()
    settings = asdict(objective) | flatten(job.config)  # type: ignore[call-overload]
    if isinstance(objective, OnPolicy) and job.drawing is not None:
        settings |= asdict(job.drawing)
        numbers["responses_per_round"] = job.rows_per_round * job.drawing.num_generations
        numbers["steps_per_round"] = objective.rounds.steps
    return Plan(objective.verb, settings, numbers, notes, shown)

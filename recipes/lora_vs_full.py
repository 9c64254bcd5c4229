"""How much of full fine-tuning's gain does LoRA keep? Full training and ranks 4, 16, 64, each at three learning rates.

    python -m recipes.lora_vs_full --out out/lora --steps 300

Data: the quickstart's, functions and their summaries; the shipped base model; 8 rows per step; loss per token on held-out
packages. Every arm sees the same rows in the same order. LoRA: all linear layers, lora_alpha 32, no dropout.

Cost: about 3 minutes per arm and learning rate on one core, 12 of them. Prints a Markdown table: held-out loss per learning
rate, the share of full training's gain at each arm's best one, and trained parameters.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trueline.models.files import load_model
from trueline.objectives.base import Budget
from trueline.objectives.sft import SFT
from trueline.protocols import Crew
from trueline.quickstart.base_model import base_model_dir
from trueline.quickstart.harvest import harvest
from trueline.quickstart.scratch import grounded
from trueline.quickstart.splits import split
from trueline.quickstart.stages import MAX_LENGTH, conversations
from trueline.records import Conversation
from trueline.run import read_json
from trueline.tokens import load_tokenizer
from trueline.train import train
from trueline.train.data import encode
from trueline.train.evaluate import evaluate

ROWS_PER_STEP = 8
RATES = {0: (1e-4, 3e-4, 1e-3), 4: (1e-3, 3e-3, 1e-2), 16: (1e-3, 3e-3, 1e-2), 64: (3e-4, 1e-3, 3e-3)}
"""Rank (0 is full training) -> learning rates."""


def run(out: Path, steps: int, tests: int, rates: dict[int, tuple[float, ...]] = RATES) -> str:
    """Train every arm at every rate and return the table."""
    parts = split(harvest(out / "harvest").functions)
    tokenizer = load_tokenizer(base_model_dir())
    order = np.random.default_rng([0, 1]).permutation(len(grounded(parts.train)))[: steps * ROWS_PER_STEP]
    rows = conversations([grounded(parts.train)[i] for i in order], tokenizer)
    chosen = np.random.default_rng(0).permutation(len(parts.test))[:tests]
    held = conversations([parts.test[i] for i in chosen], tokenizer)
    encoded = encode(held, SFT(), tokenizer, MAX_LENGTH).rows
    whole = Budget(rows=64, tokens=8192)
    start = evaluate(SFT(), load_model(base_model_dir()), encoded, Crew(), False, whole)[0]["eval_loss"]
    found = {
        rank: [loss_of(out / f"r{rank}-{rate:g}", rows, held, steps=steps, rate=rate, rank=rank) for rate in some]
        for rank, some in rates.items()
    }
    lines = ["| arm | learning rates | held-out loss at each | share of full training's gain |", "|---|---|---|---|"]
    for rank, losses in found.items():
        share = (start - min(losses)) / (start - min(found[0]))
        name, tried = f"LoRA r = {rank}" if rank else "full", ", ".join(f"{rate:g}" for rate in rates[rank])
        lines.append(f"| {name} | {tried} | {', '.join(f'{loss:.4f}' for loss in losses)} | {share:.1%} |")
    return "\n".join([*lines, f"\nbefore training: {start:.4f}; {steps} steps of {ROWS_PER_STEP} rows, {len(held)} held-out rows"])


def loss_of(
    out: Path, rows: list[Conversation], held: list[Conversation], *, steps: int, rate: float, rank: int
) -> float:
    """Held-out loss per token after training."""
    folder = train(
        SFT(), base_model_dir(), rows, out=out, eval_rows=held, tokenizer=load_tokenizer(base_model_dir()),
        max_steps=steps, per_device_train_batch_size=ROWS_PER_STEP, max_length=MAX_LENGTH, learning_rate=rate,
        lr_scheduler_type="linear", warmup_ratio=0.05, save_steps=0, lora_r=rank,
    )  # fmt: skip
    return float(read_json(folder / "finished.json")["eval_loss"])


def rehearse(folder: Path) -> None:
    """Two steps of full training and of one rank."""
    assert "| LoRA r = 4 | 0.001 |" in run(folder, steps=2, tests=8, rates={0: (3e-4,), 4: (1e-3,)})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder; the same command resumes")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tests", type=int, default=400, help="held-out functions")
    args = parser.parse_args()
    print(run(args.out, args.steps, args.tests))


if __name__ == "__main__":
    main()

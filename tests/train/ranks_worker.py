"""What each process of a run of several does in test_ranks: the gradient of one step of every method, then whole runs.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... python ranks_worker.py FILES OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trueline.models.files import load_model, load_scalar_model
from trueline.models.scorer import PolicyScorer
from trueline.objectives import discover
from trueline.objectives.base import Budget
from trueline.protocols import Crew
from trueline.train import TrainConfig, override, train
from trueline.train.api import resolve
from trueline.train.ranks import Ranks, joined, of_environment
from trueline.train.step import backward, clip

DATA = {"pretrain": "text", "sft": "chat", "reward": "pairs", "dpo": "pairs"}
FIFTY: dict[str, Any] = {
    "max_steps": 50, "save_steps": 20, "logging_steps": 1, "eval_steps": 25, "eval_share": 0.2, "learning_rate": 1e-3,
    "max_length": 64,
}  # fmt: skip


def gradient(verb: str, files: Path, out: Path, rows: int, ranks: Ranks) -> None:
    """One step of eight rows, cut into microbatches of `rows`: its gradient, norm and loss into OUT/VERB-RANK.safetensors."""
    objective = discover()[verb]()
    config = override(TrainConfig(), max_length=64)
    job = resolve(objective, files / "model", files / f"{DATA[verb]}.jsonl", None, None, config, {}, None)
    scalar = objective.head == "scalar"
    model: Any = load_scalar_model(files / "model", pad_token_id=0, seed=0) if scalar else load_model(files / "model")
    chosen = objective.annotate(job.rows[:8], Crew() if scalar else Crew(reference=PolicyScorer(model)))
    (step,) = objective.steps(chosen, Budget(rows=rows, tokens=8192))
    sums = backward(objective, model, step, Crew(), False, ranks)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    about = {"loss": sums["loss"][0], "count": sums["loss"][1], "norm": clip(model, 1.0)}
    found |= {name: next(iter(found.values())).new_tensor([value]) for name, value in about.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(found, out / f"{verb}-{ranks.rank}.safetensors")


def runs(files: Path, out: Path, batch: int) -> None:
    """Fifty steps of every method, and a pass over nine rows whose last step has but one."""
    for verb, data in DATA.items():
        train(discover()[verb](), files / "model", files / f"{data}.jsonl", out=out / verb,
              per_device_train_batch_size=batch, **FIFTY)  # fmt: skip
    train(discover()["pretrain"](), files / "model", files / "nine.jsonl", out=out / "nine", max_length=64,
          logging_steps=1, learning_rate=1e-3, per_device_train_batch_size=batch)  # fmt: skip


if __name__ == "__main__":
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    here = of_environment()
    with joined(here, "cpu"):
        for method in DATA:
            gradient(method, folder, target, 8 // here.world, here)
        runs(folder, target, 8 // here.world)

"""What each process of a run of several does in test_ranks: the gradient of one step of every method, then whole runs.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... python ranks_worker.py methods|adapters|drawing FILES OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trueline.align.judges import RuleJudge
from trueline.align.rollouts import Rollouts
from trueline.models.adapters import attach
from trueline.models.files import load_model, load_scalar_model
from trueline.models.lora import LoRAConfig
from trueline.models.scorer import PolicyScorer
from trueline.objectives import discover
from trueline.objectives.base import Budget
from trueline.protocols import Crew
from trueline.serve.engine import Engine
from trueline.train import TrainConfig, override, train
from trueline.train.api import resolve
from trueline.train.ranks import Ranks, joined, of_environment
from trueline.train.step import backward, clip

DATA = {"pretrain": "text", "sft": "chat", "reward": "pairs", "dpo": "pairs"}
NOISE = {"neftune_noise_alpha": 5.0}
ADAPTED: dict[str, tuple[str, float, dict[str, float]]] = {
    "sft-lora": ("sft", 0.0, {}), "reward-lora": ("reward", 0.0, {}), "dpo-lora": ("dpo", 0.0, {}), "sft-noise": ("sft", 0.3, NOISE),
}  # fmt: skip
"""Name -> verb, lora_dropout and the objective's fields."""
FIFTY: dict[str, Any] = {
    "max_steps": 50, "save_steps": 20, "logging_steps": 1, "eval_steps": 25, "eval_share": 0.2, "learning_rate": 1e-3,
    "max_length": 64,
}  # fmt: skip


def gradient(name: str, files: Path, out: Path, rows: int, ranks: Ranks) -> None:
    """One step of eight rows, cut into microbatches of `rows`: its gradient, norm and loss into OUT/NAME-RANK.safetensors."""
    verb, dropout, fields = ADAPTED.get(name, (name, 0.0, {}))
    objective = discover()[verb](**fields)
    config = override(TrainConfig(), max_length=64)
    job = resolve(objective, files / "model", files / f"{DATA[verb]}.jsonl", None, None, config, {}, None)
    scalar = objective.head == "scalar"
    model: Any = load_scalar_model(files / "model", pad_token_id=0, seed=0) if scalar else load_model(files / "model")
    chosen = objective.annotate(job.rows[:8], Crew() if scalar else Crew(reference=PolicyScorer(model)))
    if name in ADAPTED:
        attach(model, LoRAConfig(r=4, lora_dropout=dropout, modules_to_save=("score",) if scalar else ()))
        for place, parameter in model.named_parameters():
            if ".lora_B." in place:  # an adapter starts as no difference: A would have no gradient
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(place)))
    (step,) = objective.steps(chosen, Budget(rows=rows, tokens=8192))
    sums = backward(objective, model.train(), step, Crew(), False, ranks, (5, 1))
    found = {place: p.grad.clone() for place, p in model.named_parameters() if p.grad is not None}
    about = {"loss": sums["loss"][0], "count": sums["loss"][1], "norm": clip(model, 1.0)}
    found |= {what: next(iter(found.values())).new_tensor([value]) for what, value in about.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(found, out / f"{name}-{ranks.rank}.safetensors")


def runs(files: Path, out: Path, batch: int) -> None:
    """Fifty steps of every method, and a pass over nine rows whose last step has but one."""
    for verb, data in DATA.items():
        train(discover()[verb](), files / "model", files / f"{data}.jsonl", out=out / verb,
              per_device_train_batch_size=batch, **FIFTY)  # fmt: skip
    train(discover()["pretrain"](), files / "model", files / "nine.jsonl", out=out / "nine", max_length=64,
          logging_steps=1, learning_rate=1e-3, per_device_train_batch_size=batch)  # fmt: skip


def adapted_runs(files: Path, out: Path, batch: int, noisy_batch: int) -> None:
    """Fifty steps of eight rows each; `noisy_batch` rows in a microbatch where noise is drawn, which is a microbatch's own."""
    world = of_environment().world
    for name, (verb, dropout, fields) in ADAPTED.items():
        rows = noisy_batch if fields else batch
        train(discover()[verb](**fields), files / "model", files / f"{DATA[verb]}.jsonl", out=out / name, lora_r=4,
              lora_dropout=dropout, per_device_train_batch_size=rows, gradient_accumulation_steps=8 // (rows * world), **FIFTY)  # fmt: skip


def drawing(files: Path, out: Path, batch: int) -> None:
    """Five rounds of eight prompts whose responses the policy draws."""
    rule = RuleJudge(lambda prompt, response: -float(len(response[0].content)), "short")
    train(discover()["online-dpo"](), files / "model", files / "pairs.jsonl", out=out / "drawing", max_steps=5, logging_steps=1,
          learning_rate=1e-3, max_length=64, max_completion_length=8, num_generations=3, eval_share=0.2, save_steps=0, sample_steps=2,
          per_device_train_batch_size=batch, rollouts=Rollouts(Engine, judge=rule))  # fmt: skip


if __name__ == "__main__":
    what, folder, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    here = of_environment()
    share = 8 // here.world
    with joined(here, "cpu"):
        for one in {"methods": DATA, "adapters": ADAPTED}.get(what, {}):
            gradient(one, folder, target, share, here)
        if what == "drawing":
            drawing(folder, target, share)
        elif what == "methods":
            runs(folder, target, share)
        else:
            adapted_runs(folder, target, share, share)

"""AdamW over named parameters, and the learning rate as a pure function of the step.

Left out: optimizers that project or quantise their state (they will stand beside `adamw` with the same signature).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from trueline.train.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); decay on matrices only. Fused where the device has the kernel."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in trained)
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=fused)


def warmup_of(config: OptimConfig, total_steps: int) -> int:
    """Warm-up in steps, resolved."""
    return config.warmup_steps if config.warmup_steps > 0 else math.ceil(config.warmup_ratio * total_steps)


def learning_rate(config: OptimConfig, step: int, warmup_steps: int, total_steps: int) -> float:
    """Rate of the step numbered from 0: linear warm-up, then cosine, linear or constant down to min_lr_ratio."""
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.lr_scheduler_type == "cosine" else 1 - done
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state under parameter names: "exp_avg/model.layers.0...", ready for safetensors."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Back from `optimizer_tensors`, each tensor on its parameter's device."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        key, name = full.split("/", 1)
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)

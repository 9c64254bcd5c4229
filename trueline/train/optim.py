"""AdamW over named parameters, and the learning rate as a pure function of the step.

`AdamW` drives the same fused kernel as torch.optim.AdamW and ends at the same bits. It exists because building
torch's optimizer imports torch's compiler, two seconds that every command would wait for.

Left out: optimizers that project or quantise their state (they will stand beside `adamw` with the same signature).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trueline.train.config import OptimConfig


class Optimizer(Protocol):
    """What the loop and the checkpoints need of an optimizer; torch's own fit too."""

    param_groups: list[dict[str, Any]]
    """Each with "params", "lr" and settings of its own; the loop sets "lr" before every step."""
    state: Any
    """Parameter -> name -> tensor: what a checkpoint keeps."""

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 1711.05101, algorithm 2), in float32 on the parameter's device."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        """`groups` hold "params" and "weight_decay"."""
        self.param_groups = [{"lr": lr, "betas": betas, "eps": eps, **group} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """One step for every parameter that has a gradient."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for p in trained:
                if not self.state[p]:
                    zero = torch.zeros((), device=p.device)
                    self.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            for device in {p.device for p in trained}:
                here = [p for p in trained if p.device == device]
                first, second, steps = ([self.state[p][name] for p in here] for name in ("exp_avg", "exp_avg_sq", "step"))
                torch._foreach_add_(steps, 1)
                torch._fused_adamw_(
                    here, [p.grad for p in here], first, second, [], steps, amsgrad=False, maximize=False, lr=group["lr"],
                    beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
                )  # fmt: skip
                torch.autograd.graph.increment_version(here)  # the fused step does not; whoever keeps what weights gave looks at it

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients (or fill them with 0)."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.zero_()


def adamw(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW of the configuration; decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon)


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


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under parameter names: "exp_avg/model.layers.0...", ready for safetensors."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Back from `optimizer_tensors`, each tensor on its parameter's device."""
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        key, name = full.split("/", 1)
        optimizer.state[parameters[name]][key] = value.to(parameters[name].device)

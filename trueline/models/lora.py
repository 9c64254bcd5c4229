"""LoRA: a frozen linear layer learns a low-rank difference, W x + s B A x. Hu et al., 2106.09685, section 4.1.

    LoRAConfig    rank, scale, dropout, and which layers
    LoRALinear    a frozen layer with the differences of any number of adapters
    HeadCopies    a frozen head with a copy per adapter that is trained whole (`modules_to_save`)

s = alpha / r, or alpha / sqrt(r) with `use_rslora` (Kalajdzievski, 2312.03732). A ~ U(-1/sqrt(I), 1/sqrt(I)), B = 0, as PEFT
draws them: an adapter starts as no difference. A and B stay in float32 over a base of lower precision.

Left out: adapters of embeddings, other forms of low rank (DoRA, LoRA+).

Legend: T tokens, I width into a layer, O width out of it, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, linear

ALL_LINEAR = "all-linear"
HEADS = ("lm_head", "score")
"""Layers that "all-linear" leaves out."""
TOKEN = re.compile(
    r"(?P<one>\\[.\-_dDwW]|\[\^?[\w.\-]+\]|[\w.\-])(?P<often>(?:[*+?]|\{\d?\d(?:,\d?\d?)?\})\??)?|(?P<sign>\((?:\?:)?|[)|^$])"
)
"""What a pattern for names may be made of: one character and how often it stands, or a group, which stands once."""
NAME_LENGTH = 64
"""Characters of a layer's name, about: as many ends has a stretch of any length."""
MOST_WAYS = 8 * NAME_LENGTH**3
"""Beyond it the patterns of one adapter could keep the search busy for minutes, or for ever."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """One adapter. Names and defaults are PEFT's, but for `target_modules`."""

    r: int = 8
    """Rank of the difference."""
    lora_alpha: float = 8
    """Scale: the difference is multiplied by lora_alpha / r."""
    lora_dropout: float = 0.0
    """Dropout on what A reads, while training."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Names of layers (or ends of names), one regular expression for whole names, or "all-linear": all but the head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead: a large rank is not shrunk."""
    modules_to_save: tuple[str, ...] = ()
    """("score",) trains a reward model's head whole, beside the adapter."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Other ranks by the end of a layer's name, a regular expression."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Other lora_alpha, likewise."""

    def __post_init__(self) -> None:
        ranks, alphas = [self.r, *self.rank_pattern.values()], [self.lora_alpha, *self.alpha_pattern.values()]
        if min(ranks) < 1 or min(alphas) <= 0:
            raise ValueError(
                f"LoRA has r = {min(ranks)} and lora_alpha = {min(alphas)}: r is at least 1, alpha above 0"
            )
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}: it must be at least 0 and below 1")
        if set(self.modules_to_save) - {"score"}:
            raise ValueError(f"modules_to_save is {', '.join(self.modules_to_save)}: only score can be trained whole")
        patterns = [*self.rank_pattern, *self.alpha_pattern]
        tried = {pattern: ways(pattern) for pattern in patterns}
        if sum(tried.values()) > MOST_WAYS:
            slowest = max(tried, key=tried.__getitem__)
            raise ValueError(
                f"the LoRA pattern {slowest[:80]!r} may take for ever to search: write the ends of layers' names, with dots, "
                "classes and groups of alternatives, at most three of * + and none of them behind a group; no look-arounds, no \\b"
            )
        for pattern in [*patterns, *self._regex()]:
            try:
                re.compile(pattern)
            except (re.error, RecursionError) as error:
                raise ValueError(f"the LoRA pattern {pattern[:80]!r} is no regular expression: {error}") from None

    def _regex(self) -> tuple[str, ...]:
        return (self.target_modules,) if isinstance(self.target_modules, str) else ()

    def rank_and_scale(self, name: str) -> tuple[int, float]:
        """Of the layer with this stored name ("model.layers.0.mlp.up_proj")."""
        rank, alpha = _by_end(self.rank_pattern, name, self.r), _by_end(self.alpha_pattern, name, self.lora_alpha)
        return int(rank), alpha / (rank**0.5 if self.use_rslora else rank)

    def targets(self, name: str) -> bool:
        """Whether the linear layer with this stored name gets a difference."""
        if self.target_modules == ALL_LINEAR:
            return name not in HEADS
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, name) is not None
        return any(ends(name, target) for target in self.target_modules)


def _by_end(patterns: Mapping[str, float], name: str, otherwise: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def ways(pattern: str) -> float:
    """In how many ways a search may try to fit a pattern into a name, at most; infinity for signs that are not counted.

    Python's search goes back on every choice: alternatives add up, and what follows one another multiplies.
    """
    groups, place = [[0.0, 1.0]], 0  # of each open group: ways of its earlier alternatives, ways of the current one
    while place < len(pattern):
        token = TOKEN.match(pattern, place)
        if token is None:
            return math.inf
        often, sign, place = token["often"] or "{1}", token["sign"] or "", token.end()
        if token["one"] and not re.fullmatch(r"\{\d+\}\??", often):
            groups[-1][1] *= 2 if often[0] == "?" else NAME_LENGTH
        if sign.startswith("("):
            groups.append([0.0, 1.0])
        elif sign == "|":
            groups[-1] = [sum(groups[-1]), 1.0]
        elif sign == ")" and len(groups) > 1:
            inside = sum(groups.pop())
            groups[-1][1] *= inside
    return sum(map(sum, groups))


def ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


class LoRALinear(nn.Module):
    """A frozen linear layer and the differences of any number of adapters; the active ones are added up."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scales: dict[str, float] = {}
        self.configs: dict[str, LoRAConfig] = {}
        self.active: tuple[str, ...] = ()

    def add(self, name: str, config: LoRAConfig, rank: int, scale: float, generator: torch.Generator) -> None:
        """A new difference, 0 until it is trained."""
        weight_OI = self.base.weight
        dtype = weight_OI.dtype if weight_OI.dtype in (torch.float32, torch.float64) else torch.float32
        a_RI = torch.empty(rank, weight_OI.shape[1]).uniform_(-1, 1, generator=generator) * weight_OI.shape[1] ** -0.5
        self.lora_A[name] = nn.Parameter(a_RI.to(weight_OI.device, dtype))
        self.lora_B[name] = nn.Parameter(a_RI.new_zeros(weight_OI.shape[0], rank).to(weight_OI.device, dtype))
        self.scales[name], self.configs[name] = scale, config

    def difference(self, dtype: torch.dtype = torch.float32, device: str | torch.device | None = None) -> Tensor:
        """Sum of s B A over the active adapters, [O, I]; computed where the layer is, or on `device`."""
        device = device or self.base.weight.device
        pairs = [(self.lora_B[n].to(device).to(dtype), self.lora_A[n].to(device).to(dtype)) for n in self.active]
        parts = [(b_OR @ a_RI) * self.scales[n] for n, (b_OR, a_RI) in zip(self.active, pairs, strict=True)]
        return torch.stack(parts).sum(0) if parts else torch.zeros(self.base.weight.shape, dtype=dtype, device=device)

    @property
    def weight(self) -> Tensor:
        """W + s B A [O, I], with gradient: what an output head is read as."""
        return (self.base.weight.float() + self.difference()).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        names = self.active
        if len(names) == 1:
            p = self.configs[names[0]].lora_dropout if self.training else 0.0
            x_TI = x.reshape(-1, x.shape[-1])
            dropped_TI = dropout(x_TI, p) if p else None
            matrices = self.base.weight, self.base.bias, self.lora_A[names[0]], self.lora_B[names[0]]
            return _Adapted.apply(x_TI, dropped_TI, *matrices, self.scales[names[0]]).view(*x.shape[:-1], -1)
        out = self.base(x)
        for name in names:
            p, a_RI = self.configs[name].lora_dropout, self.lora_A[name]
            low = linear(dropout(x.to(a_RI.dtype), p, self.training), a_RI)
            out = (out + linear(low, self.lora_B[name]) * self.scales[name]).to(out.dtype)
        return out


class _Adapted(torch.autograd.Function):
    """x W' + bias + s (d A') B', d = x or x after dropout. Keeps x, d and d A'; no gradient of a frozen W is computed."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, dropped_TI: Tensor | None, weight_OI: Tensor, bias_O: Tensor | None,
        a_RI: Tensor, b_OR: Tensor, scale: float,
    ) -> Tensor:  # fmt: skip
        kind = x_TI.device.type
        ctx.autocast, ctx.scale = torch.is_autocast_enabled(kind), scale
        ctx.low = torch.get_autocast_dtype(kind) if ctx.autocast else a_RI.dtype
        out_TO = linear(x_TI, weight_OI, bias_O)
        d_TI = x_TI if dropped_TI is None else dropped_TI
        with torch.autocast(kind, enabled=False):
            low_TR = d_TI.to(ctx.low) @ a_RI.to(ctx.low).T
            if out_TO.dtype == ctx.low:
                out_TO.addmm_(low_TR, b_OR.to(ctx.low).T, alpha=scale)
            else:  # a base of lower precision: added in the adapter's, rounded once
                out_TO = torch.addmm(out_TO.to(ctx.low), low_TR, b_OR.T, alpha=scale).to(out_TO.dtype)
        ctx.save_for_backward(x_TI, dropped_TI, weight_OI, a_RI, b_OR, low_TR)
        return out_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, dropped_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        need, low = ctx.needs_input_grad, ctx.low
        d_TI = x_TI if dropped_TI is None else dropped_TI
        slope_TO = grad_TO.to(low)
        slope_TR = (slope_TO @ b_OR.to(low)).mul_(ctx.scale)
        grad_x = grad_d = None
        if need[0]:
            grad_x = grad_TO @ weight_OI.to(grad_TO.dtype)
            if dropped_TI is None and grad_x.dtype == low:
                grad_x.addmm_(slope_TR, a_RI.to(low))
            elif dropped_TI is None:
                grad_x = (grad_x.to(low) + slope_TR @ a_RI.to(low)).to(grad_x.dtype)
            grad_x = grad_x.to(x_TI.dtype)
        if need[1]:
            grad_d = (slope_TR @ a_RI.to(low)).to(d_TI.dtype)
        grad_weight = (grad_TO.T @ x_TI.to(grad_TO.dtype)).to(weight_OI.dtype) if need[2] else None
        grad_bias = grad_TO.sum(0) if need[3] else None
        grad_a = (slope_TR.T @ d_TI.to(low)).to(a_RI.dtype) if need[4] else None
        grad_b = (slope_TO.T @ low_TR).mul_(ctx.scale).to(b_OR.dtype) if need[5] else None
        return grad_x, grad_d, grad_weight, grad_bias, grad_a, grad_b, None


class HeadCopies(nn.Module):
    """A frozen head and one trained copy per adapter; the active adapter's is computed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.copies = nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    def add(self, name: str) -> None:
        """A copy that starts where the head is."""
        copy = nn.Linear(self.base.in_features, self.base.out_features, bias=False)
        self.copies[name] = copy.to(self.base.weight)
        copy.weight.data.copy_(self.base.weight.data)

    @property
    def used(self) -> nn.Linear:
        """The copy of the last active adapter that has one, or the head."""
        names = [name for name in self.active if name in self.copies]
        head = self.copies[names[-1]] if names else self.base
        assert isinstance(head, nn.Linear)
        return head

    @property
    def weight(self) -> Tensor:
        return self.used.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)

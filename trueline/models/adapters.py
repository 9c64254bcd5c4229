"""Adapters on a model: LoRA on any of its linear layers, several on one base, merged and unmerged.

    attach(model, LoRAConfig(r=16))      wraps linear layers, freezes everything else; nothing is different yet
    set_adapter(model, "name")           which of several adapters on one base is computed and trained
    with without_adapters(model): ...    the base itself: the very same modules, nothing is copied
    merge(model) -> Merged               plain layers of W + s B A, with the difference; unmerge(model, merged) undoes it

Layers are named as files name them ("model.layers.0.self_attn.q_proj"), so PEFT's patterns fit.
Left out: what a wrapped layer computes (lora), files (adapter_files).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.files import fingerprint, hf_name
from trueline.models.lora import HeadCopies, LoRAConfig, LoRALinear, ends

Adaptable = Decoder | ScalarModel
Wrapper = LoRALinear | HeadCopies


def wrappers(model: nn.Module) -> dict[str, Wrapper]:
    """What is wrapped, by the name of its place."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Wrapper)}


def adapters_of(model: nn.Module) -> dict[str, LoRAConfig]:
    """The adapters on a model, by name."""
    found: dict[str, LoRAConfig] = {}
    for wrapper in wrappers(model).values():
        found |= wrapper.configs if isinstance(wrapper, LoRALinear) else {}
    return found


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that are computed."""
    return tuple(dict.fromkeys(name for wrapper in wrappers(model).values() for name in wrapper.active))


def linears(model: Adaptable) -> dict[str, str]:
    """Stored name -> name in the model, of every linear layer, wrapped or not."""
    family = (model.decoder if isinstance(model, ScalarModel) else model).config.model_type
    inside = tuple(f"{name}." for name in wrappers(model))
    found = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear | Wrapper) and not n.startswith(inside or "\0")
    ]
    return {hf_name(f"{name}.weight", family).removesuffix(".weight"): name for name in found}


def attach(model: Adaptable, config: LoRAConfig, name: str = "default", *, seed: int = 0) -> tuple[str, ...]:
    """Add an adapter and make it the active one; everything but it is frozen. The stored names of its layers.

    A ValueError names what of `target_modules` is no linear layer of this model.
    """
    layers = linears(model)
    chosen = [layer for layer in layers if config.targets(layer) and layer not in config.modules_to_save]
    wanted = config.target_modules if isinstance(config.target_modules, tuple) else ()
    lost = [target for target in wanted if not any(ends(layer, target) for layer in chosen)]
    if lost or not chosen:
        short = sorted({layer.split(".")[-1] for layer in layers} - {"score"})
        raise ValueError(
            f"target_modules names {', '.join(lost) or config.target_modules}, and the model has no such linear layer: "
            f"use all-linear, or some of {', '.join(short)}"
        )
    refuse_head_dropout(config, chosen)
    add(model, config, chosen, name, seed)
    return tuple(chosen)


def refuse_head_dropout(config: LoRAConfig, layers: Iterable[str]) -> None:
    """Dropout on the output head cannot be trained. A stored adapter that had some can be used: dropout is for training."""
    if config.lora_dropout and "lm_head" in layers:
        raise ValueError(
            f"lora_dropout is {config.lora_dropout:g}, and cannot be trained with on lm_head, which is read as one matrix: "
            "give lora_dropout = 0, also in an adapter_config.json to train that adapter further"
        )


def add(model: Adaptable, config: LoRAConfig, chosen: list[str], name: str, seed: int = 0) -> None:
    """`attach`, with the layers given by their stored names."""
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"an adapter cannot be called {name!r}: use letters, digits, - and _")
    if name in adapters_of(model):
        raise ValueError(f"the model has an adapter {name!r} already: give the new one another name")
    if config.modules_to_save and not isinstance(model, ScalarModel):
        raise ValueError("modules_to_save is score, and a language model has no score: leave it out")
    generator, layers = torch.Generator().manual_seed(seed), linears(model)
    for layer in chosen:
        wrapper = _wrap(model, layers[layer], LoRALinear)
        assert isinstance(wrapper, LoRALinear)
        wrapper.add(name, config, *config.rank_and_scale(layer), generator)
    set_adapter(model, name)
    if config.modules_to_save:
        keep_heads(model, name)


def keep_heads(model: Adaptable, name: str) -> None:
    """Give an adapter a reward model's score of its own, which is trained whole; nothing if it has one."""
    copies = _wrap(model, "score", HeadCopies)
    assert isinstance(copies, HeadCopies)
    if name not in copies.copies:
        copies.add(name)
        for wrapper in wrappers(model).values():
            if isinstance(wrapper, LoRALinear) and name in wrapper.configs:
                wrapper.configs[name] = replace(wrapper.configs[name], modules_to_save=("score",))
        set_adapter(model, *active_adapters(model))


def _wrap(model: nn.Module, place: str, kind: Callable[[nn.Linear], Wrapper]) -> nn.Module:
    module = model.get_submodule(place)
    if isinstance(module, nn.Linear):
        model.set_submodule(place, kind(module))
    return model.get_submodule(place)


def set_adapter(model: nn.Module, *names: str) -> None:
    """Compute these adapters, added up, and train them and nothing else; without names, the base."""
    missing = [name for name in names if name not in adapters_of(model)]
    if missing:
        there = ", ".join(adapters_of(model)) or "none"
        raise ValueError(f"the model has no adapter {', '.join(missing)}: it has {there}")
    model.requires_grad_(False)
    for wrapper in wrappers(model).values():
        trained: list[nn.Module | nn.Parameter]
        if isinstance(wrapper, LoRALinear):
            wrapper.active = tuple(name for name in names if name in wrapper.scales)
            trained = [matrices[name] for name in wrapper.active for matrices in (wrapper.lora_A, wrapper.lora_B)]
        else:
            wrapper.active = names
            trained = [] if wrapper.used is wrapper.base else [wrapper.used]
        for one in trained:
            one.requires_grad_(True)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model: inside, every wrapped layer stands in its place again. Nothing is copied or computed anew."""
    found = wrappers(model)
    try:
        for place, wrapper in found.items():
            model.set_submodule(place, wrapper.base)
        yield
    finally:
        for place, wrapper in found.items():
            model.set_submodule(place, wrapper)


def base_fingerprint(model: Adaptable) -> str:
    """Names the weights of the decoder below the adapters, heads left out: a reward model has the same as its origin."""
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    with without_adapters(model):
        return fingerprint(nn.ModuleDict({n: m for n, m in decoder.named_children() if n != "lm_head"}))


@dataclass(frozen=True)
class Merged:
    """What a merge changed, and what undoes it."""

    weights: float
    """Largest |merged weight - base weight|."""
    rounding: float
    """Largest |merged weight - (W + s B A in float64)|: what the weights' type loses."""
    logits: float
    """Largest difference of logits (scores, of a reward model) on the probe between adapter and merged weights."""
    scale: float
    """Largest |logit| on the probe."""
    before: Tensor
    wrapped: Mapping[str, Wrapper]


@torch.no_grad()
def merge(model: Adaptable, probe: Tensor | None = None) -> Merged:
    """Replace every wrapped layer by a plain one of W + s B A (active adapters), summed in float32, stored as W is.

    probe   token ids [L] to compare logits on; default: 64 drawn ones
    The wrappers, with the untouched W, live in the result until it is let go.
    """
    before, found = outputs(model, probe), wrappers(model)
    change = rounding = 0.0
    for place, wrapper in found.items():
        if isinstance(wrapper, HeadCopies):
            model.set_submodule(place, wrapper.used)
            continue
        base = wrapper.base
        plain = nn.Linear(base.in_features, base.out_features, device="meta")
        plain.weight, plain.bias = nn.Parameter(wrapper.weight), base.bias
        merged_OI, base_OI = plain.weight.cpu().double(), base.weight.cpu().double()  # not every device has float64
        exact_OI = base_OI + wrapper.difference(torch.float64, "cpu")
        change = max(change, float((merged_OI - base_OI).abs().max()))
        rounding = max(rounding, float((merged_OI - exact_OI).abs().max()))
        model.set_submodule(place, plain)
    after = outputs(model, probe)
    return Merged(change, rounding, float((after - before).abs().max()), float(before.abs().max()), before, found)


def unmerge(model: Adaptable, merged: Merged, probe: Tensor | None = None) -> float:
    """Put adapters and base weights back as they were; the largest difference of logits from before the merge."""
    for place, wrapper in merged.wrapped.items():
        model.set_submodule(place, wrapper)
    return float((outputs(model, probe) - merged.before).abs().max())


@torch.no_grad()
def outputs(model: Adaptable, probe: Tensor | None = None) -> Tensor:
    """Logits [L, V] of a language model, or the scores of a reward model, on a probe; in float32."""
    decoder, training = model.decoder if isinstance(model, ScalarModel) else model, model.training
    if probe is None:
        length = min(64, decoder.config.max_length)
        probe = torch.randint(decoder.config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    model.eval()
    layout = Layout.packed([probe[: n + 1].numpy() for n in range(len(probe))]).to(decoder.device)
    found = model(layout) if isinstance(model, ScalarModel) else decoder.logits(probe.to(decoder.device))
    model.train(training)
    return found.float()

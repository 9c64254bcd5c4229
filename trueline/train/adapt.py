"""The policy of a run: loaded, given its adapter, written and read again.

    policy = load_policy(verb, head, model, tokenizer, seed)
    adapted = adapt(policy, config, base)      None where all weights are trained
    write_policy(policy, folder, ...)          the model, or its adapter in PEFT's layout
    copy_weights(policy, folder)               the reverse, into the live model

What is trained is what `requires_grad`: optimizer, clipping and checkpoints hold nothing of the base.
Left out: what an adapter computes (models.lora), DPO's reference (the base: `without_adapters`, in api).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trueline.models.adapter_files import fill_adapter, refuse_fused, save_adapter
from trueline.models.adapters import (
    active_adapters,
    adapters_of,
    attach,
    base_fingerprint,
    keep_heads,
    refuse_head_dropout,
    wrappers,
)
from trueline.models.decoder import Decoder, ScalarModel, labels_of
from trueline.models.files import load_model, load_scalar_model, save_model
from trueline.models.lora import ALL_LINEAR, LoRAConfig, LoRALinear
from trueline.models.value import ActorCritic, load_critic, save_critic
from trueline.store import adapter_base
from trueline.tokens import Tokenizer
from trueline.train.config import AdapterConfig, TrainConfig

Model = Decoder | ScalarModel


@dataclass(frozen=True)
class Adapted:
    """The adapter that a run trains."""

    name: str
    base: str
    """Folder or hub id of the base model; "" for one that lives in memory only."""
    fingerprint: str
    """Of the base's weights."""
    fresh: bool
    """Whether the run starts it; else it trains one further."""
    about: str
    """What is trained, in words."""

    def notes(self, needs: tuple[str, ...]) -> list[str]:
        """What people should know of a run; `needs` is the objective's."""
        if self.fresh or "reference" not in needs:
            return [self.about]
        return [
            self.about,
            "the reference is the base without the adapter, not the adapter as it starts; for that one, merge it first "
            "(trueline merge) and train a new adapter",
        ]


def load_policy(verb: str, head: str, model: str | Path | Model, tokenizer: Tokenizer | None, seed: int) -> Model:
    """The model that a method with this head trains: read, or in memory and of the right kind."""
    if isinstance(model, str | Path):
        if head == "tokens":
            return load_model(model)
        pad_token_id = tokenizer.pad_id if tokenizer is not None else None
        found = load_scalar_model(model, pad_token_id=pad_token_id, seed=seed, labels=labels_of(head))
        found.reward_shift = 0.0  # it was measured on the weights that are about to change
        return found
    labels = model.labels if isinstance(model, ScalarModel) else 0
    if labels != labels_of(head):
        kind = {0: "Decoder", 1: "ScalarModel"}
        wanted, given = (kind.get(n, f"ScalarModel of {n} categories") for n in (labels_of(head), labels))
        raise ValueError(f"{verb} trains a {wanted}, not a {given}")
    return model


def adapt(policy: Model, config: TrainConfig, source: str) -> Adapted | None:
    """Attach the adapter that the options ask for, or take the one that the policy came with.

    `source` is the folder or hub id of the policy, an adapter's or a model's.
    """
    options, there = config.lora, adapters_of(policy)
    fresh = not there
    if isinstance(policy, ScalarModel) and policy.labels > 1 and (there or options.lora_r):
        raise ValueError("an adapter's folder has no place for what categories are worth: train all weights (lora_r = 0)")
    if not there:
        if not options.lora_r:
            return None
        refuse_fused(policy)
        heads = ("score",) if isinstance(policy, ScalarModel) else ()
        attach(policy, lora_config(options, heads), seed=config.seed)
    elif options.lora_r:
        raise ValueError(
            f"the model has the adapter {', '.join(there)} already: leave out lora_r to train it further, or merge it first "
            "(trueline merge) to train a new one"
        )
    active = active_adapters(policy)
    if len(active) != 1:
        raise ValueError(
            f"{len(active)} adapters of the model are active: set_adapter(model, NAME) chooses one to train"
        )
    (name,) = active
    head = wrappers(policy).get("lm_head")
    if isinstance(head, LoRALinear) and name in head.configs:
        refuse_head_dropout(head.configs[name], ("lm_head",))
    if isinstance(policy, ScalarModel):
        keep_heads(policy, name)
    base = source if fresh else (adapter_base(source) if source and Path(source).is_dir() else "") or refuse_fused(policy).source
    layers = sum(isinstance(w, LoRALinear) and name in w.scales for w in wrappers(policy).values())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in policy.parameters())
    how = f"a new adapter of rank {options.lora_r}" if fresh else f"the adapter of {source or 'the model'}, further"
    about = (
        f"LoRA: {how}, on {layers} linear layers; {trained:,} of {whole:,} parameters are trained ({trained / whole:.2%}), "
        f"the weights of {base or 'the base'} stay as they are"
    )
    return Adapted(name, base, base_fingerprint(policy), fresh, about)


def lora_config(options: AdapterConfig, heads: tuple[str, ...] = ()) -> LoRAConfig:
    """The adapter that training options describe. One word with signs of a regular expression is one, as for PEFT."""
    targets: str | tuple[str, ...] = options.lora_target_modules
    if len(targets) == 1 and (targets[0] == ALL_LINEAR or re.search(r"[^\w.-]", targets[0])):
        targets = targets[0]
    return LoRAConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        use_rslora=options.use_rslora,
        modules_to_save=heads,
    )


def write_policy(policy: nn.Module, folder: Path, *, adapted: Adapted | None, tokenizer: Tokenizer | None) -> None:
    """What a run has trained, as files, with its tokenizer."""
    if isinstance(policy, ActorCritic):
        save_critic(policy, folder)  # into checkpoints only: the final model is the decoder, and is written as one
        policy = policy.decoder
    assert isinstance(policy, Decoder | ScalarModel)
    if adapted is None:
        save_model(policy, folder)
    else:
        save_adapter(policy, folder, adapted.name, base=adapted.base, fingerprint=adapted.fingerprint)
    if tokenizer is not None:
        tokenizer.save(folder)


def copy_weights(model: Model | ActorCritic, folder: Path) -> None:
    """The stored weights of a checkpoint into a live model, or those of its adapter; into a critic, too."""
    if isinstance(model, ActorCritic):
        load_critic(model, folder)
        model = model.decoder
    if adapters_of(model):
        fill_adapter(model, folder, active_adapters(model)[0])
        return
    stored = load_scalar_model(folder) if isinstance(model, ScalarModel) else load_model(folder)
    if isinstance(model, ScalarModel) and isinstance(stored, ScalarModel):
        model.utilities = stored.utilities
    with torch.no_grad():
        model.load_state_dict(stored.state_dict())

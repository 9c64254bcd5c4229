"""An actor with its critic: a decoder, and a number per position for what a response is still worth from there.

    shared     decoder's last hidden state x value_D -> V        one forward for both; both losses train the trunk
    separate   a trunk of the critic's own x value_D -> V        a copy of the decoder, or a reward model

V of a scored token is read where that token is predicted: it knows the prompt and the response so far, not the token.
What is saved as the model is the decoder alone; the critic's weights are a file of their own in checkpoints.

Legend: N scored tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trueline.models.attention import Layout
from trueline.models.decoder import Decoder
from trueline.models.files import load_scalar_model, read_config, save_tensors
from trueline.models.head import TokenScores, entropies, token_logps
from trueline.models.lora import LoRALinear
from trueline.models.scorer import scores_of_rows
from trueline.records import Row
from trueline.store import local_folder

CRITIC = "critic.safetensors"
"""The critic's file in a checkpoint."""


def scores_of(decoder: Decoder, hidden_ND: Tensor, layout: Layout, temperature: float, entropy_gradient: bool) -> TokenScores:
    """Scores of the layout's scored tokens from the hidden states that predict them."""
    weight_VD, cap = decoder.head_weight, decoder.config.final_logit_softcapping
    scores = token_logps(hidden_ND, weight_VD, layout.targets_N, temperature=temperature, cap=cap)
    if entropy_gradient:
        scores = scores._replace(entropy_N=entropies(hidden_ND, weight_VD, temperature=temperature, cap=cap))
    return scores


class ActorCritic(nn.Module):
    """A policy and its value function, trained as one module."""

    def __init__(self, decoder: Decoder, trunk: Decoder | None = None, value: nn.Linear | None = None) -> None:
        """`trunk` None shares the decoder's; `value` None starts at 0 everywhere, as in the code of 1909.08593."""
        super().__init__()
        self.decoder, self.trunk = decoder, trunk
        if value is None:
            value = nn.Linear((trunk or decoder).config.hidden_size, 1, bias=False, device=decoder.device)
            nn.init.zeros_(value.weight)
        self.value = value

    @property
    def critic(self) -> nn.ModuleDict:
        """What is trained beside the policy."""
        return nn.ModuleDict({"value": self.value} | ({"trunk": self.trunk} if self.trunk is not None else {}))

    def values(self, layout: Layout) -> Tensor:
        """V [N] where each scored token is predicted, float32."""
        trunk = self.decoder if self.trunk is None else self.trunk
        return self._values(trunk, trunk(layout, wanted_N=layout.predicted_by_N))

    def scores_and_values(
        self, layout: Layout, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[TokenScores, Tensor]:
        """The policy's scores of the scored tokens and V: one forward for both where the trunk is shared."""
        hidden_ND = self.decoder(layout, wanted_N=layout.predicted_by_N)
        scores = scores_of(self.decoder, hidden_ND, layout, temperature, entropy_gradient)
        return scores, self._values(self.decoder, hidden_ND) if self.trunk is None else self.values(layout)

    def _values(self, trunk: Decoder, hidden_ND: Tensor) -> Tensor:
        hidden_ND = hidden_ND * trunk.config.logits_scaling  # which is for logits only
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return self.value(hidden_ND.to(self.value.weight.dtype)).squeeze(1).float()


def policy_of(model: nn.Module) -> nn.Module:
    """The policy of what is trained: without its critic, if it has one."""
    return model.decoder if isinstance(model, ActorCritic) else model


def new_actor_critic(decoder: Decoder, start: str) -> ActorCritic:
    """A critic for this decoder, which must not have an adapter yet.

    `start` is "shared" (a head on the decoder's own trunk), "policy" (a copy of the decoder with a new head), or the folder or
    hub id of a reward model with the decoder's tokenizer, whose trunk and head it takes.
    """
    if start == "shared":
        return ActorCritic(decoder)
    if start == "policy":
        if any(isinstance(module, LoRALinear) for module in decoder.modules()):
            raise ValueError("a critic that starts as a copy of the policy would copy its adapter: merge it first, or write shared")
        return ActorCritic(decoder, _headless(copy.deepcopy(decoder)))
    folder = local_folder(start)
    config, classifier = read_config(folder)
    if not classifier:
        raise ValueError(f"{start} is a language model: a critic starts from a reward model, or write policy or shared")
    if config.vocab_size != decoder.config.vocab_size:
        raise ValueError(
            f"the reward model {start} has {config.vocab_size} tokens and the policy {decoder.config.vocab_size}: a critic reads the "
            "policy's ids; write policy or shared"
        )
    model = load_scalar_model(folder, device=str(decoder.device))
    if model.score.out_features != 1:
        raise ValueError(f"the reward model {start} has {model.score.out_features} labels: a critic has one; write policy or shared")
    return ActorCritic(decoder, model.decoder, model.score)


def _headless(decoder: Decoder) -> Decoder:
    """Without an output head of its own: a critic has no use for it."""
    if not decoder.config.tie_word_embeddings:
        del decoder.lm_head
        decoder.config = replace(decoder.config, tie_word_embeddings=True)
    return decoder


def save_critic(model: ActorCritic, folder: Path) -> None:
    """The critic's weights, into a checkpoint."""
    save_tensors({name: tensor.contiguous() for name, tensor in model.critic.state_dict().items()}, folder / CRITIC)


def load_critic(model: ActorCritic, folder: Path) -> None:
    """Back from `save_critic`."""
    model.critic.load_state_dict(load_file(folder / CRITIC))


class ValueScorer:
    """What the live critic thinks of every scored token, without gradient."""

    def __init__(self, model: ActorCritic, *, max_tokens: int = 8192, bf16: bool = False) -> None:
        self.model, self.max_tokens, self.bf16 = model, max_tokens, bf16

    def token_values(self, rows: Sequence[Row]) -> list[tuple[np.ndarray, ...]]:
        """For each row and sequence a float32 array with V of each scored token."""
        counts = [[int(scored_L.sum()) for scored_L in row.scored] for row in rows]
        totals = [sum(counts_K) for counts_K in counts]
        found = scores_of_rows(self.model, rows, self.model.values, self.max_tokens, self.bf16, totals)
        return [tuple(np.split(values_N, np.cumsum(counts_K)[:-1])) for values_N, counts_K in zip(found, counts, strict=True)]

"""The critic of a run, where a method has one: made before the first step, trained beside the policy, kept in checkpoints.

    learner = learner_of(objective, policy, tokenizer)    an ActorCritic around the policy, or the policy itself
    crew = with_critic(crew, learner, ...)                the live critic, to tell rows their values

Left out: what it computes (models.value), what is done with values (the objective), adapters on it: it is trained whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from trueline.models.decoder import Decoder, ScalarModel
from trueline.models.value import ActorCritic, ValueScorer, new_actor_critic
from trueline.objectives.base import Objective
from trueline.protocols import Crew
from trueline.store import local_folder
from trueline.tokens import Tokenizer, load_tokenizer
from trueline.train.config import TrainConfig


@runtime_checkable
class Criticised(Objective, Protocol):
    """An objective that needs a critic."""

    @property
    def critic(self) -> str:
        """Where it starts: "policy", "shared", or a reward model's folder or hub id."""
        ...


def learner_of(
    objective: Objective, policy: Decoder | ScalarModel, tokenizer: Tokenizer | None
) -> Decoder | ScalarModel | ActorCritic:
    """What the optimizer trains. Called before the policy gets an adapter: a copy of it is to have none."""
    if "critic" not in objective.needs:
        return policy
    assert isinstance(objective, Criticised) and isinstance(policy, Decoder)
    if objective.critic not in ("policy", "shared") and tokenizer is not None:
        refuse_foreign(objective.critic, tokenizer)
    return new_actor_critic(policy, objective.critic)


def refuse_foreign(critic: str, tokenizer: Tokenizer) -> None:
    """A reward model whose ids mean other texts cannot read what the policy draws, token by token."""
    folder = local_folder(critic)
    if (folder / "tokenizer.json").is_file() and load_tokenizer(folder).vocabulary != tokenizer.vocabulary:
        raise ValueError(
            f"the reward model {critic} has another tokenizer than the policy, and a critic reads the policy's own ids: give "
            "--objective.critic policy or shared (as --reward_model it may stay: there it reads text)"
        )


def with_critic(
    crew: Crew, learner: Decoder | ScalarModel | ActorCritic, config: TrainConfig, say: Callable[[str], None]
) -> Crew:
    """The crew with the live critic, if there is one."""
    if not isinstance(learner, ActorCritic):
        return crew
    if learner.trunk is not None:
        learner.trunk.activation_checkpointing = config.gradient_checkpointing
    size = sum(parameter.numel() * parameter.element_size() for parameter in learner.critic.parameters()) / (1 << 20)
    whole = "a head on the policy's own trunk" if learner.trunk is None else f"a model of its own, {size:,.0f} MB"
    say(f"the critic is {whole}; it is trained beside the policy and stays in checkpoints")
    return dataclasses.replace(crew, critic=ValueScorer(learner, max_tokens=config.max_tokens_per_batch, bf16=config.bf16))

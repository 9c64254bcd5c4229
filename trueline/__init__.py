"""Trueline brings language models into line with what people prefer.

    model, tokenizer = trueline.load_model(DIR), trueline.load_tokenizer(DIR)
    trueline.train(trueline.DPO(beta=0.1), model, trueline.read_rows("pairs.jsonl"), out="runs/dpo")
    trueline.Engine(model, tokenizer).generate(["..."])

The names below are resolved on first use (PEP 562), so that `import trueline` costs nothing and leaves torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueline.align.judges import RuleJudge as RuleJudge
    from trueline.align.rollouts import Rollouts as Rollouts
    from trueline.models.files import load_model as load_model
    from trueline.objectives.dpo import DPO as DPO
    from trueline.objectives.dprm import DPRM as DPRM
    from trueline.objectives.grpo import GRPO as GRPO
    from trueline.objectives.iterate import Iterate as Iterate
    from trueline.objectives.kto import KTO as KTO
    from trueline.objectives.next_token import NextToken as NextToken
    from trueline.objectives.online_dpo import OnlineDPO as OnlineDPO
    from trueline.objectives.orpo import ORPO as ORPO
    from trueline.objectives.ppo import PPO as PPO
    from trueline.objectives.raft import RAFT as RAFT
    from trueline.objectives.reinforce_plus_plus import ReinforcePlusPlus as ReinforcePlusPlus
    from trueline.objectives.reward import Reward as Reward
    from trueline.objectives.rloo import RLOO as RLOO
    from trueline.objectives.rso import RSO as RSO
    from trueline.objectives.sft import SFT as SFT
    from trueline.objectives.simpo import SimPO as SimPO
    from trueline.rows import read_rows as read_rows
    from trueline.serve.engine import Engine as Engine
    from trueline.tokens import load_tokenizer as load_tokenizer
    from trueline.train import train as train

__version__ = "0.1.0"

_WHERE = {
    "load_model": "trueline.models.files",
    "load_tokenizer": "trueline.tokens",
    "read_rows": "trueline.rows",
    "train": "trueline.train",
    "Engine": "trueline.serve.engine",
    "Rollouts": "trueline.align.rollouts",
    "RuleJudge": "trueline.align.judges",
    "DPO": "trueline.objectives.dpo",
    "SFT": "trueline.objectives.sft",
    "Reward": "trueline.objectives.reward",
    "NextToken": "trueline.objectives.next_token",
    "DPRM": "trueline.objectives.dprm",
    "GRPO": "trueline.objectives.grpo",
    "Iterate": "trueline.objectives.iterate",
    "KTO": "trueline.objectives.kto",
    "ORPO": "trueline.objectives.orpo",
    "OnlineDPO": "trueline.objectives.online_dpo",
    "PPO": "trueline.objectives.ppo",
    "RAFT": "trueline.objectives.raft",
    "RLOO": "trueline.objectives.rloo",
    "RSO": "trueline.objectives.rso",
    "ReinforcePlusPlus": "trueline.objectives.reinforce_plus_plus",
    "SimPO": "trueline.objectives.simpo",
}

__all__ = [
    "DPO",
    "DPRM",
    "GRPO",
    "KTO",
    "ORPO",
    "PPO",
    "RAFT",
    "RLOO",
    "RSO",
    "SFT",
    "Engine",
    "Iterate",
    "NextToken",
    "OnlineDPO",
    "ReinforcePlusPlus",
    "Reward",
    "Rollouts",
    "RuleJudge",
    "SimPO",
    "__version__",
    "load_model",
    "load_tokenizer",
    "read_rows",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the room of a public name when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'trueline' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

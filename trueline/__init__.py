"""Trueline brings language models into line with what people prefer.

    model, tokenizer = trueline.load_model(DIR), trueline.load_tokenizer(DIR)
    trueline.train(trueline.DPO(beta=0.1), model, trueline.read_rows("pairs.jsonl"), out="runs/dpo")
    trueline.Engine(model, tokenizer).generate(["..."])

The names below are resolved on first use (PEP 562), so that `import trueline` costs nothing and leaves torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueline.models.files import load_model as load_model
    from trueline.objectives.dpo import DPO as DPO
    from trueline.objectives.next_token import NextToken as NextToken
    from trueline.objectives.reward import Reward as Reward
    from trueline.objectives.sft import SFT as SFT
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
    "DPO": "trueline.objectives.dpo",
    "SFT": "trueline.objectives.sft",
    "Reward": "trueline.objectives.reward",
    "NextToken": "trueline.objectives.next_token",
}

__all__ = ["DPO", "SFT", "Engine", "NextToken", "Reward", "__version__", "load_model", "load_tokenizer", "read_rows", "train"]


def __getattr__(name: str) -> Any:
    """Import the room of a public name when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module 'trueline' has no attribute {name!r}; it has {', '.join(sorted(_WHERE))}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

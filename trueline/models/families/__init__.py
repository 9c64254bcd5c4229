"""The families of decoders that can be computed, one short file each; `FAMILIES` is the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueline.models.families.family import Family
from trueline.models.families.gemma import GEMMA2, GEMMA3
from trueline.models.families.gpt2 import GPT2
from trueline.models.families.gpt_neox import GPT_NEOX
from trueline.models.families.granite import GRANITE
from trueline.models.families.keys import read_config, write_config
from trueline.models.families.llama import LLAMA, MISTRAL
from trueline.models.families.olmo2 import OLMO2
from trueline.models.families.phi3 import PHI3
from trueline.models.families.qwen import QWEN2, QWEN3
from trueline.models.families.stablelm import STABLELM

__all__ = ["FAMILIES", "Family", "architecture_of", "family_of", "named", "read_config", "write_config"]

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GPT2, GPT_NEOX, PHI3, OLMO2, GRANITE, STABLELM)


def named(model_type: str) -> Family:
    """The family of that model_type."""
    return next(family for family in FAMILIES if family.model_type == model_type)


def architecture_of(raw: Mapping[str, Any]) -> str | None:
    """The first architecture that a config.json names, or None."""
    given = raw.get("architectures")
    first = given[0] if isinstance(given, list) and given else given
    return first if isinstance(first, str) and first else None


def family_of(raw: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json, by its architecture, or by its model_type where it names none."""
    name = architecture_of(raw)
    for family in FAMILIES:
        names = family.architecture("tokens"), family.architecture("scalar"), *family.also
        if name in names or (name is None and raw.get("model_type") == family.model_type):
            return family
    known = ", ".join(family.architecture("tokens") for family in FAMILIES)
    raise ValueError(
        f"{where}: {name or raw.get('model_type') or 'an unnamed architecture'} cannot be computed; these can, as "
        f"language models and as reward models: {known}."
    )

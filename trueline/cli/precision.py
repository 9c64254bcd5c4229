"""How many bits a model's weights and its cache have while it draws: options that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    import torch

    from trueline.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bits of weights and cache."""

    weights: Literal["stored", "int8", "int4", "int4_asymmetric", "nf4"] = "stored"
    """Rounds the layers' weights while loading, by groups with a scale each; stored: as they are in the file."""
    weights_group: int = 64
    """Inputs that share a scale, a multiple of 32."""
    cache: Literal["weights", "int8"] = "weights"
    """Type of keys and values in the cache; weights: that of the weights, int8: 8 bits and a scale per token and head."""

    def apply(self, model: Decoder) -> Decoder:
        """Rounds the weights in place."""
        from trueline.models.lowbit import quantize_linears

        if self.weights != "stored":
            quantize_linears(model, self.weights, self.weights_group)
        return model

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """For the engine."""
        import torch

        return torch.int8 if self.cache == "int8" else None


Bits = Annotated[Precision, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
"""As the field of a verb."""

"""`trueline merge`: an adapter becomes part of its base model's weights, and what that changes is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trueline.cli.places import MODEL, model_folder
from trueline.store import adapter_base, local_folder
from trueline.tokens import load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Write W + s B A as a plain model, which any program reads without PEFT, and print how far its answers are from
    those of base and adapter."""

    model: Annotated[str, MODEL]
    """Folder or hub id of the adapter; its adapter_config.json names the base."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the merged model; it must not hold one yet."""
    bf16: bool = False
    """Store bfloat16 instead of float32: half the size, and differences below 1/256 of a weight are lost."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, mps."""

    def run(self) -> None:
        """Merge, write, read back, compare."""
        import torch

        from trueline.models.adapters import merge, outputs
        from trueline.models.files import load_model, load_scalar_model, read_config, save_model

        folder = local_folder(model_folder(self.model))
        base = adapter_base(folder)
        if not base:
            raise ValueError(f"{self.model} is no adapter: it has no adapter_config.json")
        for name in ("config.json", "adapter_config.json"):
            if (self.out / name).exists():
                raise ValueError(f"{self.out} holds a model already: choose another --out")
        load = load_scalar_model if read_config(folder)[1] else load_model
        model = load(folder, device=self.device)
        merged = merge(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_model(model.to(torch.bfloat16) if self.bf16 else model, self.out)
        load_tokenizer(str(folder)).save(self.out)
        stored = load(self.out, device=self.device)
        rounded = max(float((tensor - before[name]).abs().max()) for name, tensor in stored.state_dict().items())
        rounded = max(rounded, merged.rounding)
        difference = float((outputs(stored) - merged.before).abs().max())
        kind = "scores" if load is load_scalar_model else "logits"
        print(f"base: {base}")
        print(f"weights: the adapter changes them by at most {merged.weights:.3g}, rounding by at most {rounded:.3g}")
        print(f"{kind} on 64 probes: at most {difference:.3g} from base and adapter, whose largest is {merged.scale:.3g}")
        print(f"model in {self.out}")

"""`trueline env` and `trueline run`: what ran, and once more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from trueline.run import environment, flatten
from trueline.store import file_fingerprint

COMMAND = "command.yaml"
"""The file in a run folder that holds its verb and every option: `--config` reads it too."""


@dataclass(frozen=True, kw_only=True)
class Env:
    """Versions and machine, to paste into a bug report. Nothing is sent anywhere."""

    json: bool = False
    """Print JSON instead of lines."""

    def run(self) -> None:
        """Print it."""
        about = environment()
        if "torch" in about["versions"] and about["versions"]["torch"] is not None:
            about["torch"] = torch_facts()
        if self.json:
            print(json.dumps(about, indent=2))
            return
        lines = flatten(about)
        width = max(len(name) for name in lines)
        for name, value in lines.items():
            print(f"{name:<{width}}  {'-' if value is None else value}")


def torch_facts() -> dict[str, str | int | bool]:
    """What torch can use here."""
    import torch

    return {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no",
        "mps": torch.backends.mps.is_available(),
    }


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Repeat a run from its folder: the same verb with the same options, into a new folder. With --out FOLDER
    itself, an unfinished run goes on."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of a run (its --out)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: FOLDER-again)")] = None
    """Where the repetition goes."""

    def run(self) -> None:
        """Hand the stored command to its verb."""
        from trueline.cli import dispatch

        path = self.folder / COMMAND
        if not path.is_file():
            raise ValueError(f"{self.folder} is not a run of a training verb: it has no {COMMAND}")
        verb = yaml.safe_load(path.read_text(encoding="utf-8"))["verb"]
        out = self.out or self.folder.with_name(self.folder.name + "-again")
        dispatch([verb, "--config", str(path), "--out", str(out)])
        if out != self.folder:
            names = [file.name for file in sorted(self.folder.glob("*model*.safetensors"))]
            equal = bool(names) and all(file_fingerprint(self.folder / n) == file_fingerprint(out / n) for n in names)
            print(f"the weights of {out} and {self.folder} are {'equal, bit for bit' if equal else 'not equal'}")

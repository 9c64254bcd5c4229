"""Where the base model that ships inside the package lies."""

from __future__ import annotations

from pathlib import Path


def base_model_dir() -> Path:
    """The folder of the shipped base model, in the Hugging Face layout."""
    folder = Path(__file__).parent / "base"
    if not (folder / "config.json").is_file():
        raise ValueError(f"this copy of Trueline has no base model in {folder}: name one with --model DIR_OR_HUB_ID")
    return folder

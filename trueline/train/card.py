"""README.md of a trained model: what it is, what it was made from, and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trueline.objectives.base import Objective
from trueline.run import read_json, read_lines


def write_card(
    folder: Path, objective: Objective, base: str, data: Sequence[Mapping[str, Any]], adapted: str = ""
) -> Path:
    """Front matter, data, evaluation, configuration, versions. Reads what the run wrote into its folder.

    `adapted` is the fingerprint of the base below an adapter; "" for a whole model.
    """
    run, environment = read_json(folder / "run.json"), read_json(folder / "environment.json")
    metrics = read_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    trained: dict[str, Any] = next((row for row in reversed(metrics) if "loss" in row), {})
    evaluated: dict[str, Any] = next((row for row in reversed(metrics) if "eval_loss" in row), {})
    front = {
        "library_name": "peft" if adapted else "transformers",
        "model_name": folder.name,
        "base_model": base,
        "datasets": [str(one["source"]) for one in data],
        "license": license_of(Path(base)),
        "tags": ["trueline", objective.verb],
    }
    config = run["config"]["config"]
    loader = "AutoModelForCausalLM" if objective.head == "tokens" else "AutoModelForSequenceClassification"
    library, more = "transformers", ""
    if adapted:
        library, loader = "peft", loader.replace("Auto", "AutoPeft", 1)
        more = ", num_labels=1" if objective.head == "scalar" else ""
    named = f" It is a LoRA adapter; the weights of its base have the sha256 `{adapted}`." if adapted else ""
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---",
        f"# {folder.name}",
        f"`{base or 'new weights'}` trained with Trueline's `{objective.verb}`.{named}",
        f"```python\nfrom {library} import {loader}\n\nmodel = {loader}.from_pretrained({folder.name!r}{more})\n```",
        "## Data",
        _table(
            ("data", "rows", "sha256 of the encoded rows"),
            [(one["source"], one["rows"], one["fingerprint"][:16]) for one in data],
        ),
        "## Training",
        _table(("metric", "value"), _numbers(trained)),
        "## Evaluation",
        _table(("metric", "value"), _numbers(evaluated)) if evaluated else "Nothing was held out.",
        "## To repeat it",
        f"Seed {config['seed']}. Resolved configuration:",
        "```json\n" + json.dumps({"objective": run["config"]["objective"], **config}, indent=2) + "\n```",
        "Versions: "
        + ", ".join(f"{name} {value}" for name, value in environment["versions"].items() if value)
        + f", python {environment['python']}.",
        "## Citation",
        objective.citation,
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def license_of(base: Path) -> str:
    """What the base model's own card says; "unknown" when it says nothing."""
    card = base / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    front = text.split("---\n")[1] if text.startswith("---\n") and text.count("---\n") >= 2 else ""
    try:
        found = yaml.safe_load(front) if front else {}
    except yaml.YAMLError:  # somebody else's card
        found = {}
    return str(found.get("license", "unknown")) if isinstance(found, dict) else "unknown"


def _numbers(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, "not finite" if value is None else f"{value:.6g}")
        for name, value in row.items()
        if name not in ("time", "tokens_per_second", "counts")
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])

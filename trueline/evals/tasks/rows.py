"""Documents of the task files: lines of JSON in the folder `eval` of the folder that the variable TRUELINE_DATA names.

    custom_dataset: !function rows.read            dataset_kwargs: {file: piqa_val.jsonl.gz}

Nothing is downloaded. Multiple-choice files have question, choices and gold (the number of the right choice).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def read(file: str, **about: Any) -> Any:
    """The file's lines as the split `test`; `about` is the task's metadata, which is not needed."""
    return as_split(lines(file))


def winogrande(file: str, **about: Any) -> Any:
    """The sentence is cut at its blank: each choice is put there, and what follows is what is scored."""

    def cut(line: Document) -> Document:
        before, _, after = line["question"].partition("_")
        return {
            "gold": line["gold"],
            "beginnings": [before + choice for choice in line["choices"]],
            "end": after.strip(),
        }

    return as_split(map(cut, lines(file)))


def with_shots(file: str, shots: str, **about: Any) -> Any:
    """Each question with the solved ones of its subject in the field `shots`: MMLU's five of the development split."""
    solved: dict[str, str] = {}
    for line in lines(shots):
        solved[line["subject"]] = solved.get(line["subject"], "") + question(line) + " " + "ABCD"[line["gold"]] + "\n\n"
    return as_split({**line, "shots": solved[line["subject"]]} for line in lines(file))


def question(line: Document) -> str:
    """A question with its lettered choices, up to the answer."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", line["choices"], strict=True))
    return f"{line['question'].strip()}\n{choices}Answer:"


def lines(file: str) -> list[Document]:
    """All lines of a file in TRUELINE_DATA/eval."""
    folder = os.environ.get("TRUELINE_DATA", "")
    path = Path(folder) / "eval" / file
    if not folder or not path.is_file():
        said = f"there is no {path}" if folder else "it is not set"
        raise ValueError(
            f"this task reads the folder that the variable TRUELINE_DATA names, and {said}: set it to the one that holds eval/{file}"
        )
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


def as_split(documents: Iterable[Document]) -> Any:
    """What lm_eval expects of a data set."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(documents))}

"""Prompts of methods that draw their own responses: any data that has some, as ids to draw from and text to judge by.

Left out: drawing (rollout_feed), responses that the data hold (only what comes before the first one is read).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trueline.records import TEXT, Conversation, Message, Messages, Record, Row
from trueline.rows import Rows, read_prompts
from trueline.rows.inspection import prompt_of
from trueline.tokens import Tokenizer, encode_prompt
from trueline.tokens.encode import row_key
from trueline.tokens.template import RowError
from trueline.train.data import Data, write_reject


@dataclass(frozen=True)
class Prompts:
    """What was read."""

    rows: Sequence[Row]
    """Of one sequence each, the prompt; nothing is scored."""
    texts: Mapping[str, Messages]
    """Row.key -> messages."""
    source: str
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> prompts that were left out."""
    read: int = 0
    kept: str = ""
    """The file that keeps what was left out."""

    def lines(self) -> list[str]:
        """One sentence per thing that people should know."""
        lines = [f"{len(self.rows):,} prompts from {self.source}: {self.read:,} read"]
        if self.rejected:
            reasons = "; ".join(f"{reason} ({count:,})" for reason, count in self.rejected.most_common(5))
            kept = f", kept in {self.kept}" if self.kept else ""
            lines.append(f"{self.rejected.total():,} were left out{kept}: {reasons}")
        lengths = [row.num_tokens for row in self.rows]
        return [*lines, f"prompts of {min(lengths):,} to {max(lengths):,} tokens, {np.mean(lengths):.0f} on average"]


def encode_prompts(data: Data, tokenizer: Tokenizer | None, longest: int, rejects: Path | None = None) -> Prompts:
    """The prompts of a path, of records of any kind, or encoded rows (what comes before their first scored token).

    What has more than `longest` tokens is left out: a prompt without its end is another prompt.
    """
    if tokenizer is None:
        raise ValueError("responses are judged as text, which needs a tokenizer: name a model folder that holds one")
    source = str(data) if isinstance(data, str | Path) else ""
    items: Iterable[Record | Row] = read_prompts(data, rejects=rejects) if isinstance(data, str | Path) else data
    own = items.rejects if isinstance(items, Rows) else None
    if isinstance(items, Rows):
        source, items.rejects = source or ", ".join(items.paths), own or rejects
    lost: list[tuple[Record | Row, str]] = []
    rows: list[Row] = []
    texts: dict[str, Messages] = {}
    read = 0
    for item in items:
        read += 1
        try:
            ids, messages = prompt_ids(item, tokenizer)
        except RowError as error:
            lost.append((item, str(error)))
            continue
        if not len(ids):
            lost.append((item, "there is no prompt"))
        elif len(ids) > longest:
            lost.append((item, f"longer than max_length less max_completion_length, {longest} tokens"))
        else:
            scored = np.zeros(len(ids), dtype=bool)
            row = Row(ids=(ids,), scored=(scored,), key=row_key((ids,), (scored,)))
            rows.append(row)
            texts[row.key] = messages
    rejected = Counter(reason for _, reason in lost)
    if rejects is not None and lost:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        with open(rejects, "a", encoding="utf-8", newline="\n") as file:
            for item, reason in lost:
                if not isinstance(item, Row):
                    write_reject(file, item, reason)
    if isinstance(items, Rows):
        items.rejects = own  # the file of this call is not that of the next
        rejected += items.rejected
        read = items.read
    if not rows:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
        raise ValueError(f"{source or 'the data'}: there is no prompt to draw from{': ' + reasons if reasons else ''}")
    return Prompts(rows, texts, source or f"{read:,} records", rejected, read, "rejects.jsonl" if rejects is not None else "")


def prompt_ids(item: Record | Row, tokenizer: Tokenizer) -> tuple[np.ndarray, Messages]:
    """Ids int32 [L], and text."""
    if isinstance(item, Row):
        (first, *_) = np.flatnonzero(item.scored[0]).tolist() or [len(item.ids[0])]
        ids = item.ids[0][:first].astype(np.int32)
        return ids, (Message(role=TEXT, content=tokenizer.decode(ids.tolist()), train=False),)
    messages = prompt_of(item)
    if not messages:
        return np.empty(0, np.int32), messages
    tools = item.tools if isinstance(item, Conversation) else ()
    return encode_prompt(messages, tokenizer, tools=tools).astype(np.int32), messages

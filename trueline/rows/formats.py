"""What a row means: a table of formats, each with the columns it is known by and its way to a record.

    known = detect([row, ...])                     # Format(name="TRL preference", ...)
    records = known.convert(row, At(source="pairs.jsonl:3"))

One row may give several records, or raise `Reject` with the reason it cannot be used. The order of FORMATS decides when
several match. Left out: reading files (`readers`), pairs whose verdict is a column (`verdicts`).
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trueline.records import TEXT, Comparison, Conversation, Document, Rating, Record
from trueline.rows import dialogues, pairs, verdicts
from trueline.rows.dialogues import SHAREGPT
from trueline.rows.messages import ANSWERS, At, RowDict


@dataclass(frozen=True)
class Format:
    """`needs`: one entry per column, its accepted names separated by "|"."""

    name: str
    needs: tuple[str, ...]
    record: type[Record]
    convert: Callable[[RowDict, At], list[Record]]
    uses: tuple[str, ...] = ()
    """Optional columns."""
    gives_prompts: bool = False
    """True when there is a prompt and nothing that answers it."""
    only: Callable[[RowDict], bool] | None = None
    """What the values must be beside."""

    def missing(self, columns: Sequence[str]) -> list[str]:
        return [need for need in self.needs if not set(need.split("|")) & set(columns)]

    def matches(self, row: RowDict) -> bool:
        present = [name for name, value in row.items() if value is not None]
        return not self.missing(present) and (self.only is None or self.only(row))

    def reads(self, column: str) -> bool:
        always = ("source|annotator|time", *([ANSWERS] if self.record is Conversation else []))
        return any(column in names.split("|") for names in (*self.needs, *self.uses, *always))


SIDES = ("chosen", "rejected")
ANSWER = "completion|response"
ALPACA_USES = ("input", "system", "history")
FORMATS = (
    Format("Trueline comparisons", ("prompt", "responses", "ranks|counts"), Comparison, pairs.ranked),
    Format("ShareGPT preference", (SHAREGPT, "chosen", "rejected"), Comparison, pairs.sharegpt_preference),
    Format("Alpaca preference", ("instruction", *SIDES), Comparison, pairs.alpaca_preference, ALPACA_USES),
    Format("TRL preference", ("prompt", *SIDES), Comparison, pairs.preference),
    Format("HH-RLHF transcripts", SIDES, Comparison, pairs.transcripts, only=pairs.is_transcript),
    Format("TRL preference with implicit prompt", SIDES, Comparison, pairs.implicit_preference),
    *(Format(shape.name, shape.needs, Comparison, pairs.judged, shape.uses) for shape in verdicts.SHAPES),
    Format("TRL unpaired preference", ("prompt", ANSWER, "label|score|counts"), Rating, dialogues.rating),
    Format("messages with a label", ("messages|" + SHAREGPT, "label"), Rating, dialogues.rated_messages),
    Format("TRL prompt-completion", ("prompt", ANSWER), Conversation, dialogues.completion, ("tools",)),
    Format("chat messages (TRL, OpenAI)", ("messages",), Conversation, dialogues.chat, ("tools",)),
    Format("ShareGPT", (SHAREGPT,), Conversation, dialogues.sharegpt, ("tools", "system")),
    Format("Alpaca", ("instruction", "output|response"), Conversation, dialogues.alpaca, ALPACA_USES),
    Format("self-instruct tasks", ("instruction", "instances"), Conversation, dialogues.self_instruct),
    Format("questions and answers", ("question", "answer"), Conversation, dialogues.question),
    Format("TRL prompt-only", ("prompt",), Conversation, dialogues.prompt_only, ("tools",), gives_prompts=True),
    Format("MT-bench questions, first turn", ("turns",), Conversation, dialogues.first_turn, gives_prompts=True),
    Format("instructions", ("instruction",), Conversation, dialogues.instruction_only, ("input",), gives_prompts=True),
    Format("TRL language modelling", ("text|content",), Document, dialogues.document),
)  # fmt: skip


def detect(rows: Sequence[RowDict]) -> Format | None:
    """The format that most of these rows match; each row counts for the first in the table that it matches."""
    votes: Counter[int] = Counter()
    for row in rows:
        index = next((i for i, one in enumerate(FORMATS) if one.matches(row)), None)
        if index is not None:
            votes[index] += 1
    return FORMATS[min(votes, key=lambda index: (-votes[index], index))] if votes else None


def form(record: Record) -> str:
    """ "plain" or "conversational"."""
    match record:
        case Document():
            return "plain"
        case Conversation():
            return "plain" if record.messages[0].role == TEXT else "conversational"
        case Comparison() | Rating():
            return "plain" if record.prompt[0].role == TEXT else "conversational"


def nearest(columns: Sequence[str], record: type[Record] | None, prompts: bool = False) -> str:
    """One clause: the nearest format and the column that looks like one it misses; the simplest if none is near."""
    known = [one for one in FORMATS if (record is None or one.record is record) and (one.gives_prompts or not prompts)]

    def distance(one: Format) -> float:
        missing = one.missing(columns)
        return (len(missing) - sum(0.5 for need in missing if _close(need, columns))) / len(one.needs)

    best = min(known, key=distance)
    if distance(best) == 1:
        plain = [one for one in known if one.name.startswith("TRL")]
        simple = dict.fromkeys(" + ".join(_said(need) for need in one.needs) for one in plain)
        return f"readable are {'; '.join(simple)}; other names can be given with columns, such as prompt=question"
    close = [(_close(need, columns), _said(need)) for need in best.missing(columns)]
    renames = ", ".join(f"{name!r} for {need!r}" for name, need in close if name)
    hint = f"; did you mean {renames}?" if renames else ""
    return f"the nearest format, {best.name}, needs {', '.join(map(_said, best.needs))}{hint}"


def _said(need: str) -> str:
    return need.split("|")[0]


def _close(need: str, columns: Sequence[str]) -> str:
    """A column whose name is almost one of these."""
    found = (difflib.get_close_matches(name, columns, 1, 0.75) for name in need.split("|"))
    return next((match[0] for match in found if match), "")

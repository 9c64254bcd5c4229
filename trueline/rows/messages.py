"""Messages as people write them -> `Message`, and what makes a dialogue unusable.

    parse_messages([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}])
    check_order(messages)        # system?, then user, assistant, ... ; tool turns after assistant turns

`Reject` carries the reason under which a row is counted. Left out: rendering (`trueline.tokens`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trueline.records import TEXT, Message, Messages
from trueline.rows.readers import parse_json

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "bot": "assistant", "model": "assistant", "function_call": "assistant",
    TEXT: TEXT,
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
"""Names seen in the wild -> ours."""
ANSWERS = "answer|solution|ground_truth|tests"
"""Columns that say what is right."""


class Reject(ValueError):
    """A row that cannot be used; the text is the reason, the same for all rows with the same fault."""


def text_message(content: str, *, train: bool) -> Message:
    """Plain text, to be tokenised as it stands."""
    return Message(role=TEXT, content=clean(content, "text"), train=train)


def user(content: str) -> Message:
    """A user turn, never trained on."""
    return Message(role="user", content=clean(content, "user"), train=False)


def assistant(content: str) -> Message:
    """An assistant turn, trained on."""
    return Message(role="assistant", content=clean(content, "assistant"))


def clean(content: Any, what: str) -> str:
    """The string, when it is one that can be trained on."""
    if not isinstance(content, str):
        raise Reject(f"{what} is not a string")
    if not content.strip():
        raise Reject(f"empty {what}" if what == "text" else f"empty {what} message")
    if not content.isascii() and any("\ud800" <= c <= "\udfff" for c in content):
        raise Reject("half a surrogate pair in the text")
    return content


def listed(value: Any, column: str) -> list[Any]:
    """A list, also when a file could only hold it as a JSON string, or a single message."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            raise Reject(f"{column} is neither a list nor JSON") from None
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list):
        raise Reject(f"{column} is not a list")
    return value


def parse_messages(value: Any, column: str, notes: Counter[str], *, train: bool = True) -> Messages:
    """A non-empty list of messages, roles translated, contents checked. `train=False`: a prompt."""
    messages: list[Message] = []
    for item in listed(value, column):
        if not isinstance(item, Mapping):
            raise Reject(f"{column} holds something that is not a message")
        message = parse_message(item, train=train)
        if message.role in ("system", "developer") and not message.content.strip():
            notes["empty system message dropped"] += 1
        else:
            messages.append(message)
    if not messages:
        raise Reject(f"{column} is empty")
    return tuple(messages)


def parse_message(item: Mapping[str, Any], *, train: bool = True) -> Message:
    """One message, from OpenAI's or ShareGPT's keys."""
    given = item.get("role") or item.get("from")
    role = ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        raise Reject(f"unknown role {str(given)[:20]!r}" if given else "a message has no role")
    content = item.get("content", item.get("value"))
    calls = item.get("tool_calls")
    if isinstance(given, str) and given.lower() == "function_call":
        content, calls = "", content
    if isinstance(item.get("function_call"), Mapping):  # OpenAI's older form
        calls = [item["function_call"]]
    tool_calls = tuple(_tool_call(call) for call in listed(calls, "tool_calls")) if calls else ()
    content = _join_parts(content) if isinstance(content, list) else content
    may_be_empty = bool(tool_calls) or role in ("tool", "system", "developer")  # a tool may return nothing
    blank = content is None or not str(content).strip()
    content = "" if may_be_empty and blank else clean(content, role)
    weight = item.get("weight")
    if weight not in (None, 0, 1):
        raise Reject("weight is neither 0 nor 1")
    trained = train and weight != 0 and item.get("train") is not False
    name = item.get("name")
    return Message(role=role, content=content, name=name or None, tool_calls=tool_calls, train=trained)


def _join_parts(parts: Sequence[Any]) -> str:
    """OpenAI's content as a list of parts; only text can be read."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Reject("a message holds something other than text")
    return "".join(texts)  # type: ignore[arg-type]


def _tool_call(call: Any) -> Mapping[str, Any]:
    """{"type": "function", "function": {"name", "arguments": object}} whatever the spelling."""
    if not isinstance(call, Mapping):
        raise Reject("a tool call is not an object")
    function = call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Reject("a tool call has no name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except (ValueError, RecursionError):
            raise Reject("a tool call's arguments are not JSON") from None
    called: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return {"id": call["id"], **called} if call.get("id") else called


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools column: JSON schemas, as a list or as a JSON string."""
    if not value:
        return ()
    tools = listed(value, "tools")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise Reject("tools holds something that is not an object")
    return tuple(tools)


def check_order(messages: Messages) -> None:
    """system only first; then user first; user and assistant take turns; tool turns after assistant or tool turns."""
    before = ""
    for place, role in enumerate("system" if m.role == "developer" else m.role for m in messages):
        if role == "system" and place:
            raise Reject("a system message that is not the first")
        if role == "tool" and before not in ("assistant", "tool"):
            raise Reject("a tool turn that follows no assistant turn")
        if role == "assistant" and before not in ("user", "tool"):
            raise Reject(
                "two assistant turns in a row" if before == "assistant" else "no user turn before the assistant"
            )
        if role == "user" and before == "user":
            raise Reject("two user turns in a row")
        before = role
    if before == "system":
        raise Reject("nothing but a system message")


def untrained(messages: Messages) -> Messages:
    """The same messages as a prompt: none of them is trained on."""
    return tuple(replace(message, train=False) for message in messages)


RowDict = Mapping[str, Any]


@dataclass
class At:
    """Where a row is, and how to read it."""

    source: str
    chat: bool | None = None
    """Alpaca and HH-RLHF as chat turns (True) or in their own text form (False); None: turns and text."""
    verdict: Mapping[str, str] | None = None
    """What the values of a verdict column mean: {"1": "first", "2": "second", "0": "tie"}."""
    notes: Counter[str] = field(default_factory=Counter)
    """Changes made to rows that were kept."""


def pick(row: RowDict, names: str) -> Any:
    """The value under the first of the names that has one."""
    return next((row[name] for name in names.split("|") if row.get(name) is not None), None)


def turns_or_text(value: Any, column: str, at: At, *, train: bool) -> tuple[Messages, bool]:
    """A column that is plain text or messages, and which it was."""
    if value is None:
        raise Reject(f"no {column}")
    if isinstance(value, str):
        return (text_message(value, train=train),), False
    return parse_messages(value, column, at.notes, train=train), True


def source_of(row: RowDict, at: At) -> str:
    """What the row says it comes from, or else its place."""
    given = row.get("source")
    return given if isinstance(given, str) and given else at.source


def answer_of(row: RowDict) -> Any:
    """What the row says is right, as it stands there."""
    return pick(row, ANSWERS)


def numbers(value: Any) -> tuple[float, ...]:
    """Counts of votes: not negative, not all 0."""
    counts = listed(value, "counts")
    if not all(
        isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < float("inf") for count in counts
    ):
        raise Reject("counts are not numbers from 0")
    if not any(counts):
        raise Reject("counts are all 0")
    return tuple(float(count) for count in counts)

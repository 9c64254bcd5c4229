"""Rows that hold dialogues, answers, judged answers or texts -> `Conversation`, `Rating`, `Document`.

TRL and OpenAI messages, ShareGPT, prompt and completion, Alpaca (as turns, or in its own two templates), prompts, text.
Left out: comparisons (`pairs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trueline.records import Conversation, Document, Message, Messages, Rating, Record
from trueline.rows.messages import (
    At,
    Reject,
    RowDict,
    answer_of,
    assistant,
    check_order,
    clean,
    listed,
    numbers,
    parse_messages,
    parse_tools,
    pick,
    source_of,
    text_message,
    turns_or_text,
    untrained,
    user,
)
from trueline.rows.readers import parse_json

SHAREGPT = "conversations|conversation|items"


def _conversation(messages: Messages, row: RowDict, at: At) -> list[Record]:
    if messages[0].role != "text":
        check_order(messages)
    tools = parse_tools(row.get("tools"))
    return [Conversation(messages=messages, source=source_of(row, at), tools=tools, answer=answer_of(row))]


def chat(row: RowDict, at: At) -> list[Record]:
    """TRL's and OpenAI's messages; weight 0 keeps a turn out of the loss."""
    return _conversation(parse_messages(row.get("messages"), "messages", at.notes), row, at)


def sharegpt(row: RowDict, at: At) -> list[Record]:
    """Turns {from, value}, roles under many names."""
    messages = parse_messages(pick(row, SHAREGPT), "conversations", at.notes)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        messages = (Message(role="system", content=clean(system, "system")), *messages)
    return _conversation(from_human(messages, at), row, at)


def from_human(messages: Messages, at: At) -> Messages:
    """Exports often begin in the middle: what a model said before the first human turn is dropped, and counted."""
    start = 1 if messages[0].role == "system" else 0
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if first is None:
        raise Reject("no human turn")
    if first > start:
        at.notes["leading turns before the first human turn dropped"] += 1
    return (*messages[:start], *messages[first:])


def completion(row: RowDict, at: At) -> list[Record]:
    """TRL's prompt and completion."""
    prompt, chatted = turns_or_text(row.get("prompt"), "prompt", at, train=False)
    answer, answer_chat = turns_or_text(pick(row, "completion|response"), "completion", at, train=True)
    if chatted and not answer_chat:
        answer = (assistant(answer[0].content),)
    elif answer_chat and not chatted:
        prompt = (user(prompt[0].content),)
    return _conversation((*prompt, *answer), row, at)


ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def alpaca_prompt(row: RowDict, at: At) -> tuple[Messages, bool]:
    """instruction and input as one user turn, or in Alpaca's own two templates: with an input section, and without.
    The second value says whether it is text."""
    instruction, given = clean(row.get("instruction"), "instruction"), row.get("input")
    given = given if isinstance(given, str) and given.strip() else ""
    if at.chat is False:
        head = ALPACA_INPUT if given else ALPACA
        section = f"\n\n### Input:\n{given}" if given else ""
        text = f"{head}\n\n### Instruction:\n{instruction}{section}\n\n### Response:"
        return (text_message(text, train=False),), True
    turns: list[Message] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        turns.append(Message(role="system", content=row["system"], train=False))
    for asked, said in row.get("history") or ():
        turns += [user(asked), replace(assistant(said), train=False)]
    return (*turns, user(f"{instruction}\n\n{given}" if given else instruction)), False


def alpaca(row: RowDict, at: At) -> list[Record]:
    """Alpaca, also with `response` for `output`."""
    prompt, plain = alpaca_prompt(row, at)
    output = clean(pick(row, "output|response"), "output")
    return _conversation((*prompt, text_message(output, train=True) if plain else assistant(output)), row, at)


def self_instruct(row: RowDict, at: At) -> list[Record]:
    """One instruction with several instances of input and output."""
    rows = [{**row, **case} for case in listed(row.get("instances"), "instances") if isinstance(case, Mapping)]
    if not rows:
        raise Reject("instances is empty")
    return [record for one in rows for record in alpaca(one, at)]


def question(row: RowDict, at: At) -> list[Record]:
    """A question and its answer, as a chat."""
    return _conversation((user(row.get("question", "")), assistant(row.get("answer", ""))), {**row, "answer": None}, at)


def prompt_only(row: RowDict, at: At) -> list[Record]:
    """TRL's prompt without an answer."""
    prompt, _ = turns_or_text(row.get("prompt"), "prompt", at, train=False)
    return _conversation(prompt, row, at)


def first_turn(row: RowDict, at: At) -> list[Record]:
    """MT-bench: later turns need the answers to the earlier ones."""
    turns = listed(row.get("turns"), "turns")
    if not turns:
        raise Reject("turns is empty")
    if len(turns) > 1:
        at.notes["later turns of a question left out"] += 1
    return _conversation((user(turns[0]),), row, at)


def instruction_only(row: RowDict, at: At) -> list[Record]:
    """Alpaca's columns without an answer."""
    return _conversation(alpaca_prompt(row, at)[0], row, at)


def document(row: RowDict, at: At) -> list[Record]:
    """Text of a corpus; other columns become its meta."""
    text, given = pick(row, "text|content"), row.get("meta")
    if isinstance(given, str):
        given = parse_json(given) if given.startswith("{") else {"meta": given}
    known = ("text", "content", "id", "source", "meta")
    meta = {name: value for name, value in row.items() if name not in known and value is not None}
    name = "" if row.get("id") is None else str(row["id"])
    return [Document(text=clean(text, "text"), id=name, source=source_of(row, at), meta={**(given or {}), **meta})]


def rating(row: RowDict, at: At) -> list[Record]:
    """prompt, completion, and label (KTO), score, or counts per ordered category."""
    prompt, chatted = turns_or_text(row.get("prompt"), "prompt", at, train=False)
    response, _ = turns_or_text(pick(row, "completion|response"), "completion", at, train=True)
    if chatted and response[0].role == "text":
        response = (assistant(response[0].content),)
    elif not chatted and response[0].role != "text":
        prompt = (user(prompt[0].content),)
    return [_rated(prompt, response, row, at)]


def rated_messages(row: RowDict, at: At) -> list[Record]:
    """Messages and a label: the last assistant turn is what was judged."""
    messages = parse_messages(pick(row, "messages|" + SHAREGPT), "messages", at.notes)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise Reject("no assistant turn at the end")
    return [_rated(untrained(messages[:-1]), messages[-1:], row, at)]


def _rated(prompt: Messages, response: Messages, row: RowDict, at: At) -> Rating:
    """A label, or else counts, or else a score."""
    if prompt[-1].role != "text":
        check_order((*prompt, *response))
    annotator = row["annotator"] if isinstance(row.get("annotator"), str) else ""
    rated = Rating(prompt=prompt, response=response, source=source_of(row, at), annotator=annotator)
    label, counts, score = row.get("label"), row.get("counts"), row.get("score")
    if label is not None:
        meaning = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        said = meaning.get(str(label).strip().lower())
        if said is None:
            raise Reject("label is neither true nor false")
        return replace(rated, label=said)
    if counts is not None:
        return replace(rated, counts=numbers(counts))
    return replace(rated, score=_score(score))


def _score(value: Any) -> float:
    """A finite number, also out of CSV."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Reject("score is not a number") from None
    if not math.isfinite(number):
        raise Reject("score is not finite")
    return number

"""Rows that compare responses -> `Comparison`: TRL's preference columns, HH-RLHF transcripts, our own rankings.

Where the prompt is implicit it is what both sides share, cut at a turn, so that no answer is split in its middle.
Left out: rows whose verdict is a column (`verdicts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trueline.records import Comparison, Counts, Message, Messages, Ranking, Record
from trueline.rows import verdicts
from trueline.rows.dialogues import SHAREGPT, alpaca_prompt, from_human
from trueline.rows.messages import (
    At,
    Reject,
    RowDict,
    assistant,
    check_order,
    clean,
    listed,
    numbers,
    parse_messages,
    pick,
    source_of,
    text_message,
    turns_or_text,
    untrained,
    user,
)


def comparison(
    prompt: Messages, responses: Sequence[Messages], judgement: Ranking | Counts, row: RowDict, at: At
) -> Comparison:
    """Checked: order of turns, nothing equal that is ranked differently, the prompt not repeated in its responses."""
    places = judgement.ranks if isinstance(judgement, Ranking) else judgement.counts
    if len(responses) < 2 or len(places) != len(responses):
        raise Reject("not one rank or count for each of two or more responses")
    for index, response in enumerate(responses):
        if prompt[-1].role != "text":
            if response[0].role != "assistant":
                raise Reject("a response that does not begin with an assistant turn")
            check_order((*prompt, *response))
        if any(response == other and places[index] != places[k] for k, other in enumerate(responses[:index])):
            raise Reject("chosen and rejected are equal")
    opening = prompt[-1].content if len(prompt) == 1 else ""
    if len(opening) >= 20 and all(response[0].content.startswith(opening) for response in responses):
        raise Reject("the responses repeat their prompt")  # short prompts may be repeated on purpose
    return Comparison(prompt=prompt, responses=tuple(responses), judgement=judgement, **_who(row, at))


def _who(row: RowDict, at: At) -> dict[str, str]:
    """source, annotator and time, when the row says them."""
    said = {name: row[name] for name in ("annotator", "time") if isinstance(row.get(name), str)}
    return {"source": source_of(row, at), **said}


def _pair(prompt: Messages, chosen: Messages, rejected: Messages, row: RowDict, at: At) -> list[Record]:
    return [comparison(prompt, (chosen, rejected), Ranking((1, 2)), row, at)]


def preference(row: RowDict, at: At) -> list[Record]:
    """TRL's prompt, chosen, rejected: plain or conversational."""
    prompt, chatted = turns_or_text(row.get("prompt"), "prompt", at, train=False)
    (chosen, chosen_chat), (rejected, rejected_chat) = _sides(row, at)
    if chosen_chat != rejected_chat:
        raise Reject("one of chosen and rejected is plain text, the other messages")
    if chosen_chat and not chatted:  # whole dialogues beside their first question, as UltraFeedback is published
        if chosen[0].role == "assistant":
            return _pair((user(prompt[0].content),), chosen, rejected, row, at)
        return _pair(*cut_at_turn(chosen, rejected), row, at)
    if chatted and not chosen_chat:
        chosen, rejected = (assistant(chosen[0].content),), (assistant(rejected[0].content),)
    elif chatted and chosen[: len(prompt)] == tuple(replace(m, train=True) for m in prompt):
        raise Reject("the responses repeat their prompt")
    return _pair(prompt, chosen, rejected, row, at)


def _sides(row: RowDict, at: At) -> list[tuple[Messages, bool]]:
    return [turns_or_text(row.get(name), name, at, train=True) for name in ("chosen", "rejected")]


def implicit_preference(row: RowDict, at: At) -> list[Record]:
    """chosen and rejected hold the prompt too: it is what they share, cut at a turn (messages) or a word (text)."""
    (chosen, chosen_chat), (rejected, rejected_chat) = _sides(row, at)
    if chosen_chat != rejected_chat:
        raise Reject("one of chosen and rejected is plain text, the other messages")
    if chosen_chat:
        return _pair(*cut_at_turn(chosen, rejected), row, at)
    first, second = chosen[0].content, rejected[0].content
    if first == second:
        raise Reject("chosen and rejected are equal")
    shared = first[: _shared(first, second)]
    cut = max(shared.rfind(" "), shared.rfind("\n"), 0)  # the blank belongs to the response
    prompt = shared[:cut].rstrip()
    if not prompt:
        raise Reject("chosen and rejected share no prompt")
    return _texts(prompt, first, second, row, at)


def transcripts(row: RowDict, at: At) -> list[Record]:
    """HH-RLHF: the prompt ends with the last "\\n\\nAssistant:" that both share; both must end with that turn."""
    first, second = (clean(row.get(name), "text") for name in ("chosen", "rejected"))
    if first == second:
        raise Reject("chosen and rejected are equal")
    shared = first[: _shared(first, second)]
    end = shared.rfind(ASSISTANT) + len(ASSISTANT)
    if end < len(ASSISTANT):
        raise Reject("chosen and rejected share no prompt")
    if any(mark in text[end:] for text in (first, second) for mark in (HUMAN, ASSISTANT)):
        raise Reject("transcripts that part before their last turn")
    if not at.chat:
        return _texts(first[:end], first, second, row, at)
    chosen, rejected = ((assistant(text[end:].strip()),) for text in (first, second))
    return _pair(transcript_turns(first[:end]), chosen, rejected, row, at)


def _shared(first: str, second: str) -> int:
    """Length of the common beginning, by halving."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first.startswith(second[:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def _texts(prompt: str, first: str, second: str, row: RowDict, at: At) -> list[Record]:
    """A plain pair out of two full texts and the prompt they begin with."""
    chosen, rejected = ((text_message(text[len(prompt) :], train=True),) for text in (first, second))
    return _pair((text_message(prompt, train=False),), chosen, rejected, row, at)


def cut_at_turn(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The turns they share are the prompt."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise Reject("chosen and rejected are equal")
    if shared == 0:
        raise Reject("chosen and rejected share no prompt")
    if shared == min(len(chosen), len(rejected)):
        raise Reject("one of chosen and rejected is the beginning of the other")
    return untrained(chosen[:shared]), chosen[shared:], rejected[shared:]


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def is_transcript(row: RowDict) -> bool:
    """True for a text that begins with a human turn and has an assistant turn."""
    chosen = row.get("chosen")
    return isinstance(chosen, str) and chosen.lstrip().startswith(HUMAN.strip()) and ASSISTANT in chosen


def transcript_turns(prompt: str) -> Messages:
    """A transcript that ends with an open assistant mark -> its turns."""
    parts = re.split(r"\n\n(Human|Assistant):", prompt.removesuffix(ASSISTANT))[1:]
    roles = ["user" if mark == "Human" else "assistant" for mark in parts[::2]]
    return tuple(
        Message(role=role, content=clean(said.strip(), role), train=False)
        for role, said in zip(roles, parts[1::2], strict=True)
    )


def ranked(row: RowDict, at: At) -> list[Record]:
    """Ours: prompt, responses, and ranks (1 = best) or counts."""
    prompt, chatted = turns_or_text(row.get("prompt"), "prompt", at, train=False)
    responses = []
    for value in listed(row.get("responses"), "responses"):
        response, _ = turns_or_text(value, "a response", at, train=True)
        if chatted and response[0].role == "text":
            response = (assistant(response[0].content),)
        responses.append(response)
    ranks, counts = row.get("ranks"), row.get("counts")
    return [
        comparison(prompt, responses, Ranking(_ranks(ranks)) if ranks is not None else Counts(numbers(counts)), row, at)
    ]


def _ranks(value: Any) -> tuple[int, ...]:
    ranks = listed(value, "ranks")
    if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 for rank in ranks):
        raise Reject("ranks are not whole numbers from 1")
    return tuple(ranks)


def sharegpt_preference(row: RowDict, at: At) -> list[Record]:
    """LLaMA-Factory's form: conversations is the prompt, chosen and rejected one message each."""
    prompt = from_human(untrained(parse_messages(pick(row, SHAREGPT), "conversations", at.notes)), at)
    (chosen, _), (rejected, _) = _sides(row, at)
    chosen, rejected = ((assistant(r[0].content),) if r[0].role == "text" else r for r in (chosen, rejected))
    return _pair(prompt, chosen, rejected, row, at)


def alpaca_preference(row: RowDict, at: At) -> list[Record]:
    """LLaMA-Factory's form: Alpaca's prompt, chosen and rejected."""
    prompt, _ = alpaca_prompt(row, at)
    (chosen, _), (rejected, _) = _sides(row, at)
    if prompt[-1].role != "text":
        chosen, rejected = (assistant(chosen[0].content),), (assistant(rejected[0].content),)
    return _pair(prompt, chosen, rejected, row, at)


def judged(row: RowDict, at: At) -> list[Record]:
    """Two responses and a verdict (`verdicts`)."""
    prompt, responses, judgement = verdicts.read(row, at.verdict, at.notes)
    return [comparison(prompt, responses, judgement, row, at)]

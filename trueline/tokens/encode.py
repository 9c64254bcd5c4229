"""Records to rows: ids, and which of them are scored (trained on).

    Document      text E                                  every token scored but the first
    Conversation  header  question  header [answer end]   answers and their end tokens scored; Message.train False: not
    Comparison    K of these, best first                  only the responses scored
    TEXT turns    prompt[completion E]                    joined as given and tokenised as a whole; a token belongs to the turn that it begins in

Each sequence is rendered and tokenised alone. A token that holds characters of both sides of a turn's border cannot be scored exactly:
in a chat that row is dropped with its reason (or the template is refused, if it always does this); in TEXT rows the token counts as
prompt and the row is counted in `EncodeStats.straddled`. Rows longer than max_length are cut on the right, counted.

Left out: grouping rows into batches (pack.py plans windows; objectives lay rows out).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.records import TEXT, Comparison, Conversation, Document, Message, Ranking, Row
from trueline.tokens.template import RowError, TemplateError, Turn, messages_for_template, replace_strings, strings
from trueline.tokens.tokenizer import Tokenizer


@dataclass
class EncodeStats:
    """What became of the records: nothing is cut or dropped without being counted here."""

    rows: int = 0
    tokens: int = 0
    """Tokens kept."""
    scored_tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of records."""
    straddled: int = 0
    """TEXT rows in which one token holds the end of the prompt and the begin of the completion; it is not scored."""
    spelled: int = 0
    """Records whose text holds the name of a control token ("<|im_end|>"), which was encoded as plain characters."""

    def add(self, row: Row) -> None:
        self.rows += 1
        self.tokens += row.num_tokens
        self.scored_tokens += sum(int(s.sum()) for s in row.scored)

    def cut(self, tokens: int) -> None:
        if tokens > 0:
            self.cut_rows += 1
            self.cut_tokens += tokens


Encoded = tuple[np.ndarray, np.ndarray]
"""ids int32 [L], scored bool [L]."""


def row_key(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray]) -> str:
    """Stable name of a row: sha256 of its ids and scored flags."""
    digest = hashlib.sha256()
    for ids_L, scored_L in zip(ids, scored, strict=True):
        digest.update(len(ids_L).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids_L, dtype="<i4").tobytes())
        digest.update(np.ascontiguousarray(scored_L, dtype="u1").tobytes())
    return digest.hexdigest()


# ---- documents


def documents_ids(texts: Sequence[str], tok: Tokenizer) -> list[np.ndarray]:
    """Ids of many documents, over threads: BOS where the family expects one, the text, EOS."""
    return [_framed(ids, tok) for ids in tok.encode_batch(texts)]


def encode_document(doc: Document, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """All tokens scored; EOS appended. A long document becomes several windows that overlap by one token, so that every token
    but the first is a target exactly once and nothing is lost."""
    stats = stats if stats is not None else EncodeStats()
    if not doc.text:
        stats.dropped["empty document"] += 1
        return []
    if tok.control_pattern.search(doc.text):
        stats.spelled += 1
    return window_rows(documents_ids([doc.text], tok), max_length, stats)


def window_rows(documents: Iterable[np.ndarray], max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """Rows of at most `max_length` tokens from the ids of documents, each document cut on its own."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    rows = []
    for ids in documents:
        for start in range(0, len(ids) - 1, max_length - 1):
            piece = ids[start : start + max_length].astype(np.int32)
            row = _row([(piece, np.ones(len(piece), dtype=bool))])
            stats.add(row)
            rows.append(row)
    return rows


def _framed(ids: np.ndarray, tok: Tokenizer) -> np.ndarray:
    if tok.eos_id is None:
        raise ValueError("The tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json.")
    head = [tok.bos_id] if tok.adds_bos and tok.bos_id is not None else []
    return np.concatenate([np.array(head, dtype=np.int32), ids, np.array([tok.eos_id], dtype=np.int32)])


# ---- conversations and comparisons


def encode_conversation(
    conv: Conversation, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None
) -> Row | None:
    """One sequence, responses scored; None when it was dropped (the reason is counted in `stats`)."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    sequence = _sequence(conv.messages, range(len(conv.messages)), conv.tools, tok, stats)
    if sequence is None:
        return None
    _count_spelled([conv.messages], tok, stats)
    ids, scored = sequence
    cut = _cut(sequence, max_length)
    if not cut[1].any():
        lost = bool(scored.any())
        stats.dropped["no scored token within max_length" if lost else "no response to train on"] += 1
        return None
    stats.cut(len(ids) - len(cut[0]))
    row = _row([cut])
    stats.add(row)
    return row


def encode_comparison(comp: Comparison, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None) -> Row | None:
    """K sequences, best first (ties keep their order); numbers["rank"] or numbers["counts"] say how they were judged. Only the
    responses are scored, each cut at the same length; None when the row was dropped."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    name, values, order = _judged(comp)
    responses = [comp.responses[k] for k in order]
    sequences = []
    for response in responses:
        answer = range(len(comp.prompt), len(comp.prompt) + len(response))
        sequence = _sequence((*comp.prompt, *response), answer, (), tok, stats)
        if sequence is None:
            return None
        sequences.append(sequence)
    _count_spelled([comp.prompt, *responses], tok, stats)
    kept = [_cut(sequence, max_length) for sequence in sequences]
    if not all(scored.any() for _, scored in kept):
        full = all(scored.any() for _, scored in sequences)
        stats.dropped["prompt leaves no room for a response within max_length" if full else "a response has nothing to score"] += 1
        return None
    if all(np.array_equal(ids, kept[0][0]) for ids, _ in kept):
        same = all(np.array_equal(ids, sequences[0][0]) for ids, _ in sequences)
        stats.dropped["responses are equal" if same else "responses are equal within max_length"] += 1
        return None
    stats.cut(sum(len(full[0]) - len(cut[0]) for full, cut in zip(sequences, kept, strict=True)))
    row = _row(kept, {name: np.array([values[k] for k in order], dtype=np.float32)})
    stats.add(row)
    return row


def encode_prompt(messages: Sequence[Message], tok: Tokenizer, *, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
    """Ids to sample from: the messages and the generation prompt (TEXT turns as they stand, after BOS where the family expects it)."""
    if _is_text(messages):
        ids, _ = tok.encode_with_offsets("".join(m.content for m in messages))
        return ids if not _bos(tok) else np.concatenate([np.array(_bos(tok), dtype=np.int32), ids])
    shown, tools_shown = _guarded(messages, tools, tok)
    ids, _ = tok.encode_guarded(tok.template.render(shown, tools=tools_shown, add_generation_prompt=True))
    return ids


def chat_sequence(
    messages: Sequence[Message], tok: Tokenizer, trained: Iterable[int], tools: Sequence[Mapping[str, Any]] = ()
) -> Encoded:
    """Ids of a rendered conversation and the exact mask of the assistant turns among `trained` (message indices)."""
    shown, tools_shown = _guarded(messages, tools, tok)
    text, turns = tok.template.turns(shown, tok.stop_texts, tools=tools_shown)
    ids, offsets = tok.encode_guarded(text)
    trained = set(trained)
    scored = np.zeros(len(ids), dtype=bool)
    for turn in turns:
        if _trains(turn, messages, trained):
            scored |= inside(offsets, turn.start, turn.stop, text)
    return ids, scored


def inside(offsets: np.ndarray, start: int, stop: int, text: str) -> np.ndarray:
    """bool [L]: which tokens spell text[start:stop]. A token that spells characters on both sides of a border is a RowError.

    A token of no characters (a dummy prefix) belongs to what follows it.
    """
    begins_L, ends_L = offsets[:, 0], offsets[:, 1]
    for border in (start, stop):
        across = np.flatnonzero((begins_L < border) & (border < ends_L))
        if len(across):
            a, b = offsets[across[0]]
            raise RowError(f"one token spells {text[a:b]!r}, on both sides of the border of an assistant turn")
    return (begins_L >= start) & (begins_L < stop)


def _trains(turn: Turn, messages: Sequence[Message], trained: set[int]) -> bool:
    if turn.message >= 0:
        return turn.message in trained
    turns = {i for i, m in enumerate(messages) if m.role == "assistant"}
    if turns <= trained:
        return True
    if not turns & trained:
        return False
    raise TemplateError(
        "The chat template's {% generation %} blocks do not match the assistant turns one to one, so single turns cannot be left out "
        "of training: put one block around each assistant turn."
    )


def _guarded(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], tok: Tokenizer
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]]]:
    """Messages and tools in which nothing that a person wrote reads as a control token."""
    shown = messages_for_template(messages)
    joined = "\0".join(strings((shown, tools)))
    if not tok.control_pattern.search(joined):
        tok.guard(joined)
        return shown, tools
    shown = [replace_strings(m, tok.control_pattern, tok.aliases) for m in shown]
    return shown, [replace_strings(t, tok.control_pattern, tok.aliases) for t in tools]


def _sequence(
    messages: Sequence[Message], answer: Iterable[int], tools: Sequence[Mapping[str, Any]], tok: Tokenizer, stats: EncodeStats
) -> Encoded | None:
    """Ids and mask of one sequence; None when the row had to be dropped."""
    trained = [i for i in answer if messages[i].train]
    if _is_text(messages):
        return _text_sequence(messages, trained, tok, stats)
    try:
        return chat_sequence(messages, tok, trained, tools)
    except RowError as error:
        check_template(tok)
        stats.dropped[str(error)[:100] if "U+10FFFD" in str(error) else "a token spells both prompt and response"] += 1
        return None


def check_template(tok: Tokenizer) -> None:
    """Raises a TemplateError when not even the plainest conversation can be masked: then the template is at fault, not the row."""
    plain = (Message(role="user", content="Question"), Message(role="assistant", content="Answer"))
    try:
        chat_sequence(plain, tok, [1])
    except RowError as error:
        raise TemplateError(f"The chat template cannot be masked exactly with this tokenizer: {error}.") from error


def _text_sequence(
    messages: Sequence[Message], trained: Sequence[int], tok: Tokenizer, stats: EncodeStats
) -> Encoded:
    ids, offsets = tok.encode_with_offsets("".join(m.content for m in messages))
    borders = np.cumsum([len(m.content) for m in messages])
    begins_L, ends_L = offsets[:, 0], offsets[:, 1]
    turn_L = np.searchsorted(borders, begins_L, side="right")
    trains = np.isin(np.arange(len(messages)), trained)
    scored = trains[np.minimum(turn_L, len(messages) - 1)] if len(ids) else np.zeros(0, dtype=bool)
    changes = [int(border) for k, border in enumerate(borders[:-1]) if trains[k] != trains[k + 1]]
    stats.straddled += any(bool(((begins_L < border) & (border < ends_L)).any()) for border in changes)
    framed = _framed(ids, tok)
    before = len(framed) - len(ids) - 1
    return framed, np.concatenate([np.zeros(before, dtype=bool), scored, trains[-1:]])


def _is_text(messages: Sequence[Message]) -> bool:
    kinds = {m.role == TEXT for m in messages}
    if not messages:
        raise ValueError("A conversation without messages cannot be encoded: give at least one.")
    if len(kinds) > 1:
        raise ValueError("Plain-text and chat messages are mixed in one row: give it only one kind.")
    return kinds == {True}


def _bos(tok: Tokenizer) -> list[int]:
    return [tok.bos_id] if tok.adds_bos and tok.bos_id is not None else []


def _judged(comp: Comparison) -> tuple[str, Sequence[float], list[int]]:
    """The name and values of the judgement, and the order of the responses, best first."""
    values: Sequence[float]
    if isinstance(comp.judgement, Ranking):
        name, values, sign = "rank", comp.judgement.ranks, 1
    else:
        name, values, sign = "counts", comp.judgement.counts, -1
    if len(values) != len(comp.responses):
        raise ValueError(f"A comparison of {len(comp.responses)} responses is judged by {len(values)} numbers: give one each.")
    return name, values, sorted(range(len(values)), key=lambda k: sign * values[k])


def _cut(sequence: Encoded, max_length: int) -> Encoded:
    ids, scored = sequence[0][:max_length], sequence[1][:max_length].copy()
    scored[:1] = False
    return ids, scored


def _row(sequences: Sequence[Encoded], numbers: Mapping[str, np.ndarray] | None = None) -> Row:
    ids = tuple(np.ascontiguousarray(ids, dtype=np.int32) for ids, _ in sequences)
    scored = tuple(s.copy() for _, s in sequences)
    for scored_L in scored:
        scored_L[:1] = False  # nothing predicts the first token
    return Row(ids=ids, scored=scored, key=row_key(ids, scored), numbers=dict(numbers or {}))


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length {max_length} is too short: use at least 2.")


def _count_spelled(parts: Sequence[Sequence[Message]], tok: Tokenizer, stats: EncodeStats) -> None:
    stats.spelled += any(tok.control_pattern.search(m.content) is not None for part in parts for m in part)

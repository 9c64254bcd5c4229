"""Records to rows: ids, and which of them are scored (trained on).

    Document      text E                            every token scored but the first
    Conversation  header question header answer E   answers and their end tokens scored, unless Message.train is False
    Comparison    K of these, best first            only the responses scored
    Rating        one of these                      only the response scored
    TEXT turns    prompt completion E               joined as given, tokenised as a whole

Each sequence is rendered and tokenised alone. A token that holds characters of both sides of an answer's border cannot be
scored exactly. In a chat such a row is dropped with its reason, and when even the plainest chat has such a token, the
template is refused. In TEXT rows a token belongs to the turn that it begins in; `EncodeStats.straddled` counts the rows
concerned. Rows longer than max_length are cut on the right, and counted.

Left out: grouping rows into batches (pack.py plans windows; objectives lay rows out).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueline.records import TEXT, Comparison, Conversation, Document, Message, Ranking, Rating, Row
from trueline.tokens.backend import ALIAS_HEAD
from trueline.tokens.template import RowError, TemplateError, Turn, messages_for_template, replace_strings, strings
from trueline.tokens.tokenizer import Tokenizer

Encoded = tuple[np.ndarray, np.ndarray]
"""ids int32 [L], scored bool [L]."""


@dataclass
class EncodeStats:
    """What became of the records: nothing is cut or dropped without being counted here."""

    rows: int = 0
    tokens: int = 0
    """Tokens kept."""
    scored_tokens: int = 0
    cut_rows: int = 0
    """Rows that lost their right end."""
    cut_tokens: int = 0
    cut_scored: int = 0
    """Those of the cut tokens that would have been trained on: responses; the others are prompts."""
    documents: int = 0
    """Documents that were cut into windows; nothing of them is lost."""
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

    def cut(self, full: Sequence[Encoded], kept: Sequence[Encoded]) -> None:
        """The sequences of a row, before and after it was cut."""
        lost = [scored[len(left) :] for (_, scored), (left, _) in zip(full, kept, strict=True)]
        if any(map(len, lost)):
            self.cut_rows += 1
            self.cut_tokens += sum(map(len, lost))
            self.cut_scored += sum(int(scored.sum()) for scored in lost)


def row_key(ids: Sequence[np.ndarray], scored: Sequence[np.ndarray]) -> str:
    """Stable name of a row: sha256 of its ids and scored flags."""
    digest = hashlib.sha256()
    for ids_L, scored_L in zip(ids, scored, strict=True):
        digest.update(len(ids_L).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(ids_L, dtype="<i4").tobytes())
        digest.update(np.ascontiguousarray(scored_L, dtype="u1").tobytes())
    return digest.hexdigest()


# ---- documents


def documents_ids(texts: Sequence[str], tok: Tokenizer, stats: EncodeStats | None = None) -> list[np.ndarray]:
    """Ids of many documents, over threads: BOS where the family expects one, the text, EOS."""
    found = [_framed(ids, tok) for ids in tok.encode_batch(texts)]
    if stats is not None:
        stats.spelled += sum(tok.control_pattern.search(text) is not None for text in texts)
    return found


def encode_document(doc: Document, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """All tokens scored; EOS appended. A long document becomes several windows that overlap by one token, so that every
    token but the first is a target exactly once and nothing is lost."""
    stats = stats if stats is not None else EncodeStats()
    if not doc.text:
        stats.dropped["empty document"] += 1
        return []
    try:
        ids = documents_ids([doc.text], tok, stats)
    except RowError as error:
        stats.dropped[str(error)] += 1
        return []
    return window_rows(ids, max_length, stats)


def window_rows(documents: Iterable[np.ndarray], max_length: int, stats: EncodeStats | None = None) -> list[Row]:
    """Rows of at most `max_length` tokens from the ids of documents, each document cut on its own."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    rows = []
    for ids in documents:
        if len(ids) < 2:
            stats.dropped["empty document"] += 1
        else:
            stats.documents += 1
        for start in range(0, len(ids) - 1, max_length - 1):
            piece = ids[start : start + max_length].astype(np.int32)
            row = _row([(piece, np.ones(len(piece), dtype=bool))])
            stats.add(row)
            rows.append(row)
    return rows


def _framed(ids: np.ndarray, tok: Tokenizer) -> np.ndarray:
    if tok.eos_id is None:
        raise ValueError("The tokenizer has no end-of-text token: set eos_token in its tokenizer_config.json.")
    return np.concatenate([_bos(tok), ids, np.array([tok.eos_id], dtype=np.int32)])


def _bos(tok: Tokenizer) -> np.ndarray:
    return np.array([tok.bos_id] if tok.adds_bos and tok.bos_id is not None else [], dtype=np.int32)


# ---- conversations and comparisons


def encode_conversation(
    conv: Conversation, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None
) -> Row | None:
    """One sequence, responses scored; None when it was dropped (the reason is counted in `stats`)."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    try:
        sequence = _sequence(conv.messages, range(len(conv.messages)), conv.tools, tok, stats)
    except (RowError, TemplateError) as error:
        _drop(error, tok, stats)
        return None
    kept = _cut(sequence, max_length)
    if not kept[1].any():
        stats.dropped["no response within max_length" if sequence[1].any() else "no response to train on"] += 1
        return None
    stats.cut([sequence], [kept])
    row = _row([kept])
    stats.add(row)
    return row


def encode_comparison(
    comp: Comparison, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None
) -> Row | None:
    """K sequences, best first (ties keep their order); numbers["rank"] or numbers["counts"] say how they were judged. Only
    the responses are scored, every sequence cut at the same length; None when the row was dropped. A sequence ends with the last
    scored token, as a drawn one does: what a template puts after the turn's end would move the place where a score is read."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    before = len(comp.prompt)
    try:
        name, values, order = _judged(comp)
        dialogues = [(*comp.prompt, *comp.responses[k]) for k in order]
        sequences = [_answered(_sequence(d, range(before, len(d)), (), tok, stats)) for d in dialogues]
    except (RowError, TemplateError) as error:
        _drop(error, tok, stats)
        return None
    kept = [_cut(sequence, max_length) for sequence in sequences]
    if not all(scored.any() for _, scored in kept):
        whole = all(scored.any() for _, scored in sequences)
        stats.dropped[
            "no room for a response within max_length" if whole else "a response has nothing to train on"
        ] += 1
        return None
    if all(np.array_equal(ids, kept[0][0]) for ids, _ in kept):
        whole = all(np.array_equal(ids, sequences[0][0]) for ids, _ in sequences)
        stats.dropped["responses are equal" if whole else "responses are equal within max_length"] += 1
        return None
    stats.cut(sequences, kept)
    row = _row(kept, {name: np.array([values[k] for k in order], dtype=np.float32)})
    stats.add(row)
    return row


def encode_rating(rating: Rating, tok: Tokenizer, max_length: int, stats: EncodeStats | None = None) -> Row | None:
    """One sequence that ends with the response's last token; numbers["label"] [1] (1 desirable, 0 not), numbers["score"] [1] or
    numbers["counts"] [1, C] says how it was judged; None when the row was dropped."""
    stats = stats if stats is not None else EncodeStats()
    _check_length(max_length)
    dialogue, before = (*rating.prompt, *rating.response), len(rating.prompt)
    try:
        sequence = _answered(_sequence(dialogue, range(before, len(dialogue)), (), tok, stats))
    except (RowError, TemplateError) as error:
        _drop(error, tok, stats)
        return None
    kept = _cut(sequence, max_length)
    if not kept[1].any():
        whole = sequence[1].any()
        stats.dropped["no room for a response within max_length" if whole else "a response has nothing to train on"] += 1
        return None
    stats.cut([sequence], [kept])
    given = {"label": rating.label, "score": rating.score, "counts": rating.counts}
    row = _row([kept], {name: np.array([value], dtype=np.float32) for name, value in given.items() if value is not None})
    stats.add(row)
    return row


def _answered(sequence: Encoded) -> Encoded:
    """The sequence up to its last scored token (as it stands where nothing is scored)."""
    ids, scored = sequence
    end = int(np.flatnonzero(scored)[-1]) + 1 if scored.any() else len(ids)
    return ids[:end], scored[:end]


def encode_prompt(
    messages: Sequence[Message], tok: Tokenizer, *, tools: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    """Ids to sample from: the messages and the generation prompt (TEXT turns as they stand, after BOS where one is expected)."""
    if _is_text(messages):
        return np.concatenate([_bos(tok), tok.encode_with_offsets("".join(m.content for m in messages))[0]])
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
            scored |= inside(offsets, turn.start, turn.stop)
    return ids, scored


def inside(offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """bool [L]: which tokens spell text[start:stop]. A token that spells characters on both sides of a border is a RowError.

    A token of no characters (a dummy prefix) belongs to what follows it.
    """
    begins_L, ends_L = offsets[:, 0], offsets[:, 1]
    for border in (start, stop):
        if ((begins_L < border) & (border < ends_L)).any():
            raise RowError("a token spells characters on both sides of the border of an answer")
    return (begins_L >= start) & (begins_L < stop)


def check_template(tok: Tokenizer) -> None:
    """Raises a TemplateError when not even the plainest conversation can be masked: the template is at fault, not the row."""
    plain = (Message(role="user", content="Question"), Message(role="assistant", content="Answer"))
    try:
        chat_sequence(plain, tok, [1])
    except RowError as error:
        raise TemplateError(
            f"The chat template cannot be masked exactly: with this tokenizer {error}.", str(error)
        ) from error


def _trains(turn: Turn, messages: Sequence[Message], trained: set[int]) -> bool:
    if turn.message >= 0:
        return turn.message in trained
    answers = {i for i, m in enumerate(messages) if m.role == "assistant"}
    if answers <= trained:
        return True
    if not answers & trained:
        return False
    raise TemplateError(
        "The chat template's {% generation %} blocks do not match the assistant turns one to one, so single turns cannot be "
        "left out of training: put one block around each assistant turn.",
        "{% generation %} blocks do not match the assistant turns",
    )


def _guarded(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], tok: Tokenizer
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]]]:
    """Messages and tools in which nothing that a person wrote reads as a control token."""
    shown = messages_for_template(messages)
    joined = "\0".join(strings((shown, tools)))
    if ALIAS_HEAD in joined:
        raise RowError("the text holds U+10FFFD, which is reserved")
    if not tok.control_pattern.search(joined):
        return shown, tools
    shown = [replace_strings(m, tok.control_pattern, tok.aliases) for m in shown]
    return shown, [replace_strings(t, tok.control_pattern, tok.aliases) for t in tools]


def _sequence(
    messages: Sequence[Message],
    answer: Iterable[int],
    tools: Sequence[Mapping[str, Any]],
    tok: Tokenizer,
    stats: EncodeStats,
) -> Encoded:
    """Ids and mask of one sequence, of which the messages `answer` are scored."""
    trained = [i for i in answer if messages[i].train]
    stats.spelled += any(tok.control_pattern.search(m.content) is not None for m in messages)
    if _is_text(messages):
        return _text_sequence(messages, trained, tok, stats)
    return chat_sequence(messages, tok, trained, tools)


def _drop(error: RowError | TemplateError, tok: Tokenizer, stats: EncodeStats) -> None:
    """Counts a row that cannot be used, unless the template is at fault whatever the row: then it is refused."""
    check_template(tok)
    stats.dropped[error.reason if isinstance(error, TemplateError) else str(error)] += 1


def _text_sequence(messages: Sequence[Message], trained: Sequence[int], tok: Tokenizer, stats: EncodeStats) -> Encoded:
    ids, offsets = tok.encode_with_offsets("".join(m.content for m in messages))
    begins_L, ends_L = offsets[:, 0], offsets[:, 1]
    borders = np.cumsum([len(m.content) for m in messages])
    trains = np.isin(np.arange(len(messages)), trained)
    turn_L = np.minimum(np.searchsorted(borders, begins_L, side="right"), len(messages) - 1)
    changes = borders[:-1][trains[:-1] != trains[1:]]
    stats.straddled += any(bool(((begins_L < border) & (border < ends_L)).any()) for border in changes)
    framed = _framed(ids, tok)
    before = len(framed) - len(ids) - 1
    return framed, np.concatenate([np.zeros(before, dtype=bool), trains[turn_L], trains[-1:]])


def _is_text(messages: Sequence[Message]) -> bool:
    kinds = {m.role == TEXT for m in messages}
    if len(kinds) != 1:
        raise RowError("plain-text and chat messages are mixed in one row" if kinds else "no messages")
    return kinds == {True}


def _judged(comp: Comparison) -> tuple[str, Sequence[float], list[int]]:
    """The name and values of the judgement, and the order of the responses, best first."""
    values: Sequence[float]
    if isinstance(comp.judgement, Ranking):
        name, values, sign = "rank", comp.judgement.ranks, 1
    else:
        name, values, sign = "counts", comp.judgement.counts, -1
    if len(values) != len(comp.responses):
        raise RowError("the judgement does not give each response one number")
    return name, values, sorted(range(len(values)), key=lambda k: sign * values[k])


def _cut(sequence: Encoded, max_length: int) -> Encoded:
    ids, scored = sequence[0][:max_length], sequence[1][:max_length].copy()
    scored[:1] = False  # nothing predicts the first token
    return ids, scored


def _row(sequences: Sequence[Encoded], numbers: Mapping[str, np.ndarray] | None = None) -> Row:
    ids = tuple(np.ascontiguousarray(ids, dtype=np.int32) for ids, _ in sequences)
    scored = tuple(_cut(sequence, len(sequence[0]))[1] for sequence in sequences)
    return Row(ids=ids, scored=scored, key=row_key(ids, scored), numbers=dict(numbers or {}))


def _check_length(max_length: int) -> None:
    if max_length < 2:
        raise ValueError(f"max_length {max_length} is too short: use at least 2.")

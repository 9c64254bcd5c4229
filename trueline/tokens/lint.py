"""Is this tokenizer's chat template fit for training? Each check answers with one finding.

    for finding in lint_template(tok): print(finding.level, finding.message, finding.advice)

The template is exercised on small conversations, never read: whatever its source says, what counts is what it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from trueline.records import Message
from trueline.tokens.encode import chat_sequence, check_template, encode_prompt
from trueline.tokens.template import ChatTemplate, RowError, TemplateError, messages_for_template
from trueline.tokens.tokenizer import Tokenizer

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    level: str
    """"ok", "warning" or "error": with an error, training on chats would go wrong."""
    check: str
    """The check's short name."""
    message: str
    advice: str = ""
    """What to do; empty when all is well."""


ONE = (Message(role="user", content="Name a colour."), Message(role="assistant", content="Blue."))
TWO = (*ONE, Message(role="user", content="Another one?"), Message(role="assistant", content="Green, then."))


def lint_template(tok: Tokenizer) -> list[Finding]:
    """All findings, in the order of the checks. When the template cannot be rendered or masked, only that is reported."""
    try:
        check_template(tok)
        chat_sequence(TWO, tok, [1, 3])
    except (TemplateError, RowError) as error:
        advice = "Fix the template, or mark what the model writes with {% generation %} and {% endgeneration %}."
        return [Finding(ERROR, "mask", str(error), advice)]
    checks: list[Callable[[Tokenizer], Finding]] = [
        _prefix, _generation_prompt, _stop_token, _bos, _padding, _injection, _system, _date
    ]  # fmt: skip
    return [Finding(OK, "mask", "The assistant's turns are masked exactly."), *(check(tok) for check in checks)]


def _prefix(tok: Tokenizer) -> Finding:
    shown = messages_for_template(TWO)
    whole = tok.template.render(shown)
    if whole.startswith(tok.template.render(shown[:2])):
        return Finding(OK, "prefix", "A conversation begins with the text of its earlier turns.")
    return Finding(
        WARNING, "prefix", "The template rewrites earlier turns when the conversation goes on.",
        "Training stays exact, but a chat server cannot reuse its cache between turns; prefer a prefix-preserving template.",
    )  # fmt: skip


def _generation_prompt(tok: Tokenizer) -> Finding:
    name = "generation prompt"
    shown = messages_for_template(ONE)
    text = tok.template.render(shown)
    prompt = tok.template.render(shown[:1], add_generation_prompt=True)
    if not text.startswith(prompt):
        return Finding(
            ERROR, name, f"The generation prompt ends with {prompt[-40:]!r}, which is not what precedes a trained answer.",
            "Let add_generation_prompt write exactly the assistant's header.",
        )  # fmt: skip
    prompt_ids = encode_prompt(ONE[:1], tok)
    ids, scored = chat_sequence(ONE, tok, [1])
    first = int(np.flatnonzero(scored)[0]) if scored.any() else len(ids)
    if not np.array_equal(ids[: len(prompt_ids)], prompt_ids):
        return Finding(
            ERROR, name, "The tokens of the generation prompt change when an answer follows it.",
            "End the assistant's header with a special token or a line break.",
        )  # fmt: skip
    between = text[len(prompt) : text.find("Blue.")]
    if first > len(prompt_ids):
        return Finding(
            WARNING, name, f"{between!r} stands between the generation prompt and the answer and is not trained.",
            "Move it into the generation prompt, or inside the {% generation %} block.",
        )  # fmt: skip
    if first < len(prompt_ids):
        return Finding(
            WARNING, name, "A part of the generation prompt is trained, although the model never writes it.",
            "Begin the {% generation %} block behind the assistant's header.",
        )  # fmt: skip
    if between.strip():
        return Finding(
            WARNING, name, f"The model learns to write {between!r} before each answer.",
            "If this is the header of the turn, write it under add_generation_prompt, too.",
        )  # fmt: skip
    return Finding(OK, name, "Answers are trained from exactly the tokens that sampling starts from.")


def _stop_token(tok: Tokenizer) -> Finding:
    name = "stop token"
    ids, scored = chat_sequence(TWO, tok, [1, 3])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], scored, [False]]).astype(np.int8)) == -1) - 1
    ends = [int(ids[i]) for i in edges]
    if ends and all(end in tok.stop_ids for end in ends):
        return Finding(OK, name, f"Every trained answer ends with {tok.token(ends[0])}, at which sampling stops.")
    last = tok.token(ends[-1]) if ends else "nothing"
    return Finding(
        ERROR, name, f"A trained answer ends with {last!r}, which does not stop sampling: the model would never learn to stop.",
        "Close the assistant's turn with eos_token in the template (inside the {% generation %} block, where there is one).",
    )  # fmt: skip


def _bos(tok: Tokenizer) -> Finding:
    bos = tok.names.get("bos_token")
    text = tok.template.render(messages_for_template(ONE))
    if bos is None:
        return Finding(OK, "bos", "The tokenizer has no BOS.")
    written = text.startswith(bos)
    if text.startswith(bos + bos):
        return Finding(ERROR, "bos", f"The template writes {bos} twice.", "Remove one of them.")
    if written and tok.adds_bos:
        return Finding(
            WARNING, "bos", f"The template writes {bos}, and the tokenizer adds it to plain text: tools that tokenise a rendered chat "
            "as plain text double it (Trueline does not).", "Pass add_special_tokens=False wherever you tokenise rendered chats.",
        )  # fmt: skip
    if tok.adds_bos:
        return Finding(
            WARNING,
            "bos",
            f"Plain text gets {bos}, chats do not.",
            "Begin the template with {{ bos_token }} if the model expects it.",
        )
    return Finding(OK, "bos", "BOS is written once." if written else "Neither template nor tokenizer writes a BOS.")


def _padding(tok: Tokenizer) -> Finding:
    if tok.eos_id is None:
        return Finding(ERROR, "padding", "The tokenizer has no EOS.", "Set eos_token in tokenizer_config.json.")
    if tok.pad_id is not None and tok.pad_id in tok.stop_ids:
        return Finding(
            WARNING, "padding", f"The padding token is also a stop token ({tok.token(tok.pad_id)}): trainers that mask padding by its id "
            "never train it, and the model does not learn to stop (Trueline does not pad).", "Give padding a token of its own.",
        )  # fmt: skip
    return Finding(
        OK, "padding", "Padding and stop tokens differ." if tok.pad_id is not None else "There is no padding token."
    )


def _injection(tok: Tokenizer) -> Finding:
    header = tok.template.render(messages_for_template(ONE[:1]))
    if not tok.control_pattern.search(header.replace(tok.names.get("bos_token", "\0"), "")):
        return Finding(
            WARNING,
            "injection",
            "Turns are separated by plain text, which a user can type.",
            "Prefer role markers that are special tokens.",
        )
    hostile = "".join(sorted(tok.control))
    if set(tok.encode(hostile)) & set(tok.control.values()):
        return Finding(
            WARNING,
            "injection",
            "The vocabulary spells a control token even in plain text.",
            "Filter user text for control tokens.",
        )
    return Finding(OK, "injection", "Control tokens typed by a user stay plain characters.")


def _system(tok: Tokenizer) -> Finding:
    system = Message(role="system", content="Be brief.")
    try:
        text = tok.template.render(messages_for_template((system, *ONE)))
        plain = tok.template.render(messages_for_template(ONE))
    except TemplateError:
        return Finding(
            WARNING, "system", "The template refuses system messages.", "Move them into the first user message."
        )
    if "Be brief." not in text:
        return Finding(
            WARNING, "system", "The template drops system messages.", "Move them into the first user message."
        )
    answerable = plain.split(ONE[0].content)[0].strip()
    if "system" in answerable.lower() and len(answerable) > 40:
        return Finding(
            WARNING, "system", f"Without a system message the template writes its own: {answerable[:80]!r}.",
            "Keep it in mind when comparing with rows that have a system message.",
        )  # fmt: skip
    return Finding(OK, "system", "System messages are written.")


def _date(tok: Tokenizer) -> Finding:
    days = (datetime(2024, 1, 2), datetime(2031, 11, 23))
    texts = {ChatTemplate(tok.chat_template, tok.names, now=day).render(messages_for_template(ONE)) for day in days}
    if len(texts) == 1:
        return Finding(OK, "date", "The same messages give the same text on every day.")
    return Finding(
        WARNING, "date", "The template writes today's date: the same rows differ from day to day, and a run cannot be repeated exactly.",
        "Replace strftime_now in the template by a fixed date.",
    )  # fmt: skip

"""Chat templates: messages to text, and the exact stretch of text that the model must write in each assistant turn.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello.<|im_end|>\\n
    |------------- prompt_text, given to the sampler ---------||-- turn ------|

A turn starts where the generation prompt ends and stops after its end token. How it is found:

1. `{% generation %}` markers, where the template has them, decide alone.
2. Otherwise the start is the end of the generation prompt, rendered from the messages before the turn. It must be how
   the whole conversation begins (or, where a template rewrites earlier turns, what follows the message before). The end
   of the content is found by rendering again with a private-use character behind each message. Without these
   characters the text must be the same as before, so a template that trims or merges white space is followed exactly,
   and one that reacts to them (cuts the content, writes it twice) is noticed. The first stop token behind the content
   belongs to the turn.
3. What cannot be located like this is a TemplateError; nothing is guessed.

Text written by people may spell control tokens. They are replaced by aliases of equal length before rendering
(encode.py), so what still reads "<|im_end|>" in the rendered text was written by the template.

Jinja is set up as in transformers: sandboxed (with an end: sandbox.py), trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception,
strftime_now. Left out: several named templates in one tokenizer (the one called "default" is used), documents for
retrieval templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from trueline.records import Message
from trueline.tokens.sandbox import STEPS, Sandbox, TooMuch

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The default (Yi's and OpenAI's format): no default system message, no BOS."""

PRIVATE_FIRST, PRIVATE_LAST = 0xF0000, 0xFFFFD
MARKS = "trueline_generation_marks"

Messages = Sequence[Mapping[str, Any]]
"""Messages (or tools) as the mappings that templates read."""
Place = tuple[int, int]
"""Where a content begins and ends in the rendered text."""


class TemplateError(ValueError):
    """The template cannot do what was asked of it with these messages; `reason` says why in words that fit every row."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RowError(ValueError):
    """This row cannot be used, whatever the template. Its message fits every such row."""


@dataclass(frozen=True)
class Turn:
    """What the model writes in one assistant message: text[start:stop] of the rendered conversation."""

    message: int
    """Index of the message; -1 when `{% generation %}` markers do not correspond to messages one to one."""
    start: int
    stop: int
    content_stop: int
    """Where the content ends; the rest up to `stop` is the end of the turn (and tool calls). Equals stop for markers."""


class ChatTemplate:
    """A compiled template. `names` are the special tokens that it may write (bos_token, eos_token, ...)."""

    def __init__(self, source: str, names: Mapping[str, str], *, now: datetime | None = None) -> None:
        self.source = source
        self.names = dict(names)
        self.now = now
        """What strftime_now tells the template; None = the clock."""

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = environment.guarded("tojson", _tojson)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: (self.now or datetime.now()).strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            message = f"The chat template does not parse: {error.message} (line {error.lineno})."
            raise TemplateError(message, "the chat template does not parse") from error
        except (SyntaxError, RecursionError, ValueError, TypeError, ArithmeticError, LookupError) as error:
            # what jinja makes of it, or computes while it parses
            message = f"The chat template does not compile ({type(error).__name__}): simplify it."
            raise TemplateError(message, "the chat template does not compile") from error

    @cached_property
    def has_generation_markers(self) -> bool:
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source) is not None

    def render(
        self,
        messages: Messages,
        *,
        tools: Messages = (),
        add_generation_prompt: bool = False,
        marks: tuple[str, str] | None = None,
    ) -> str:
        """The conversation as text. `marks` are written around every `{% generation %}` block."""
        variables: dict[str, Any] = {**self.names, MARKS: marks}
        compiled = self._compiled
        assert isinstance(compiled.environment, Sandbox)
        compiled.environment.begin(len(str(messages)))
        try:
            return compiled.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except TooMuch:
            raise ValueError(
                f"the chat template takes more than {STEPS:,} steps for one conversation, so it is broken, or was written to harm: "
                "use another chat_template"
            ) from None
        except jinja2.TemplateError as error:
            reason = f"the chat template refuses the messages: {(error.message or type(error).__name__).rstrip('.')}"
            raise TemplateError(f"{reason[0].upper()}{reason[1:]}.", reason[:120]) from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:  # untrusted code
            said = " ".join(str(error).split()).rstrip(".")[:200]
            raise TemplateError(
                f"The chat template fails on these messages: {said}.", "the chat template fails"
            ) from error

    # ---- where the turns are

    def turns(self, messages: Messages, stops: Sequence[str], *, tools: Messages = ()) -> tuple[str, list[Turn]]:
        """The rendered conversation and its assistant turns. `stops` are the texts of the tokens that may end a turn."""
        text = self.render(messages, tools=tools)
        wanted = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not wanted:
            return text, []
        if self.has_generation_markers:
            return text, self._marked_turns(text, messages, wanted, tools)
        places = self._places(text, messages, tools)
        return text, [self._turn(i, text, messages, places, stops, tools) for i in wanted]

    def _marked_turns(self, text: str, messages: Messages, wanted: Sequence[int], tools: Messages) -> list[Turn]:
        first = _free_characters(text, 2)
        opening, closing = chr(first), chr(first + 1)
        marked = self.render(messages, tools=tools, marks=(opening, closing))
        plain, found = _take_out(marked, first, 2)
        opened, closed = found[0], found[1]
        if plain != text or len(opened) != len(closed):
            raise TemplateError(
                "The chat template changes the text inside {% generation %} after writing it: write it directly.",
                "the chat template changes the text inside {% generation %}",
            )
        indices = list(wanted) if len(opened) == len(wanted) else [-1] * len(opened)
        return [Turn(i, a, b, b) for i, a, b in zip(indices, opened, closed, strict=True)]

    def _turn(
        self,
        i: int,
        text: str,
        messages: Messages,
        places: Sequence[Place | None],
        stops: Sequence[str],
        tools: Messages,
    ) -> Turn:
        start = self._start(i, text, messages, places, tools)
        place = places[i]
        if place is None and not messages[i]["content"].strip():
            place = (start, start)  # nothing visible to locate: the turn is its end, or tool calls
        if place is None:
            raise TemplateError(
                f"The chat template does not write the content of message {i + 1} (assistant) once and whole, so the "
                "loss cannot be masked exactly: add {% generation %} markers to the template.",
                "the chat template does not write an answer once and whole",
            )
        begin, end = place
        if start > begin:
            raise TemplateError(
                f"The generation prompt of the chat template reaches into the answer (message {i + 1}): the template "
                "must write the same text before an answer as in a generation prompt.",
                "the generation prompt reaches into the answer",
            )
        limit = min((p[0] for p in places[i + 1 :] if p is not None and p[0] >= end), default=len(text))
        closing = [(position, -len(s)) for s in stops if (position := text.find(s, end, limit)) >= 0]
        if closing:
            position, negative = min(closing)
            return Turn(i, start, position - negative, end)
        if messages[i].get("tool_calls"):
            raise TemplateError(
                f"No stop token closes message {i + 1} in the chat template, so the end of its tool calls is unknown: "
                "let the template end an assistant turn with the tokenizer's end token.",
                "no stop token closes a turn with tool calls",
            )
        return Turn(i, start, end, end)

    def _start(
        self,
        i: int,
        text: str,
        messages: Messages,
        places: Sequence[Place | None],
        tools: Messages,
    ) -> int:
        """Where the model begins to write message i."""
        prompt = self.render(messages[:i], tools=tools, add_generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        before = places[i - 1] if i else None
        if before is not None:  # earlier turns were rewritten: compare only what follows the message before
            here = self._places(prompt, messages[:i], tools, add_generation_prompt=True)[i - 1]
            if here is not None:
                tail = prompt[here[1] :]
                if text.startswith(tail, before[1]):
                    return before[1] + len(tail)
        raise TemplateError(
            f"The generation prompt of the chat template (it ends with {prompt[-60:]!r}) is not what precedes message "
            f"{i + 1} in the whole conversation, so the loss cannot be masked exactly: make the two equal or add "
            "{% generation %} markers.",
            "the generation prompt is not what precedes an answer",
        )

    def _places(
        self,
        text: str,
        messages: Messages,
        tools: Messages,
        *,
        add_generation_prompt: bool = False,
    ) -> list[Place | None]:
        """For each message where its content begins and ends in `text`, or None where that cannot be told.

        `begin` is the first visible character; `end` lies behind the trailing white space when the template keeps it.
        """
        first = _free_characters(text + "".join(strings(list(messages))), 2 * len(messages))

        def attempt(indices: Sequence[int], keep_trailing: bool) -> dict[int, Place]:
            marked = [
                _with_marks(m, chr(first + 2 * j), chr(first + 2 * j + 1), keep_trailing) if j in indices else m
                for j, m in enumerate(messages)
            ]
            try:
                rendered = self.render(marked, tools=tools, add_generation_prompt=add_generation_prompt)
            except TemplateError:  # a template that looks into the content: the place stays unknown
                return {}
            plain, found = _take_out(rendered, first, 2 * len(messages))
            if plain != text:
                return {}
            pairs = {j: (found[2 * j], found[2 * j + 1]) for j in indices}
            known = {}
            for j, (begins, ends) in pairs.items():
                if len(ends) == 1 and len(begins) <= 1 and begins <= ends:
                    known[j] = (begins[0] if begins else ends[0], ends[0])
            return known

        everyone = range(len(messages))
        places = attempt(everyone, True) or attempt(everyone, False)
        for j in everyone:
            if j not in places:
                places.update(attempt([j], True) or attempt([j], False))
        return [places.get(j) for j in everyone]


def messages_for_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the mappings that templates are written for."""
    shown = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_calls:
            entry["tool_calls"] = [dict(call) for call in message.tool_calls]
        shown.append(entry)
    return shown


def replace_strings(value: Any, change: re.Pattern[str], by: Mapping[str, str]) -> Any:
    """The same nested value with every match inside its strings replaced."""
    if isinstance(value, str):
        return change.sub(lambda match: by[match.group()], value)
    if isinstance(value, Mapping):
        return {replace_strings(k, change, by): replace_strings(v, change, by) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [replace_strings(v, change, by) for v in value]
    return value


def strings(value: Any) -> list[str]:
    """Every string inside a nested value, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [s for pair in value.items() for v in pair for s in strings(v)]
    if isinstance(value, list | tuple):
        return [s for v in value for s in strings(v)]
    return []


def _with_marks(message: Mapping[str, Any], opening: str, closing: str, keep_trailing: bool) -> dict[str, Any]:
    content = message["content"]
    body = content.strip()
    if not body:
        return {**message, "content": content + closing if keep_trailing else closing + content}
    left = content[: len(content) - len(content.lstrip())]
    right = content[len(content.rstrip()) :]
    inside = f"{body}{right}{closing}" if keep_trailing else f"{body}{closing}{right}"
    return {**message, "content": f"{left}{opening}{inside}"}


def _take_out(marked: str, first: int, count: int) -> tuple[str, list[list[int]]]:
    """The text without the private characters first..first+count-1, and where each of them stood in it."""
    found: list[list[int]] = [[] for _ in range(count)]
    parts = []
    length = 0
    for part in re.split(f"([{chr(first)}-{chr(first + count - 1)}])", marked):
        if len(part) == 1 and first <= ord(part) < first + count:
            found[ord(part) - first].append(length)
        else:
            parts.append(part)
            length += len(part)
    return "".join(parts), found


def _free_characters(text: str, count: int) -> int:
    """The first of `count` neighbouring private-use characters that the text does not hold."""
    used = sorted({ord(c) for c in re.findall(f"[{chr(PRIVATE_FIRST)}-{chr(PRIVATE_LAST)}]", text)})
    first = PRIVATE_FIRST
    for code in [*used, PRIVATE_LAST + 1]:
        if code - first >= count:
            return first
        first = code + 1
    raise RowError("the conversation has too many messages, or uses private-use characters throughout")


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: writes its body, between MARKS when the caller gives them."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("write", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def write(self, context: jinja2.runtime.Context, caller: jinja2.runtime.Macro) -> str:
        marks = context.get(MARKS)
        return f"{marks[0]}{caller()}{marks[1]}" if marks else caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own tojson escapes HTML, which no model wants to read
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)

"""Verifiable rewards: a response is right or wrong by what its prompt's row says. 1 is right, 0 is wrong.

    exact_answer    the last number, \\boxed{...} or what follows ####, as in GSM8K, equals the row's answer
    regex           the response fits a pattern                (searched in a process of its own, with a time limit)
    json_schema     the response is JSON that fits a schema    (likewise; needs the library jsonschema)
    unit_tests      the response's code passes the row's tests (in a sandbox: `trueline.align.sandbox`)

    judge = Verifier(exact_answer, answers_of(prompts), "exact_answer")

A `Verifier` is a Judge. The answers come with the prompts (`Conversation.answer`) and are found again by the prompt's key, so
nothing between prompt and judge has to carry them.

What an answer is, for `exact_answer`: the content of the last \\boxed{}, else what follows the last ####, else what follows "A:",
"answer:" or "answer is" on the last line, else the last number of the text when the right answer is a number, and the whole text when
it is not. Numbers are equal by value (1,234.50 =
$1234.5, 1/2 = 0.5); a percent sign, a currency sign and a unit behind a number are passed over. Other texts are equal when they are
without case, spaces, $ and the marks at their ends.
Left out: symbolic mathematics (x+1 against 1+x), answers that several rows share in parts.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trueline.align.bounded import Bounded
from trueline.align.group import prompt_key
from trueline.records import Conversation, Messages
from trueline.store import fingerprint

Answers = Mapping[str, tuple[Any, ...]]
"""Prompt key -> what is right; none for a prompt that says nothing, several where a prompt stands in several rows."""
Check = Callable[[Sequence[str], Any], list[float]]
"""Responses to one prompt and its answer -> 1 or 0 for each."""
NUMBER = re.compile(r"(?<![\w.])[-+]?\s?\$?\s?(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:\s?/\s?(\d+))?")
LAST_LINE = re.compile(r"(?:^a:|\banswer(?: is|:))\s*(.*)$", re.IGNORECASE)
LONGEST_LINE = 1000
LONGEST_NUMBER = 100
"""Digits; a number that is longer is text."""


@dataclass(frozen=True)
class Verifier:
    """1 for each response that is right, 0 for the others."""

    check: Check
    answers: Answers | None = None
    """None for a check that needs none."""
    name: str = "verifier"
    rule: str = ""
    """Fingerprint of what `name` does not say, such as the contents of a schema's file."""

    def __post_init__(self) -> None:
        known = self.answers or {}
        missing = sum(not right for right in known.values())
        if missing:
            raise ValueError(
                f"{self.name} needs to know what is right, and {missing:,} of {len(known):,} prompts have no answer: "
                "give their rows a column answer, solution, ground_truth or tests"
            )

    @property
    def fingerprint(self) -> str:
        """Of the answers and of the rule."""
        return fingerprint([self.answers, self.rule])

    def judge(self, prompt: Messages, responses: Sequence[Messages]) -> list[float]:
        """One score per response. Where a prompt has several answers, one of them is enough."""
        texts = ["\n".join(message.content for message in response) for response in responses]
        if self.answers is None:
            return self.check(texts, None)
        right = self.answers.get(prompt_key(prompt), ())
        if not right:
            raise ValueError(f"{self.name}: nothing says what is right for the prompt {prompt[-1].content[:60]!r}")
        return [max(scores) for scores in zip(*(self.check(texts, answer) for answer in right), strict=True)]


def answers_of(prompts: Iterable[Conversation]) -> dict[str, tuple[Any, ...]]:
    """What is right, by the prompt's key."""
    found: dict[str, tuple[Any, ...]] = {}
    for prompt in prompts:
        key = prompt_key(prompt.messages)
        known = found.get(key, ())
        found[key] = known if prompt.answer is None or prompt.answer in known else (*known, prompt.answer)
    return found


def exact_answer(responses: Sequence[str], answer: Any) -> list[float]:
    """Whether each response ends in the answer."""
    if not isinstance(answer, str | int | float):
        raise ValueError(f"exact_answer compares texts and numbers; an answer is {str(answer)[:60]!r}")
    said = str(answer)
    right = marked(said) or said
    number = number_in(right, whole=marked(said) is None)
    return [float(_is_right(response, right, number)) for response in responses]


def _is_right(response: str, right: str, number: Fraction | None) -> bool:
    given = marked(response)
    if number is None:
        return plain(response if given is None else given) == plain(right)
    return (last_number(response) if given is None else number_in(given)) == number


def marked(text: str) -> str | None:
    """What the last \\boxed{...} holds, else what follows the last #### on its line, else "A:", "answer:" or "answer is" on the last
    line; None without any."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for place in range(begin, len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                return text[begin:place].strip()
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    lines = text.strip().splitlines()
    found = LAST_LINE.search(lines[-1][-LONGEST_LINE:]) if lines else None
    return found.group(1).strip() if found else None


def number_in(text: str, *, whole: bool = False) -> Fraction | None:
    """The first number of a text; with `whole`, of a text that is nothing but a number and its signs."""
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\,", ",").replace("−", "-").strip()
    for match in NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            around = text[: match.start()] + text[match.end() :]
            return None if whole and not re.fullmatch(r"[\s%.$€£]*", around) else value
    return None


def last_number(text: str) -> Fraction | None:
    """The last number of a text."""
    found = list(NUMBER.finditer(text.replace("\\$", "$").replace("−", "-")))
    return next((value for match in reversed(found) if (value := _value(match)) is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    before, after, below = match.groups()
    if (before is None and after is None) or len(match.group()) > LONGEST_NUMBER:
        return None
    value = Fraction((before or "0").replace(",", "") + (after or ""))
    if below is not None:
        if int(below) == 0:
            return None
        value /= int(below)
    return -value if match.group().startswith("-") else value


def plain(text: str) -> str:
    """A text without case, spaces, $ and the marks at its ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\s$]+", "", folded).strip(".,;:!?\"'`*()")


def regex(pattern: str = "", *, seconds: float = 1.0) -> Check:
    """Whether a response fits a pattern somewhere (`^` and `$` are its ends); without a pattern the row's answer is the pattern.

    A search that is not over after `seconds` is stopped, and its response is wrong. ValueError: it is no pattern.
    """
    if pattern:
        _compiled(pattern)
    return Bounded("regex", pattern or None, seconds)


def json_schema(schema: Any = None, *, seconds: float = 2.0) -> Check:
    """Whether a response is JSON, alone or in a ``` fence, that fits a JSON schema; without a schema the row's answer is one."""
    try:
        jsonschema = importlib.import_module("jsonschema")
    except ImportError:
        raise ValueError("checking JSON against a schema needs jsonschema: pip install 'trueline[verify]'") from None
    if schema is not None:
        try:
            jsonschema.validators.validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"this is no JSON schema: {error.message}") from None
    return Bounded("json_schema", schema, seconds)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern[:80]!r} is no regular expression: {error}") from None

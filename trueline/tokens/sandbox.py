"""Jinja's sandbox for chat templates, with an end: a template comes with a model, and may be written to fill the memory.

    environment = Sandbox(extensions=[...]);  environment.begin(1000);  environment.from_string(source).render(...)

Jinja keeps a template from files, attributes and code. It does not keep it from `"x" * 10**10`, from doubling a string forty
times or from loops in loops. Here a render has a budget of steps: every turn of a loop, every call and every CHARACTERS of text
made or written take one, and what an operation would make is counted before it is made. Real templates take thousands.

Left out: a bound on what Python itself spends on a step.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

STEPS = 2_000_000
"""A second or two; a conversation of a hundred messages takes thousands."""
CHARACTERS = 20
"""Of them make a step: 40 MB is the most text that a render makes in all, beside PASSES times the conversation."""
PASSES = 50
CALL = 20
"""Steps of a call or a filter, beside what it makes."""
GROWERS = frozenset(
    {"batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace", "rjust", "slice",
     "tojson", "translate", "urlize", "wordwrap", "zfill"}
)  # fmt: skip
"""Filters, functions and methods of texts whose result is as large as their arguments multiplied."""
LOOP, CONCAT = "trueline_loop", "trueline_concat"


class TooMuch(Exception):
    """The budget is spent. No TemplateError: another row would take as long."""


def size(value: Any) -> int:
    """Characters, entries, or bytes of a number."""
    if isinstance(value, int):
        return value.bit_length() // 8
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


class Budget(threading.local):
    """Steps that are left of a render; whole in a new thread."""

    left: float = STEPS


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """One per template; every thread renders one conversation at a time, with a budget of its own."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})  # which also keeps jinja from computing them while it compiles

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._written, **options)
        self._budget = Budget()
        self.filters = {name: self.guarded(name, function) for name, function in self.filters.items()}
        self.filters[LOOP] = jinja2.pass_context(lambda _, values: self._loop(values))  # with a context: never while it compiles
        self.filters[CONCAT] = jinja2.pass_context(lambda _, values: self._concat(values))
        del self.globals["lipsum"]

    def begin(self, characters: int) -> None:
        """A new render of a conversation of so many characters, with a whole budget."""
        self._budget.left = STEPS + PASSES * characters / CHARACTERS

    def spend(self, steps: float) -> None:
        self._budget.left -= steps
        if self._budget.left < 0:
            raise TooMuch

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is type(right) is str:  # what templates do most
            self.spend(1 + (len(left) + len(right)) / CHARACTERS)
            return left + right
        sizes = size(left), size(right)
        made: float
        match operator, left, right:
            case "*", str() | list() | tuple(), int():
                made = sizes[0] * max(right, 0)
            case "*", int(), str() | list() | tuple():
                made = sizes[1] * max(left, 0)
            case "*", _, _:
                made = sizes[0] * sizes[1]
            case "**", int(), int():
                made = ((sizes[0] + 1) * max(right, 0)) ** 2
            case "%", str(), _:
                made = made_by("format", [left, *(right if isinstance(right, tuple) else (right,))])
            case _:
                made = sum(sizes)
        self.spend(1 + made / CHARACTERS)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(inspect.unwrap(__obj), "__self__", None)
        __self._charge(getattr(__obj, "__name__", ""), (owner, *args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts first what it would make."""

        @functools.wraps(function)  # which keeps jinja's marks on what is handed to a filter
        def guarded(*args: Any, **kwargs: Any) -> Any:
            args = tuple(list(x) if name == "join" and isinstance(x, Iterator) else x for x in args)
            self._charge(name, (*args, *kwargs.values()))
            return function(*args, **kwargs)

        return guarded

    def _charge(self, name: str, given: tuple[Any, ...]) -> None:
        values = [x for x in given if isinstance(x, str | int | list | tuple | dict)]
        if name in GROWERS:
            self.spend(CALL + made_by(name, values) / CHARACTERS)
        else:
            self.spend(CALL + sum(map(text_size if name == "string" else size, values)) / CHARACTERS)

    def _written(self, value: Any) -> Any:
        self.spend(1 + (len(value) if type(value) is str else text_size(value)) / CHARACTERS)
        return value

    def _loop(self, values: Iterable[Any]) -> Iterable[Any]:
        if isinstance(values, Sized):
            self.spend(len(values))
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(1)
            yield value

    def _concat(self, values: list[Any]) -> str:
        self.spend(1 + sum(map(text_size, values)) / CHARACTERS)
        return "".join(map(str, values))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = _Counted().visit(super()._parse(source, name, filename))
        assert isinstance(tree, jinja2.nodes.Template)
        tree.set_environment(self)
        return tree


class _Counted(jinja2.visitor.NodeTransformer):
    """Loops go through LOOP and `a ~ b` through CONCAT, which jinja lets nobody intercept."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, LOOP)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter(jinja2.nodes.List(node.nodes, lineno=node.lineno), CONCAT)


def _filter(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def made_by(name: str, values: Sequence[Any]) -> float:
    """Characters that a grower makes of these, at most: exact where texts are put side by side, else all of them multiplied."""
    texts = [x for x in values if isinstance(x, str)]
    lists = [x for x in values if isinstance(x, list | tuple)]
    if name == "replace" and len(texts) > 2:
        text, old, new = texts[:3]
        return len(text) + text.count(old) * len(new)
    if name == "join" and lists:
        return text_size(lists[0]) + len(lists[0]) * max(map(len, texts), default=0)
    if name in ("format", "format_map") and texts and texts[0] is values[0]:
        form, given = texts[0], values[1:]
        widths = sum(abs(x) for x in given if isinstance(x, int)) if "*" in form or re.search(r"\{[^{}]*\{", form) else 0
        return wide(form) + widths + (form.count("{") + form.count("%")) * max(map(text_size, given), default=0)
    factors = ((x**2 if name == "tojson" else abs(x)) if isinstance(x, int) else text_size(x) for x in values)
    return math.prod(max(1, factor) for factor in factors)  # an indent of tojson is written on every line, once per level


def text_size(value: Any, known: dict[int, int] | None = None) -> int:
    """Characters of the text of a value, about: of a container with all that is in it, however often the same thing is."""
    if not isinstance(value, list | tuple | dict):
        return size(value)
    known = {} if known is None else known
    if id(value) not in known:
        known[id(value)] = 0
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 2 + sum(2 + text_size(one, known) for one in inside)
    return known[id(value)]


def wide(form: str) -> int:
    """The longest text that a format makes of small values: its own, and its widths."""
    return len(form) + sum(int(digits[:12]) for digits in re.findall(r"\d+", form))

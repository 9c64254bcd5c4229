"""Arms: what `--methods` names, read without knowing any method.

    dpo                                the objective with that verb, as it comes
    dpo:loss_type=ipo,beta=0.1/0.3     with options of its own; several values make several settings, the first is the arm's main one
    best_of_n:n=8/2/4                  a selector of align.select: the start answers n times, and a reward model chooses
    dpo:learning_rate=1e-5/3e-5/1e-4   learning rates of this arm's trials, as many as everybody else has
    rso:num_generations=16             responses drawn per prompt, of methods that learn from their own

An arm is tuned and compared at its main setting; the others are further points of its frontier.
Left out: what a setting trains on (rows) and for how long (budget).
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from trueline.align import select as selectors
from trueline.align.group import Group
from trueline.align.select import Pick, Select
from trueline.objectives import discover
from trueline.objectives.base import Objective
from trueline.objectives.rounds import OnPolicy
from trueline.records import Document

LEARNING_RATE = "learning_rate"
GENERATIONS = "num_generations"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of an arm: an objective to train, or a selector to answer with; exactly one of the two."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was written after the name."""
    objective: Objective | None = None
    select: Select | None = None
    n: int = 1
    """Responses drawn per answer."""
    generations: int = 0
    """Responses drawn per prompt in training, where that was written; 0: what the settings or the method say."""

    @property
    def method(self) -> dict[str, Any]:
        """What names the objective in a fingerprint: verb and every field."""
        assert self.objective is not None
        return {"verb": self.objective.verb} | asdict(self.objective)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method as it takes part."""

    name: str
    """As it was written, without learning rates."""
    verb: str
    settings: tuple[Setting, ...]
    """The main one first."""
    learning_rates: tuple[float, ...]
    """One trial each. A selector trains no policy: its trials are those of the reward model that it chooses by."""

    @property
    def main(self) -> Setting:
        return self.settings[0]

    @property
    def trains(self) -> bool:
        """Whether a policy is trained; a selector leaves the start as it is."""
        return self.main.objective is not None


def read_arms(words: Sequence[str], learning_rates: Sequence[float]) -> tuple[Arm, ...]:
    """The arms that the words name."""
    if not words:
        raise ValueError("--methods names no method: write such as --methods sft dpo best_of_n:n=8")
    if not learning_rates or min(learning_rates) <= 0:
        raise ValueError("--learning_rates needs at least one value above 0, such as 1e-5 3e-5 1e-4")
    arms = tuple(read_arm(word, tuple(learning_rates)) for word in words)
    for label, labels in itertools.groupby(sorted(setting.label for arm in arms for setting in arm.settings)):
        if len(list(labels)) > 1:
            raise ValueError(f"--methods names {label} twice: leave one out")
    return arms


def read_arm(word: str, learning_rates: tuple[float, ...]) -> Arm:
    """One word of --methods."""
    verb, _, rest = word.partition(":")
    grid = {name: values for name, values in map(read_option, rest.split(","))} if rest else {}
    given = grid.pop(LEARNING_RATE, None)
    if given is not None and len(given) != len(learning_rates):
        count = len(learning_rates)
        raise ValueError(f"--methods {word}: give {count} learning rates, as many as the others are tried with (--learning_rates)")
    rates = tuple(number(value, word) for value in given) if given else learning_rates
    objectives = discover()
    make = partial(objective_setting, objectives[verb]) if verb in objectives else partial(selector_setting, verb)
    if verb not in objectives and verb not in choosers():
        if "," in verb and "=" not in verb:
            raise ValueError(f"--methods {word}: write methods with spaces between them: {verb.replace(',', ' ')}")
        known = [*(name for name, cls in objectives.items() if takes_part(cls)), *choosers()]
        near = difflib.get_close_matches(verb, known, n=1)
        said = f"did you mean {near[0]}?" if near else f"use some of {', '.join(known)}"
        raise ValueError(f"--methods {word}: there is no method {verb!r}; {said}")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    settings = tuple(make(point, word) for point in points)
    name = verb + (":" + ",".join(f"{key}={'/'.join(values)}" for key, values in grid.items()) if grid else "")
    return Arm(name=name, verb=verb, settings=settings, learning_rates=rates)


def takes_part(cls: type[Any]) -> bool:
    """Whether an objective trains a policy, and on preferences or prompts."""
    return cls.head == "tokens" and cls().record is not Document


def read_option(text: str) -> tuple[str, list[str]]:
    """ "beta=0.1/0.3" -> ("beta", ["0.1", "0.3"])."""
    name, equals, values = text.partition("=")
    if not equals or not name or not all(values.split("/")):
        raise ValueError(f"--methods: {text!r} is no option: write name=value, or name=value/value for several")
    return name, values.split("/")


def number(text: str, word: str) -> float:
    """A learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"--methods {word}: {text!r} is no learning rate: write a number such as 1e-5")
    return value


def objective_setting(cls: type[Any], point: Mapping[str, str], word: str) -> Setting:
    """An objective with these options."""
    if cls.head != "tokens":
        raise ValueError(f"--methods {word}: {cls.verb} trains a score and no policy; leave it out, what needs a reward model gets one")
    known = leaves(cls) | ({GENERATIONS: int} if isinstance(cls(), OnPolicy) else {})
    full = {named(name, known): text for name, text in point.items()}
    options = converted(full, known, word)
    generations = options.pop(GENERATIONS, 0)
    if GENERATIONS in point and generations < 1:
        raise ValueError(f"--methods {word}: {GENERATIONS} is {generations}: draw at least 1 response to a prompt")
    try:
        objective = cls()
        for path, value in options.items():
            objective = with_leaf(objective, path.split("."), value)
    except ValueError as error:
        raise ValueError(f"--methods {word}: {error}") from None
    return Setting(label=label_of(cls.verb, point), options=options, objective=objective, generations=generations)


def leaves(cls: type[Any], before: str = "") -> dict[str, Any]:
    """Type of every field by its path; a field that is a dataclass itself is its fields: "kl.beta"."""
    found: dict[str, Any] = {}
    for item in fields(cls):
        kind = typing.get_type_hints(cls)[item.name]
        path = before + item.name
        found |= leaves(kind, path + ".") if is_dataclass(kind) and isinstance(kind, type) else {path: kind}
    return found


def named(name: str, known: Mapping[str, Any]) -> str:
    """The path that a name means: itself, or the only one that ends with it."""
    ends = [path for path in known if path.split(".")[-1] == name]
    return ends[0] if name not in known and len(ends) == 1 else name


def with_leaf(objective: Any, path: Sequence[str], value: Any) -> Any:
    """The objective with one field, of itself or of a part of it, set."""
    if len(path) > 1:
        value = with_leaf(getattr(objective, path[0]), path[1:], value)
    return replace(objective, **{path[0]: value})


def choosers() -> dict[str, Select]:
    """The selectors that give one response of a group alone: what one can answer with."""
    found: dict[str, Select] = {}
    rng = np.random.default_rng(0)
    group = Group(key="0", prompt=(), responses=((), (), ()), scores=(0.0, 2.0, 1.0))
    for name, thing in vars(selectors).items():
        if not inspect.isfunction(thing) or thing.__module__ != selectors.__name__:
            continue
        if list(inspect.signature(thing).parameters)[:2] == ["group", "rng"]:
            try:
                picks: list[Pick] = thing(group, rng)
            except (TypeError, ValueError):  # it needs more than a group
                continue
            if len(picks) == 1 and len(picks[0]) == 1:
                found[name] = thing
    return found


def selector_setting(name: str, point: Mapping[str, str], word: str) -> Setting:
    """A selector over n responses of the start."""
    select = choosers()[name]
    hints = typing.get_type_hints(select)
    known = {key: hints[key] for key in list(inspect.signature(select).parameters)[2:]} | {"n": int}
    options = converted(point, known, word)
    n = options.get("n")
    if n is None or n < 2:
        raise ValueError(f"--methods {word}: say of how many responses it chooses, at least 2: {name}:n=8")
    return Setting(label=label_of(name, point), options=options, select=partial(select, **options), n=n)


def converted(point: Mapping[str, str], known: Mapping[str, Any], word: str) -> dict[str, Any]:
    """Texts as the values that the fields take."""
    options: dict[str, Any] = {}
    for name, text in point.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            said = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"--methods {word}: there is no option {name!r}; {said}")
        kind = known[name]
        if typing.get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(one for one in typing.get_args(kind) if one is not type(None))
        if kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"--methods {word}: {name} is {text!r}: write true or false")
            options[name] = text.lower() == "true"
        elif kind in (int, float):
            try:
                options[name] = kind(text)
            except ValueError:
                raise ValueError(f"--methods {word}: {name} is {text!r}: write a number") from None
        else:
            options[name] = text
    return options


def label_of(verb: str, point: Mapping[str, str]) -> str:
    """ "dpo:beta=0.1"."""
    return verb + (":" + ",".join(f"{key}={value}" for key, value in point.items()) if point else "")

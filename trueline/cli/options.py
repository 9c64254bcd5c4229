"""Dataclasses to flags: tyro generates them; what people mistype is answered here in one sentence.

    YAML file -> words \
                        > tyro -> the dataclass          flags win over the file
    command line words /

Flags are written --like_this (--like-this is understood). Nested dataclasses are flat, but for --objective.* ; a flag of type
bool may stand alone, be followed by true or false, or be written --no_flag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import math
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

POSITIONAL = typing.get_args(tyro.conf.Positional[int])[1:]
"""The marks of a field that is no flag."""
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(cls: type[Any], words: Sequence[str], *, prog: str) -> Any:
    """An instance of the dataclass from command-line words; None when help was asked for and printed."""
    if any(word in ("-h", "--help") for word in words):
        tyro_parse(cls, ["--help"], prog)
        return None
    known = flags(cls)
    given, named = canonical(words, known, prog, loose=takes_words(cls))
    if "config" in named:
        path = Path(named["config"])
        for name, (line, values) in yaml_values(path, known, prog).items():
            if name not in named:
                joined = len(values) == 1 and not several(known[name])
                try:
                    more, also = canonical([f"--{name}={values[0]}"] if joined else [f"--{name}", *values], known, prog)
                except ValueError as error:
                    raise ValueError(f"{path}:{line}: {error}") from None
                given, named = given + more, named | also
    missing = [f"--{name} {metavar(item)}" for name, item in known.items() if item.required and name not in named]
    if missing:
        raise ValueError(f"{prog} needs {' and '.join(missing)}; see {prog} --help")
    return tyro_parse(cls, given, prog)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One field that can be set from the command line."""

    kind: Any
    required: bool
    annotation: Any
    path: str
    """The flag as tyro knows it: --objective.NAME, where the field lies deeper there."""


def takes_words(cls: type[Any]) -> bool:
    """Whether the verb takes words that follow no flag."""
    hints = typing.get_type_hints(cls, include_extras=True).values()
    return any(mark in getattr(hint, "__metadata__", ()) for hint in hints for mark in POSITIONAL)


def flags(cls: type[Any], prefix: str = "", path: str = "") -> dict[str, Flag]:
    """All flags of a dataclass by name; positional fields are not flags. What lies deeper in an objective is flat there."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, Flag] = {}
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        marks = hint.__metadata__ if typing.get_origin(hint) is Annotated else ()
        kind = typing.get_args(hint)[0] if marks else hint
        if dataclasses.is_dataclass(kind):
            inside = prefix or item.name == "objective"
            named = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), item.name)
            deeper = f"{path}{named}." if inside and named else path  # "" is flat for tyro, too
            new = flags(typing.cast(type[Any], kind), "objective." if inside else prefix, deeper)
        elif any(mark in POSITIONAL for mark in marks):
            continue
        else:
            required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            kind = bool if kind == bool | None else kind
            new = {prefix + item.name: Flag(kind, required, hint, path + item.name)}
        assert not found.keys() & new.keys(), f"two fields of {cls.__name__} share a flag: {found.keys() & new.keys()}"
        found |= new
    return found


def metavar(flag: Flag) -> str:
    """How help names the value of a flag."""
    for mark in getattr(flag.annotation, "__metadata__", ()):
        if getattr(mark, "metavar", None):
            return str(mark.metavar)
    return getattr(flag.kind, "__name__", "VALUE").upper()


def canonical(
    words: Sequence[str], known: Mapping[str, Flag], prog: str, *, loose: bool = False
) -> tuple[list[str], dict[str, str]]:
    """The words with every flag and its value checked and spelled as tyro wants it, and the flags with their first value.
    `loose`: words that follow no flag are allowed."""
    result: list[str] = []
    named: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--":
            if not loose:
                near = suggestion(word.lstrip("-").partition("=")[0].replace("-", "_"), known, "--")
                raise ValueError(f"{prog} has no use for {word!r}" + (near or ": options begin with --"))
            result.append(word)
            continue
        said, equals, value = word[2:].partition("=")
        name = said.replace("-", "_")
        if name.startswith("no_") and name not in known and name[3:] in known and known[name[3:]].kind is bool:
            name, equals, value = name[3:], "=", "false"
        if name not in known:
            raise ValueError(f"{prog} has no option --{said}" + suggestion(name, known, "--"))
        flag = known[name]
        if flag.kind is bool:
            if not equals:
                value = queue.pop(0) if queue and queue[0].lower() in TRUTH else "true"
            if value.lower() not in TRUTH:
                raise ValueError(f"--{name} is {value!r}: write true or false")
            where, _, last = flag.path.rpartition(".")
            no = f"{where}.no_{last}" if where else f"no_{last}"
            result.append(f"--{flag.path}" if TRUTH[value.lower()] else f"--{no}")
            named[name] = value
            continue
        values = [value] if equals else []
        while queue and not equals and not queue[0].startswith("--") and (several(flag) or not values):
            values.append(queue.pop(0))
        if not values and (flag.required or not several(flag)):
            raise ValueError(f"--{name} needs a value: --{name} {metavar(flag)}")
        values = [checked(name, flag, text, place) for place, text in enumerate(values)]
        # a value may begin with a dash, so a single one is joined to its flag
        result += [f"--{flag.path}", *values] if several(flag) else [f"--{flag.path}={values[0]}"]
        named[name] = next(iter(values), "")
    return result, named


def several(flag: Flag) -> bool:
    """Whether the flag takes any number of values."""
    return typing.get_origin(flag.kind) is tuple


def checked(name: str, flag: Flag, text: str, place: int = 0) -> str:
    """The value as tyro reads it; one that cannot be meant is refused with what can. `place`: how many of its flag came before."""
    kind = flag.kind
    if typing.get_origin(kind) is tuple and typing.get_origin(typing.get_args(kind)[0]) is tuple:
        kinds = typing.get_args(typing.get_args(kind)[0])  # such as pairs of a token id and a number
        kind = kinds[place % len(kinds)]
    while typing.get_origin(kind) in (tuple, types.UnionType, typing.Union):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise ValueError(f"--{name} is {text!r}: write one of {', '.join(choices)}" + suggestion(text, choices))
    elif kind is int:
        try:
            fits = abs(int(text)) < 2**63
        except ValueError:
            raise ValueError(f"--{name} is {text!r}: write a whole number") from None
        if not fits:
            raise ValueError(f"--{name} is {text}: that is too large")
    elif kind is float:
        try:
            finite = math.isfinite(float(text))
        except ValueError:
            raise ValueError(f"--{name} is {text!r}: write a number, such as 1e-5") from None
        if not finite:
            raise ValueError(f"--{name} is {text}: write a finite number")
    elif not text.strip() and flag.required:
        raise ValueError(f"--{name} is empty: write --{name} {metavar(flag)}")
    return text


def suggestion(name: str, known: Iterable[str], dashes: str = "") -> str:
    """ "; did you mean ...?", or nothing when no option is near."""
    ends = [one for one in known if one.split(".")[-1] == name]
    near = ends or difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def yaml_values(path: Path, known: Mapping[str, Flag], prog: str) -> dict[str, tuple[int, list[str]]]:
    """{flag: (line, its values)} from a YAML file whose keys are the flags ("objective" may be nested)."""
    try:
        text = path.read_text(encoding="utf-8")
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError, TypeError) as error:  # nested too deep; a date of no calendar; a key of no hash
        raise ValueError(f"{path} is not YAML that can be read here ({type(error).__name__})") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{path} must hold lines like `learning_rate: 1e-5`")
    lines: dict[str, int] = {}
    for key, _ in tree.value:
        if key.value in lines:
            raise ValueError(f"{path}:{key.start_mark.line + 1} sets {key.value!r} again: keep one of the two")
        lines[key.value] = key.start_mark.line + 1
    found: dict[str, tuple[int, list[str]]] = {}
    for key, value in content.items():
        line = lines.get(str(key), 1)
        if key == "verb":
            if f"trueline {value}" != prog:
                raise ValueError(f"{path}:{line} is for trueline {value}, and this is {prog}")
            continue
        nested = key == "objective" and isinstance(value, dict)
        for name, one in [(f"objective.{inner}", x) for inner, x in value.items()] if nested else [(str(key), value)]:
            if name not in known or name == "config":
                raise ValueError(f"{path}:{line} has the unknown key {name!r}" + suggestion(name, known))
            values = one if isinstance(one, list) else [one]
            if any(isinstance(x, list | dict) for x in values) or (isinstance(one, list) and not several(known[name])):
                wanted = "one value, or a list of them" if several(known[name]) else "one value"
                raise ValueError(f"{path}:{line}: {name} takes {wanted}")
            if one is not None:  # null is the default
                found[name] = (line, [str(x) for x in values])
    return found


def description(cls: type[Any]) -> str:
    """The docstring of a class, wrapped to the terminal."""
    width = min(100, shutil.get_terminal_size().columns)
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)


def tyro_parse(cls: type[Any], words: list[str], prog: str) -> Any:
    """tyro, with its framed error reduced to one sentence."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                cls,
                args=words,
                prog=prog,
                description=description(cls),
                use_underscores=True,
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        error: BaseException | None = stop
    while error is not None:  # what one of our dataclasses refused lies behind tyro's exit
        if isinstance(error, ValueError):
            raise ValueError(f"{error}; see {prog} --help")
        error = error.__context__
    lines = [line.strip("│╭╮╰╯─-+| ") for line in said.getvalue().splitlines()]
    raise ValueError(f"{' '.join(line for line in lines if line)}; see {prog} --help")

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
import re
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def parse(cls: type[Any], words: Sequence[str], *, prog: str) -> Any:
    """An instance of the dataclass from command-line words; None when help was asked for and printed."""
    if any(word in ("-h", "--help") for word in words):
        tyro_parse(cls, ["--help"], prog)
        return None
    known = flags(cls)
    given, named = canonical(words, known, prog)
    if "config" in named:
        path = Path(named["config"])
        for name, values in yaml_values(path, known, prog).items():
            if name not in named:
                more, also = canonical(
                    [f"--{name}={values}"] if isinstance(values, str) else [f"--{name}", *values], known, prog
                )
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


def flags(cls: type[Any], prefix: str = "") -> dict[str, Flag]:
    """All flags of a dataclass by name; positional fields are not flags."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, Flag] = {}
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        marks = hint.__metadata__ if typing.get_origin(hint) is Annotated else ()
        kind = typing.get_args(hint)[0] if marks else hint
        if dataclasses.is_dataclass(kind):
            new = flags(typing.cast(type[Any], kind), "objective." if item.name == "objective" else prefix)
        elif any(mark in typing.get_args(tyro.conf.Positional[int])[1:] for mark in marks):
            continue
        else:
            required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            new = {prefix + item.name: Flag(kind, required, hint)}
        assert not found.keys() & new.keys(), f"two fields of {cls.__name__} share a flag: {found.keys() & new.keys()}"
        found |= new
    return found


def metavar(flag: Flag) -> str:
    """How help names the value of a flag."""
    for mark in getattr(flag.annotation, "__metadata__", ()):
        if getattr(mark, "metavar", None):
            return str(mark.metavar)
    return getattr(flag.kind, "__name__", "VALUE").upper()


def canonical(words: Sequence[str], known: Mapping[str, Flag], prog: str) -> tuple[list[str], dict[str, str]]:
    """The words with every flag checked and spelled as tyro wants it, and the flags with the word after each."""
    result: list[str] = []
    named: dict[str, str] = {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--":
            result.append(word)
            continue
        said, equals, value = word[2:].partition("=")
        name = said.replace("-", "_")
        if name.startswith("no_") and name not in known and name[3:] in known and known[name[3:]].kind is bool:
            name, equals, value = name[3:], "=", "false"
        if name not in known:
            raise ValueError(f"{prog} has no option --{said}" + suggestion(name, known, "--"))
        if known[name].kind is bool:
            if not equals:
                value = queue.pop(0) if queue and queue[0].lower() in TRUTH else "true"
            if value.lower() not in TRUTH:
                raise ValueError(f"--{name} is {value!r}: write true or false")
            result.append(f"--{name}" if TRUTH[value.lower()] else f"--no_{name}")
        else:
            result.append(f"--{name}={value}" if equals else f"--{name}")
        named[name] = value if equals else next(iter(queue), "")
    return result, named


def suggestion(name: str, known: Mapping[str, Flag], dashes: str = "") -> str:
    """ "; did you mean ...?", or nothing when no option is near."""
    ends = [flag for flag in known if flag.split(".")[-1] == name]
    near = ends or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {dashes}{near[0]}?" if near else ""


def yaml_values(path: Path, known: Mapping[str, Flag], prog: str) -> dict[str, str | list[str]]:
    """{flag: its value or values} from a YAML file whose keys are the flags ("objective" may be nested)."""
    text = path.read_text(encoding="utf-8")
    try:
        content, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise ValueError(f"{path} must hold lines like `learning_rate: 1e-5`")
    lines = {key.value: key.start_mark.line + 1 for key, _ in tree.value}
    found: dict[str, str | list[str]] = {}
    for key, value in content.items():
        if key == "verb":
            if f"trueline {value}" != prog:
                raise ValueError(f"{path}:{lines[key]} is for trueline {value}, and this is {prog}")
            continue
        nested = key == "objective" and isinstance(value, dict)
        for name, one in [(f"objective.{inner}", x) for inner, x in value.items()] if nested else [(str(key), value)]:
            if name not in known or name == "config":
                where = f"{path}:{lines[str(key)]}" if str(key) in lines else str(path)
                raise ValueError(f"{where} has the unknown key {name!r}" + suggestion(name, known))
            if one is not None:  # null is the default
                found[name] = [str(x) for x in one] if isinstance(one, list) else str(one)
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
    lines = [line.strip("│ ") for line in said.getvalue().splitlines() if line.startswith("│")]
    body = lines[: next((i for i, line in enumerate(lines) if set(line) == {"─"}), len(lines))]
    sentence = re.sub(r"^(Error parsing )?([a-z]+(\.[a-z]+)*: )?", "", " ".join(body)).removesuffix(".")
    raise ValueError(f"{sentence or said.getvalue().strip()}; see {prog} --help")

"""Documented functions of Python files, with the first paragraph of their docstring.

    file -> ast -> Function(name, owner, arguments, calls, body, summary) -> filters

Left out: which files (harvest), which packages are held out (splits), rendering (prompts).
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from trueline.quickstart.sources import MAX_FILE_BYTES
from trueline.quickstart.words import STOP_WORDS, prose_words, split_name
from trueline.store import write_atomic

MAX_BODY_CHARS = 1600
MIN_BODY_CHARS = 12
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS, MAX_SUMMARY_CHARS = 3, 26, 160
MAX_PARAGRAPH_CHARS = 90
"""Of a longer first paragraph the first sentence is the summary."""

NOISE_CALLS = frozenset(
    """
    len isinstance issubclass super range print str int float bool list dict set tuple type getattr setattr hasattr
    enumerate zip iter next repr id cast TypeVar ValueError TypeError KeyError RuntimeError NotImplementedError
    AttributeError IndexError AssertionError Exception
    """.split()  # noqa: SIM905
)
"""Called everywhere, so they say nothing about one function."""

SECTION = re.compile(
    r"^\s*(args?|arguments?|param(eter)?s?|returns?|yields?|raises?|examples?|notes?|see also|references?|attributes?|usage|warnings?|"
    r"keyword arguments|inputs?|outputs?|todo)\s*:?\s*$|^\s*[-=~^*]{3,}\s*$|^\s*(:\w+[^:]*:|@\w+|\.\. |>>>|\* |- |\d+\. )",
    re.I,
)
JUNK_OPENINGS = re.compile(
    r"(see|deprecated|alias|todo|fixme|xxx|hack|note|warning|same as|inherit|overrid|override|not implemented|stub|"
    r"test|like|equivalent|ditto|refer|"
    r"placeholder|dummy|unused|docstring|as above|copied|from|usage|internal use|private|equal|shorthand for|wrapper for|wraps)\b(?!\w)",
    re.I,
)


@dataclass(frozen=True, kw_only=True)
class Function:
    """One documented function of the wild."""

    name: str
    owner: str = ""
    """Class that holds it, or empty."""
    arguments: tuple[str, ...] = ()
    """Names in order; self and cls are left out."""
    calls: tuple[str, ...] = ()
    """Dotted names of what the body calls, in order of first call."""
    body: str = ""
    """Source without signature, docstring, comments and blank lines; dedented; at most MAX_BODY_CHARS."""
    summary: str = ""
    """First paragraph of the docstring on one line, markup removed."""
    package: str = ""
    path: str = ""
    """file:line, relative to the folder of installed packages."""

    @property
    def key(self) -> str:
        """Name that tells functions apart: package, file:line and qualified name."""
        return f"{self.path}:{self.owner + '.' if self.owner else ''}{self.name}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one file holds."""

    characters: int
    functions: tuple[Function, ...]
    dropped: Counter[str]


def read_file(package: str, root: Path, path: Path) -> Reading:
    """One file of a package; its path is told relative to `root`."""
    text, dropped = read_source(path), Counter[str]()
    if text is None:
        return Reading(characters=0, functions=(), dropped=Counter({"file unreadable or too large": 1}))
    functions = read_functions(text, package, path.relative_to(root).as_posix(), dropped)
    return Reading(characters=len(text), functions=tuple(functions), dropped=dropped)


def read_source(path: Path) -> str | None:
    """Text of a Python file; None when it is too large to be written by hand or is not UTF-8."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8").replace("\r\n", "\n") if len(data) <= MAX_FILE_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def read_functions(text: str, package: str, path: str, dropped: Counter[str] | None = None) -> list[Function]:
    """Documented functions of one file that pass the filters; a file with a syntax error has none."""
    dropped = Counter() if dropped is None else dropped
    if '"""' not in text and "'''" not in text:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        dropped["file with a syntax error"] += 1
        return []
    lines = text.split("\n")
    functions: list[Function] = []

    def visit(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, child.name)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                function, reason = _read_function(child, owner, lines, package, path)
                if function:
                    functions.append(function)
                elif reason:
                    dropped[reason] += 1
                visit(child, "")
            elif isinstance(child, ast.If | ast.Try | ast.With):
                visit(child, owner)

    visit(tree, "")
    return functions


def _read_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str, lines: list[str], package: str, path: str
) -> tuple[Function | None, str]:
    """(the function, "") or (None, why not); an undocumented function has no reason."""
    doc = ast.get_docstring(node)
    if not doc:
        return None, ""
    name = node.name
    if (
        (name.startswith("__") and name.endswith("__"))
        or name.startswith("test_")
        or not [w for w in split_name(name) if len(w) > 1]
    ):
        return None, "dunder, test or one-letter name"
    if any(
        isinstance(d, ast.Name | ast.Attribute) and ast.unparse(d).split(".")[-1] in ("overload", "setter", "deleter")
        for d in node.decorator_list
    ):
        return None, "overload or setter"
    summary = clean_summary(doc)
    if not summary:
        return None, "summary too short, too long or not prose"
    rest = node.body[1:]
    if not rest or all(
        isinstance(s, ast.Pass)
        or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        or isinstance(s, ast.Raise)
        for s in rest
    ):
        return None, "no body"
    body = compact_body(lines[rest[0].lineno - 1 : rest[-1].end_lineno])
    if len(body) < MIN_BODY_CHARS:
        return None, "body too short"
    a = node.args
    arguments = [
        x.arg
        for x in (
            *a.posonlyargs,
            *a.args,
            *([a.vararg] if a.vararg else []),
            *a.kwonlyargs,
            *([a.kwarg] if a.kwarg else []),
        )
    ]
    return Function(
        name=name,
        owner=owner,
        arguments=tuple(x for x in arguments if x not in ("self", "cls", "mcs")),
        calls=tuple(called_names(rest)),
        body=body,
        summary=summary,
        package=package,
        path=f"{path}:{node.lineno}",
    ), ""


def called_names(body: Iterable[ast.stmt]) -> list[str]:
    """Dotted names of the calls in order of appearance, `self` and what everybody calls left out."""
    names: dict[str, int] = {}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                parts: list[str] = []
                target: ast.expr = node.func
                while isinstance(target, ast.Attribute):
                    parts.append(target.attr)
                    target = target.value
                if isinstance(target, ast.Name) and target.id not in ("self", "cls"):
                    parts.append(target.id)
                if parts and parts[0] not in NOISE_CALLS and not parts[0].startswith("__"):
                    names.setdefault(".".join(reversed(parts[:2])), len(names))
    return list(names)[:24]


def compact_body(lines: Sequence[str]) -> str:
    """Source lines dedented, without blank lines and comments, cut at a line end within MAX_BODY_CHARS."""
    kept = [
        re.sub(r"\s+#[^'\"]*$", "", line).rstrip()
        for line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]
    text, size = textwrap.dedent("\n".join(kept)), 0
    out: list[str] = []
    for line in text.split("\n"):
        size += len(line) + 1
        if size > MAX_BODY_CHARS and out:
            break
        out.append(line[:400])
    return "\n".join(out)


def clean_summary(doc: str) -> str:
    """First paragraph of a docstring as one line of prose, or "" when there is none of a summary's size."""
    paragraph: list[str] = []
    for line in doc.strip().split("\n"):
        if not line.strip() or SECTION.match(line):
            break
        paragraph.append(line.strip())
    text = clean_markup(" ".join(paragraph))
    if len(text) > MAX_PARAGRAPH_CHARS:  # a paragraph of several sentences: its first is the summary
        first = re.match(r"(.{15,}?[^.A-Z]\.)\s+[A-Z]", text)
        text = first.group(1) if first else text
    words = text.split()
    if not (MIN_SUMMARY_WORDS <= len(words) <= MAX_SUMMARY_WORDS and len(text) <= MAX_SUMMARY_CHARS):
        return ""
    return text if _is_prose(text, words) else ""


def clean_markup(text: str) -> str:
    """Roles, literals, emphasis and links of reStructuredText, Markdown and epytext replaced by their words."""
    text = re.sub(r"\b[A-Z]\{([^{}]*)\}", r"\1", text)
    text = re.sub(r":[\w:+-]+:`~?!?(?:[^`<]*<)?([^`>]*)>?`", lambda m: m.group(1).split(".")[-1], text)
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>`]*>`__?", r"\1", text)
    text = re.sub(r"\[`~?([^`]+)`\]", lambda m: m.group(1).split(".")[-1], text)
    text = re.sub(r"`{1,2}([^`]*)`{1,2}_{0,2}", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*])", r"\1", text)
    text = re.sub(r"\s*\[\d+\]_?", "", text)
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    return re.sub(r"\s+", " ", text).strip().removesuffix("::").rstrip(":").strip()


def _is_prose(text: str, words: list[str]) -> bool:
    if (
        not text[0].isalpha()
        or not text.isascii()
        or JUNK_OPENINGS.match(text)
        or re.search(r"\w\(.*,.*\) ?(->|=)|->|[{}\\|<>$]|https?:|=|__|#|\.\.\.", text)
    ):
        return False
    letters = sum(ch.isalpha() or ch == " " for ch in text)
    said = prose_words(text)
    if letters < 0.85 * len(text) or (not any(w in STOP_WORDS for w in said) and len(words) > 6):
        return False
    return text[-1].isalnum() or text[-1] in ".)!'\""


def normalised(text: str) -> str:
    """Lower-case words only: the form under which summaries count as equal."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def save_functions(functions: Iterable[Function], path: Path) -> None:
    """One JSON object per line, fields as in Function."""
    write_atomic(path, "".join(json.dumps(asdict(f)) + "\n" for f in functions))


def load_functions(path: Path) -> list[Function]:
    """Functions of a file that `save_functions` wrote."""
    return [as_function(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def as_function(fields: dict[str, object]) -> Function:
    """A function from the fields that JSON keeps."""
    function = Function(**fields)  # type: ignore[arg-type]
    return replace(function, arguments=tuple(function.arguments), calls=tuple(function.calls))

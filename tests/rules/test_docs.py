"""The documentation speaks of what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import trueline
from trueline.cli import verbs

ROOT = Path(trueline.__file__).parent.parent
PAGES = [path for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]]


def page_of(verb: str) -> Path:
    return ROOT / "docs" / "methods" / f"{verbs.methods()[verb].home.split(':')[0].split('.')[-1]}.md"


@pytest.mark.parametrize("verb", sorted(verbs.methods()))
def test_every_method_has_a_page(verb: str) -> None:
    """Paper, equation, metrics, numbered details with links to code."""
    text = page_of(verb).read_text(encoding="utf-8")
    for heading in ("## Paper", "## Equation", "## Logged metrics", "## Implementation details"):
        assert heading in text, f"{page_of(verb).name} has no section {heading!r}"
    assert re.search(r"^1\. ", text, re.M)


@pytest.mark.parametrize("verb", sorted(verbs.methods()))
def test_every_metric_is_explained(verb: str) -> None:
    """The names that an objective's file logs stand on its page."""
    module = verbs.methods()[verb].home.split(":")[0]
    source = (ROOT / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
    tree, logged = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            logged |= {key for key in keys if "/" in key or key in ("accuracy", "margin", "mean_reward")}
    text = page_of(verb).read_text(encoding="utf-8")
    missing = {name for name in logged | {"loss", "grad_norm", "learning_rate"} if f"`{name}`" not in text}
    assert not missing, f"{page_of(verb).name} does not explain {sorted(missing)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    """Every `trueline ...` command in a code block names a verb, and flags that it has."""
    from trueline.cli import options

    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").split("#")[0].split()
            if words[:1] != ["trueline"] or words[1:2] in (["VERB"], ["--help"], ["--version"]):
                continue
            verb, rest = verbs.find(words[1:])
            known = options.flags(verbs.load(verb))
            for word in rest:
                if word.startswith("--") and word != "--help":
                    assert word[2:].split("=")[0] in known, f"{path.name}: {line.strip()}: no option {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_hold(path: Path) -> None:
    """Links inside the repository point at files that exist, and links to code at a name that it defines."""
    text = path.read_text(encoding="utf-8")
    for target, fragment in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(?:#([\w-]+))?\)", text):
        file = path.parent / target
        assert file.exists() or target == "commands.md", f"{path.name} links to {target}"
        if fragment and file.suffix == ".py":
            defined = re.search(rf"^\s*(def|class) {fragment}\b", file.read_text(encoding="utf-8"), re.M)
            assert defined, f"{path.name} links to {target}#{fragment}"


def test_security_names_real_tests() -> None:
    """Each promise of SECURITY.md names a test that is there."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 5
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{file} has no {function}"

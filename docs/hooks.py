"""What the site has beyond the pages in this folder: the command line reference, the list of decisions, and source files.

A link to ../trueline/x.py#name works in the repository, and leads to the line of that name on the site.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from trueline.cli import main, verbs

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?:\.\./)+((?:trueline|recipes|tests|bench)/[\w/]+\.py)(?:#(\w+))?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every source file that some page links to."""
    linked = {
        target
        for page in Path(config["docs_dir"]).rglob("*.md")
        for target, _ in LINK.findall(page.read_text(encoding="utf-8"))
    }
    for target in sorted(linked):
        source = (ROOT / target).read_text(encoding="utf-8")
        text = f'---\nsearch:\n  exclude: true\n---\n# {target}\n\n~~~~~~python linenums="1"\n{source}~~~~~~\n'
        files.append(File.generated(config, f"code/{target}.md", content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def commands() -> str:
    """The help of every verb, as the program prints it."""
    os.environ["COLUMNS"] = "96"
    parts = [
        "# Command line",
        block("--help"),
        "A YAML file given with `--config` sets the same options; flags win over it.",
    ]
    parts += [f"## {name}\n\n{block(*name.split(), '--help')}" for name in verbs.everything()]
    return "\n\n".join(parts)


def block(*words: str) -> str:
    """What a command prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(words)
    return f"```text\n$ trueline {' '.join(words)}\n{said.getvalue().rstrip()}\n```"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to source files at their pages."""
    if page.file.src_uri == "decisions/index.md":
        records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
        titles = [record.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for record in records]
        markdown += "".join(f"- [{title}]({record.name})\n" for title, record in zip(titles, records, strict=True))
    up = "../" * page.file.src_uri.count("/")

    def moved(match: re.Match[str]) -> str:
        target, name = match.groups()
        return f"]({up}code/{target}.md{f'#__codelineno-0-{line_of(target, name)}' if name else ''})"

    return LINK.sub(moved, markdown)


def line_of(target: str, name: str) -> int:
    """Where a function, method or class is defined."""
    for node in ast.walk(ast.parse((ROOT / target).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node.lineno
    raise ValueError(f"{target} has no {name}")

"""How much of each budget of the house is used; `make lint` prints it, test_house.py holds it.

    python tests/rules/budgets.py

A file has at most 400 lines. The loop has at most 120 lines of code and an objective at most 150 lines: lines of code are
those that hold neither nothing but a comment nor (part of) a docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE, OBJECTIVE, LOOP = 400, 150, 120


def code_lines(path: Path) -> int:
    """Lines of a file with code on them."""
    text = path.read_text(encoding="utf-8")
    found: set[int] = set()
    idle = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def total_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def budgets() -> list[tuple[str, int, int]]:
    """(what, lines, at most) for the loop, every objective, and every file."""
    loop = ROOT / "trueline" / "train" / "loop.py"
    objectives = sorted((ROOT / "trueline" / "objectives").glob("[!_]*.py"))
    files = sorted(path for folder in ("trueline", "recipes", "bench") for path in (ROOT / folder).rglob("*.py"))
    return [
        ("the loop, " + loop.relative_to(ROOT).as_posix(), code_lines(loop), LOOP),
        *((f"objective {path.relative_to(ROOT).as_posix()}", total_lines(path), OBJECTIVE) for path in objectives),
        *((path.relative_to(ROOT).as_posix(), total_lines(path), FILE) for path in files),
    ]


def main() -> int:
    """Print the loop, the objectives and the five longest files; 1 when a budget is exceeded."""
    found = budgets()
    kinds = [[one for one in found if one[2] == limit] for limit in (LOOP, OBJECTIVE, FILE)]
    longest = sorted(kinds[2], key=lambda one: -one[1])[:5]
    for what, lines, limit in [*kinds[0], *kinds[1], *longest]:
        print(f"{lines:4} of {limit}  {what}{'  TOO LONG' if lines > limit else ''}")
    return int(any(lines > limit for _, lines, limit in found))


if __name__ == "__main__":
    sys.exit(main())

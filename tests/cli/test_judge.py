"""`trueline judge` by what is right: the names on the command line, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Trueline = Callable[..., tuple[int, str, str]]


def drawn(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Drawn responses to two sums, with the answers."""
    rows = [
        {"prompt": "1+1?", "responses": ["2", "3", "so 2", ""], "answer": "2"},
        {"prompt": "2+3?", "responses": ["6", "#### 5"], "answer": "two more: #### 5"},
    ]
    return drawn(tmp_path / "drawn.jsonl", rows)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_right_is_preferred_to_wrong(trueline: Trueline, sums: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    code, said, _ = trueline("judge", "--data", sums, "--judge", "exact_answer", "--out", out)
    assert code == 0 and "mean 0.5, from 0 to 1" in said and "1 of 6 responses are empty" in said
    pairs = {(row["prompt"], row["chosen"], row["rejected"]) for row in written(out)}
    right, wrong = ("2", "so 2"), ("3", "")
    assert pairs == {("1+1?", r, w) for r in right for w in wrong} | {("2+3?", "#### 5", "6")}
    assert {row["annotator"] for row in written(out)} == {"exact_answer"}


def test_patterns_schemas_and_rules(trueline: Trueline, sums: Path, tmp_path: Path) -> None:
    """regex:PATTERN may hold colons; a rule of three is given the answer, a rule of two is not."""
    out, schema, rules = tmp_path / "pairs.jsonl", tmp_path / "schema.json", tmp_path / "rules.py"
    schema.write_text('{"type": "integer", "maximum": 2}', encoding="utf-8")
    rules.write_text("def ends(p, r, a):\n    return r.endswith(a[-1])\n\ndef short(p, r):\n    return -len(r)\n", encoding="utf-8")
    for judge, best in {
        r"regex:^(?:so |#)": {"so 2", "#### 5"},
        f"json_schema:{schema}": {"2"},
        f"{rules}:ends": {"2", "so 2", "#### 5"},
        f"{rules}:short": {"2", "3", "6", ""},
    }.items():
        code, _, said = trueline("judge", "--data", sums, "--judge", judge, "--out", out)
        assert code == 0, said
        assert {row["chosen"] for row in written(out)} == best, judge


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("exact_answer", "1 of 1 prompts have no answer: give their rows a column answer"),
        ("regex", "prompts have no answer"),
        ("regex:(", "'(' is no regular expression"),
        ("json_schema:missing.json", "missing.json: No such file"),
        ("rule.py:bad", "judge rule.py:bad failed (ZeroDivisionError: division by zero, rule.py:2) on the response 'a'"),
        ("rule.py:none", "judge rule.py:none returned None for the response 'a': a rule returns a number"),
        ("rule.py:words", "judge rule.py:words returned 'good' for the response 'a': a rule returns a number"),
        ("rule.py:nan", "gave nan to response 1 to the prompt 'p': scores must be finite"),
    ],
)
def test_a_judge_that_fails_is_one_sentence(
    trueline: Trueline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = "def bad(p, r):\n    return 1 / 0\ndef none(p, r):\n    return None\ndef nan(p, r):\n    return float('nan')\n"
    rules += "def words(p, r):\n    return 'good'\n"
    Path("rule.py").write_text(rules, encoding="utf-8")
    data = drawn(tmp_path / "drawn.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
    out = tmp_path / "pairs.jsonl"
    out.write_text("from before\n", encoding="utf-8")
    code, _, error = trueline("judge", "--data", data, "--judge", judge, "--out", out)
    assert code == 2 and said in error and error.count("\n") == 1, error
    assert out.read_text(encoding="utf-8") == "from before\n"


def test_samples_carry_the_answer(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    data = drawn(tmp_path / "prompts.jsonl", [{"question": "1+1?", "answer": "2"}, {"question": "2+3?", "answer": "5"}])
    out = tmp_path / "drawn.jsonl"
    words = ("sample", "--model", tiny, "--data", data, "--out", out, "--n", 2, "--max_new_tokens", 3)
    code, _, said = trueline(*words)
    assert code == 0, said
    assert [row["answer"] for row in written(out)] == ["2", "5"]


def test_votes_judge_what_they_have_seen(trueline: Trueline, tmp_path: Path) -> None:
    votes = drawn(tmp_path / "votes.jsonl", [{"prompt": "p", "chosen": "b", "rejected": loser} for loser in ("a", "c")])
    data = drawn(tmp_path / "drawn.jsonl", [{"prompt": "p", "responses": ["a", "b"]}, {"prompt": "new", "responses": ["a", "b"]}])
    out = tmp_path / "pairs.jsonl"
    code, said, error = trueline("judge", "--data", data, "--judge", f"votes:{votes}", "--out", out)
    assert code == 0, error
    assert "pairs with votes: 1, without: 1; responses that nobody voted on: 2" in said
    assert "1 prompts left out: there is no verdict on one of their responses" in said
    assert [(row["prompt"], row["chosen"]) for row in written(out)] == [("p", "b")]
    code, _, error = trueline("judge", "--data", data, "--judge", "votes:missing.jsonl", "--out", out)
    assert code == 2 and "missing.jsonl does not exist" in error

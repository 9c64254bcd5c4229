"""Verifiable rewards: what counts as right, and checks that must end."""

from __future__ import annotations

import ast
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from trueline.align.group import judged
from trueline.align.verifiers import Verifier, answers_of, exact_answer, json_schema, regex
from trueline.records import Conversation, Message, Messages

GSM8K = "Natalia sold 48/2 = <<48/2=24>>24 clips in May, 48+24 in all.\n#### 72"


def prompt(text: str) -> Messages:
    return (Message(role="user", content=text),)


def said(text: str) -> Messages:
    return (Message(role="assistant", content=text),)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (GSM8K, ["#### 72", "That makes 72.", "72.0", r"\boxed{72}", "$72", "#### 72 clips", "1 + 71 = 72",
                 "A: 72", "So the answer is **72**.", "Answer: 72 of 96"],
         ["", "The answer is 73, not 72", "73", "72 or 73", "#### 73 (72)", r"72 \boxed{71}", "seventy-two", "x72", "720", "-72", "7 2"]),
        (1234.5, ["1,234.50", "$1,234.5", "#### 1234.5"], ["12,34.5", "1234", "1.2345e3"]),
        ("1/2", ["0.5", "2/4", ".5", r"\boxed{1/2}"], ["1/0", "2", "1 2"]),
        (-5, ["-5", "- 5", "−5", "#### -5"], ["5", "7-5"]),
        (0, ["0", "0.0", "-0"], ["", "1"]),
        ("Paris", ["paris", " Paris. ", "**Paris**", "It is a town. #### Paris", "A town.\nThe answer is Paris."],
         ["London", "Paris or London", "Pari"]),
        (r"so \boxed{\frac{1}{2}}", [r"\boxed{ \frac{1}{2} }", r"no \boxed{3}, \boxed{\frac{1}{2}}"], [r"\boxed{\frac{1}{2", "1/2"]),
        ("12 apples", ["12 Apples"], ["12", "13 apples"]),
        ("9" * 5000, ["9" * 5000], ["9", "9" * 4999]),
    ],
)  # fmt: skip
def test_exact_answers(answer: Any, right: list[str], wrong: list[str]) -> None:
    scores = exact_answer([*right, *wrong], answer)
    assert dict(zip([*right, *wrong], scores, strict=True)) == dict.fromkeys(right, 1.0) | dict.fromkeys(wrong, 0.0)


def test_answers_come_with_the_prompts() -> None:
    """Found again by the prompt, whatever carries it; a prompt in two rows has two answers."""
    rows = [("1+1?", 2), ("2+2?", "#### 4"), ("1+1?", "two"), ("1+1?", 2)]
    answers = answers_of(Conversation(messages=prompt(text), answer=answer) for text, answer in rows)
    judge = Verifier(exact_answer, answers, "exact_answer")
    assert judge.judge(prompt("1+1?"), [said("2"), said("two"), said("4")]) == [1, 1, 0]
    assert judge.judge(prompt("2+2?"), [said("2"), said("4")]) == [0, 1]
    with pytest.raises(ValueError, match=r"nothing says what is right for the prompt '3\+3\?'"):
        judge.judge(prompt("3+3?"), [said("6")])
    unsaid = answers_of([Conversation(messages=prompt("1+1?")), Conversation(messages=prompt("2"), answer=2)])
    with pytest.raises(ValueError, match="1 of 2 prompts have no answer: give their rows a column answer"):
        Verifier(exact_answer, unsaid, "exact_answer")
    with pytest.raises(ValueError, match="compares texts and numbers"):
        exact_answer(["x"], ["a", "list"])


def test_a_verifier_is_a_judge(make_group: Any) -> None:
    group = make_group([0, 0, 0], texts=["4", "It is 4", "5"])
    answers = answers_of([Conversation(messages=group.prompt, answer=4)])
    (found,) = judged([group], Verifier(exact_answer, answers, "exact_answer"))
    assert found.scores == (1, 1, 0) and [sample.reward for sample in found.samples] == [1, 1, 0]


def test_patterns_fit_or_do_not() -> None:
    assert regex(r"^<think>.*</think>\s*\d+$")(["<think>a</think> 4", "4", ""], None) == [1, 0, 0]
    assert regex()(["yes", "no", "yes!"], r"^yes\b") == [1, 0, 1]  # the row brings the pattern
    for pattern in ("(", "a{2,1}", r"\1"):
        with pytest.raises(ValueError, match="is no regular expression"):
            regex(pattern)
        with pytest.raises(ValueError, match="is no regular expression"):
            regex()(["x"], pattern)


def test_a_search_without_end_is_wrong_and_does_not_stop_the_others() -> None:
    check = regex(r"^(a+)+$", seconds=0.3)
    assert check(["aaa", "a" * 50 + "b", "aa", "b"], None) == [1, 0, 1, 0]
    assert check.stopped == 1  # type: ignore[attr-defined]


def test_json_fits_its_schema() -> None:
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    responses = ['{"a": 1}', '```json\n{"a": 1}\n```', '{"a": "1"}', '{"a": 1, "b": 2}', "{", "", "[" * 100_000, 'So: {"a": 1}']
    assert json_schema(schema, seconds=20)(responses, None) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert json_schema(seconds=20)(["1", "NaN"], {"type": "number"}) == [1, 0]  # NaN is no JSON
    with pytest.raises(ValueError, match="this is no JSON schema"):
        json_schema({"type": 3})
    with pytest.raises(ValueError, match="refers to what it does not hold"):  # and nothing is fetched
        json_schema({"$ref": "http://127.0.0.1:9/schema"}, seconds=20)(["1"], None)


def test_a_schema_without_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(ValueError, match=r"pip install 'trueline\[verify\]'"):
        json_schema({})


def test_published_solutions_are_judged_as_their_publishers_did() -> None:
    """GSM8K's 2,652 sampled solutions of two models, each with its verdict (Cobbe et al. 2021)."""
    folder = os.environ.get("TRUELINE_DATA")
    if not folder or not (Path(folder) / "gsm8k").is_dir():
        pytest.skip("TRUELINE_DATA names no folder with gsm8k")
    different = total = 0
    with gzip.open(Path(folder) / "gsm8k" / "example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
                solution = row[name] if isinstance(row[name], dict) else ast.literal_eval(row[name])
                different += exact_answer([solution["solution"]], row["ground_truth"]) != [float(solution["is_correct"])]
                total += 1
    assert (different, total) == (0, 2652)

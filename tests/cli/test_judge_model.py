"""`trueline judge` by a language model behind an address: what is printed, kept, left out, and said when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.align.fake_judge import longer, serving

Trueline = Callable[..., tuple[int, str, str]]
ROWS = [
    {"prompt": "Name a colour.", "responses": ["red", "dark red"]},
    {"prompt": "Name a town.", "responses": ["vague", "Rome"]},
    {"prompt": "Say hello.", "responses": ["hello", "howdy"]},
]


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    path = tmp_path / "drawn.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def chosen(path: Path) -> list[str]:
    return [json.loads(line)["chosen"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_model_judges_and_is_not_asked_again(trueline: Trueline, drawn: Path, tmp_path: Path) -> None:
    """One pair is won, one tied, one without a verdict; the second run is free; --format trueline keeps the tie."""
    out = tmp_path / "pairs.jsonl"

    def answer(question: str, number: int) -> Any:
        return "Hard to say." if "vague" in question else longer(question, number)

    with serving(answer) as server:
        words = ("judge", "--data", drawn, "--judge", server.url, "--judge_model", "m", "--out", out)
        code, said, error = trueline(*words)
        assert code == 0, error
        assert "first wins 0, second wins 1, ties 1 (0 of equal responses), no verdict 1; consistency under swap 100.0%" in said
        assert "6 requests of 600 tokens, 0 answers from the cache" in said
        assert "1 prompts left out: there is no verdict on one of their responses" in said
        assert chosen(out) == ["dark red"]
        assert (tmp_path / "pairs.jsonl.verdicts.sqlite").exists()
        code, said, _ = trueline("judge", "--data", drawn, "--judge", f"{server.url}#m", "--out", out, "--format", "trueline")
        assert code == 0 and "0 requests of 0 tokens, 6 answers from the cache" in said and len(server.questions) == 6
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["ranks"] for row in rows] == [[1, 2], [1, 1]] and {row["annotator"] for row in rows} == {f"{server.url}#m"}


def test_a_bound_and_a_fault_are_one_sentence_and_lose_nothing(
    trueline: Trueline, drawn: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("from before\n", encoding="utf-8")
    with serving(lambda question, number: longer(question, number) if number < 5 else (403, "no more credit", {})) as server:
        words = ("judge", "--data", drawn, "--judge", server.url, "--judge_model", "m", "--out", out, "--judge_workers", 1)
        code, _, error = trueline(*words, "--max_requests", 3)
        assert code == 2 and "the bound of 3 requests (--max_requests) for the judge is reached; what was judged is in" in error
        code, _, error = trueline(*words)
        assert code == 2 and "refused the request: 403 no more credit; what was judged is in" in error
        assert out.read_text(encoding="utf-8") == "from before\n" and len(server.questions) == 5
        server.answer = longer
        assert trueline(*words)[0] == 0 and len(server.questions) == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("http://127.0.0.1:9/v1#m", "--judge_retries", 0), "the judge at http://127.0.0.1:9/v1 gave no answer in 1 tries"),
        (("http://127.0.0.1:9/v1",), "--judge_model NAME"),
    ],
)  # fmt: skip
def test_nobody_there_is_one_sentence(
    trueline: Trueline, drawn: Path, tmp_path: Path, words: tuple[Any, ...], sentence: str
) -> None:
    code, _, error = trueline("judge", "--data", drawn, "--out", tmp_path / "pairs.jsonl", "--judge", *words)
    assert code == 2 and sentence in error and "Traceback" not in error
    assert not (tmp_path / "pairs.jsonl").exists()


def test_responses_that_say_nothing(trueline: Trueline, tmp_path: Path) -> None:
    """All equal, or all empty: one sentence, and no file."""
    out, rule = tmp_path / "pairs.jsonl", tmp_path / "rule.py"
    rule.write_text("def same(p, r):\n    return 1\n", encoding="utf-8")
    for responses, sentence in {("a", "b"): "all 2 responses have the same score, 1", ("", " "): "every response is empty"}.items():
        data = tmp_path / "drawn.jsonl"
        data.write_text(json.dumps({"prompt": "p", "responses": responses}) + "\n", encoding="utf-8")
        code, _, error = trueline("judge", "--data", data, "--judge", f"{rule}:same", "--out", out)
        assert code == 2 and sentence in error, error
        assert not out.exists()


def test_one_response_cannot_be_compared(trueline: Trueline, tiny: Path, drawn: Path, tmp_path: Path) -> None:
    """ppo draws one response to a prompt, and a judge of pairs would call all of them equally good."""
    code, _, error = trueline("ppo", "--model", tiny, "--data", drawn, "--judge", "http://127.0.0.1:9/v1#m", "--out", tmp_path / "run",
                              "--max_completion_length", 4, "--max_length", 64, "--max_steps", 1, "--eval_share", 0)  # fmt: skip
    assert code == 2 and "num_generations is 1: every reward would be the same" in error and "--judge_form rating" in error


def test_evaluation_draws_one_response(trueline: Trueline, tiny: Path, drawn: Path, tmp_path: Path) -> None:
    """Every eval_reward would be the same."""
    code, _, error = trueline("grpo", "--model", tiny, "--data", drawn, "--judge", "http://127.0.0.1:9/v1#m", "--out", tmp_path / "run",
                              "--max_completion_length", 4, "--max_length", 64, "--max_steps", 1, "--eval_share", 0.5)  # fmt: skip
    assert code == 2 and "evaluation draws one to a prompt: leave out eval_data and eval_share" in error


def test_training_ends_in_one_sentence_when_nobody_is_there(trueline: Trueline, tiny: Path, drawn: Path, tmp_path: Path) -> None:
    """A judge that answers at first and then is gone: exit code 2, and what it said is kept."""
    out = tmp_path / "run"
    with serving(lambda question, number: "Fair.\n[[5]]" if number < 4 else "close") as server:
        code, _, error = trueline(
            "grpo", "--model", tiny, "--data", drawn, "--judge", f"{server.url}#m", "--judge_form", "rating", "--judge_retries", 1,
            "--out", out, "--max_steps", 3, "--num_generations", 2, "--max_completion_length", 4, "--per_device_train_batch_size", 2,
            "--eval_share", 0, "--max_length", 64,
        )  # fmt: skip
    last = error.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: the judge at") and "gave no answer in 2 tries" in last and "Traceback" not in error
    assert (tmp_path / "run.verdicts.sqlite").exists()

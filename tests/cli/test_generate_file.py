"""`trueline generate --data --out`: in the file's order, the same after every kill, nothing dropped silently."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Trueline
from tests.fake_server import fake_server
from trueline.cli import batch

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "id": "a"},
    {"messages": [{"role": "user", "content": "Say hello."}]},
    {"prompt": [5, 6, 7]},
    {"prompt": "Name a colour."},
    {"question": "no prompt here"},
    {"prompt": "Count.", "seed": 9},
    {"prompt": "Name a colour. " * 300},
    {"prompt": [5, 100000]},
    {"messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One."}]},
    {"prompt": ""},
    *({"prompt": f"What is {n} + {n}?"} for n in range(6)),
]
FLAGS = ("--max_new_tokens", 6, "--max_batch", 3, "--ids", "--logprobs")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "{not json\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(found: Path, expected: Path) -> None:
    """Equal lines; log-probs to rounding, for other neighbours in the batch move their last digits."""
    for one, other in zip(read(found), read(expected), strict=True):
        for name in ("logps", "token_logps"):
            assert one.pop(name)[0] == pytest.approx(other.pop(name)[0], abs=1e-3)
        assert one == other


def test_every_row_is_answered_or_rejected(trueline: Trueline, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    code, _, said = trueline("generate", "--data", prompts, "--out", out, "--model", tiny, "--n", 2, *FLAGS)
    assert code == 0 and "24 responses" in said and "5 rows cannot be used" in said
    lines, rejects = read(out), read(tmp_path / "out.jsonl.rejects.jsonl")
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 5, 8, 10, 11, 12, 13, 14, 15]
    assert sorted(line["row"] for line in rejects) == [4, 6, 7, 9, 16] and all(line["reason"] for line in rejects)
    assert lines[0]["id"] == "a" and lines[2]["prompt"] == [5, 6, 7] and lines[1]["prompt"] == ROWS[1]["messages"]
    assert lines[5]["prompt"] == [{"role": "user", "content": "Count."}]
    for line in lines:
        assert len(line["responses"]) == len(line["finish_reasons"]) == 2 and line["responses"][0] != line["responses"][1]
        for ids, logps, total in zip(line["ids"], line["token_logps"], line["logps"], strict=True):
            assert 0 < len(ids) == len(logps) <= 6 and sum(logps) == pytest.approx(total, abs=1e-3)
    assert lines[0]["responses"] != lines[3]["responses"]  # equal prompts draw differently


def test_a_row_does_not_depend_on_its_neighbours(trueline: Trueline, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    for name, size in (("one", 1), ("many", 16)):
        words = ("--data", prompts, "--out", tmp_path / name, "--model", tiny, *FLAGS[:2], *FLAGS[4:], "--max_batch", size)
        assert trueline("generate", *words)[0] == 0
    same(tmp_path / "one", tmp_path / "many")


@pytest.mark.parametrize("stop_after", [1, 11])
def test_stopped_and_resumed_is_uninterrupted(
    trueline: Trueline, tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Stopped behind a line, with half of another one in the file, as a kill may leave it."""
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    words = ("generate", "--data", prompts, "--model", tiny, *FLAGS, "--out")
    assert trueline(*words, whole)[0] == 0
    write = batch.Answers.write

    def dying(self: batch.Answers, line: dict[str, Any]) -> None:
        write(self, line)
        if len(read(self.out)) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(batch.Answers, "write", dying)
        assert trueline(*words, parts)[0] == 130
    with open(parts, "a", encoding="utf-8") as file:
        file.write('{"row": 99, "resp')
    code, _, said = trueline(*words, parts)
    assert code == 0 and f"{stop_after} rows are there already" in said
    same(parts, whole)
    rejects = [sorted(read(Path(f"{path}.rejects.jsonl")), key=lambda row: row["row"]) for path in (whole, parts)]
    assert rejects[0] == rejects[1]
    before = parts.read_bytes()
    assert trueline(*words, parts)[0] == 0 and parts.read_bytes() == before  # a finished file stays as it is


@pytest.mark.slow
@pytest.mark.sample
def test_killed_and_resumed_is_uninterrupted(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of its work."""
    prompts, whole, parts = tmp_path / "p.jsonl", tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} + 2?"}) + "\n" for n in range(100)), encoding="utf-8")
    words = ["generate", "--data", prompts, "--model", tiny, "--max_new_tokens", 24, "--ids", "--logprobs", "--max_batch", 8, "--out"]
    assert trueline(*words, whole)[0] == 0
    for least in (10, 40):
        running = subprocess.Popen([sys.executable, "-m", "trueline", *map(str, words), str(parts)], stderr=subprocess.DEVNULL)
        while running.poll() is None and (not parts.exists() or parts.read_bytes().count(b"\n") < least):
            time.sleep(0.002)
        running.kill()
        assert running.wait() == -9 and parts.read_bytes().count(b"\n") < 100
    assert trueline(*words, parts)[0] == 0
    same(parts, whole)


def test_another_command_is_refused(trueline: Trueline, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = ("generate", "--data", prompts, "--model", tiny, "--out", out, "--max_new_tokens", 2)
    assert trueline(*words, "--limit", 2)[0] == 0 and len(read(out)) == 2
    code, _, said = trueline(*words, "--temperature", 0.5)
    assert code == 2 and "was begun with sampling" in said and said.count("\n") == 1
    assert trueline(*words, "--limit", 4)[0] == 0 and len(read(out)) == 4  # more of the same is no other command
    (tmp_path / "mine.jsonl").write_text('{"my": "data"}\n', encoding="utf-8")
    code, _, said = trueline(*words[:-3], tmp_path / "mine.jsonl")
    assert code == 2 and "was not begun by this command" in said
    assert (tmp_path / "mine.jsonl").read_text(encoding="utf-8") == '{"my": "data"}\n'


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--data", "PROMPTS"), "--data and --out go together"),
        (("--out", "x.jsonl"), "--data and --out go together"),
        (("Hi", "--data", "PROMPTS", "--out", "x.jsonl"), "keep one of the two"),
        (("--data", "nowhere.jsonl", "--out", "x.jsonl"), "nowhere.jsonl does not exist"),
        (("--data", "PROMPTS", "--out", "x.jsonl", "--top_p", "0"), "top_p must lie in"),
        (("--data", "PROMPTS", "--out", "x.jsonl", "--logit_bias", "a", "1"), "logit_bias"),
        (("Hi", "--model", "http://127.0.0.1:9/v1"), "is an address"),
    ],
)
def test_mistakes(
    trueline: Trueline, tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [str(prompts) if word == "PROMPTS" else word for word in words]
    code, _, said = trueline("generate", *named, *(() if "--model" in words else ("--model", tiny)))
    assert code == 2 and sentence in said and said.count("\n") == 1
    assert not (tmp_path / "x.jsonl").exists()


def test_a_server_answers_the_file(trueline: Trueline, tmp_path: Path, prompts: Path) -> None:
    """In order, whatever comes back first; what it refuses is a reject."""

    def reply(body: dict[str, Any]) -> str | tuple[int, Any]:
        said = str(body.get("prompt") or body["messages"][-1]["content"])
        time.sleep(0.03 if "hello" in said else 0)
        return (400, {"error": {"message": "too long"}}) if len(said) > 500 else f"<{said}>"

    out = tmp_path / "out.jsonl"
    with fake_server(reply) as fake:
        code, _, said = trueline("generate", "--data", prompts, "--out", out, "--model", fake.url, "--n", 2)
        assert code == 0 and "rows cannot be used" in said and {body["model"] for body in fake.asked} == {"fake"}
    lines = read(out)
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 5, 7, 8, 10, 11, 12, 13, 14, 15]
    assert lines[1]["responses"] == ["<Say hello.>"] * 2 and lines[2]["responses"][0] == "<[5, 6, 7]>" and "logps" not in lines[0]
    assert "too long" in next(row["reason"] for row in read(Path(f"{out}.rejects.jsonl")) if row["row"] == 6)

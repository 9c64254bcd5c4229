"""`trueline chat`: turns, commands, stopping; through a pipe, on a terminal, and with a server."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Trueline
from tests.fake_server import fake_server
from tests.tiny import tiny_model
from trueline.cli.chat import Screen, talk
from trueline.cli.dialogue import Dialogue, setting
from trueline.records import TEXT, Messages, Sampling
from trueline.serve.request import check_sampling


class Parrot:
    """Answers with what it saw, a word at a time; fails and is interrupted on demand."""

    context, reason, drawn = 100, "stop", 3

    def __init__(self) -> None:
        self.seen: list[Messages] = []
        self.seeds: list[int] = []

    def say(self, messages: Messages, sampling: Sampling) -> Generator[str]:
        self.seen.append(messages)
        self.seeds.append(sampling.seed)
        last = messages[-1].content
        if "fail" in last:
            raise ValueError("it does not fit")
        for word in (f"{len(messages)}:", f" {last.strip()}", " end"):
            if "interrupt" in last and word == " end":
                raise KeyboardInterrupt
            yield word

    def count(self, messages: Messages) -> int | None:
        return sum(len(message.content) for message in messages)

    def check(self, sampling: Sampling) -> None:
        check_sampling(sampling, 50, True)


Talk = Callable[..., tuple[str, Dialogue]]


@pytest.fixture
def spoken(capsys: pytest.CaptureFixture[str]) -> Talk:
    """Lines typed at a terminal: what is seen, and the dialogue behind it."""

    def run(*lines: str, plain: bool = False) -> tuple[str, Dialogue]:
        typed = iter(lines)

        def read(prompt: str) -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        dialogue = Dialogue(Parrot(), Sampling(max_new_tokens=7), plain=plain)
        talk(dialogue, Screen(True, read))
        return capsys.readouterr().out, dialogue

    return run


def contents(dialogue: Dialogue) -> list[str]:
    return [message.content for message in dialogue.messages]


def test_turns_follow_one_another(spoken: Talk) -> None:
    said, dialogue = spoken("Hello", "", "And you?")
    assert "1: Hello end" in said and "3: And you? end" in said and "3 tokens" in said
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 2


def test_several_lines_are_one_message(spoken: Talk) -> None:
    assert contents(spoken("one \\", "two", '"""', "three", "", "four", '"""')[1])[::2] == ["one \ntwo", "three\n\nfour"]
    assert contents(spoken('"""a"""', '"""b', 'c"""')[1])[::2] == ["a", "b\nc"]


def test_ctrl_c_stops_the_answer_and_not_the_program(spoken: Talk) -> None:
    said, dialogue = spoken("please interrupt", "^C", "go on")
    assert "stopped" in said and "Ctrl-D or /quit ends" in said
    assert contents(dialogue) == ["please interrupt", "1: please interrupt", "go on", "3: go on end"]


def test_commands(spoken: Talk, tmp_path: Path) -> None:
    settings = ("/hlep", "/temperture 1", "/set temperature 0.5")
    said, dialogue = spoken("A", "B", "/undo", "/system Be brief.", "/tokens", "C", "/retry", *settings, "//slash")
    assert contents(dialogue) == ["Be brief.", "A", "1: A end", "C", "4: C end", "/slash", "6: /slash end"]
    assert "did you mean /set temperature 1?" in said
    assert "taken back; 2 messages" in said and "did you mean /help?" in said and "of 100 tokens" in said
    assert dialogue.sampling.temperature == 0.5
    assert isinstance(dialogue.voice, Parrot) and len(set(dialogue.voice.seeds)) == 5  # /retry is another try
    said, dialogue = spoken("A", "/reset", "/undo", "/retry", "B")
    assert contents(dialogue) == ["B", "1: B end"] and "nothing to take back" in said and "no message to answer" in said
    assert "/save FILE" in spoken("/help")[0] and "B" not in spoken("/quit", "B")[0]


def test_what_fails_leaves_the_dialogue_as_it_was(spoken: Talk) -> None:
    said, dialogue = spoken("A", "fail", "/load nowhere.json", "/save", "/set top_p 7", "/set tempreature 1", "/set n 2", "B")
    assert contents(dialogue) == ["A", "1: A end", "B", "3: B end"] and dialogue.sampling == Sampling(max_new_tokens=7)
    for sentence in ("it does not fit", "nowhere.json", "/save needs a file", "top_p must lie in", "did you mean temperature?"):
        assert sentence in said.replace("\n", " ")
    assert "no setting 'n'" in said


def test_saved_and_loaded(spoken: Talk, tmp_path: Path) -> None:
    file, text = tmp_path / "d.json", tmp_path / "t.json"
    _, before = spoken("/system S", "A", f"/save {file}")
    assert json.loads(file.read_text(encoding="utf-8"))["messages"][0] == {"role": "system", "content": "S"}
    _, after = spoken(f"/load {file}", "/undo", "B")
    assert contents(after) == ["S", "B", "2: B end"]
    assert contents(spoken(f"/load {file}")[1]) == contents(before)
    _, before = spoken("A", "B", f"/save {text}", plain=True)
    _, after = spoken(f"/load {text}", "C", "/undo", plain=True)
    assert "".join(contents(before)) == contents(after)[0] and len(contents(after)) == 1


def test_plain_text_goes_on(spoken: Talk) -> None:
    _, dialogue = spoken("A", "B", "/retry", plain=True)
    assert contents(dialogue) == ["A", "1: A end", "\nB", "3: B end"] and {one.role for one in dialogue.messages} == {TEXT}


def test_a_terminal_is_not_driven_by_an_answer(spoken: Talk) -> None:
    said, _ = spoken("\x1b[2J\x07 [red]x[/red] \x9b1m")
    assert "\x1b" not in said and "\x07" not in said and "\x9b" not in said and "[red]x[/red]" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("top_k 5", {"top_k": 5}),
        (r'stop "\n\n" END', {"stop": ("\n\n", "END")}),
        ("stop_ids 3 4", {"stop_ids": (3, 4)}),
        ("logit_bias 5 -1.5 7 2", {"logit_bias": ((5, -1.5), (7, 2.0))}),
    ],
)
def test_settings(words: str, expected: dict[str, Any]) -> None:
    name, _, value = words.partition(" ")
    assert setting(Sampling(), name, value) == Sampling(**expected)


@pytest.mark.parametrize("words", ["top_k x", "top_k 1.5", "logit_bias 5", "stop_ids a", "temperature"])
def test_settings_that_cannot_be_meant(words: str) -> None:
    name, _, value = words.partition(" ")
    with pytest.raises(ValueError, match=name):
        setting(Sampling(), name, value)


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_through_a_pipe_only_answers_are_printed(trueline: Trueline, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for _ in range(2):
        piped(monkeypatch, "Name a colour.\n/tokens\nSay hello.\n")
        found.append(trueline("chat", tiny, "--mode", "chat", "--max_new_tokens", 5))
    code, out, said = found[0]
    assert code == 0 and found[0] == found[1] and "\x1b" not in out + said and "> " not in out and "of 256 tokens" in said
    assert "tokens" not in out and out.endswith("\n")


def test_a_model_that_has_not_learned_to_chat_says_so(trueline: Trueline, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "Name\n")
    code, _, said = trueline("chat", tiny, "--max_new_tokens", 3)
    assert code == 0 and "has not learned to chat" in said and "--mode chat insists" in said


@pytest.mark.parametrize(
    ("words", "typed", "sentence"),
    [
        (("--n", "2"), "", "--n is 2"),
        (("--system", "S"), "", "--system needs a chat"),
        (("--temperature", "-1"), "", "temperature must be"),
        (("--mode", "chat"), "long " * 300 + "\nnot reached\n", "the model's context holds"),
        (("--mode", "chat"), "/nothing\n", "there is no command /nothing"),
    ],
)
def test_mistakes(
    trueline: Trueline, tiny: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], typed: str, sentence: str
) -> None:
    piped(monkeypatch, typed)
    code, out, said = trueline("chat", tiny, *words)
    assert code == 2 and sentence in said and out.strip() == "" and said.count("error: ") == 1


def test_with_a_server(trueline: Trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(lambda body: f"<{len(body.get('messages', ''))} {body['temperature']}>") as fake:
        monkeypatch.setenv("MY_KEY", "sk-0123456789")
        piped(monkeypatch, "Hello\n/set temperature 0\nAgain\n")
        code, out, _ = trueline("chat", fake.url, "--key_variable", "MY_KEY", "--system", "S", "--served_name", "m")
        assert code == 0 and out == "<2 0.7>\n<4 0.0>\n" and set(fake.keys) == {"Bearer sk-0123456789"}
        assert fake.asked[0]["model"] == "m" and fake.asked[1]["messages"][2] == {"role": "assistant", "content": "<2 0.7>"}
        piped(monkeypatch, "Once\n")
        assert trueline("chat", fake.url, "--mode", "text")[1] == "<0 0.7>\n" and fake.asked[-1]["prompt"] == "Once"
    piped(monkeypatch, "Hello\n")
    code, _, said = trueline("chat", "http://127.0.0.1:9/v1")
    assert code == 2 and "cannot be reached" in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_on_a_terminal(tmp_path: Path) -> None:
    """A real one: a prompt, Ctrl-C in the middle of an endless answer, another answer, Ctrl-D."""
    model = tiny_model(tmp_path / "model", ["Name a colour. Again.\n"] * 20, context=50_000)
    ours, theirs = os.openpty()
    words = ["chat", str(model), "--mode", "text", "--max_new_tokens", "50000", "--temperature", "0"]
    command = [sys.executable, "-m", "trueline", *words]
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=own_terminal)
    os.close(theirs)
    seen = ""

    def until(text: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")
        seen = seen[seen.index(text) + len(text) :]

    until("> ")
    os.write(ours, b"Name a colour\n")
    until("\n")
    time.sleep(0.2)
    os.write(ours, b"\x03")
    until("stopped")
    until("> ")
    os.write(ours, b"/set max_new_tokens 3\n")
    until("max_new_tokens 3")
    until("> ")
    os.write(ours, b"Again\n")
    until("3 tokens")
    until("> ")
    os.write(ours, b"\x04")
    assert running.wait(30) == 0
    os.close(ours)


def own_terminal() -> None:
    """The child's terminal is the one whose Ctrl-C it gets."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

"""Verbs, help, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trueline import cli
from trueline.cli import verbs

Trueline = Callable[..., tuple[int, str, str]]
HEAVY = "{'torch', 'transformers', 'tyro', 'numpy', 'tokenizers', 'rich', 'yaml', 'jinja2', 'huggingface_hub'}"


def test_help_imports_nothing_heavy() -> None:
    """`trueline --help` under half a second: guarded by what it imports; the time is printed, not asserted."""
    check = f"from trueline.cli import main; import sys; main(['--help']); heavy = {HEAVY} & set(sys.modules); assert not heavy, heavy"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=Path(cli.__file__).parents[2]
    )
    print(f"trueline --help: {time.perf_counter() - began:.2f} s")
    assert done.returncode == 0, done.stderr
    for verb in ("pretrain", "sft", "reward", "dpo", "quickstart", "tokenizer train", "data inspect", "run", "env"):
        assert f"  {verb} " in done.stdout


def test_verbs_are_what_the_folder_of_objectives_says() -> None:
    from trueline.objectives import discover

    assert {name: verbs.resolve(verb.home) for name, verb in verbs.methods().items()} == discover()


@pytest.mark.parametrize("verb", sorted(verbs.everything()))
def test_every_verb_has_help(verb: str, trueline: Trueline) -> None:
    code, said, _ = trueline(*verb.split(), "--help")
    assert code == 0
    assert said.startswith(f"usage: trueline {verb} ")
    assert "object at 0x" not in said and "(default: )" not in said.split("--stop")[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["dop"], "there is no verb 'dop'; did you mean 'dpo'?"),
        (
            ["data", "inspekt"],
            "trueline data takes one of inspect, convert, pool, not 'inspekt': trueline data inspect --help",
        ),
        (["env", "--jsn"], "trueline env has no option --jsn; did you mean --json?"),
        (["sft", "--data", "x"], "trueline sft needs --out DIR; see trueline sft --help"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, trueline: Trueline) -> None:
    assert trueline(*words) == (2, "", f"error: {sentence}\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError from a library is not the user's mistake."""

    def broken(words: list[str]) -> int:
        return int("x")  # raised here, outside the package

    monkeypatch.setattr(cli, "dispatch", broken)
    with pytest.raises(ValueError):
        cli.main(["env"])


def test_interrupt_says_that_the_command_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", stop)
    assert cli.main(["sft"]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from the last checkpoint\n"
    assert cli.main(["env"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_full_memory_is_a_sentence(error: Exception) -> None:
    assert (cli.explain(error) or "").startswith("out of memory: lower --max_tokens_per_batch")


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'trueline', '--help'],"
         " stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); sys.stderr.buffer.write(p.stderr.read())"],
        capture_output=True, text=True, cwd=Path(cli.__file__).parents[2], env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_env_names_versions(trueline: Trueline) -> None:
    code, said, _ = trueline("env")
    assert code == 0
    assert "versions.torch" in said and "python " in said

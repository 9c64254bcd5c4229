"""Flags and YAML: one path, flags win, what is mistyped is answered with the nearest option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from trueline.cli import options

Trueline = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested and flat."""

    learning_rate: float = 1e-5
    """A rate."""
    clip: bool = True
    """A switch."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Nested and prefixed."""

    beta: float = 0.1
    """A strength."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is parsed."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A folder."""
    config: Path | None = None
    """A YAML file."""
    data: tuple[str, ...] = ()
    """Files."""
    kind: Literal["a", "b"] = "a"
    """A choice."""
    dry_run: bool = False
    """A switch."""
    objective: Method = field(default_factory=Method)
    """A method."""
    inner: Annotated[Inner, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Inner)
    """Others."""


def parse(*words: str) -> Command:
    found = options.parse(Command, words, prog="trueline test")
    assert isinstance(found, Command)
    return found


def test_flags() -> None:
    found = parse("--out", "x", "--learning-rate", "1e-3", "--objective.beta=0.2", "--data", "a", "b", "--kind", "b")
    assert found == Command(
        out=Path("x"), data=("a", "b"), kind="b", objective=Method(beta=0.2), inner=Inner(learning_rate=1e-3)
    )


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--dry_run"], True),
        (["--dry_run", "true"], True),
        (["--dry_run=False"], False),
        (["--no_dry_run"], False),
        ([], False),
    ],
)
def test_switches(words: list[str], value: bool) -> None:
    assert parse("--out", "x", *words).dry_run is value


def test_yaml_sets_the_same_fields_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "out: y\nlearning_rate: 1e-3\nclip: false\ndata: [a, b]\nobjective:\n  beta: 0.5\n", encoding="utf-8"
    )
    found = parse("--config", str(path), "--learning_rate", "2e-3")
    assert found.inner == Inner(learning_rate=2e-3, clip=False)
    assert (found.out, found.data, found.objective.beta) == (Path("y"), ("a", "b"), 0.5)
    assert parse("--config", str(path), "--clip").inner.clip is True


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--out x --learning_rat 1", "trueline test has no option --learning_rat; did you mean --learning_rate?"),
        ("--out x --beta 1", "trueline test has no option --beta; did you mean --objective.beta?"),
        ("--out x --zzz 1", "trueline test has no option --zzz"),
        ("--dry_run", "trueline test needs --out DIR; see trueline test --help"),
        (
            "--out x --learning_rate abc",
            "--learning_rate is 'abc': write a number, such as 1e-5",
        ),
        ("--out x --objective.beta -1", "beta is -1.0: it must be above 0; see trueline test --help"),
        ("--out x --dry_run=maybe", "--dry_run is 'maybe': write true or false"),
    ],
)
def test_mistakes_in_flags(words: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(*words.split())
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("out: x\nlearning_rat: 1\n", ":2 has the unknown key 'learning_rat'; did you mean learning_rate?"),
        ("out: x\nobjective:\n  betta: 1\n", ":2 has the unknown key 'objective.betta'; did you mean objective.beta?"),
        ("out: x\nverb: dpo\n", ":2 is for trueline dpo, and this is trueline test"),
        ("- 1\n", " must hold lines like `learning_rate: 1e-5`"),
        ("out: [x\n", " is not YAML: "),
    ],
)
def test_mistakes_in_yaml(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        parse("--config", str(path))
    assert str(caught.value).startswith(f"{path}{sentence}")


def test_missing_yaml_is_a_sentence(trueline: Trueline) -> None:
    code, _, said = trueline("dpo", "--config", "none.yaml")
    assert (code, said) == (2, "error: none.yaml: No such file or directory\n")

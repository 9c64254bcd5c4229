"""Objectives with groups of fields: on the command line and in YAML all fields are the objective's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from trueline.cli import verbs
from trueline.cli.method import plain_options
from trueline.cli.options import flags, parse

GIVEN = ["--data", "p.jsonl", "--out", "o", "--judge", "j.py:f"]


def options(*words: str) -> Any:
    return parse(verbs.load(verbs.methods()["ppo"]), [*GIVEN, *words], prog="trueline ppo")


def test_fields_of_groups_are_flags_of_the_objective(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--objective.kl_coef 0.2 --objective.critic shared --objective.whiten_rewards --objective.whiten_advantages false"
    found = options(*words.split())
    objective = found.objective
    assert (objective.kl.kl_coef, objective.critic, objective.shaping.whiten_rewards) == (0.2, "shared", True)
    assert not objective.values.whiten_advantages and objective.update.num_iterations == 4  # the method's own default
    assert "objective.kl_coef" in flags(type(found)) and objective.verb == "ppo"
    options("--help")
    said = capsys.readouterr().out
    assert "--objective.kl_coef" in said and "--objective.kl.kl_coef" not in said
    with pytest.raises(ValueError, match="kl_estimator"):
        options("--objective.kl_estimator", "k4")
    with pytest.raises(ValueError, match="epsilon is -1"):
        options("--objective.epsilon", "-1")


def test_what_is_kept_of_a_command_can_be_read_again(tmp_path: Path) -> None:
    before = options("--objective.lam", "0.9", "--objective.ptx_data", "corpus.txt")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"verb": "ppo", **plain_options(before)}), encoding="utf-8")
    again = options("--config", str(tmp_path / "c.yaml"))
    assert asdict(again.objective) == asdict(before.objective) and again.objective.values.lam == 0.9

"""Verbs whose rows the policy draws: their options, a run and its repetition, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.align.fake_judge import longer, serving
from trueline.cli.method import options_of
from trueline.cli.options import flags
from trueline.models.files import load_scalar_model, save_model
from trueline.objectives import discover
from trueline.objectives.rounds import OnPolicy
from trueline.run import read_lines
from trueline.tokens import load_tokenizer

Trueline = Callable[..., tuple[int, str, str]]
RULES = """
def short(prompt, response):
    return -len(response)

def right(prompt, response, answer):
    assert answer == "Blue.", answer
    return float(len(response))

def broken(prompt, response):
    return 1 / 0
"""
DRAWING = {"num_generations", "max_completion_length", "temperature", "missing_eos_penalty", "judge", "reward_model"}
SHORT = ("--max_steps", 2, "--max_completion_length", 6, "--logging_steps", 1, "--max_length", 64, "--per_device_train_batch_size", 4,
         "--save_steps", 0, "--report_to")  # fmt: skip


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES, encoding="utf-8")
    return path


def test_sampling_options_are_those_of_methods_that_sample() -> None:
    for verb, method in discover().items():
        known = set(flags(options_of(method)))
        assert known & DRAWING == (DRAWING if isinstance(method(), OnPolicy) else set()), verb
        assert not {"top_k", "top_p", "min_p"} & known
        for name, value in dict(method.defaults).items():
            assert name in known, f"{verb}: {name} = {value}"


def test_a_run_by_a_rule_and_once_more(trueline: Trueline, tiny: Path, pairs: Path, rules: Path, tmp_path: Path) -> None:
    """Prompts of a file of pairs; the repetition from its folder draws and learns the same."""
    out = tmp_path / "run"
    code, _, said = trueline("online-dpo", "--model", tiny, "--data", pairs, "--judge", f"{rules}:short", "--out", out,
                             "--eval_share", 0.4, "--sample_steps", 2, *SHORT)  # fmt: skip
    assert code == 0, said
    assert "prompts from" in said and "sampler vs trainer log-probs: max difference" in said and "second copy" in said
    assert re.search(r"online-dpo \d+/\d+  loss \S+ .* reward -\d", said)
    lines = read_lines(out / "metrics.jsonl")
    names = {"reward", "reward_std", "completions/mean_length", "completions/clipped_ratio", "objective/kl", "time/sampling", "loss"}
    assert names <= set(lines[0]) and any("eval_reward" in line for line in lines)
    samples = read_lines(out / "samples.jsonl")
    assert {"prompt", "response", "reward", "finish_reason"} <= set(samples[0])
    assert samples[0]["reward"] == -len(samples[0]["response"])
    kept = yaml.safe_load((out / "command.yaml").read_text(encoding="utf-8"))
    assert kept["num_generations"] == 2 and kept["objective"]["beta"] == 0.1
    code, said, _ = trueline("run", out)
    assert code == 0 and "equal, bit for bit" in said


def test_a_reward_model_scores_the_drawn_ids(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    reward = tmp_path / "reward"
    save_model(load_scalar_model(tiny, seed=1, pad_token_id=0), reward)
    load_tokenizer(tiny).save(reward)
    code, _, said = trueline("online-dpo", "--model", tiny, "--data", pairs, "--reward_model", reward, "--out", tmp_path / "run", *SHORT)
    assert code == 0, said
    line = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    assert line["frac_reward_zero_std"] == 0 and line["reward"] != 0


def test_a_dry_run_counts_responses_and_steps(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    code, said, _ = trueline("online-dpo", "--model", tiny, "--data", pairs, "--out", tmp_path / "run", "--dry_run",
                             "--num_generations", 3, "--per_device_train_batch_size", 2, "--max_completion_length", 8,
                             "--max_length", 64)  # fmt: skip
    words = " ".join(said.split())
    assert code == 0 and "responses per round 6" in words and "steps 2" in words and "What is 2 + 2?" in said
    assert "trained on:" not in said  # what is trained on is yet to be drawn
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_fields_of_groups_as_flags(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    code, said, _ = trueline("grpo", "--model", tiny, "--data", pairs, "--out", tmp_path / "run", "--dry_run",
                             "--max_completion_length", 8, "--max_length", 64)  # fmt: skip
    assert code == 0 and "num_iterations 1" in " ".join(said.split()) and "{" not in said


def test_the_answer_of_a_row_reaches_the_rule(trueline: Trueline, tiny: Path, rules: Path, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(json.dumps({"prompt": "Name a colour.", "answer": "Blue."}) + "\n", encoding="utf-8")
    code, _, said = trueline("online-dpo", "--model", tiny, "--data", data, "--judge", f"{rules}:right", "--out", tmp_path / "run",
                             *SHORT)  # fmt: skip
    assert code == 0, said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give --judge FILE.py:FUNCTION or --reward_model DIR, one of the two"),
        (("--judge", "RULES:short", "--reward_model", "x"), "one of the two"),
        (("--judge", "RULES:broken"), "broken failed (ZeroDivisionError"),
        (("--judge", "RULES:nothing"), "has no function 'nothing'"),
        (("--reward_model", "MODEL"), "is a language model, not a reward model"),
        (("--judge", "RULES:short", "--temperature", "0"), "temperature is 0.0: it must be above 0"),
        (("--judge", "RULES:short", "--num_generations", "1"), "needs at least 2 responses"),
        (("--judge", "RULES:short", "--data_weights", "1", "2"), "--data_weights has 2 numbers for 1 sources"),
        (("--judge", "RULES:short", "--max_completion_length", "300", "--max_length", "400"), "model's context is 256"),
    ],
)
def test_mistakes_get_one_sentence(
    more: tuple[str, ...], said: str, trueline: Trueline, tiny: Path, pairs: Path, rules: Path, tmp_path: Path
) -> None:
    words = [word.replace("RULES", str(rules)).replace("MODEL", str(tiny)) for word in more]
    code, _, complaint = trueline("online-dpo", "--model", tiny, "--data", pairs, "--out", tmp_path / "run", *SHORT, *words)
    last = complaint.strip().splitlines()[-1]
    assert code == 2 and said in last and last.startswith("error: ") and "Traceback" not in complaint
    if "broken" in said:
        assert "ZeroDivisionError" in last


def test_an_edited_rule_is_another_judge(trueline: Trueline, tiny: Path, pairs: Path, rules: Path, tmp_path: Path) -> None:
    words = ("online-dpo", "--model", tiny, "--data", pairs, "--judge", f"{rules}:short", "--out", tmp_path / "run", *SHORT)
    assert trueline(*words)[0] == 0
    assert trueline(*words)[0] == 0  # finished, and the same
    rules.write_text(RULES.replace("-len(response)", "len(response)"), encoding="utf-8")
    code, _, said = trueline(*words)
    assert code == 2 and "was started with judge.contents = " in said
    assert "give --judge as it was (the same name holds something else now) to resume" in said


def test_prompts_without_a_vote_are_not_learned_from(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """Nobody voted on what a random model says: it is said, and the run ends instead of learning from the middle of the scale."""
    words = ("--model", tiny, "--data", pairs, "--judge", f"votes:{pairs}", "--num_generations", 2)
    code, _, said = trueline("rloo", "--out", tmp_path / "run", *words, *SHORT)
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: 20 rounds in a row gave nothing to learn from: the judge has no verdict on any")
    assert "4 of 4 prompts of a round are left out: the judge has no verdict on one of their responses" in said
    assert "pairs with votes: 0, without: 80; responses that nobody voted on: 160" in said


@pytest.mark.slow
@pytest.mark.sample
def test_memory_and_time_are_foretold(trueline: Trueline, tiny: Path, pairs: Path, rules: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    options = {"verb": "grpo", "model": str(tiny), "data": [str(pairs)], "judge": f"{rules}:short", "max_steps": 3, "num_generations": 2}
    file.write_text(yaml.safe_dump(options | {"max_completion_length": 8, "max_length": 64}), encoding="utf-8")
    code, said, complaint = trueline("plan", file)
    assert code == 0, complaint
    assert "keys and values of what is drawn" in said and "min 3 steps, " in said and "fits into" in said
    assert re.search(r"sampling \d+%, scoring \d+%, learning \d+%; every response", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl", "rules.py", "run.yaml"]  # nothing is written


def test_prompts_of_several_files_are_mixed(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": f"Number {n}?"}) + "\n" for n in range(9)), encoding="utf-8")
    code, said, complaint = trueline("online-dpo", "--model", tiny, "--data", pairs, more, "--data_weights", 1, 2,
                                     "--out", tmp_path / "run", "--dry_run", "--max_train_samples", 6,
                                     "--max_completion_length", 8, "--max_length", 64)  # fmt: skip
    assert code == 0, complaint
    assert "mixture of 6 rows: " in complaint and "6 prompts from 6 records" in said


@pytest.mark.slow
def test_a_language_model_judges_many_prompts_at_once(trueline: Trueline, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    """By OpenAI's protocol; its answers are kept beside the run, so that the repetition asks nothing."""
    with serving(longer) as server:
        words = ("--model", tiny, "--data", pairs, "--judge", server.url, "--judge_model", "m", *SHORT)
        code, _, said = trueline("online-dpo", "--out", tmp_path / "run", *words)
        assert code == 0, said
        asked = len(server.questions)
        assert asked >= 8 and "pairs: first wins" in said and (tmp_path / "run.verdicts.sqlite").exists()
        code, _, said = trueline("online-dpo", "--out", tmp_path / "again", "--judge_cache", tmp_path / "run.verdicts.sqlite", *words)
        assert code == 0 and len(server.questions) == asked
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


def test_a_pair_is_two_ratings_and_the_counts_say_so(trueline: Trueline, tiny: Path, tmp_path: Path) -> None:
    line = {"prompt": "What is 1 + 1?", "chosen": "two", "rejected": "three"}
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(line | {"prompt": f"What is {k} + 1?"}) + "\n" for k in range(3)), encoding="utf-8")
    code, said, complaint = trueline("dprm", "--model", tiny, "--data", data, "--out", tmp_path / "run", "--dry_run")
    assert code == 0 and "6 rows from" in said and ": 3 read, 6 records of them used" in " ".join(said.split()), said + complaint

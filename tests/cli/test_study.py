"""`trueline study` from the command line: what it would do, and what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.align.fake_judge import longer, serving
from tests.cli.conftest import Trueline


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough prompts for every part."""
    path = tmp_path / "many.jsonl"
    rows = [{"prompt": f"What is {a} + {b}?", "chosen": f"It is {a + b}.", "rejected": "No."} for a in range(8) for b in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    path = tmp_path / "rule.py"
    path.write_text("def short(prompt, response):\n    return -len(response)\n", encoding="utf-8")
    return path


def test_dry_run_prints_the_cells_and_writes_nothing(tiny: Path, many: Path, tmp_path: Path, trueline: Trueline) -> None:
    out = tmp_path / "study"
    code, said, complained = trueline(
        "study", "--model", tiny, "--data", many, "--out", out, "--methods", "sft", "dpo:beta=0.1/0.3", "best_of_n:n=4",
        "online-dpo", "--updates", 8, "--seeds", 0, 1, "--max_new_tokens", 8, "--dry_run",
    )  # fmt: skip
    assert code == 0 and not complained and not out.exists()
    lines = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert lines["sft"][1:3] == ["4", "8"], "two more trials, and two seeds"
    assert lines["dpo:beta=0.1/0.3"][1:3] == ["6", "8"]
    assert lines["best_of_n:n=4"][1] == "0"
    assert "judge" in lines and int(lines["judge"][1]) > 0, "nobody judges, so a reward model has to"
    assert sum(int(lines[side][1]) for side in ("train", "judge", "tuning", "report")) == 64


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "dpoo"], "--methods dpoo: there is no method 'dpoo'; did you mean dpo?"),
        (["--methods", "dpo", "--updates", "5", "--tokens", "100"], "--updates and --tokens are 2 budgets: give one"),
        (["--methods", "dpo", "--seeds", "1", "1"], "--seeds needs different numbers of at least 0, such as 0 1"),
        (["--methods", "dpo", "--reward", "judge"], "--reward judge needs a --judge"),
        (["--methods", "pretrain"], "a preference file gives no Document records"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, tiny: Path, many: Path, tmp_path: Path, trueline: Trueline
) -> None:
    code, _, complained = trueline("study", "--model", tiny, "--data", many, "--out", tmp_path / "study", *words)
    assert code == 2 and sentence in complained and complained.count("\n") == 1
    assert not (tmp_path / "study" / "run.json").exists()


def test_a_budget_that_is_too_small(tiny: Path, many: Path, rule: Path, tmp_path: Path, trueline: Trueline) -> None:
    """The tokens that the reward model takes are its method's; what is left must be worth an update."""
    words = ["--methods", "dpo", "--tokens", 10, "--judge", f"{rule}:short"]
    code, _, complained = trueline("study", "--model", tiny, "--data", many, "--out", tmp_path / "study", *words)
    assert code == 2 and "10 tokens are too few for dpo" in complained


def test_dry_run_says_what_a_judge_is_asked(tiny: Path, many: Path, tmp_path: Path, trueline: Trueline) -> None:
    """Verdicts and requests at most; more than the bound are refused before anything is asked; nobody listens at the address."""
    out = tmp_path / "study"
    words = ["--model", tiny, "--data", many, "--out", out, "--methods", "dpo", "best_of_n:n=2", "--updates", 8, "--max_new_tokens", 8,
             "--report_prompts", 5, "--tuning_prompts", 3, "--samples", 1, "--judge", "http://127.0.0.1:9/v1#judge"]  # fmt: skip
    code, said, _ = trueline("study", *words, "--dry_run")
    assert code == 0 and not out.exists()
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in said.splitlines() if line.strip()}
    assert rows["tuning"] == ["9", "18"] and rows["report, against the start"] == ["50", "100"]
    assert rows["report, between methods"] == ["10", "20"]
    for more in (["--dry_run"], []):
        code, _, complained = trueline("study", *words, "--max_requests", 117, *more)
        assert code == 2 and "asked up to 118 times, and --max_requests is 117" in complained and complained.count("\n") == 1


@pytest.mark.slow
def test_a_language_model_behind_an_address(tiny: Path, many: Path, tmp_path: Path, trueline: Trueline) -> None:
    """Its verdicts are kept beside the report: the same command asks nothing."""
    out = tmp_path / "study"
    with serving(longer) as server:
        words = ["--model", tiny, "--data", many, "--out", out, "--methods", "dpo", "--updates", 2, "--max_new_tokens", 4, "--samples", 1,
                 "--report_prompts", 5, "--tuning_prompts", 3, "--learning_rates", "1e-2", "--judge", f"{server.url}#judge"]  # fmt: skip
        asked = []
        for _ in range(2):
            code, said, complained = trueline("study", *words)
            assert code == 0 and "report.html" in said, complained
            asked.append(len(server.questions))
        assert asked[0] == asked[1] > 0 and (out / "verdicts.sqlite").exists()
    assert "judged by judge_(pairs)" in complained


def test_few_prompts(tiny: Path, pairs: Path, tmp_path: Path, trueline: Trueline) -> None:
    code, _, complained = trueline("study", "--model", tiny, "--data", pairs, "--out", tmp_path / "study", "--methods", "dpo")
    assert code == 2 and "bring more prompts" in complained


def test_another_judge_has_another_key(tiny: Path, tmp_path: Path) -> None:
    """What finished work is named by holds all that a score depends on: weights, a schema, a pattern, the length that is read."""
    from trueline.cli.study import Study
    from trueline.models.files import load_scalar_model, save_model
    from trueline.study.contest import shown_as
    from trueline.study.settings import Settings
    from trueline.tokens import load_tokenizer

    for seed, name in enumerate(("helpful", "harmless")):
        save_model(load_scalar_model(tiny, seed=seed, pad_token_id=0), tmp_path / name)
        load_tokenizer(tiny).save(tmp_path / name)
    schema = tmp_path / "schema.json"

    def key(judge: str, max_length: int = 64) -> str:
        study = Study(data=(), methods=(), out=tmp_path / "out", judge=judge, settings=Settings(max_length=max_length))
        return study.judging([])[1]

    def total(weight: float) -> str:
        return f"{tmp_path}/helpful=0.7,{tmp_path}/harmless={weight}"

    keys = [key(total(0.3)), key(total(5)), key(total(0.3), 32), key(str(tmp_path / "helpful")), key(str(tmp_path / "helpful"), 32)]
    for contents in ('{"type": "object"}', '{"type": "array"}'):
        schema.write_text(contents, encoding="utf-8")
        keys.append(key(f"json_schema:{schema}"))
    keys += [key("regex:a b"), key("regex:a_b")]
    assert len(set(keys)) == len(keys) and key(total(0.3)) == keys[0]
    assert keys[0].startswith("0.7_helpful_+_0.3_harmless ") and all(one.count(" ") == 1 for one in keys)
    judge, _ = Study(data=(), methods=(), out=tmp_path, judge=total(0.3)).judging([])
    assert judge is not None and shown_as(judge) == "0.7 helpful + 0.3 harmless"


def test_dry_run_counts_what_a_judge_that_drives_is_asked(tiny: Path, many: Path, tmp_path: Path, trueline: Trueline) -> None:
    """A language model that rates and drives PPO is asked of every draw in training; where a probe decides on them, that is said."""
    words = ["--model", tiny, "--data", many, "--out", tmp_path / "study", "--methods", "ppo", "--max_new_tokens", 8, "--samples", 1,
             "--report_prompts", 5, "--tuning_prompts", 3, "--judge", "http://127.0.0.1:9/v1#judge", "--judge_form", "rating",
             "--reward", "judge", "--num_generations", 4, "--dry_run"]  # fmt: skip
    code, said, complained = trueline("study", *words, "--updates", 8)
    assert code == 0, complained
    (line,) = [line.split() for line in said.splitlines() if line.startswith("  training") or line.startswith("training")]
    assert int(line[1].replace(",", "")) >= (3 - 1 + 2) * 16 * 4 and line[1] == line[2]
    code, _, complained = trueline("study", *words, "--updates", 8, "--max_requests", 100)
    assert code == 2 and "--max_requests is 100" in complained and "--num_generations" in complained
    code, said, complained = trueline("study", *words, "--minutes", 1)
    assert code == 0 and "on top: a probe decides how much is drawn" in " ".join(said.split()), complained
